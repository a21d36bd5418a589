package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// counted signs tokens that have a number.
type counted struct {
	mu   sync.Mutex
	n    int
	life time.Duration
	fail error
}

func (c *counted) Workload(_ context.Context, sessionID string, owner nodeapi.Owner, audience string) (string, time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return fmt.Sprintf("%s/%s/%s/%d", owner.SandboxName, audience, sessionID, c.n), time.Now().Add(c.life), c.fail
}

func (c *counted) signed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counted) set(fail error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

// tokenLab is a node whose tokens are looked at often.
func tokenLab(t *testing.T, life time.Duration) (*Node, *fake.Driver, *counted) {
	t.Helper()
	d, tokens := fakeDriver(t, fake.Config{}), &counted{life: life}
	n := fakeNodeWith(t, d, func(c *Config) { c.Tokens = tokens })
	n.tokenLook = 10 * time.Millisecond
	return n, d, tokens
}

func withToken(audience string) nodeapi.SessionSpec {
	return nodeapi.SessionSpec{Audience: audience, Network: nodeapi.NetworkSpec{Owner: nodeapi.Owner{SandboxName: "box"}}}
}

// tokenOf returns the token in a sandbox's file, "" without a file.
func tokenOf(t *testing.T, d *fake.Driver, id string) string {
	t.Helper()
	b, err := os.ReadFile(d.Machine(id).Root() + wire.TokenFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

func TestWorkloadToken(t *testing.T) {
	n, d, tokens := tokenLab(t, time.Hour)
	none := startOn(t, n, nodeapi.SessionSpec{})
	if got := tokenOf(t, d, none); got != "" || runOn(t, n, none, "echo $"+TokenVariable) != "\n" || tokens.signed() != 0 {
		t.Errorf("without an audience: %q, %d signed", got, tokens.signed())
	}
	id := startOn(t, n, withToken("sts"))
	if got := tokenOf(t, d, id); got != "box/sts/"+id+"/1" {
		t.Errorf("the token is %q", got)
	}
	if got := runOn(t, n, id, "echo $"+TokenVariable); got != wire.TokenFile+"\n" {
		t.Errorf("the variable is %q", got)
	}
	if info, err := os.Stat(d.Machine(id).Root() + wire.TokenFile); err != nil || info.Mode() != 0o400 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// A snapshot does not bring the token along.
	saved, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Lease: "lease"})
	if err != nil {
		t.Fatal(err)
	}
	from := startOn(t, n, nodeapi.SessionSpec{Snapshot: saved.Manifest})
	if got := tokenOf(t, d, from); got != "" {
		t.Errorf("a session from the files has the token %q", got)
	}
	spec := withToken("vault")
	spec.Snapshot = saved.Manifest
	from = startOn(t, n, spec)
	if got := tokenOf(t, d, from); got != "box/vault/"+from+"/2" {
		t.Errorf("a session from the files with a token has %q", got)
	}

	tokens.set(errors.New("the key cannot be read"))
	spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
	if err := n.Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "the key cannot be read") {
		t.Errorf("without a key: %v", err)
	}
	plain := fakeNode(t, fakeDriver(t, fake.Config{}))
	spec.Snapshot = ""
	if err := plain.Start(t.Context(), spec); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("a node that signs none: %v", err)
	}
}

func TestWorkloadTokenIsRenewed(t *testing.T) {
	n, d, tokens := tokenLab(t, 200*time.Millisecond)
	id := startOn(t, n, withToken("sts"))
	first := tokenOf(t, d, id)
	eventually(t, "renewed token", func() bool { return tokenOf(t, d, id) != first })

	// While it cannot be signed, the one that is there stays.
	tokens.set(errors.New("the key cannot be read"))
	failing, kept := tokens.signed(), tokenOf(t, d, id)
	eventually(t, "second attempt", func() bool { return tokens.signed() > failing+2 })
	if now := tokenOf(t, d, id); now == "" || !strings.HasPrefix(kept, "box/sts/") {
		t.Errorf("the token is %q", now)
	}
	tokens.set(nil)
	eventually(t, "renewed token afterwards", func() bool { return tokenOf(t, d, id) != kept })

	// Nothing that the sandbox puts in its place is followed, or keeps it away.
	root, outside := d.Machine(id).Root(), filepath.Join(t.TempDir(), "outside")
	for what, put := range map[string]func(path string) error{
		"a link":   func(path string) error { return os.Symlink(outside, path) },
		"a folder": func(path string) error { return os.MkdirAll(path+"/in", 0o755) },
	} {
		path := root + wire.TokenFile
		eventually(t, "way to put "+what, func() bool { return os.RemoveAll(path) == nil && put(path) == nil })
		eventually(t, "token in the place of "+what, func() bool {
			info, err := os.Lstat(path)
			return err == nil && info.Mode() == 0o400
		})
	}
	if _, err := os.Stat(outside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link was followed: %v", err)
	}
}

// TestWorkloadTokenAfterAPause: nothing happens in a sandbox that is paused, and whoever
// resumes it finds a new token.
func TestWorkloadTokenAfterAPause(t *testing.T) {
	n, d, tokens := tokenLab(t, 400*time.Millisecond)
	id := startOn(t, n, withToken("sts"))
	if err := n.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	signed, before := tokens.signed(), tokenOf(t, d, id)
	time.Sleep(500 * time.Millisecond) // longer than it is good
	if now := tokenOf(t, d, id); tokens.signed() != signed || now != before {
		t.Errorf("it was renewed during the pause: %d times, %q", tokens.signed()-signed, now)
	}
	if err := n.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if now := tokenOf(t, d, id); now == before {
		t.Errorf("after the pause the token is %q", now)
	}
}
