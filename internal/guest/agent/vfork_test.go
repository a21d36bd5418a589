package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// vforked runs a shell script by vforkExec and returns its output.
func vforked(t *testing.T, script string, change func(*syscall.ProcAttr)) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return ""
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Error(err)
		return ""
	}
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/bin:/bin", "KEY=value"}, Files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	if change != nil {
		change(attr)
	}
	pid, err := vforkExec("/bin/sh", []string{"sh", "-c", script, "zero", "one two"}, attr)
	w.Close()
	null.Close()
	if err != nil {
		t.Error(err)
		return ""
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Errorf("%q ended with %v, %v: %s", script, status, err, out)
	}
	return string(out)
}

func TestVforkExec(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, script, want string
		change             func(*syscall.ProcAttr)
	}{
		{"arguments", `echo "$0,$1,$KEY,$#"`, "zero,one two,value,1\n", nil},
		{"folder", "pwd", dir + "\n", func(a *syscall.ProcAttr) { a.Dir = dir }},
		{"session", `[ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ] && echo own`, "own\n", nil},
		{"standard files", "readlink /proc/$$/fd/0; echo to 2 >&2", "/dev/null\nto 2\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := vforked(t, tt.script, tt.change); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestVforkExecResetsSignals: the program has no signal blocked, and those that Go's
// runtime handles are not ignored, as with ForkExec.
func TestVforkExecResetsSignals(t *testing.T) {
	const show = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"
	cmd := exec.Command("/bin/sh", "-c", show)
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := vforked(t, show, nil); got != string(want) || !strings.Contains(got, "SigBlk:\t0000000000000000") {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestVforkExecWithCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("changes its user, as root")
	}
	got := vforked(t, "id -u; id -g; id -G", func(a *syscall.ProcAttr) {
		a.Sys.Credential = &syscall.Credential{Uid: 1234, Gid: 2345, Groups: []uint32{2345, 3456}}
	})
	if got != "1234\n2345\n2345 3456\n" {
		t.Errorf("runs as %q", got)
	}
	if os.Geteuid() != 0 {
		t.Error("the agent's own user changed")
	}
}

func TestVforkExecFails(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("echo no interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := null.Fd()
	for _, tt := range []struct {
		name, file, dir string
		files           []uintptr
		want            error
	}{
		{"no file", filepath.Join(dir, "missing"), "/", []uintptr{fd, fd, fd}, unix.ENOENT},
		{"no program", script, "/", []uintptr{fd, fd, fd}, unix.ENOEXEC},
		{"no permission", plain, "/", []uintptr{fd, fd, fd}, unix.EACCES},
		{"no folder", "/bin/true", filepath.Join(dir, "missing"), []uintptr{fd, fd, fd}, unix.ENOENT},
		{"a bad file", "/bin/true", "/", []uintptr{fd, 1 << 20, fd}, unix.EBADF},
		{"a zero byte", "/bin/tr\x00ue", "/", []uintptr{fd, fd, fd}, unix.EINVAL},
		{"standard files", "/bin/true", "/", []uintptr{0, 1, 2}, errNoVfork},
		{"two files", "/bin/true", "/", []uintptr{fd, fd}, errNoVfork},
	} {
		t.Run(tt.name, func(t *testing.T) {
			attr := &syscall.ProcAttr{Dir: tt.dir, Files: tt.files, Sys: &syscall.SysProcAttr{}}
			if pid, err := vforkExec(tt.file, []string{"x"}, attr); !errors.Is(err, tt.want) {
				t.Errorf("pid %d, error %v, want %v", pid, err, tt.want)
			}
		})
	}
}

// TestVforkExecBesideOthers starts processes from many goroutines, whose stacks grow and
// move, while garbage is collected.
func TestVforkExecBesideOthers(t *testing.T) {
	stop := make(chan struct{})
	var garbage, wg sync.WaitGroup
	garbage.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	var grow func(n int) byte
	grow = func(n int) byte {
		var frame [256]byte
		if n == 0 {
			return frame[0]
		}
		return grow(n-1) + frame[n%len(frame)]
	}
	for range 8 {
		wg.Go(func() {
			for i := range 20 {
				grow(10 * i)
				if got := vforked(t, `echo "$1"`, nil); got != "one two\n" {
					t.Errorf("got %q", got)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	garbage.Wait()
}

// TestAccountsFollowTheirFiles changes the files between lookups.
func TestAccountsFollowTheirFiles(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		// A new file, as usermod makes one.
		file := filepath.Join(root, "etc", name)
		if err := errors.Join(os.WriteFile(file+"-new", []byte(text), 0o644), os.Rename(file+"-new", file)); err != nil {
			t.Fatal(err)
		}
	}
	var a accounts
	user := account{name: "user", uid: 7, gid: 8, home: "/", shell: "/bin/sh"}
	check := func(want string) {
		t.Helper()
		for range 2 {
			c := a.lookup(root, user)
			var b bytes.Buffer
			for _, g := range c.groups {
				b.WriteByte(' ')
				b.WriteString(string(rune('0' + g)))
			}
			if got := c.home + b.String(); got != want {
				t.Errorf("found %q, want %q", got, want)
			}
			if len(c.groups) > 0 {
				c.groups[0] = 9 // is the caller's own
			}
		}
	}
	check("/ 8")
	write("passwd", "user:x:7:3::/home/a:/bin/sh\n")
	check("/home/a 3")
	write("group", "one:x:3:\ntwo:x:4:user\n")
	check("/home/a 3 4")
	write("passwd", "user:x:7:3::/home/b:/bin/sh\n") // as long as before
	check("/home/b 3 4")
	write("group", "one:x:3:\ntwo:x:5:user\n")
	check("/home/b 3 5")
	if err := os.Remove(filepath.Join(root, "etc", "passwd")); err != nil {
		t.Fatal(err)
	}
	check("/ 8 5")
}
