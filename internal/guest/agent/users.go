package agent

import (
	"bytes"
	"strconv"
	"strings"
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

// lookup returns the current account of fallback.name. So a usermod in one command
// applies to the next. If the account is missing, lookup returns fallback.
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
