package agent

import (
	"errors"
	"os"
	"testing"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// TestTokenFile has a token be replaced by a newer one, and not by an older one that was held up.
func TestTokenFile(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	a := &Agent{platform: ownTree{root: root}, root: root}
	a.setup, a.user = testSetup(), account{name: "user", uid: 1000, gid: 1000}
	path := root + wire.TokenFile
	set := func(token string, number int64) {
		t.Helper()
		if err := a.setToken(&wire.Token{Token: token, Number: number}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("the file is %q, %v, want %q", b, err, want)
		}
	}
	set("first", 10)
	set("newer", 20)
	if err := a.setToken(&wire.Token{Token: "late", Number: 15}); err == nil {
		t.Error("an older token is taken")
	}
	want("newer")

	// What takes the place of the temporary file does not keep the token away.
	p := testPreparer(root)
	if err := os.MkdirAll(path+".skerry-new/in", 0o755); err != nil {
		t.Fatal(err)
	}
	set("newest", 30)
	want("newest")

	// A token that cannot be replaced does not stay: in a sandbox that starts from another's
	// files it would be the other's.
	failed := errors.New("no room")
	if err := replaceFileOf(path, "x", 0o400, func(*os.File) error { return failed }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	want("newest")
	if err := p.token(a.user, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the token stays: %v", err)
	}
}
