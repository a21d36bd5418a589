package agent

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// accountFileLimit limits the size of /etc/passwd and /etc/group. Root in the sandbox
// can write anything to them.
const accountFileLimit = 1 << 20

// account is a line of /etc/passwd.
type account struct {
	name     string
	uid, gid int
	home     string
	shell    string
}

// parsePasswd returns the account with the given name.
func parsePasswd(file []byte, name string) (account, bool) {
	for line := range bytes.Lines(file) {
		f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil {
			continue
		}
		return account{name: name, uid: uid, gid: gid, home: f[5], shell: f[6]}, true
	}
	return account{}, false
}

// maxGroups is the maximum number of groups of a process on Linux (NGROUPS_MAX).
const maxGroups = 65536

// parseGroups returns the primary group and the groups that list user as a member.
func parseGroups(file []byte, user string, primary int) []int {
	groups := []int{primary}
	for line := range bytes.Lines(file) {
		name, rest, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), ":")
		f := strings.Split(rest, ":")
		if !ok || name == "" || len(f) < 3 || len(groups) == maxGroups {
			continue
		}
		gid, err := parseID(f[1])
		if err != nil || gid == primary {
			continue
		}
		for member := range strings.SplitSeq(f[2], ",") {
			if member == user {
				groups = append(groups, gid)
				break
			}
		}
	}
	return groups
}

// parseID parses a user or group id. It refuses the highest number, which means "no
// change" in system calls.
func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		return 0, strconv.ErrRange
	}
	return int(n), err
}

// credentials are the user and groups of a thread or process.
type credentials struct {
	account
	groups []int
}

// accounts looks up the accounts of the sandbox. It reads their files only when one has
// changed since.
type accounts struct {
	mu            sync.Mutex
	passwd, group stamp
	of            account // the account that was asked for
	found         credentials
}

// stamp changes with every change of a file.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(path string) (stamp, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return stamp{}, false
	}
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, true
}

// lookup returns the current account of fallback.name. So a usermod in one command
// applies to the next. If the account is missing, lookup returns fallback.
func (a *accounts) lookup(root string, fallback account) credentials {
	passwd, ok := stampOf(root + "/etc/passwd")
	group, ok2 := stampOf(root + "/etc/group")
	if !ok || !ok2 {
		return lookup(root, fallback)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.passwd != passwd || a.group != group || a.of != fallback {
		// A change that comes after the stamps is found by the next lookup.
		a.passwd, a.group, a.of, a.found = passwd, group, fallback, lookup(root, fallback)
	}
	found := a.found
	found.groups = slices.Clone(found.groups)
	return found
}

// lookup reads the files.
func lookup(root string, fallback account) credentials {
	acct := fallback
	if b, err := readRegular(root+"/etc/passwd", accountFileLimit); err == nil {
		if found, ok := parsePasswd(b, fallback.name); ok {
			acct = found
		}
	}
	c := credentials{account: acct, groups: []int{acct.gid}}
	if b, err := readRegular(root+"/etc/group", accountFileLimit); err == nil {
		c.groups = parseGroups(b, acct.name, acct.gid)
	}
	return c
}
