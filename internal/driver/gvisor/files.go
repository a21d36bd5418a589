package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// filesPeriod is how often a machine's files on the host are looked at.
	filesPeriod = 2 * time.Second
	// maxDebugLog is how large each file of a sentry's debug log becomes before it
	// begins anew.
	maxDebugLog = 64 << 20
)

// watchFiles ends a machine whose sentry takes up more of the host's disk than
// the sandbox may, in its writable layer or in the files of a save: the sentry
// itself keeps to the limit, unless it was taken over by what it runs. Twice in a row, as what is deleted is given back a little
// later.
func (m *machine) watchFiles() {
	for over := 0; ; {
		// All machines are looked at together: to wake this process once for each costs
		// more than the looks.
		now := time.Now()
		select {
		case <-m.done:
			return
		case <-time.After(now.Truncate(filesPeriod).Add(filesPeriod).Sub(now)):
		}
		if m.d.cfg.Debug {
			m.boundDebugLogs()
		}
		if !m.takesTooMuch() {
			over = 0
			continue
		}
		if over++; over == 2 {
			m.overran.Store(true)
			_ = m.proc.signal() // watch sees whether it ends
			return
		}
	}
}

func (m *machine) takesTooMuch() bool {
	if m.disk == nil || m.diskLimit == 0 {
		return false
	}
	id, used, err := look(m.disk)
	if err != nil {
		return false
	}
	most := m.diskLimit + diskSlack
	return used > most || m.saves.bytes(m.proc.pid, id) > most+m.memory+sentryMemory
}

// saves are the files that a sentry writes its saves to. It may keep them open, and
// write more to them, when the save has ended and they have no names any more.
type saves struct {
	mu sync.Mutex
	// dir is the folder of the save in progress, "" for none, and device the file
	// system of the last one.
	dir    string
	device uint64
	// open says that the sentry may have such files open.
	open bool
}

// begin is called before a sentry writes to the files in dir, and the returned
// function when it should not any more.
func (s *saves) begin(dir string) (end func(), err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir, s.device, s.open = dir, st.Dev, true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dir = ""
	}, nil
}

// bytes returns what they take up: the files of the save in progress, and whatever
// the sentry has open for writing on the same file system, or on that of its
// writable layer, disk. A sentry's memory and its drives are elsewhere.
func (s *saves) bytes(sentry int, disk fileID) (sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return 0
	}
	seen := map[fileID]bool{disk: true}
	add := func(path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Dev != s.device && st.Dev != disk.Device {
			return
		}
		if id := (fileID{st.Dev, st.Ino}); !seen[id] {
			seen[id] = true
			sum += st.Blocks * 512
		}
	}
	for _, path := range openForWriting(sentry) {
		add(path)
	}
	if s.dir == "" {
		s.open = len(seen) > 1
		return sum
	}
	// What the sentry has closed is still part of the save.
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		add(filepath.Join(s.dir, e.Name()))
	}
	return sum
}

// openForWriting returns paths of the files that a process has open for writing.
func openForWriting(pid int) (paths []string) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir) // an error is that of a process that has ended
	for _, e := range entries {
		// The mode of the link is that of the descriptor.
		if info, err := e.Info(); err == nil && info.Mode().Perm()&0o200 != 0 {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// fileID names a file of the host, also one without a name.
type fileID struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// look returns what a file is and how many bytes it takes up.
func look(f *os.File) (id fileID, bytes int64, err error) {
	var st unix.Stat_t
	conn, err := f.SyscallConn()
	if err == nil {
		var serr error
		err = conn.Control(func(fd uintptr) { serr = unix.Fstat(int(fd), &st) })
		err = errors.Join(err, serr)
	}
	if err != nil {
		return fileID{}, 0, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	return fileID{st.Dev, st.Ino}, st.Blocks * 512, nil
}

// openDisk returns the writable layer of a running sentry; nil if it has none.
func openDisk(sentry int, disk fileID) (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", sentry)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && disk == (fileID{st.Dev, st.Ino}) {
			return os.Open(path)
		}
	}
	return nil, nil
}

// boundDebugLogs truncates the debug logs that have become too large. They are
// open for appending, so they go on from the start.
func (m *machine) boundDebugLogs() {
	logs, _ := filepath.Glob(filepath.Join(m.d.machineDir(m.id), debugDir, "*"))
	for _, path := range logs {
		if info, err := os.Stat(path); err == nil && info.Size() > maxDebugLog {
			if err := os.Truncate(path, 0); err != nil {
				m.d.cfg.Log.Warn("cannot bound a debug log", "path", path, "error", err)
			}
		}
	}
}
