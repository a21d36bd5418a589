package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// tree is what the work folder of a sandbox must contain: the checksums of its files, by
// path.
type tree map[string]string

// unsure is the checksum of a file whose write was interrupted. It may have any content,
// or not exist. Its name is not used again.
const unsure = "unsure"

// differs says where the files of a sandbox differ from the tree; "" if nowhere.
func (t tree) differs(have tree) string {
	for _, path := range slices.Sorted(maps.Keys(t)) {
		sum, exists := have[path]
		switch {
		case t[path] == unsure || sum == t[path]:
		case !exists:
			return fmt.Sprintf("%s is missing", path)
		default:
			return fmt.Sprintf("%s has checksum %.12s, not %.12s", path, sum, t[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(have)) {
		if _, known := t[path]; !known {
			return fmt.Sprintf("%s should not exist", path)
		}
	}
	return ""
}

// sure returns the paths whose content is known, sorted.
func (t tree) sure() (paths []string) {
	for _, path := range slices.Sorted(maps.Keys(t)) {
		if t[path] != unsure {
			paths = append(paths, path)
		}
	}
	return paths
}

// saved is what a session can begin with: files, and the web server if the memory was
// saved too.
type saved struct {
	files tree
	token string
}

// job is a detached command that prints known lines for a while.
type job struct {
	id    string
	lines int
}

// code is the exit code of the job.
func (j job) code() int { return j.lines % 7 }

// box is the model of a sandbox: what is known of it from the calls that succeeded. Only
// its worker changes it. Faults read the fields that mu guards.
type box struct {
	name       string
	persistent bool
	vcpus      int
	sb         *client.Sandbox

	// files is what the running session has; nil until the first look at a new session.
	files tree
	// token is what the web server in the session answers; "" if there is none, unsure if
	// its start was not answered.
	token  string
	jobs   []job
	policy policy
	// saved are the possible beginnings of the next session. There are several if a save
	// was interrupted; the first look at the files tells which it was.
	saved []saved
	// ending is what a stop saves that is in progress, or may be; nil if there is none.
	ending *saved
	// starting is set while a resume is in progress, or may be.
	starting bool
	// requested is set after the first request to the port of the session. Such a request
	// resumes a sandbox whose session has ended.
	requested bool

	mu      sync.Mutex
	running bool
	session string
	history []string
}

// live returns the id of the running session.
func (b *box) live() (session string, running bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.session, b.running
}

// began records that a session runs.
func (b *box) began(session string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session, b.running, b.requested = session, true, false
}

// ended records that no session runs, and how the next one may begin.
func (b *box) ended(next ...saved) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running, b.jobs, b.token, b.files, b.ending, b.saved = false, nil, "", nil, nil, next
}

// toSave returns what a stop of the session saves.
func (b *box) toSave(memory bool) *saved {
	if !b.persistent {
		return &b.saved[0]
	}
	s := &saved{files: maps.Clone(b.files)}
	if memory {
		s.token = b.token
	}
	return s
}

// maxHistory is the number of operations of a sandbox that a failure prints.
const maxHistory = 60

// note adds a line to the history.
func (b *box) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.history = append(b.history, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	b.history = b.history[max(0, len(b.history)-maxHistory):]
}

func (b *box) past() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.history, "\n    ")
}

// boxes are the sandboxes of all workers, for the faults.
type boxes struct {
	mu  sync.Mutex
	all map[string]*box
}

func (l *boxes) add(b *box) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[b.name] = b
}

func (l *boxes) remove(b *box) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, b.name)
}

// running returns the sandboxes with a session, in the order of their names.
func (l *boxes) running() (list []*box) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(l.all)) {
		if _, running := l.all[name].live(); running {
			list = append(list, l.all[name])
		}
	}
	return list
}
