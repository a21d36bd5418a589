package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// preparer makes the files of an image fit for a sandbox. What an image has
// right already is not written again.
//
// The image is anybody's, so nothing is written through a symbolic link: a
// file is replaced as a whole by renaming a new one over it, whatever was
// there, and nothing but a regular file is read.
type preparer struct {
	// root is where the sandbox's file tree is; "" for the real one.
	root string
	// hostname sets the host's name.
	hostname func(string) error
	// limit bounds the sandbox's processes.
	limit func(processes int) error
	// plainTmp makes /tmp a part of the file tree like any other.
	plainTmp func() error
}

// prepare does everything that a Setup asks for and returns the default user.
func (p *preparer) prepare(s *wire.Setup) (account, error) {
	if err := p.hostname(s.Hostname); err != nil {
		return account{}, fmt.Errorf("setting the hostname: %w", err)
	}
	if s.Processes > 0 {
		if err := p.limit(s.Processes); err != nil {
			return account{}, fmt.Errorf("limiting processes: %w", err)
		}
	}
	hosts := "127.0.0.1\tlocalhost " + s.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback " + s.Hostname + "\n"
	if err := p.file("/etc/hosts", hosts, 0o644); err != nil {
		return account{}, err
	}
	if err := p.file("/etc/hostname", s.Hostname+"\n", 0o644); err != nil {
		return account{}, err
	}
	if len(s.Resolv) > 0 {
		if err := p.file("/etc/resolv.conf", strings.Join(s.Resolv, "\n")+"\n", 0o644); err != nil {
			return account{}, err
		}
	}
	user, err := p.user(s.User)
	if err != nil {
		return account{}, err
	}
	if err := p.sudo(user); err != nil {
		return account{}, err
	}
	if err := p.plainTmp(); err != nil {
		return account{}, fmt.Errorf("preparing /tmp: %w", err)
	}
	if err := p.dir("/tmp", 0, 0, 0o1777, true); err != nil {
		return account{}, err
	}
	if err := p.dir(user.home, user.uid, user.gid, 0o755, false); err != nil {
		return account{}, err
	}
	if err := p.xattrs(s.Xattrs); err != nil {
		return account{}, err
	}
	return user, p.dir(s.WorkDir, user.uid, user.gid, 0o755, false)
}

// xattrs gives files of the image the extended attributes that its format
// cannot hold. It comes before anything of the image's runs, so the files are
// where the image has them; links at their ends are not followed.
func (p *preparer) xattrs(files map[string]map[string][]byte) error {
	for path, attrs := range files {
		for name, value := range attrs {
			if err := unix.Lsetxattr(p.root+path, name, value, 0); err != nil {
				return fmt.Errorf("setting the extended attribute %s of %s: %w", name, path, err)
			}
		}
	}
	return nil
}

// setHostname sets the host's name unless it is that already.
func setHostname(name string) error {
	if have, err := os.Hostname(); err == nil && have == name {
		return nil
	}
	return unix.Sethostname([]byte(name))
}

// cgroupDir is a folder of the agent's own image. Not /sys/fs/cgroup: programs
// that find a hierarchy there expect more in it.
const cgroupDir = "/.skerry/cgroup"

// limitProcesses puts the agent, and so all that it starts, in a control group
// of the sandbox's kernel with a limit. Without it a fork bomb would fill the
// sandbox's memory and take the whole sandbox down. Root in the sandbox can
// lift it, and harms nothing but its own sandbox.
func limitProcesses(processes int) error {
	if err := unix.Mount("none", cgroupDir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	group := cgroupDir + "/sandbox"
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(group+"/pids.max", []byte(strconv.Itoa(processes)), 0); err != nil {
		return err
	}
	return os.WriteFile(group+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
}

// unmountTmp removes the memory filesystem that gVisor puts on an empty /tmp:
// what is written there belongs on the sandbox's disk, not into its memory, and
// into its snapshots.
func unmountTmp() error {
	var st unix.Statfs_t
	if os.Getpid() != 1 {
		return nil
	}
	if err := unix.Statfs("/tmp", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return nil // there is none, or it is the image's own
	}
	return unix.Unmount("/tmp", unix.MNT_DETACH)
}

// user makes sure that the default user exists, and returns its account: the
// image's own if it has one of that name.
func (p *preparer) user(want wire.User) (account, error) {
	passwd, err := p.read("/etc/passwd")
	if err != nil {
		return account{}, err
	}
	user, known := parsePasswd(passwd, want.Name)
	if !known {
		user = account{name: want.Name, uid: want.UID, gid: want.GID, home: "/home/" + want.Name, shell: p.shell()}
		line := fmt.Sprintf("%s:x:%d:%d::%s:%s\n", user.name, user.uid, user.gid, user.home, user.shell)
		// An image may have given the id to a name of its own. The first name
		// of an id is the one that programs show.
		if err := p.file("/etc/passwd", insertAccount(passwd, user.uid, line), 0o644); err != nil {
			return account{}, err
		}
	}
	if !strings.HasPrefix(user.home, "/") {
		user.home = "/"
	}
	if user.shell == "" {
		user.shell = "/bin/sh"
	}
	if err := p.line("/etc/group", want.Name, fmt.Sprintf("%s:x:%d:\n", want.Name, user.gid), 0o644); err != nil {
		return account{}, err
	}
	// Without a shadow file there are no shadow passwords.
	if _, err := os.Lstat(p.root + "/etc/shadow"); err == nil {
		return user, p.line("/etc/shadow", want.Name, want.Name+":*:20000:0:99999:7:::\n", 0o640)
	}
	return user, nil
}

// insertAccount puts line before the first account with the given id, or last.
func insertAccount(passwd []byte, uid int, line string) string {
	at := len(passwd)
	offset := 0
	for l := range bytes.Lines(passwd) {
		f := strings.SplitN(string(l), ":", 4)
		if len(f) == 4 && f[2] == strconv.Itoa(uid) {
			at = offset
			break
		}
		offset += len(l)
	}
	before := string(passwd[:at])
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += "\n"
	}
	return before + line + string(passwd[at:])
}

// line adds a line to a file of accounts unless it has one for that name.
func (p *preparer) line(name, account, line string, mode uint32) error {
	content, err := p.read(name)
	if err != nil {
		return err
	}
	for l := range bytes.Lines(content) {
		if strings.HasPrefix(string(l), account+":") {
			return nil
		}
	}
	text := string(content)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return p.file(name, text+line, mode)
}

// shell returns the best shell that the image has.
func (p *preparer) shell() string {
	for _, sh := range []string{"/bin/bash", "/bin/sh"} {
		if st, err := os.Stat(p.root + sh); err == nil && st.Mode().IsRegular() {
			return sh
		}
	}
	return "/bin/sh"
}

// sudo lets the user become root without a password, where there is sudo. The
// rule is for the id too, which may have another name in the image.
func (p *preparer) sudo(user account) error {
	st, err := os.Stat(p.root + "/etc/sudoers.d")
	if err != nil || !st.IsDir() {
		return nil
	}
	name := "/etc/sudoers.d/" + user.name
	if have, err := os.Lstat(p.root + name); err == nil && have.Mode().IsRegular() {
		return nil
	}
	rule := fmt.Sprintf("%s ALL=(ALL:ALL) NOPASSWD:ALL\n#%d ALL=(ALL:ALL) NOPASSWD:ALL\n", user.name, user.uid)
	return p.file(name, rule, 0o440)
}

// read returns a file of accounts, empty when it is missing.
func (p *preparer) read(name string) ([]byte, error) {
	b, err := readRegular(p.root+name, accountFileLimit)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// file makes sure that a file of root's has the content. A file that exists
// keeps its mode.
func (p *preparer) file(name, content string, mode uint32) error {
	full := p.root + name
	have, err := readRegular(full, accountFileLimit)
	if err == nil && string(have) == content {
		return nil
	}
	if st, err := os.Lstat(full); err == nil && st.Mode().IsRegular() {
		mode = uint32(st.Mode().Perm())
	}
	if err := os.MkdirAll(path.Dir(full), 0o755); err != nil {
		return err
	}
	return replaceFile(full, content, mode)
}

// replaceFile puts a new file in the place of whatever is there.
func replaceFile(name, content string, mode uint32) error {
	temp := name + ".skerry-new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(mode))
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if e := f.Chmod(os.FileMode(mode)); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// dir makes sure that a directory exists with that owner, and with that mode
// if it is new or exact is set.
func (p *preparer) dir(name string, uid, gid int, mode uint32, exact bool) error {
	full := p.root + name
	var st unix.Stat_t
	err := unix.Stat(full, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == uid && int(st.Gid) == gid &&
		(!exact || st.Mode&0o7777 == mode) {
		return nil
	}
	if err := os.MkdirAll(full, 0o755); err != nil {
		return err
	}
	fd, openErr := openRetry(unix.AT_FDCWD, full, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if openErr != nil {
		return &os.PathError{Op: "open", Path: full, Err: openErr}
	}
	defer unix.Close(fd)
	if e := unix.Fchown(fd, uid, gid); e != nil {
		return &os.PathError{Op: "chown", Path: full, Err: e}
	}
	if err == nil && !exact {
		return nil
	}
	if e := unix.Fchmod(fd, mode); e != nil {
		return &os.PathError{Op: "chmod", Path: full, Err: e}
	}
	return nil
}
