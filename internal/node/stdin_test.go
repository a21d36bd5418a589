package node

import (
	"errors"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// TestInputThatIsNotRead: a call that has more than a command reads says how
// much was taken, and can be repeated from there.
func TestInputThatIsNotRead(t *testing.T) {
	m := &earlier{keys: []string{}, read: make(chan int64)}
	n, keep := nodeAfter(t, t.TempDir(), time.Minute, m)
	n.stdinWait = 50 * time.Millisecond
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	spec := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "cat", Stdin: true}}
	if _, err := n.Exec(t.Context(), m.id, spec, false); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, wire.Window+100)
	start := time.Now()
	_, err := n.WriteStdin(t.Context(), m.id, spec.ID, skerry.StdinParams{Data: data})
	e, _ := errors.AsType[*skerry.Error](err)
	if e == nil || e.Code != skerry.CodeStdinTimeout || e.BytesWritten == nil || *e.BytesWritten > wire.Window || time.Since(start) < n.stdinWait {
		t.Fatalf("input that is not read: %v after %s", err, time.Since(start))
	}
	m.read <- *e.BytesWritten
	n.stdinWait = time.Minute
	from := int64(0) // what was taken is not taken again
	if sent, err := n.WriteStdin(t.Context(), m.id, spec.ID, skerry.StdinParams{Data: data, Offset: &from}); err != nil || sent != int64(len(data)) {
		t.Errorf("repeated, %d of %d bytes were taken: %v", sent, len(data), err)
	}
	close(m.read)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
