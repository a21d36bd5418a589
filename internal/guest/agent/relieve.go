package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// errNoVictim reports that no process uses much memory.
var errNoVictim = errors.New("no process uses enough memory")

// minVictimBytes is the minimum memory of a process that may be killed. A shell or a
// sleep uses less. They must survive if the host's kernel has just killed the process
// that filled the memory.
const minVictimBytes = 16 << 20

// statLimit limits the read of a file in /proc.
const statLimit = 4 << 10

// Relieve kills the process that uses the most memory in the sandbox, and writes which
// one to out. It runs in a process of its own, beside the agent.
func Relieve(out io.Writer) error {
	victim, _, err := greediest("/proc", nil)
	if err == nil {
		err = unix.Kill(victim.PID, unix.SIGKILL)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(victim)
}

// relieve is Relieve in the agent. It also adds the victim to the exit of its command.
func (a *Agent) relieve() (*wire.Victim, error) {
	a.mu.Lock()
	procs := a.processes()
	a.mu.Unlock()
	var ours map[int]bool
	if !a.platform.Alone() {
		ours = map[int]bool{}
		for _, p := range procs {
			p.mu.Lock()
			ours[p.pid] = true
			p.mu.Unlock()
		}
	}
	victim, session, err := greediest("/proc", ours)
	if errors.Is(err, errNoVictim) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		p.loses(session, victim)
	}
	return &victim, unix.Kill(victim.PID, unix.SIGKILL)
}

// loses adds the victim to the exit of p if the victim is in the session of p.
func (p *process) loses(session int, victim wire.Victim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == session && !p.done && len(p.exit.Killed) < wire.MaxVictims {
		p.exit.Killed = append(p.exit.Killed, victim)
	}
}

// greediest returns the process that the out-of-memory killer of Linux would choose, and
// its session. It never chooses the init process or the caller. If ours is not nil, it
// chooses only from these sessions.
func greediest(proc string, ours map[int]bool) (victim wire.Victim, session int, err error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return victim, 0, err
	}
	var worst int64
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 || pid == os.Getpid() {
			continue
		}
		c, err := readCandidate(proc, pid)
		if err != nil || c.bytes < minVictimBytes || ours != nil && !ours[c.session] {
			continue // an error most likely means that it has ended
		}
		if s := c.score(); s > worst {
			worst, session = s, c.session
			victim = wire.Victim{PID: pid, Name: c.name, Bytes: c.bytes}
		}
	}
	if victim.PID == 0 {
		err = errNoVictim
	}
	return victim, session, err
}

// candidate is a process that may be killed.
type candidate struct {
	name    string
	session int
	bytes   int64
	adjust  int64 // oom_score_adj
}

// score ranks candidates. A candidate without a positive score is not killed. On Linux
// an adjustment of 1,000 counts as all memory; here it counts as about 1 TiB.
func (c candidate) score() int64 {
	if c.adjust <= -1000 {
		return 0
	}
	return c.bytes + c.adjust<<30
}

func readCandidate(proc string, pid int) (c candidate, err error) {
	dir := fmt.Sprintf("%s/%d/", proc, pid)
	b, err := readHead(dir + "stat")
	if err != nil {
		return c, err
	}
	// The name is in parentheses and can contain any byte.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return c, fmt.Errorf("%sstat is malformed", dir)
	}
	const session, rss = 3, 21 // indexes of the fields after the name
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) <= rss {
		return c, fmt.Errorf("%sstat is malformed", dir)
	}
	c.name = string(b[open+1 : end])
	c.session, _ = strconv.Atoi(fields[session])
	pages, err := strconv.ParseInt(fields[rss], 10, 64)
	if err != nil {
		return c, err
	}
	c.bytes = pages * int64(os.Getpagesize())
	if b, err = readHead(dir + "oom_score_adj"); err == nil {
		c.adjust, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	return c, nil
}

// readHead returns the start of a file in /proc.
func readHead(name string) ([]byte, error) {
	fd, err := openRetry(unix.AT_FDCWD, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, statLimit)
	n, err := readFull(fd, b)
	return b[:n], err
}
