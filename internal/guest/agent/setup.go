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

// preparer sets up the files of an image or snapshot for a sandbox. It does not rewrite
// files that are already right.
//
// The files are not trusted: root in an earlier session may have changed them. The
// preparer writes through no symbolic link and reads only regular files. It moves aside
// whatever takes the place of a system file or folder. If something cannot be set up,
// it adds a warning and continues: a sandbox starts with any files.
type preparer struct {
	platform Platform
	root     string // Platform.Root
	// again is set for a sandbox that was set up before, so its kernel is ready.
	again bool

	// warnings tell what could not be set up.
	warnings []string
}

func newPreparer(platform Platform) *preparer {
	return &preparer{platform: platform, root: platform.Root()}
}

// maxWarnings limits the warnings of a setup, maxWarning the bytes of each.
const (
	maxWarnings = 16
	maxWarning  = 256
)

// warn adds a warning if err is not nil.
func (p *preparer) warn(what string, err error) {
	if err != nil && len(p.warnings) < maxWarnings {
		text := what + ": " + err.Error()
		p.warnings = append(p.warnings, text[:min(len(text), maxWarning)])
	}
}

// prepare applies a Setup and returns the default user. It does not fail because of any
// file of the sandbox.
func (p *preparer) prepare(s *wire.Setup) (account, error) {
	if err := p.identify(wire.Identity{Hostname: s.Hostname, Resolv: s.Resolv}); err != nil {
		return account{}, err
	}
	if s.Processes > 0 && !p.again {
		if err := p.platform.LimitProcesses(s.Processes); err != nil {
			return account{}, fmt.Errorf("limit processes: %w", err)
		}
	}
	p.warn("mtab", p.mtab())
	user := p.user(s.User)
	p.warn("sudo", p.sudo(user))
	if !p.again {
		p.warn("ptrace", p.platform.AllowPtrace())
		p.warn("/tmp", p.platform.PlainTmp())
	}
	p.warn("/tmp", p.systemDir("/tmp", 0o1777))
	p.warn("home", p.dir(user.home, user.uid, user.gid))
	p.xattrs(s.Xattrs)
	p.trust(s.Authorities)
	p.warn("working directory", p.dir(s.WorkDir, user.uid, user.gid))
	p.warn("token", p.token(user, s.Token))
	return user, nil
}

// identify sets the names of the sandbox, and its resolvers.
func (p *preparer) identify(i wire.Identity) error {
	if err := p.platform.SetHostname(i.Hostname); err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	// The hostname has its own line, because the first name in a line is the full
	// name that "hostname -f" shows.
	hosts := "127.0.0.1\tlocalhost\n127.0.0.1\t" + i.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n::1\t" + i.Hostname + "\n"
	p.warn("hosts", p.file("/etc/hosts", hosts, 0o644))
	p.warn("hostname", p.file("/etc/hostname", i.Hostname+"\n", 0o644))
	if len(i.Resolv) > 0 {
		p.warn("resolvers", p.file("/etc/resolv.conf", strings.Join(i.Resolv, "\n")+"\n", 0o644))
	}
	return nil
}

// token replaces the sandbox's workload token, or removes the one that a snapshot has
// brought along.
func (p *preparer) token(user account, token string) error {
	full := p.root + wire.TokenFile
	if token == "" {
		err := os.Remove(full)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	if err := p.systemDir(path.Dir(wire.TokenFile), 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(full); err == nil && st.IsDir() {
		if err := displace(full); err != nil {
			return err
		}
	}
	uid, gid := p.platform.Owner(user.uid, user.gid)
	err := replaceFileOf(full, token, 0o400, func(f *os.File) error { return f.Chown(uid, gid) })
	if err != nil {
		_ = os.Remove(full) // it may be another sandbox's
	}
	return err
}

// setToken replaces the workload token by a newer one. An older one is an error, which nobody
// waits for if it was held up, and which is noticed if the host's clock was set back.
func (a *Agent) setToken(t *wire.Token) error {
	_, user := a.config()
	a.tokens.Lock()
	defer a.tokens.Unlock()
	if t.Number < a.lastToken {
		return wire.Failf(wire.FailInvalid, "the token is older than the one that is there")
	}
	if err := newPreparer(a.platform).token(user, t.Token); err != nil {
		return err
	}
	a.lastToken = t.Number
	return nil
}

// xattrs sets the extended attributes that the format of the image cannot store. It runs
// before any program of the image, so the files are where the image has them, unless a
// drive is mounted there. It does not follow a link at the end of a path.
func (p *preparer) xattrs(files map[string]map[string][]byte) {
	for path, attrs := range files {
		for name, value := range attrs {
			p.warn("extended attribute "+name+" of "+path, unix.Lsetxattr(p.root+path, name, value, 0))
		}
	}
}

// mtab creates /etc/mtab if it is missing. Some programs look up mounts there.
func (p *preparer) mtab() error {
	err := os.Symlink("../proc/self/mounts", p.root+"/etc/mtab")
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// user makes sure that the default user exists, and returns its account. If the image
// has an account of that name, that is it. If the account files cannot be read or
// written, they stay, and the account has the requested ids.
func (p *preparer) user(want wire.User) account {
	user := account{name: want.Name, uid: want.UID, gid: want.GID, home: "/home/" + want.Name}
	passwd, err := p.read("/etc/passwd")
	if found, known := parsePasswd(passwd, want.Name); known {
		user = found
	} else if err == nil {
		user.shell = p.shell()
		line := fmt.Sprintf("%s:x:%d:%d::%s:%s\n", user.name, user.uid, user.gid, user.home, user.shell)
		// The image may use the id for another name. Programs show the first name
		// of an id, so the new line goes before that one.
		err = p.file("/etc/passwd", insertAccount(passwd, user.uid, line), 0o644)
	}
	p.warn("accounts", err)
	if !strings.HasPrefix(user.home, "/") {
		user.home = "/"
	}
	if user.shell == "" {
		user.shell = p.shell()
	}
	p.warn("groups", p.line("/etc/group", want.Name, fmt.Sprintf("%s:x:%d:\n", want.Name, user.gid), 0o644))
	// A system without /etc/shadow has no shadow passwords.
	if _, err := os.Lstat(p.root + "/etc/shadow"); err == nil {
		p.warn("passwords", p.line("/etc/shadow", want.Name, want.Name+":*:20000:0:99999:7:::\n", 0o640))
	}
	return user
}

// insertAccount inserts line before the first account with the given id, or at the end.
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

// line adds a line to an account file, unless the file has a line for that account.
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

// sudo configures sudo, if the image has it. The user can become root without a
// password. The environment is preserved, as for a command that the API runs as root,
// because it contains the runtime's PATH, proxies and certificates. The rules also name
// the id, which may have another name in the image.
func (p *preparer) sudo(user account) error {
	st, err := os.Stat(p.root + "/etc/sudoers.d")
	if err != nil || !st.IsDir() {
		return nil
	}
	rules := map[string]string{
		user.name:            fmt.Sprintf("%s ALL=(ALL:ALL) NOPASSWD:ALL\n#%d ALL=(ALL:ALL) NOPASSWD:ALL\n", user.name, user.uid),
		"skerry-environment": wire.SudoEnvironment(user.name, user.uid),
	}
	var errs []error
	for name, rule := range rules {
		name = "/etc/sudoers.d/" + name
		if have, err := os.Lstat(p.root + name); err != nil || !have.Mode().IsRegular() {
			errs = append(errs, p.file(name, rule, 0o440))
		}
	}
	return errors.Join(errs...)
}
