package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// reading is what the server holds on its host when it has no sandboxes but those of its
// pool: warm ones and blank ones. The number of these depends on what was asked for in the
// last minutes, so what carries the name of one of them, or of its network, is not counted.
type reading struct {
	numbers map[string]int64
	// names are what some of the numbers count.
	names map[string][]string
	// warm and blank are the sandboxes of the pool that the host has, ready the number of
	// blank ones that the server says to have. Sessions keep the names of the blank
	// sandboxes that they started in, so more than these belong to nobody.
	warm, blank []string
	ready       int64
}

// pool is the number of sandboxes of the pool.
func (r *reading) pool() int64 { return int64(len(r.warm) + len(r.blank)) }

// limit is how much more of something there may be at a checkpoint than at the baseline.
type limit struct {
	what string
	more int64
	// each is how much more there may be for each sandbox of the pool more than there were
	// at the baseline.
	each int64
	why  string
}

var limits = []limit{
	{what: "processes"},
	{what: "network namespaces"},
	{what: "interfaces"},
	{what: "tables, rules and set elements"},
	{what: "routes and routing rules"},
	{what: "mounts"},
	{what: "cgroups"},
	{what: "files"},
	{what: keptFiles},
	{"server's open files", 8, 12, "connections of the database vary"},
	{"server's goroutines", 12, 8, "those of the database and of closing connections"},
	{"server's heap", 8 << 20, 1 << 20, "caches and buffers of the last requests"},
	{"server's memory", 96 << 20, 2 << 20, "Go returns freed memory to the system late"},
	{"bytes on the disk", 24 << 20, 8 << 20, "ext4 does not shrink folders"},
	{"memory of the pool", 32 << 20, 64 << 20, "page cache"},
	{"host's memory", 512 << 20, 64 << 20, "caches that the kernel does not count as available"},
}

// exact reports whether the number must be that of the baseline.
func (l limit) exact() bool { return l.more == 0 }

// read reads everything that must return to the baseline.
func (s *soak) read() (*reading, error) {
	pid, err := s.server.pid()
	if err != nil {
		return nil, err
	}
	// A garbage collection first: what remains is in use.
	if _, err := page("http://" + pprofAddress + "/debug/pprof/heap?gc=1"); err != nil {
		return nil, err
	}
	m, err := metrics()
	if err != nil {
		return nil, err
	}
	r := &reading{numbers: map[string]int64{}, names: map[string][]string{}, ready: int64(m["skerry_blank_ready"])}
	groups, memory := s.server.cgroups()
	files, records := s.server.stateFiles()
	var ids, networks []string
	if r.warm, ids, err = s.server.warmIDs(); err != nil {
		return nil, err
	}
	if r.blank, networks, err = s.server.blankIDs(groups, files); err != nil {
		return nil, err
	}
	ids = slices.Concat(ids, r.blank, networks)
	for what, list := range map[string]func() ([]string, error){
		"processes":                      running,
		"network namespaces":             func() ([]string, error) { return netnsMounts(s.server.dir) },
		"mounts":                         func() ([]string, error) { return mounts(s.server.dir) },
		"interfaces":                     interfaces,
		"tables, rules and set elements": nftRules,
		"routes and routing rules":       routing,
		"cgroups":                        func() ([]string, error) { return groups, nil },
		"files":                          func() ([]string, error) { return without(files, isKept), nil },
		keptFiles:                        func() ([]string, error) { return without(files, func(f string) bool { return !isKept(f) }), nil },
	} {
		names, err := list()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		names = without(names, func(name string) bool {
			return slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(name, id) })
		})
		r.names[what], r.numbers[what] = names, int64(len(names))
	}
	used, _, err := s.server.disk.usage()
	if err != nil {
		return nil, err
	}
	r.numbers["bytes on the disk"] = used - records
	r.numbers["memory of the pool"] = memory
	r.numbers["host's memory"] = hostUsed()
	r.numbers["server's open files"] = int64(openFiles(pid))
	r.numbers["server's goroutines"] = int64(m["go_goroutines"])
	// Without what the collection has left unused between objects.
	r.numbers["server's heap"] = int64(m["go_memstats_heap_alloc_bytes"])
	r.numbers["server's memory"] = statusKB(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	return r, nil
}

// keptFiles are the files of snapshots. Without snapshots there are none, however long
// the server keeps them after a deletion.
const keptFiles = "files of snapshots"

// isKept reports whether a file of the state folder belongs to a snapshot.
func isKept(file string) bool {
	return strings.Contains(file, "/snapshots/blobs/") || strings.Contains(file, "/snapshots/cache/") && !strings.HasSuffix(file, "/cache/tmp")
}

func without(list []string, f func(string) bool) []string {
	return slices.DeleteFunc(slices.Clone(list), f)
}

// excess is a difference from what a server without sandboxes should hold.
type excess struct{ what, text string }

// unfinished lists what a server without sandboxes must have or not have, whatever the
// baseline was.
func (r *reading) unfinished() (list []excess) {
	if n := len(r.warm); n < warm {
		list = append(list, excess{"warm sandboxes", fmt.Sprintf("there are %d warm sandboxes instead of %d", n, warm)})
	}
	if n := int64(len(r.blank)); n != r.ready {
		text := fmt.Sprintf("there are %d blank sandboxes, and the server says to have %d ready:\n      %s", n, r.ready, strings.Join(r.blank, "\n      "))
		list = append(list, excess{"blank sandboxes", text})
	}
	if n := r.numbers[keptFiles]; n > 0 {
		text := fmt.Sprintf("there are %d %s although there are no snapshots:\n      %s", n, keptFiles, strings.Join(r.names[keptFiles], "\n      "))
		list = append(list, excess{keptFiles, text})
	}
	return list
}

// exceeds lists what there is more of than at the baseline. Of what must be the same,
// less is wrong too.
func (r *reading) exceeds(base *reading, shared bool) []excess {
	list := r.unfinished()
	for _, l := range limits {
		have, want := r.numbers[l.what], base.numbers[l.what]
		most := want + l.more + l.each*max(0, r.pool()-base.pool())
		if l.exact() && have == want || !l.exact() && have <= most || shared && l.what == "host's memory" || l.what == keptFiles {
			continue
		}
		text := fmt.Sprintf("%s: %d, at the baseline %d", l.what, have, want)
		if !l.exact() {
			text += fmt.Sprintf(" (allowed are %d: %s)", most, l.why)
		}
		for _, name := range r.names[l.what] {
			if !slices.Contains(base.names[l.what], name) {
				text += "\n      new:  " + name
			}
		}
		for _, name := range base.names[l.what] {
			if l.exact() && !slices.Contains(r.names[l.what], name) {
				text += "\n      gone: " + name
			}
		}
		list = append(list, excess{l.what, text})
	}
	return list
}

// settling is how long nothing may change while there is still something that should not
// be. The server has removed the chunks of deleted snapshots a minute after a restart.
const settling = 4 * time.Minute

// vigil waits for something, and keeps what it waited for.
type vigil struct {
	from, change time.Time
	last         string
	// until is how long there was each thing that should not be.
	until map[string]time.Duration
}

func newVigil() *vigil {
	return &vigil{from: time.Now(), change: time.Now(), until: map[string]time.Duration{}}
}

// look notes what should not be, and reports whether nothing has changed for too long.
func (v *vigil) look(r *reading, list []excess) (stuck bool) {
	// Measurements always change.
	now := fmt.Sprint(len(r.warm), r.blank, r.ready)
	for _, l := range limits {
		if l.exact() {
			now += fmt.Sprint(" ", r.names[l.what])
		}
	}
	if now != v.last {
		v.last, v.change = now, time.Now()
	}
	for _, e := range list {
		v.until[e.what] = time.Since(v.from)
	}
	return time.Since(v.change) > settling
}

// String says what was waited for longest.
func (v *vigil) String() string {
	var list []string
	for _, what := range slices.SortedFunc(maps.Keys(v.until), func(a, b string) int { return cmp.Compare(v.until[b], v.until[a]) }) {
		list = append(list, fmt.Sprintf("%s %.0f s", what, v.until[what].Seconds()))
	}
	return strings.Join(list[:min(len(list), 3)], ", ")
}

func texts(list []excess) string {
	var all []string
	for _, e := range list {
		all = append(all, e.text)
	}
	return strings.Join(all, "\n    ")
}

// baseline returns a reading when it does not change any more.
func (s *soak) baseline() (*reading, error) {
	var last *reading
	same, v := 0, newVigil()
	for ; same < 10; time.Sleep(500 * time.Millisecond) {
		r, err := s.read()
		if err != nil {
			return nil, err
		}
		same++
		for _, l := range limits {
			if last == nil || l.exact() && r.numbers[l.what] != last.numbers[l.what] {
				same = 0
			}
		}
		list := r.unfinished()
		if len(list) > 0 {
			same = 0
		}
		if last = r; v.look(r, list) {
			return nil, fmt.Errorf("the server without sandboxes does not settle: %v\n    %s", r.numbers, texts(list))
		}
	}
	return last, nil
}

// settle waits until everything is as at the baseline. It returns what it waited for.
func (s *soak) settle() (waited string, err error) {
	for v := newVigil(); ; time.Sleep(500 * time.Millisecond) {
		r, err := s.read()
		if err != nil {
			return "", err
		}
		more := r.exceeds(s.base, s.shared)
		if len(more) == 0 {
			s.settled = append(s.settled, r)
			return v.String(), s.grows()
		}
		if v.look(r, more) {
			s.settled = append(s.settled, r)
			if strings.Contains(texts(more), "goroutines") {
				_ = os.WriteFile(filepath.Join(s.out, "goroutines.txt"), []byte(goroutines()), 0o644)
			}
			if profile, err := page("http://" + pprofAddress + "/debug/pprof/heap?gc=1"); err == nil {
				_ = os.WriteFile(filepath.Join(s.out, "heap.pprof"), profile, 0o644)
			}
			return "", fmt.Errorf("everything was deleted %.0f s ago, nothing has changed for %v, and there is still:\n    %s", time.Since(v.from).Seconds(), settling, texts(more))
		}
	}
}

// growing is the number of checkpoints in a row at each of which a number may be larger
// than at the one before.
const growing = 6

// grows returns an error if a number has become larger from checkpoint to checkpoint,
// even if it is within its limit.
func (s *soak) grows() error {
	if len(s.settled) <= growing {
		return nil
	}
	recent := s.settled[len(s.settled)-growing-1:]
	for _, l := range limits {
		if s.shared && l.what == "host's memory" {
			continue
		}
		larger := 0
		for i := 1; i < len(recent); i++ {
			// By more than what a measurement varies.
			if recent[i].numbers[l.what] > recent[i-1].numbers[l.what]+l.more/100 {
				larger++
			}
		}
		if larger == growing {
			return fmt.Errorf("%s has grown at each of the last %d checkpoints, from %d to %d", l.what, growing, recent[0].numbers[l.what], recent[growing].numbers[l.what])
		}
	}
	return nil
}
