package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// processes returns the processes of the soak's namespace that have not ended, without
// the soak's own two.
func processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != 1 && pid != os.Getpid() && processArgs(pid) != nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// running describes these processes.
func running() (list []string, err error) {
	for _, pid := range processes() {
		list = append(list, fmt.Sprint(pid, " ", strings.Join(processArgs(pid), " ")))
	}
	return list, nil
}

// processArgs returns the arguments of a process, nil if it has ended. A kernel process
// and a zombie have none.
func processArgs(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// statusKB returns a field of /proc/PID/status or /proc/meminfo, in bytes.
func statusKB(file, field string) int64 {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// hostUsed returns the memory of the host that is neither free nor easily freed.
func hostUsed() int64 {
	return statusKB("/proc/meminfo", "MemTotal") - statusKB("/proc/meminfo", "MemAvailable")
}

// mounts returns the mount points of this namespace below a folder, each with what is
// mounted. Those elsewhere are copies of the machine's, and end when the machine's folders
// are removed.
func mounts(dir string) (list []string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
			list = append(list, f[4]+" "+f[3])
		}
	}
	return list, nil
}

// netnsMounts returns the mount points below a folder that keep network namespaces.
func netnsMounts(dir string) (points []string, err error) {
	all, err := mounts(dir)
	for _, m := range all {
		if point, root, _ := strings.Cut(m, " "); strings.HasPrefix(root, "net:[") {
			points = append(points, point)
		}
	}
	return points, err
}

// interfaces returns the names of the interfaces of this namespace.
func interfaces() ([]string, error) {
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // they come and go
		links, err = netlink.LinkList()
	}
	var names []string
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names, err
}

// routing describes the routing rules and the routes of all tables.
func routing() (list []string, err error) {
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		list = append(list, r.String())
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		name := ""
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		list = append(list, fmt.Sprintf("route to %v in table %d over %s", r.Dst, r.Table, name))
	}
	return list, nil
}

// nftRules describes the tables, rules and set elements of this namespace, without the
// elements that packets add: these expire.
func nftRules() (list []string, err error) {
	var c nftables.Conn
	tables, err := c.ListTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		list = append(list, "table "+t.Name)
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			if s.Dynamic {
				continue
			}
			elements, err := c.GetSetElements(s)
			if err != nil {
				return nil, err
			}
			for _, e := range elements {
				list = append(list, fmt.Sprintf("set %s: %q", s.Name, bytes.TrimRight(e.Key, "\x00")))
			}
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			list = append(list, fmt.Sprintf("rule %d in %s", r.Handle, chain.Name))
		}
	}
	return list, nil
}

// instance is the name that the server gives to its cgroup; see cmd/sandboxd.
func (s *server) instance() string {
	sum := sha256.Sum256([]byte(s.state()))
	return "skerry-" + hex.EncodeToString(sum[:4])
}

// cgroups returns the server's cgroups, and the memory that they are charged with.
func (s *server) cgroups() (dirs []string, memory int64) {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, _ := filepath.Glob(filepath.Join(pattern, s.instance()))
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil // they come and go
			})
			for _, file := range []string{"memory.current", "memory.usage_in_bytes"} {
				if b, err := os.ReadFile(filepath.Join(root, file)); err == nil {
					n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
					memory += n
				}
			}
		}
	}
	return dirs, memory
}

// stateFiles returns the files of the state folder and the run folder, and the bytes that
// the log, the audit log and the database use.
func (s *server) stateFiles() (files []string, records int64) {
	for _, root := range []string{s.state(), filepath.Join(s.dir, "run")} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // they come and go
			}
			rel, _ := filepath.Rel(s.dir, path)
			if strings.HasSuffix(rel, "/sandboxd.log") || strings.Contains(rel, "/db") || strings.Contains(rel, "/audit") {
				if info, err := d.Info(); err == nil && !d.IsDir() {
					records += info.Size()
				}
				return nil
			}
			// The folders of the blob store, one for each first byte of a name, stay.
			if !d.IsDir() || !strings.Contains(rel, "/blobs/") {
				files = append(files, rel)
			}
			return nil
		})
	}
	return files, records
}

// warmIDs returns the ids of the warm machines, and of their networks.
func (s *server) warmIDs() (machines, all []string, err error) {
	dir := filepath.Join(s.state(), "warm")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		id, is := strings.CutSuffix(e.Name(), ".json")
		if !is || strings.HasPrefix(id, ".") {
			continue // it is being written
		}
		var record struct {
			Lease string `json:"lease"`
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			err = json.Unmarshal(b, &record)
		}
		if err != nil {
			return nil, nil, err
		}
		machines, all = append(machines, id), append(all, id, record.Lease)
	}
	return machines, all, nil
}

// blankName is what a name begins with that carries the id of a blank machine.
var blankName = regexp.MustCompile(`blk_[0-9a-z]+`)

// blankIDs returns the ids of the blank machines that have a process, a cgroup or a file,
// and of their networks. No record names the network of one, but its sentry is in it.
func (s *server) blankIDs(groups, files []string) (machines, networks []string, err error) {
	found := map[string]bool{}
	for _, name := range slices.Concat(groups, files) {
		for _, id := range blankName.FindAllString(name, -1) {
			found[id] = true
		}
	}
	all, err := mounts(s.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, pid := range processes() {
		id := blankName.FindString(strings.Join(processArgs(pid), " "))
		if id == "" {
			continue
		}
		found[id] = true
		namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			continue // it has just ended
		}
		for _, m := range all {
			if point, root, _ := strings.Cut(m, " "); root == namespace && !slices.Contains(networks, filepath.Base(point)) {
				networks = append(networks, filepath.Base(point))
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), networks, nil
}

// openFiles returns the number of open files of a process.
func openFiles(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}
