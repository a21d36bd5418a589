package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// These tests need root: they act as other users.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
}

var nobody = credentials{account: account{name: "someone", uid: 12345, gid: 12346}, groups: []int{12346, 12347}}

func TestAsUserIsTrulyUnprivileged(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	private := filepath.Join(dir, "private")
	if err := os.WriteFile(private, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	grouped := filepath.Join(dir, "grouped")
	if err := os.WriteFile(grouped, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(grouped, 0, 12347); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		err := asUser(nobody, func() error {
			if fd, err := unix.Open(private, unix.O_RDONLY, 0); err != unix.EACCES {
				t.Errorf("opening root's file: %d, %v", fd, err)
			}
			if fd, err := unix.Open(grouped, unix.O_RDONLY, 0); err != nil {
				t.Errorf("opening a file of a supplementary group: %v", err)
			} else {
				unix.Close(fd)
			}
			if err := unix.Chown(grouped, 12345, 12346); err != unix.EPERM {
				t.Errorf("chown: %v", err)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); e != unix.EPERM {
				t.Errorf("becoming root again: %v", e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// Other threads keep their credentials.
		if b, err := os.ReadFile(private); err != nil || string(b) != "x" {
			t.Fatalf("as root again: %v", err)
		}
	}
	failed := errors.New("failed")
	if err := asUser(nobody, func() error { return failed }); err != failed {
		t.Errorf("%v", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
		t.Errorf("the process has become another: %v", err)
	}
}

// TestCommandsAreBounded: at the limit, one more command is refused. Forget makes room
// for another.
func TestCommandsAreBounded(t *testing.T) {
	l := wire.NewLink(&record{})
	a := &Agent{link: l, procs: map[uint32]*process{}}
	register := func(id uint32) error {
		return a.register(l, newProcess(l, id, &wire.Start{Key: fmt.Sprint("cmd_", id)}))
	}
	for id := range uint32(wire.MaxProcesses) {
		if err := register(id + 1); err != nil {
			t.Fatalf("command %d: %v", id+1, err)
		}
	}
	var full *wire.Failure
	if err := register(wire.MaxProcesses + 1); !errors.As(err, &full) || full.Code != wire.FailBusy {
		t.Errorf("one more: %v", err)
	}
	a.unregister(a.process(1))
	if err := register(wire.MaxProcesses + 1); err != nil {
		t.Errorf("after one was collected: %v", err)
	}
}

// TestRequestsAreBounded: at the limit, one more request is refused. The end of a
// request makes room for another.
func TestRequestsAreBounded(t *testing.T) {
	sent := &record{}
	l := wire.NewLink(sent)
	a := &Agent{link: l, procs: map[uint32]*process{}, requests: make(chan struct{}, maxRequests)}
	s := &session{a: a, l: l, calls: map[uint32]*call{}}
	finish := make(chan struct{})
	work := func() error { <-finish; return nil }
	for id := range uint32(maxRequests) {
		if err := s.begin(id+1, nil, nil, work); err != nil {
			t.Fatal(err)
		}
	}
	refused := func() bool {
		err := s.begin(maxRequests+1, nil, nil, work)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(sent.b, []byte(wire.FailBusy))
	}
	if !refused() {
		t.Error("one more was taken")
	}
	finish <- struct{}{}
	a.requests <- struct{}{} // there is room again
	<-a.requests
	if sent.b = nil; refused() {
		t.Error("no room after one has ended")
	}
	close(finish)
	a.work.Wait()
}

func TestOutputRing(t *testing.T) {
	sent := &record{}
	l := wire.NewLink(sent)
	o := newOutput(7, wire.StreamOut, l)
	var want []byte
	acked := 0
	for i := range 2000 {
		p := bytes.Repeat([]byte{byte(i)}, 1+(i*i)%700)
		if !o.waitSpace() {
			t.Fatal("closed")
		}
		o.add(p)
		o.flush()
		want = append(want, p...)
		if held := len(want) - acked; held > wire.Window-minSpace || i%50 == 0 {
			acked += held * 2 / 3
			o.ack(int64(acked))
		}
		if len(o.ring) > wire.Window {
			t.Fatalf("a ring of %d bytes", len(o.ring))
		}
		if i == 700 || i == 1400 {
			// The connection is lost, and a new one continues in the middle.
			from := o.offer(int64(acked + 100))
			sent.b = sent.b[:from]
			o.resume(wire.NewLink(sent), from)
			acked = int(from)
		}
	}
	if !bytes.Equal(sent.b, want) {
		t.Errorf("%d bytes sent that are not the %d written", len(sent.b), len(want))
	}
	if got := o.offer(0); got != int64(acked) {
		t.Errorf("offer of what was dropped: %d, want %d", got, acked)
	}
	if got := o.offer(1 << 40); got != int64(len(want)) {
		t.Errorf("offer of what is not there: %d", got)
	}
	o.ack(1 << 40) // an invalid offset frees nothing
	if o.base != int64(acked) {
		t.Error("more was freed than there is")
	}
	o.ack(int64(len(want)))
	if len(o.ring) > idleRing {
		t.Errorf("an idle ring of %d bytes", len(o.ring))
	}
}

// record keeps the payloads of Data frames.
type record struct{ b []byte }

func (r *record) Read([]byte) (int, error) { return 0, io.EOF }
func (r *record) Close() error             { return nil }
func (r *record) WriteVec(bufs [][]byte) error {
	for _, b := range bufs[1:] {
		r.b = append(r.b, b...)
	}
	return nil
}

func TestParseAccounts(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/bash\nbroken\nu:x:99999999999:1::/:\nu:x:1001:1002:U:/home/u:/bin/zsh\nlast:x:7:8::/:/bin/sh")
	if a, ok := parsePasswd(passwd, "u"); !ok || a != (account{"u", 1001, 1002, "/home/u", "/bin/zsh"}) {
		t.Errorf("%+v", a)
	}
	if a, ok := parsePasswd(passwd, "last"); !ok || a.uid != 7 {
		t.Errorf("%+v", a)
	}
	if _, ok := parsePasswd(passwd, "nobody"); ok {
		t.Error("found who is not there")
	}
	group := []byte("root:x:0:\nu:x:1002:\nbroken:x\nwheel:x:10:a,u,b\nother:x:11:uu\nbad:x:x:u\nminus:x:4294967295:u\nlate:x:12:u")
	if g := parseGroups(group, "u", 1002); !slices.Equal(g, []int{1002, 10, 12}) {
		t.Errorf("%v", g)
	}
}

func TestInsertAccount(t *testing.T) {
	for _, tt := range []struct{ have, want string }{
		{"", "new\n"},
		{"root:x:0:0::/:\n", "root:x:0:0::/:\nnew\n"},
		{"root:x:0:0::/:", "root:x:0:0::/:\nnew\n"},
		{"root:x:0:0::/:\nnode:x:1000:1000::/:\nz:x:9:9::/:\n", "root:x:0:0::/:\nnew\nnode:x:1000:1000::/:\nz:x:9:9::/:\n"},
	} {
		if got := insertAccount([]byte(tt.have), 1000, "new\n"); got != tt.want {
			t.Errorf("%q: %q", tt.have, got)
		}
	}
}

func TestPrepareForeignImages(t *testing.T) {
	needRoot(t)
	setup := &wire.Setup{
		Version: wire.Version, Hostname: "box", User: wire.User{Name: "vercel-sandbox", UID: 1000, GID: 1000},
		WorkDir: "/vercel/sandbox", Resolv: []string{"nameserver 192.0.2.1"},
	}
	tests := map[string]struct {
		image func(root string) error
		user  account
	}{
		"empty": {func(string) error { return nil }, account{"vercel-sandbox", 1000, 1000, "/home/vercel-sandbox", "/bin/sh"}},
		"its own user": {func(root string) error {
			return os.WriteFile(root+"/etc/passwd", []byte("vercel-sandbox:x:77:78::/srv:/bin/zsh\n"), 0o644)
		}, account{"vercel-sandbox", 77, 78, "/srv", "/bin/zsh"}},
		"FIFOs and links": {func(root string) error {
			return errors.Join(
				syscall.Mkfifo(root+"/etc/hosts", 0o666),
				syscall.Mkfifo(root+"/etc/hosts.skerry-new", 0o666),
				os.Symlink("../outside", root+"/etc/resolv.conf"),
				os.Symlink("/dev/zero", root+"/etc/hostname"),
				os.WriteFile(root+"/outside", []byte("untouched"), 0o644),
				os.Mkdir(root+"/etc/sudoers.d", 0o750),
			)
		}, account{"vercel-sandbox", 1000, 1000, "/home/vercel-sandbox", "/bin/sh"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := errors.Join(os.Mkdir(root+"/etc", 0o755), tt.image(root)); err != nil {
				t.Fatal(err)
			}
			p := testPreparer(root)
			for range 2 { // the second time changes nothing
				user, err := p.prepare(setup)
				if err != nil || user != tt.user {
					t.Fatalf("%+v, %v", user, err)
				}
			}
			for file, want := range map[string]string{
				"/etc/hostname":    "box\n",
				"/etc/resolv.conf": "nameserver 192.0.2.1\n",
				"/etc/hosts":       "127.0.0.1\tlocalhost\n127.0.0.1\tbox\n::1\tlocalhost ip6-localhost ip6-loopback\n::1\tbox\n",
			} {
				if st, err := os.Lstat(root + file); err != nil || !st.Mode().IsRegular() {
					t.Errorf("%s is not a regular file: %v", file, err)
				}
				if b, err := os.ReadFile(root + file); err != nil || string(b) != want {
					t.Errorf("%s: %q, %v", file, b, err)
				}
			}
			if b, err := os.ReadFile(root + "/outside"); err == nil && string(b) != "untouched" {
				t.Errorf("something was written through a link: %q", b)
			}
			var st unix.Stat_t
			if err := unix.Stat(root+"/vercel/sandbox", &st); err != nil || int(st.Uid) != tt.user.uid || int(st.Gid) != tt.user.gid {
				t.Errorf("working directory: %+v, %v", st, err)
			}
			if passwd, err := os.ReadFile(root + "/etc/passwd"); err != nil || strings.Count(string(passwd), "vercel-sandbox:x:") != 1 {
				t.Errorf("passwd: %q, %v", passwd, err)
			}
		})
	}
}

func TestPrepareWritesNothingTwice(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	p := testPreparer(root)
	setup := &wire.Setup{Hostname: "box", User: wire.User{Name: "u", UID: 1000, GID: 1000}, WorkDir: "/w", Resolv: []string{"nameserver ::1"}}
	if _, err := p.prepare(setup); err != nil {
		t.Fatal(err)
	}
	inodes := func() map[string]uint64 {
		m := map[string]uint64{}
		for _, f := range []string{"hosts", "hostname", "resolv.conf", "passwd", "group"} {
			var st unix.Stat_t
			if err := unix.Stat(root+"/etc/"+f, &st); err != nil {
				t.Fatal(err)
			}
			m[f] = st.Ino ^ uint64(st.Ctim.Nano())
		}
		return m
	}
	before := inodes()
	if _, err := p.prepare(setup); err != nil {
		t.Fatal(err)
	}
	for f, was := range before {
		if inodes()[f] != was {
			t.Errorf("%s was written again", f)
		}
	}
}

// FuzzExtract extracts any bytes as an archive. Nothing may be written outside the
// directory, not even through links in it.
func FuzzExtract(f *testing.F) {
	for _, h := range []tar.Header{
		{Name: "file", Typeflag: tar.TypeReg, Size: 4, Mode: 0o644},
		{Name: "../up", Typeflag: tar.TypeReg, Size: 4, Mode: 0o644},
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9, 0)},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../victim"},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "file"},
		{Name: "away/x", Typeflag: tar.TypeReg, Size: 4, Mode: 0o644},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&h)
		if h.Size > 0 {
			w.Write([]byte("data"))
		}
		w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		top := t.TempDir()
		dir := filepath.Join(top, "dir")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(top+"/outside", 0o755), os.Symlink("../outside", dir+"/away")); err != nil {
			t.Fatal(err)
		}
		x, err := newExtractor("", dir)
		if err != nil {
			t.Fatal(err)
		}
		// Any error is fine. Only the files matter.
		_ = x.extract(bytes.NewReader(b))
		x.close()
		if names, err := filepath.Glob(top + "/*"); err != nil || len(names) != 2 {
			t.Fatalf("beside the directory: %v, %v", names, err)
		}
		if inside, err := os.ReadDir(top + "/outside"); err != nil || len(inside) != 0 {
			t.Fatalf("through a link: %v, %v", inside, err)
		}
	})
}

// TestExtractContent: zeros take no disk space, at the end of the file or before. Too
// many attributes are refused.
func TestExtractContent(t *testing.T) {
	const size = 8 << 20
	dir := t.TempDir()
	write := func(records map[string]string, content []byte) error {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		h := &tar.Header{Name: "file", Mode: 0o600, Size: int64(len(content)), PAXRecords: records}
		if err := errors.Join(tw.WriteHeader(h), func() error { _, err := tw.Write(content); return err }(), tw.Close()); err != nil {
			t.Fatal(err)
		}
		x, err := newExtractor("", dir)
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		return x.extract(&b)
	}
	content := make([]byte, size)
	for _, at := range []int{-1, 0, size / 2, size - 1} {
		if at >= 0 {
			clear(content)
			content[at] = 1
		}
		if err := write(nil, content); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "file")
		got, err := os.ReadFile(name)
		var st syscall.Stat_t
		if err := errors.Join(err, syscall.Stat(name, &st)); err != nil || !bytes.Equal(got, content) || st.Blocks*512 > size/2 {
			t.Errorf("a byte at %d: same %v, %d blocks, %v", at, bytes.Equal(got, content), st.Blocks, err)
		}
	}
	records := map[string]string{}
	for i := range maxAttributes + 1 {
		records[fmt.Sprintf("%suser.%d", attributePrefix, i)] = "x"
	}
	if err := write(records, nil); err == nil || !strings.Contains(err.Error(), "extended attributes") {
		t.Errorf("too many attributes: %v", err)
	}
	if err := write(map[string]string{attributePrefix + "user.x": strings.Repeat("x", maxAttributeBytes)}, nil); err == nil || !strings.Contains(err.Error(), "extended attributes") {
		t.Errorf("too long attributes: %v", err)
	}
}

// TestExtractDepth extracts a file at the maximum depth, and one below it.
func TestExtractDepth(t *testing.T) {
	deep := strings.Repeat("d/", maxDepth)
	for name, fits := range map[string]bool{deep + "file": true, deep + "d/file": false} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := errors.Join(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600}), tw.Close()); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		x, err := newExtractor("", dir)
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		err = x.extract(&b)
		_, there := os.Stat(filepath.Join(dir, name))
		if fits && (err != nil || there != nil) {
			t.Errorf("a file in %d folders: %v, %v", strings.Count(name, "/"), err, there)
		}
		if !fits && (failure(err).Code != wire.FailInvalid || !strings.Contains(err.Error(), "d/d/") || there == nil) {
			t.Errorf("a file in %d folders: %v", strings.Count(name, "/"), err)
		}
	}
}

// TestExtractLinks reaches a folder through the maximum number of symbolic links, and
// through one more.
func TestExtractLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "link0"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range maxLinks + 1 {
		if err := os.Symlink(fmt.Sprint("link", i), filepath.Join(dir, fmt.Sprint("link", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	for links, fits := range map[int]bool{maxLinks: true, maxLinks + 1: false} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := errors.Join(tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("link%d/file%d", links, links), Mode: 0o600}), tw.Close()); err != nil {
			t.Fatal(err)
		}
		x, err := newExtractor("", dir)
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		if err := x.extract(&b); fits != (err == nil) || !fits && failure(err).Code != wire.FailInvalid {
			t.Errorf("through %d links: %v", links, err)
		}
	}
}
