package e2e

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// What a server holds on its host is looked at from outside, by the names that
// it gives to things; see the package comments of cmd/sandboxd and
// internal/network.

// instance is what the server calls its cgroups and running files.
func (s *server) instance() string {
	sum := sha256.Sum256([]byte(s.path("state")))
	return "skerry-" + hex.EncodeToString(sum[:4])
}

// runDir is where the files of running sandboxes are.
func (s *server) runDir() string { return filepath.Join(s.path("run"), s.instance()) }

// networkMark tells the server's interfaces and rules from those of others.
func (s *server) networkMark() string {
	sum := sha256.Sum256([]byte(filepath.Join(s.runDir(), "netns")))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5])[:4])
}

// processes lists the host's processes that carry the server's folder in their
// arguments, as sentries and their helpers do, with those arguments.
func (s *server) processes() map[int][]string {
	s.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[int][]string{}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), "--root="+s.runDir()+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			found[pid] = strings.Split(string(b), "\x00")
		}
	}
	return found
}

// machine returns the id of a session's machine, which is another one than the session's
// if it was started ahead or the session has hibernated; "" if it hibernates.
func (s *server) machine(session string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.path("state/sessions/" + session + "/session.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	state := struct {
		Machine    string `json:"machine"`
		Hibernated bool   `json:"hibernated"`
	}{Machine: session}
	if err := json.Unmarshal(b, &state); err != nil {
		s.t.Fatal(err)
	}
	if state.Hibernated {
		return ""
	}
	return state.Machine
}

// ready returns the machines that were started ahead and are no session's yet, with
// their networks.
func (s *server) ready() map[string]string {
	s.t.Helper()
	machines := map[string]string{}
	for _, name := range s.list(s.path("state/warm")) {
		if strings.HasPrefix(name, ".") {
			continue // it is being written
		}
		b, err := os.ReadFile(s.path("state/warm/" + name))
		if os.IsNotExist(err) {
			continue // it is a session's by now
		}
		var record struct {
			Lease string `json:"lease"`
		}
		if err == nil {
			err = json.Unmarshal(b, &record)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		machines[strings.TrimSuffix(name, ".json")] = record.Lease
	}
	return machines
}

// sentry returns the process that is a session's kernel: the first of its PID
// namespace.
func (s *server) sentry(session string) int {
	s.t.Helper()
	return s.sentryOf(s.machine(session))
}

// sentryOf returns the process that is a machine's kernel.
func (s *server) sentryOf(machine string) int {
	s.t.Helper()
	for pid, args := range s.processes() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && strings.Contains(string(b), fmt.Sprintf("NSpid:\t%d\t1\n", pid)) && slices.Contains(args, "boot") &&
			slices.Contains(args, "--root="+filepath.Join(s.runDir(), "machines", machine)) {
			return pid
		}
	}
	s.t.Fatalf("machine %s has no sentry", machine)
	return 0
}

// list returns the names in a folder that may be missing.
func (s *server) list(dir string) []string {
	s.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// groups returns the folders of the server's cgroups, by name: "" is the
// parent of the sandboxes'.
func (s *server) groups() map[string][]string {
	s.t.Helper()
	found := map[string][]string{}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		procs, err := filepath.Glob(filepath.Join(root, s.instance()))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, parent := range procs {
			found[""] = append(found[""], parent)
			entries, err := os.ReadDir(parent)
			if err != nil && !os.IsNotExist(err) {
				s.t.Fatal(err)
			}
			for _, e := range entries {
				if e.IsDir() {
					found[e.Name()] = append(found[e.Name()], filepath.Join(parent, e.Name()))
				}
			}
		}
	}
	return found
}

// mounts lists what is mounted below the server's folder.
func (s *server) mounts() []string {
	s.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], s.dir+"/") {
			found = append(found, filepath.Base(f[4]))
		}
	}
	return found
}

// links lists the host's ends of the sandboxes' networks, by the network's id.
func (s *server) links() []string {
	s.t.Helper()
	all, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // others make interfaces too
		all, err = netlink.LinkList()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	var ids []string
	for _, link := range all {
		if id, ok := strings.CutPrefix(link.Attrs().Name, "sky"+s.networkMark()); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// admitted lists the networks that the firewall lets through; exists tells
// whether the server has a table of rules at all.
func (s *server) admitted() (ids []string, exists bool) {
	s.t.Helper()
	var c nftables.Conn
	tables, err := c.ListTables()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, t := range tables {
		if t.Name != "skerry-"+s.networkMark() {
			continue
		}
		set, err := c.GetSetByName(t, "leases")
		if err != nil {
			s.t.Fatal(err)
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range elements {
			name, _, _ := strings.Cut(string(e.Key), "\x00")
			ids = append(ids, strings.TrimPrefix(name, "sky"+s.networkMark()))
		}
		return ids, true
	}
	return nil, false
}

// running lists the sessions that run, and fails for one that is neither that
// nor over: a server that has just started has no work in progress.
func (s *server) running() []string {
	s.t.Helper()
	ids := []string{}
	for cursor := ""; ; {
		page, err := s.ListSessionsPage(s.t.Context(), "", client.SessionOptions{Limit: 100, Cursor: cursor})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, run := range page.Items {
			switch {
			case run.Status == skerry.StatusRunning:
				ids = append(ids, run.ID)
			case !run.Status.Ended():
				s.t.Errorf("session %s is stuck in %s", run.ID, run.Status)
			}
		}
		if cursor = page.Next; cursor == "" {
			return ids
		}
	}
}

// assertOwned checks that everything of the server on its host belongs to a
// session that runs. spare is how many networks it may keep prepared.
func (s *server) assertOwned(spare int) {
	s.t.Helper()
	running, ready := s.running(), s.ready()
	machines := slices.Collect(maps.Keys(ready))
	for _, id := range running {
		machine := s.machine(id)
		if machine != "" {
			machines = append(machines, machine)
		}
		if saved := slices.Contains(s.list(s.path("state/sessions/"+id)), "memory"); saved != (machine == "") {
			s.t.Errorf("session %s has the machine %q, and memory on disk: %v", id, machine, saved)
		}
	}
	// Blank machines are made and ended meanwhile. Their folder is what is there first and
	// goes last.
	blanks := s.blanks()
	spare += len(blanks)
	same := func(what string, got, want []string) {
		s.t.Helper()
		blanks := append(s.blanks(), blanks...)
		got = slices.DeleteFunc(got, func(id string) bool { return slices.Contains(blanks, id) })
		slices.Sort(want)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			s.t.Errorf("%s are of %v; those that run are %v", what, got, want)
		}
	}
	var processes []string
	for pid, args := range s.processes() {
		for _, a := range args {
			if root, ok := strings.CutPrefix(a, "--root="); ok && !isZombie(pid) {
				processes = append(processes, filepath.Base(root))
			}
		}
	}
	same("processes", processes, machines)
	var groups []string
	for name := range s.groups() {
		if name != "" {
			groups = append(groups, name)
		}
	}
	same("cgroups", groups, machines)
	same("machines' folders", s.list(filepath.Join(s.runDir(), "machines")), machines)
	var states, leases []string
	for _, id := range s.list(s.path("state/sessions")) {
		b, err := os.ReadFile(s.path("state/sessions/" + id + "/session.json"))
		if os.IsNotExist(err) {
			continue // an ended session's output
		}
		var state struct{ Lease string }
		if err == nil {
			err = json.Unmarshal(b, &state)
		}
		if err != nil {
			s.t.Error(err)
		}
		states, leases = append(states, id), append(leases, state.Lease)
	}
	same("sessions' states", states, running)
	leases = append(leases, slices.Collect(maps.Values(ready))...)
	admitted, _ := s.admitted()
	// Two interfaces are the proxy's.
	links := slices.DeleteFunc(s.links(), func(id string) bool { return id == "proxy" || id == "none" })
	for what, have := range map[string][]string{
		"namespaces": s.list(filepath.Join(s.runDir(), "netns")), "mounts": s.mounts(), "interfaces": links, "admitted networks": admitted,
	} {
		for _, id := range leases {
			if !slices.Contains(have, id) {
				s.t.Errorf("%s %v lack network %s of a running session", what, have, id)
			}
		}
		if n := len(have); n > len(leases)+spare {
			s.t.Errorf("there are %d %s %v for %d sessions: %v", n, what, have, len(leases), leases)
		}
	}
	s.assertKnownFiles()
}

// assertKnownFiles checks that the state folder has nothing but what the
// server keeps, and that each session's folder is one the server still knows.
func (s *server) assertKnownFiles() {
	s.t.Helper()
	known := []string{"agent", "audit", "db", "disks", "drives", "firewall", "node", "node.pid", "sandboxd.log", "sandboxd.pid", "sandboxd.sock", "sessions", "snapshots", "warm"}
	for _, name := range s.list(s.path("state")) {
		if !slices.Contains(known, name) {
			s.t.Errorf("the state folder holds %s", name)
		}
	}
	if disks := s.list(s.path("state/disks")); len(disks) > 0 {
		s.t.Errorf("disks are left: %v", disks)
	}
	if agent := s.list(s.path("state/agent")); len(agent) != 1 {
		s.t.Errorf("the agent's folder holds %v", agent)
	}
	for _, id := range s.list(s.path("state/sessions")) {
		found := false
		for cursor := ""; !found; {
			page, err := s.ListSessionsPage(s.t.Context(), "", client.SessionOptions{Limit: 100, Cursor: cursor})
			if err != nil {
				s.t.Fatal(err)
			}
			found = slices.ContainsFunc(page.Items, func(run skerry.Session) bool { return run.ID == id })
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if found {
			continue
		}
		// One whose end was recorded just now may be about to be forgotten.
		s.waitFor("the folder of session "+id+", which nobody knows, to go", func() bool {
			_, err := os.Stat(s.path("state/sessions/" + id))
			return os.IsNotExist(err)
		})
	}
}

// assertNothingLeft is about a server that has stopped with its sandboxes.
func (s *server) assertNothingLeft() {
	s.t.Helper()
	for pid, args := range s.processes() {
		if !isZombie(pid) {
			s.t.Errorf("process %d still runs: %v", pid, args)
		}
	}
	for name, dirs := range s.groups() {
		s.t.Errorf("cgroup %q is left: %v", name, dirs)
	}
	if mounts := s.mounts(); len(mounts) > 0 {
		s.t.Errorf("mounts are left: %v", mounts)
	}
	if loops := s.loops(); len(loops) > 0 {
		s.t.Errorf("loop devices are left: %v", loops)
	}
	if links := s.links(); len(links) > 0 {
		s.t.Errorf("interfaces are left: %v", links)
	}
	if ids, exists := s.admitted(); exists {
		s.t.Errorf("the table of rules is left, with %v", ids)
	}
	for _, sub := range []string{"machines", "netns"} {
		if names := s.list(filepath.Join(s.runDir(), sub)); len(names) > 0 {
			s.t.Errorf("%s is not empty: %v", sub, names)
		}
	}
	if disks := s.list(s.path("state/disks")); len(disks) > 0 {
		s.t.Errorf("disks are left: %v", disks)
	}
	if states, _ := filepath.Glob(s.path("state/sessions/*/session.json")); len(states) > 0 {
		s.t.Errorf("states of running sessions are left: %v", states)
	}
}

// isZombie tells a process that has ended, and waits for a parent that the
// crash of the server has left it without, from one that runs.
func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(b[strings.LastIndexByte(string(b), ')')+1:]), " Z")
}
