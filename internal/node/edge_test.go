package node

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// TestErrorsAtTheEdge has every method of a node fail, with an error that nobody
// foresaw where there is one.
func TestErrorsAtTheEdge(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	n.cfg.Snapshots = shelf{fails: os.ErrPermission}
	n.cfg.Images = noImage{}
	ctx, none, odd := t.Context(), skerry.NewID(skerry.PrefixSession), "../odd"
	errs := map[string]func() error{
		"Start":        func() error { return n.Start(ctx, nodeapi.SessionSpec{ID: none}) },
		"Start odd":    func() error { return n.Start(ctx, nodeapi.SessionSpec{ID: odd}) },
		"Start again":  func() error { return n.Start(ctx, nodeapi.SessionSpec{ID: m.id}) },
		"Forget":       func() error { return n.Forget(ctx, odd) },
		"Pause":        func() error { return n.Pause(ctx, none) },
		"Resume":       func() error { return n.Resume(ctx, none) },
		"SetNetwork":   func() error { return n.SetNetwork(ctx, none, nodeapi.NetworkSpec{}) },
		"Snapshot":     func() error { _, err := n.Snapshot(ctx, m.id, nodeapi.Saving{Lease: "lease"}); return err },
		"Capture":      func() error { return n.Capture(ctx, m.id, odd) },
		"Capture none": func() error { return n.Capture(ctx, none, "capture") },
		"Keep":         func() error { _, err := n.Keep(ctx, odd, "lease"); return err },
		"Discard":      func() error { return n.Discard(ctx, odd) },
		"Exec":         func() error { _, err := n.Exec(ctx, m.id, nodeapi.CommandSpec{ID: odd}, false); return err },
		"WriteStdin":   func() error { _, err := n.WriteStdin(ctx, m.id, odd, skerry.StdinParams{}); return err },
		"Output":       func() error { _, err := n.Output(ctx, odd, odd); return err },
		"Drop":         func() error { return n.Drop(ctx, none, odd) },
		"Signal":       func() error { return n.Signal(ctx, m.id, odd, 9) },
		"Terminal":     func() error { _, err := n.Terminal(ctx, none, skerry.TerminalParams{}); return err },
		"WriteFiles":   func() error { return n.WriteFiles(ctx, none, "/", strings.NewReader("")) },
		"ReadFile":     func() error { _, err := n.ReadFile(ctx, none, "/", "x"); return err },
		"MakeDir":      func() error { return n.MakeDir(ctx, none, "/", "x", true) },
		"Dial":         func() error { _, err := n.Dial(ctx, m.id, 0, netip.Addr{}); return err },
		"a file":       func() error { _, err := (&file{ReadCloser: broken{}, ctx: ctx}).Read(nil); return err },
		"output":       func() error { _, err := (commandOutput{broken{}, func() {}}).Next(); return err },
		"Stop in time": func() error { m.stops = []error{os.ErrPermission}; _, err := n.Stop(ctx, m.id); return err },
	}
	for what, call := range errs {
		err := call()
		if _, ok := errors.AsType[*skerry.Error](err); !ok {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := n.Start(ctx, nodeapi.SessionSpec{ID: none}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("the cause is lost: %v", err)
	}
	if _, err := (&file{ReadCloser: io.NopCloser(strings.NewReader("")), ctx: ctx}).Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the end of a file: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

type noImage struct{ anyImage }

func (noImage) Path(string) (string, error) { return "", os.ErrPermission }

// broken is a stream that cannot be read.
type broken struct{}

func (broken) Read([]byte) (int, error)     { return 0, os.ErrPermission }
func (broken) Next() (skerry.Output, error) { return skerry.Output{}, os.ErrPermission }
func (broken) Close() error                 { return nil }

// TestContextErrorsAtTheEdge has a caller go away.
func TestContextErrorsAtTheEdge(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	err := func() (err error) {
		defer edge(gone, &err)
		return gone.Err()
	}()
	if err != context.Canceled {
		t.Errorf("the caller has gone: %v", err)
	}
}
