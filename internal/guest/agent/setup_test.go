package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// testSetup is the Setup of the tests.
func testSetup() *wire.Setup {
	return &wire.Setup{
		Hostname: "box", User: wire.User{Name: "vercel-sandbox", UID: 1000, GID: 1000}, WorkDir: "/vercel/sandbox",
		Resolv:      []string{"nameserver 192.0.2.1"},
		Xattrs:      map[string]map[string][]byte{"/usr/bin/gone": {"security.capability": []byte("x")}},
		Authorities: []wire.Authority{{Name: "skerry-1", PEM: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Hash: "0123abcd"}},
	}
}

// ownTree is OwnKernel, but changes only a file tree.
type ownTree struct {
	OwnKernel
	root string
}

func (t ownTree) Root() string           { return t.root }
func (ownTree) SetHostname(string) error { return nil }
func (ownTree) LimitProcesses(int) error { return nil }
func (ownTree) PlainTmp() error          { return nil }
func (ownTree) AllowPtrace() error       { return nil }

func testPreparer(root string) *preparer {
	return newPreparer(ownTree{root: root})
}

// TestPrepareHostileTrees: a sandbox starts with any files of an earlier session. The
// system files are right where that is possible.
func TestPrepareHostileTrees(t *testing.T) {
	needRoot(t)
	full := func(dir string) error { // a folder with something in it
		return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/kept", []byte("kept"), 0o644))
	}
	file := func(name string) error {
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("kept"), 0o644))
	}
	link := func(target, name string) error {
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name))
	}
	// Links are relative, as they resolve in the test's tree.
	trees := map[string]func(root string) error{
		"work folder is a dangling link": func(r string) error { return link("../data/gone", r+"/vercel/sandbox") },
		"work folder is a file":          func(r string) error { return file(r + "/vercel/sandbox") },
		"work folder is a loop":          func(r string) error { return link("sandbox", r+"/vercel/sandbox") },
		"work folder's parent is a file": func(r string) error { return file(r + "/vercel") },
		"work folder is a pipe": func(r string) error {
			return errors.Join(os.Mkdir(r+"/vercel", 0o755), unix.Mkfifo(r+"/vercel/sandbox", 0o600))
		},
		"/tmp is a file":                    func(r string) error { return file(r + "/tmp") },
		"/tmp is a dangling link":           func(r string) error { return link("var/gone", r+"/tmp") },
		"/tmp is a loop":                    func(r string) error { return link("tmp", r+"/tmp") },
		"/tmp is nobody's to read":          func(r string) error { return os.Mkdir(r+"/tmp", 0) },
		"/home is a file":                   func(r string) error { return file(r + "/home") },
		"/home is a dangling link":          func(r string) error { return link("gone", r+"/home") },
		"the home folder is a file":         func(r string) error { return file(r + "/home/vercel-sandbox") },
		"/etc is a file":                    func(r string) error { return file(r + "/etc") },
		"/etc is a dangling link":           func(r string) error { return link("gone/etc", r+"/etc") },
		"/etc is a loop":                    func(r string) error { return link("etc", r+"/etc") },
		"/etc is a link to a folder":        func(r string) error { return errors.Join(full(r+"/real"), link("real", r+"/etc")) },
		"/etc/hosts is a full folder":       func(r string) error { return full(r + "/etc/hosts") },
		"/etc/hostname is a folder":         func(r string) error { return full(r + "/etc/hostname") },
		"/etc/resolv.conf is a folder":      func(r string) error { return full(r + "/etc/resolv.conf") },
		"/etc/resolv.conf is a loop":        func(r string) error { return link("resolv.conf", r+"/etc/resolv.conf") },
		"a temporary name is a full folder": func(r string) error { return full(r + "/etc/hosts.skerry-new") },
		"what was moved aside is there": func(r string) error {
			err := full(r + "/etc/hosts")
			for i := range maxDisplaced {
				err = errors.Join(err, full(fmt.Sprintf("%s/etc/hosts.displaced-%d", r, i)))
			}
			return err
		},
		"/etc/hosts is a pipe": func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), unix.Mkfifo(r+"/etc/hosts", 0o600))
		},
		"accounts are folders": func(r string) error {
			return errors.Join(full(r+"/etc/passwd"), full(r+"/etc/group"), full(r+"/etc/shadow"))
		},
		"accounts are dangling links": func(r string) error {
			return errors.Join(link("gone", r+"/etc/passwd"), link("gone", r+"/etc/group"), link("gone", r+"/etc/shadow"))
		},
		"accounts are pipes": func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), unix.Mkfifo(r+"/etc/passwd", 0o600), unix.Mkfifo(r+"/etc/group", 0o600))
		},
		"accounts are garbage":               func(r string) error { return errors.Join(file(r+"/etc/passwd"), file(r+"/etc/group")) },
		"sudo's folder is a file":            func(r string) error { return file(r + "/etc/sudoers.d") },
		"sudo's rule is a folder":            func(r string) error { return full(r + "/etc/sudoers.d/vercel-sandbox") },
		"/etc/mtab is a folder":              func(r string) error { return full(r + "/etc/mtab") },
		"the folder of certificates is file": func(r string) error { return errors.Join(file(r+"/etc/ssl"), file(r+"/usr/local")) },
		"the bundle is a folder":             func(r string) error { return full(r + "/etc/ssl/certs/ca-certificates.crt") },
		"the bundle is a loop":               func(r string) error { return link("ca-certificates.crt", r+"/etc/ssl/certs/ca-certificates.crt") },
	}
	for name, make := range trees {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := make(root); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				p := testPreparer(root)
				user, err := p.prepare(testSetup())
				if err != nil || user.name != "vercel-sandbox" || user.uid != 1000 || user.home != "/home/vercel-sandbox" {
					t.Fatalf("prepare: %+v, %v", user, err)
				}
				for _, w := range p.warnings {
					t.Log(w)
				}
			}
			assertSystemFiles(t, root)
		})
	}
}

func assertSystemFiles(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]string{
		"/etc/hostname": "box\n", "/etc/resolv.conf": "nameserver 192.0.2.1\n", "/etc/hosts": "127.0.0.1\tbox\n",
		"/etc/passwd": "vercel-sandbox:x:1000:1000:", "/etc/group": "vercel-sandbox:x:1000:",
		"/etc/ssl/certs/ca-certificates.crt": "AAAA", wire.AuthoritiesFile: "AAAA",
	} {
		if b, err := readRegular(root+name, 1<<20); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(root+"/tmp", &st); err != nil || st.Mode&0o7777|unix.S_IFDIR != 0o1777|unix.S_IFDIR {
		t.Errorf("/tmp: mode %o, %v", st.Mode, err)
	}
}

// TestPrepareKeepsWhatStoodInTheWay: files that are moved aside are not lost, and links
// of the user stay.
func TestPrepareKeepsWhatStoodInTheWay(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	err := errors.Join(
		os.MkdirAll(root+"/etc/hosts", 0o755), os.WriteFile(root+"/etc/hosts/kept", []byte("kept"), 0o644),
		os.Mkdir(root+"/vercel", 0o755), os.Symlink("/data/gone", root+"/vercel/sandbox"),
	)
	if err != nil {
		t.Fatal(err)
	}
	p := testPreparer(root)
	if _, err := p.prepare(testSetup()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(root + "/etc/hosts.displaced-0/kept"); err != nil || string(b) != "kept" {
		t.Errorf("the folder that was in the place of a file: %q, %v", b, err)
	}
	if target, err := os.Readlink(root + "/vercel/sandbox"); err != nil || target != "/data/gone" {
		t.Errorf("the work folder's link: %q, %v", target, err)
	}
	if len(p.warnings) == 0 || !strings.Contains(strings.Join(p.warnings, "\n"), "working directory") {
		t.Errorf("warnings: %q", p.warnings)
	}
	if err := p.restoreDir("/vercel/sandbox", 1000, 1000); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root+"/vercel/sandbox", &st); err != nil || st.Mode != unix.S_IFDIR|0o755 || st.Uid != 1000 {
		t.Errorf("the work folder that was made again: %+v, %v", st, err)
	}
	if target, err := os.Readlink(root + "/vercel/sandbox.displaced-0"); err != nil || target != "/data/gone" {
		t.Errorf("the link that stood in its way: %q, %v", target, err)
	}
}

// TestPrepareReadOnlyTree: a read-only tree causes warnings only.
func TestPrepareReadOnlyTree(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := errors.Join(unix.Mount("none", root, "tmpfs", 0, ""), unix.Mount("none", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := testPreparer(root)
	if user, err := p.prepare(testSetup()); err != nil || user.uid != 1000 || user.home != "/home/vercel-sandbox" {
		t.Errorf("prepare: %+v, %v", user, err)
	}
	if len(p.warnings) == 0 || len(p.warnings) > maxWarnings {
		t.Errorf("%d warnings", len(p.warnings))
	}
}
