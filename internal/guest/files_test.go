package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// archive returns a tar archive of entries. The content of a link is its target.
func archive(t testing.TB, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, ModTime: e.time}
		switch e.kind {
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = e.content
		case tar.TypeReg, 0:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

type entry struct {
	name    string
	kind    byte
	content string
	mode    int64
	time    time.Time
}

func TestWriteTar(t *testing.T) {
	_, c := start(t)
	sh(t, c, "echo old content that is longer > existing; chmod 600 existing; ln -s existing alias; ln -s /etc/passwd outside")
	when := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	err := c.WriteTar(testContext(t), ".", archive(t,
		entry{name: "plain", content: "plain", mode: 0o644},
		entry{name: "a/b/c/script", content: "#!/bin/sh\necho ran", mode: 0o755, time: when},
		entry{name: "dir/", kind: tar.TypeDir, mode: 0o555, time: when},
		entry{name: "dir/file", content: "in a read-only directory", mode: 0o400},
		entry{name: "open", content: "x", mode: 0o4777},
		entry{name: "existing", content: "new", mode: 0o640},
		entry{name: "alias", content: "through a link", mode: 0o640},
		entry{name: "link", kind: tar.TypeSymlink, content: "a/b"},
		entry{name: "link/beside", content: "through a new link"},
		entry{name: "hard", kind: tar.TypeLink, content: "plain"},
		entry{name: "dangling", kind: tar.TypeSymlink, content: "/no/where"},
		entry{name: "outside", kind: tar.TypeSymlink, content: "plain"}, // replaces
		entry{name: "./dotted/./x", content: "x"},
	))
	if err != nil {
		t.Fatal(err)
	}
	for script, want := range map[string]string{
		"stat -c '%U:%G %a' plain | sed 's/:.*/ /'; stat -c %a plain": "vercel-sandbox \n644",
		"a/b/c/script":                                "ran",
		"stat -c '%a %Y' a/b/c/script":                "755 1614834367",
		"stat -c '%a %u %g' a/b":                      "755 1000 1000",
		"stat -c '%a %Y' dir":                         "555 1614834367",
		"stat -c %a dir/file open existing":           "400\n777\n640",
		"cat existing":                                "through a link",
		"cat a/b/beside":                              "through a new link",
		"readlink dangling outside":                   "/no/where\nplain",
		"stat -c %h plain":                            "2",
		"cat dotted/x":                                "x",
		"find . -newermt '2 minutes ago' -name plain": "./plain",
	} {
		if got := sh(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func TestWriteTarRelativeToTheRoot(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "ln -s /vercel/sandbox /via; mkdir -m 1777 /open")
	if err := c.WriteTar(testContext(t), "/", archive(t,
		entry{name: "vercel/sandbox/a.txt", content: "a"},
		entry{name: "via/b.txt", content: "b"},
		entry{name: "open/deep/c.txt", content: "c"},
	)); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, c, "cat a.txt b.txt /open/deep/c.txt"); got != "abc" {
		t.Errorf("%q", got)
	}
	if err := c.WriteTar(testContext(t), "made/on/the/way", archive(t, entry{name: "x", content: "x"})); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, c, "cat made/on/the/way/x"); got != "x" {
		t.Errorf("%q", got)
	}
}

func TestWriteTarRefuses(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "mkdir /vercel/sandbox/rootdir; echo keep > /vercel/sandbox/rootfile; mkfifo /vercel/sandbox/fifo; chmod 666 /vercel/sandbox/fifo; "+
		"mkdir -m 1777 /elsewhere; echo target > /elsewhere/victim; chmod 666 /elsewhere/victim")
	sh(t, c, "ln -s /elsewhere out; ln -s ../../elsewhere up; ln -s /elsewhere/victim victim; ln -s loop2 loop1; ln -s loop1 loop2; mkdir adir; mkfifo own")
	tests := []struct {
		name    string
		dir     string
		entry   entry
		code    skerry.Code
		failure wire.FailureCode
		message string
	}{
		{name: "dotdot", entry: entry{name: "../x"}, failure: wire.FailUnsafe, message: "../x"},
		{name: "hidden dotdot", entry: entry{name: "a/../../x"}, failure: wire.FailUnsafe, message: "a/../../x"},
		{name: "absolute", entry: entry{name: "/etc/x"}, failure: wire.FailUnsafe, message: "absolute"},
		{name: "through a link out", entry: entry{name: "out/x"}, failure: wire.FailUnsafe, message: "out/x"},
		{name: "through a link up", entry: entry{name: "up/x"}, failure: wire.FailUnsafe, message: "up/x"},
		{name: "over a link out", entry: entry{name: "victim", content: "harm"}, failure: wire.FailUnsafe, message: "victim"},
		{name: "link loop", entry: entry{name: "loop1"}, failure: wire.FailInvalid, message: "loop1"},
		{name: "device", entry: entry{name: "dev", kind: tar.TypeChar}, failure: wire.FailUnsafe, message: "dev: devices are not supported"},
		{name: "fifo over a directory", entry: entry{name: "adir", kind: tar.TypeFifo}, failure: wire.FailIsDirectory, message: "adir"},
		{name: "hard link up", entry: entry{name: "h", kind: tar.TypeLink, content: "../../etc/passwd"}, failure: wire.FailUnsafe, message: "target"},
		{name: "hard link through a link", entry: entry{name: "h", kind: tar.TypeLink, content: "out/victim"}, failure: wire.FailUnsafe, message: "target"},
		{name: "root's file", entry: entry{name: "rootfile", content: "x"}, failure: wire.FailPermission, message: "/vercel/sandbox/rootfile: "},
		{name: "root's directory", entry: entry{name: "rootdir/x", content: "x"}, failure: wire.FailPermission, message: "rootdir/x"},
		{name: "system directory", dir: "/", entry: entry{name: "etc/x", content: "x"}, failure: wire.FailPermission, message: "/etc/x: "},
		{name: "closed dir", dir: "/etc/new", entry: entry{name: "x"}, failure: wire.FailPermission, message: "/etc/new"},
		{name: "dir is a file", dir: "/etc/passwd", entry: entry{name: "x"}, failure: wire.FailNotDirectory, message: "/etc/passwd"},
		{name: "over a directory", entry: entry{name: "adir", content: "x"}, failure: wire.FailIsDirectory, message: "adir"},
		{name: "into a file", entry: entry{name: "rootfile/x"}, failure: wire.FailNotDirectory, message: "rootfile/x"},
		{name: "into a FIFO", entry: entry{name: "own", content: "x"}, failure: wire.FailNotRegular, message: "own"},
		{name: "long name", entry: entry{name: strings.Repeat("n", 300)}, failure: wire.FailInvalid, message: "nnn"},
		{name: "disk full", dir: "/small", entry: entry{name: "big", content: strings.Repeat("x", 2<<20)}, code: skerry.CodeDiskFull, failure: wire.FailDiskFull, message: "big"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dir == "" {
				tt.dir = "."
			}
			if tt.code == "" {
				tt.code = skerry.CodeBadRequest
			}
			// The agent must not wait for the rest of the archive.
			err := c.WriteTar(testContext(t), tt.dir, io.MultiReader(archive(t, tt.entry), bytes.NewReader(make([]byte, 4<<20))))
			var f *guest.Failure
			if skerry.CodeOf(err) != tt.code || !errors.As(err, &f) || f.Code != tt.failure || !strings.Contains(f.Message, tt.message) {
				t.Errorf("%v", err)
			}
		})
	}
	if got := sh(t, c, "cat /elsewhere/victim rootfile; ls /elsewhere | wc -l; ls /small | wc -l"); got != "target\nkeep\n1\n0" {
		t.Errorf("something was written: %q", got)
	}
}

func TestWriteTarOfNoArchive(t *testing.T) {
	_, c := start(t)
	for name, r := range map[string]io.Reader{
		"text":      strings.NewReader(strings.Repeat("this is no archive ", 100)),
		"cut short": io.LimitReader(archive(t, entry{name: "half", content: strings.Repeat("x", 10000)}), 5000),
	} {
		err := c.WriteTar(testContext(t), ".", r)
		if skerry.CodeOf(err) != skerry.CodeBadRequest || !strings.Contains(err.Error(), "archive") {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken")
	if err := c.WriteTar(testContext(t), ".", iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
	if err := c.WriteTar(testContext(t), ".", strings.NewReader("")); err != nil {
		t.Errorf("an empty archive: %v", err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	body := archive(t, entry{name: "cancelled", content: strings.Repeat("x", 1<<20)})
	err := c.WriteTar(ctx, ".", io.MultiReader(io.LimitReader(body, 1<<19), cancelReader(cancel), body))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	waitFor(t, func() bool { return sh(t, c, "ls -A") == "" }) // incomplete files are removed
}

type cancelReader context.CancelFunc

func (c cancelReader) Read([]byte) (int, error) { c(); return 0, io.EOF }

func TestReadFile(t *testing.T) {
	_, c := start(t)
	ctx := testContext(t)
	for _, size := range []int{0, 1, wire.MaxData - 1, wire.MaxData, wire.MaxData + 1, wire.Window + 17, 5_000_000} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		if err := c.WriteTar(ctx, "sub", archive(t, entry{name: "f", content: string(want)})); err != nil {
			t.Fatal(err)
		}
		r, n, err := c.ReadFile(ctx, "sub", "f")
		if err != nil || n != int64(size) {
			t.Fatalf("size %d for %d: %v", n, size, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d: %v", len(got), size, err)
		}
		r.Close()
	}
	// A file of unknown size.
	r, n, err := c.ReadFile(ctx, "", "/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || int64(len(got)) != n || n == 0 {
		t.Errorf("%d bytes of %d: %v", len(got), n, err)
	}
	r.Close()
	// A reader that is closed early does not block the agent.
	for range 20 {
		r, _, err := c.ReadFile(ctx, "sub", "f")
		if err != nil {
			t.Fatal(err)
		}
		r.Read(make([]byte, 10))
		r.Close()
	}
}

func TestReadFileRefuses(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "echo s > /root-only; chmod 600 /root-only; mkfifo /fifo; chmod 666 /fifo; mkdir -m 700 /closed; echo x > /closed/x")
	for path, want := range map[string]struct {
		code    skerry.Code
		failure wire.FailureCode
	}{
		"missing":     {skerry.CodeNotFound, wire.FailNotFound},
		"/tmp":        {skerry.CodeBadRequest, wire.FailIsDirectory},
		"/root-only":  {skerry.CodeBadRequest, wire.FailPermission},
		"/closed/x":   {skerry.CodeBadRequest, wire.FailPermission},
		"/fifo":       {skerry.CodeBadRequest, wire.FailNotRegular},
		"/dev/zero":   {skerry.CodeBadRequest, wire.FailNotRegular},
		"/etc/shadow": {skerry.CodeBadRequest, wire.FailPermission},
	} {
		_, _, err := c.ReadFile(testContext(t), "", path)
		var f *guest.Failure
		if skerry.CodeOf(err) != want.code || !errors.As(err, &f) || f.Code != want.failure || !strings.Contains(f.Message, path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, _, err := c.ReadFile(testContext(t), "", "a\x00b"); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("NUL: %v", err)
	}
}

func TestMkdir(t *testing.T) {
	_, c := start(t)
	ctx := testContext(t)
	if err := c.Mkdir(ctx, "", "made"); err != nil {
		t.Fatal(err)
	}
	if err := c.Mkdir(ctx, "made", "below"); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, c, "stat -c '%U %a' made made/below"); got != "vercel-sandbox 755\nvercel-sandbox 755" {
		t.Errorf("%q", got)
	}
	for path, want := range map[string]wire.FailureCode{
		"made":        wire.FailExists,
		"no/parent":   wire.FailParentMissing,
		"/etc/new":    wire.FailPermission,
		"/etc/passwd": wire.FailExists,
		"/etc/issue/": wire.FailExists,
	} {
		err := c.Mkdir(ctx, "", path)
		var f *guest.Failure
		if !errors.As(err, &f) || f.Code != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
