//go:build unix

package client

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// TestPack: hard links stay so, FIFOs are kept, and the size is that
// of the contents.
func TestPack(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1000), 0o640))
	must(os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	must(os.WriteFile(filepath.Join(dir, "c"), []byte("c"), 0o600))
	must(os.Symlink("c", filepath.Join(dir, "d")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	p := newPack(tw, os.DirFS(dir))
	must(p.tree(t.Context(), "in/x"))
	must(tw.Close())
	if p.bytes != 1001 || len(p.skipped) != 0 {
		t.Errorf("%d bytes, skipped %q", p.bytes, p.skipped)
	}
	var got []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(err)
		got = append(got, string(h.Typeflag)+" "+h.Name+" "+h.Linkname)
	}
	if want := []string{"5 in/x/ ", "0 in/x/a ", "1 in/x/b in/x/a", "0 in/x/c ", "2 in/x/d c", "6 in/x/fifo "}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
