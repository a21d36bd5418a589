package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// When a machine reaches its memory limit, the host's kernel kills one of its
// processes. This may be the sentry, and then everything is lost. So the session
// watches the memory, and makes the sandbox kill its process with the most memory
// before that happens. Memory that belongs to no process (files of a tmpfs) is
// limited by the sandbox's own kernel.

const (
	// reliefMargin is the distance from the limit at which a process is killed. For
	// small machines it is a sixteenth of the limit.
	reliefMargin = 64 << 20
	// fillRate is the rate at which a sandbox is expected to fill memory at most,
	// in bytes a second. It determines when to check again.
	fillRate = 4 << 30
	// guardMin and guardMax are the minimum and maximum time between two checks.
	guardMin = 20 * time.Millisecond
	guardMax = time.Second
	// reliefWait is the time in which the memory of a killed process should become
	// free, before another one is killed.
	reliefWait = 2 * time.Second
	// reliefPatience is the time that the agent has to kill a process.
	reliefPatience = 3 * time.Second
)

// guardMemory kills a process of the machine whenever the machine is about to run
// out of memory.
func (s *session) guardMemory() {
	timer := time.NewTimer(guardMin)
	defer timer.Stop()
	var kills int64
	for {
		select {
		case <-timer.C:
		case <-s.pressed:
		case <-s.ended:
			return
		case <-s.ctx.Done():
			return
		}
		if _, frozen := s.standstills(); frozen {
			continue // it needs no more before it is resumed, which is told by pressed
		}
		room, ok := s.memoryRoom()
		if !ok {
			return
		}
		if room <= 0 {
			// If the host's kernel was quicker, what its victim held becomes free first.
			if used, err := s.machine().Usage(); err == nil && used.OOMKills > kills {
				kills = used.OOMKills
				room = s.awaitRelief()
			}
		}
		if room <= 0 {
			if s.confined.Load() > 0 {
				s.yield()
			} else {
				s.relieve()
			}
			room = s.awaitRelief()
		}
		timer.Reset(together(nextCheck(room, 1)))
	}
}

// together has the sessions with enough room checked at the same time: to wake this
// process once for each costs more than the checks.
func together(wait time.Duration) time.Duration {
	if wait < guardMax {
		return wait
	}
	now := time.Now()
	return now.Truncate(guardMax).Add(guardMax).Sub(now)
}

// nextCheck returns when to check again with so much room left, which so many CPUs
// fill.
func nextCheck(room int64, cpus int) time.Duration {
	seconds := float64(room) / fillRate / float64(cpus)
	return time.Duration(min(max(seconds, guardMin.Seconds()), guardMax.Seconds()) * float64(time.Second))
}

// memoryRoom returns how much more memory the machine may use before a process is
// killed. It returns false if this cannot be determined.
func (s *session) memoryRoom() (int64, bool) {
	m, err := s.machine().Memory()
	if err != nil || m.Limit == 0 {
		return 0, false // an error is that of a machine that has ended
	}
	if most := s.confined.Load(); most > 0 && most < m.Limit {
		if m.Used, err = s.machine().PinnedMemory(most / 2); err != nil {
			return 0, false
		}
		m.Limit = most
	}
	return relievedAt(m) - m.Used, true
}

// relievedAt returns the memory use above which a process is killed.
func relievedAt(m driver.Memory) int64 { return m.Limit - min(reliefMargin, m.Limit/16) }

// awaitRelief returns the free memory after a process was killed.
func (s *session) awaitRelief() int64 {
	late := time.After(reliefWait)
	tick := time.NewTicker(guardMin)
	defer tick.Stop()
	for {
		room, ok := s.memoryRoom()
		if room > 0 || !ok {
			return room
		}
		select {
		case <-tick.C:
		case <-late:
			return room
		case <-s.ended:
			return room
		case <-s.ctx.Done():
			return room
		}
	}
}

// relieve makes the sandbox kill its process with the most memory.
func (s *session) relieve() {
	if _, frozen := s.standstills(); frozen {
		return // nothing in it asks for more
	}
	s.killGreediest(s.ctx, reliefPatience)
}

// killGreediest makes the sandbox kill its process with the most memory, by its
// agent or else without it, and returns the process; nil if none was killed. Each of
// the two may take patience.
func (s *session) killGreediest(ctx context.Context, patience time.Duration) *guest.Victim {
	log := s.reliefLog()
	if s.isRunning() && s.knowsRelief() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		victim, err := s.guest.Relieve(ctx)
		cancel()
		if err == nil {
			tellVictim(log, victim)
			return victim
		}
		log.Warn("a guest agent does not relieve its sandbox of a process", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said, err := s.machine().Relieve(ctx)
	log.Warn("a sandbox is out of memory", "killed", fmt.Sprintf("%.200q", said), "error", err)
	var victim guest.Victim
	if err != nil || json.Unmarshal([]byte(said), &victim) != nil {
		return nil
	}
	return &victim
}

// reliefLog returns the log, or a discarding one if the sandbox has caused too many
// lines.
func (s *session) reliefLog() *slog.Logger {
	if !s.reliefs.Allow() {
		return slog.New(slog.DiscardHandler)
	}
	return s.node.cfg.Log.With("session", s.id)
}

// knowsRelief reports whether the session's agent has this version. An earlier
// agent takes the request for a violation of the protocol.
func (s *session) knowsRelief() bool { return s.agent == s.node.currentAgent() }

// tellVictim logs a killed process.
func tellVictim(log *slog.Logger, v *guest.Victim) {
	if v == nil {
		log.Warn("a sandbox is out of memory, and no process of it holds much")
		return
	}
	log.Warn("a process of a sandbox was killed: out of memory", "pid", v.PID, "name", fmt.Sprintf("%.32q", v.Name), "bytes", v.Bytes)
}

// killedNotes returns notes about the processes of a command that were killed for
// lack of memory.
func (s *session) killedNotes(exit guest.Exit) (notes []string) {
	m, err := s.machine().Memory()
	if err != nil {
		return nil
	}
	killed := exit.Killed
	if len(killed) == 0 && exit.Signal == syscall.SIGKILL && s.kernelKilled() {
		why := fmt.Sprintf("the sandbox has %d MiB", m.Size>>20)
		if most := s.confined.Load(); most > 0 && most < m.Limit {
			why = usedTogether
		}
		return []string{"out of memory: the host's kernel killed a process of the sandbox; " + why}
	}
	for _, v := range killed[:min(len(killed), wire.MaxVictims)] {
		why := fmt.Sprintf("the sandbox has %d MiB", m.Size>>20)
		if s.hasYielded(v.PID) {
			why = usedTogether
		}
		notes = append(notes, fmt.Sprintf("out of memory: %.32q (pid %d) was killed; it used %d MiB, %s", v.Name, v.PID, max(0, v.Bytes)>>20, why))
	}
	return notes
}

// kernelKilled reports whether the host's kernel has killed processes of the
// machine since the last call: a sandbox may fill its memory faster than it is
// watched.
func (s *session) kernelKilled() bool {
	used, err := s.machine().Usage()
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	more := used.OOMKills > s.oomKills
	s.oomKills = used.OOMKills
	return more
}

// note appends lines of the node's own to the standard error of a command whose
// output has ended.
func (s *session) note(c *command, lines ...string) {
	for _, line := range lines {
		_, end := c.log.Offsets()
		if err := c.log.Append(s.ctx, skerry.Stderr, end, []byte("skerry: "+line+"\n")); err != nil {
			return // the output could not be kept, which was told
		}
	}
}

// noteLoss writes the reason to a command whose session ended by itself.
func (s *session) noteLoss(c *command) {
	select {
	case <-s.ended:
	case <-s.ctx.Done():
		return // this process lets go of the session
	}
	if s.reason != "" {
		s.note(c, "the sandbox was lost: "+s.reason)
	}
}
