package node

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"
)

// A sandbox's CPU weight is by its size. So a team with many busy sandboxes would get many
// shares of a machine that has not enough CPU time for all. While that is so, the node
// changes the weights of the sandboxes that compute: those of each team together weigh the same.

const (
	// teamTick is how often is looked.
	teamTick = time.Second
	// teamIdle: below this idle part of its CPU time, the machine counts as busy.
	teamIdle = 0.1
	// teamBusy is the part of one CPU that a sandbox uses if it computes.
	teamBusy = 0.05
	// unknownWeight is the factor of a machine that an earlier process started.
	unknownWeight = -1
	// maxFactor bounds by how much a team's weights are raised. The kernel bounds them too.
	maxFactor = 100
	// maxCorrection bounds the correction of a team, and maxStep by how much it changes at a look.
	maxCorrection, maxStep = 8.0, 1.5
	// correctionPower is how much of the difference a correction takes up at a look: all of it
	// would make the parts swing around the fair one.
	correctionPower = 0.2
)

// teams are the factors of the teams' weights, as they were last set.
type teams struct {
	mu      sync.Mutex
	factors map[string]float64
}

// factor returns by how much the weights of a team's sandboxes differ from the usual ones.
func (t *teams) factor(team string) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.factors[team]; ok {
		return f
	}
	return 1
}

func (t *teams) set(factors map[string]float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.factors = factors
}

// load is what a team's sandboxes that compute weigh together, by their usual weights, and the
// CPU time that they have used.
type load struct {
	weight float64
	used   time.Duration
}

// teamFactors returns the factors of teams. All of a team weigh as much together as those of the
// heaviest one; times the team's correction, which is adjusted, because equal weights do not
// give equal time: the kernel divides weights among CPUs, and a sandbox that has to hand over
// between its threads often loses some. A team that cannot use its part gets a larger correction
// than it can use, which takes nothing from the others.
func teamFactors(loads map[string]load, corrections map[string]float64) map[string]float64 {
	heaviest, all := 0.0, time.Duration(0)
	for _, l := range loads {
		heaviest, all = max(heaviest, l.weight), all+l.used
	}
	factors := map[string]float64{}
	for team, l := range loads {
		fair := float64(all) / float64(len(loads))
		c, ok := corrections[team]
		if !ok {
			c = 1
		}
		c *= min(max(math.Pow(fair/float64(l.used), correctionPower), 1/maxStep), maxStep)
		corrections[team] = min(max(c, 1/maxCorrection), maxCorrection)
		factors[team] = min(heaviest/l.weight*corrections[team], maxFactor)
	}
	return factors
}

// shareCPU divides the CPU time among teams while there is not enough of it.
func (n *Node) shareCPU() {
	tick := time.NewTicker(teamTick)
	defer tick.Stop()
	var before cpuTimes
	used, corrections, looked := map[*session]time.Duration{}, map[string]float64{}, time.Now()
	for {
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		now, err := readCPUTimes()
		scarce := err == nil && now.scarce(before)
		before = now
		sessions := n.all()
		if !scarce || !severalTeams(sessions) {
			n.teams.set(nil)
			clear(used)
			clear(corrections)
		} else {
			at := time.Now()
			n.teams.set(teamFactors(n.busyTeams(sessions, used, at.Sub(looked)), corrections))
			looked = at
		}
		for _, s := range sessions {
			s.weigh(n.teams.factor(s.team()))
		}
	}
}

// severalTeams reports whether sessions that are not paused are of more than one team.
func severalTeams(sessions []*session) bool {
	first := ""
	for _, s := range sessions {
		if _, paused := s.standstills(); paused || !s.isRunning() {
			continue
		}
		switch team := s.team(); {
		case team == "" || team == first:
		case first == "":
			first = team
		default:
			return true
		}
	}
	return false
}

// busyTeams returns the loads of the sessions that have computed since the last look, by team.
// used is their CPU time then, and is brought up to date.
func (n *Node) busyTeams(sessions []*session, used map[*session]time.Duration, since time.Duration) map[string]load {
	loads, known := map[string]load{}, make(map[*session]bool, len(sessions))
	for _, s := range sessions {
		team := s.team()
		if _, paused := s.standstills(); paused || team == "" || !s.isRunning() {
			continue
		}
		now, err := s.machine().Usage()
		if err != nil {
			continue // it has ended
		}
		known[s] = true
		if before, ok := used[s]; ok && now.CPU-before >= time.Duration(teamBusy*float64(since)) {
			l := loads[team]
			loads[team] = load{l.weight + float64(max(s.size.VCPUs, 1)), l.used + now.CPU - before}
		}
		used[s] = now.CPU
	}
	for s := range used {
		if !known[s] {
			delete(used, s)
		}
	}
	return loads
}

// team returns whose session it is, "" if that is not known.
func (s *session) team() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner.TeamID
}

// weigh sets the CPU weight of the session, if it differs.
func (s *session) weigh(factor float64) {
	s.mu.Lock()
	same := s.weight == factor || s.weight == 0 && factor == 1 || !s.live
	s.mu.Unlock()
	if same {
		return
	}
	if err := s.machine().Weigh(factor); err != nil {
		return // it has ended
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.weight = factor
}

// cpuTimes are what the machine's CPUs have done since it was started, in ticks of the clock.
type cpuTimes struct{ idle, all uint64 }

// scarce reports whether the CPUs have been busy almost all of the time since before.
func (c cpuTimes) scarce(before cpuTimes) bool {
	all := c.all - before.all
	return before.all != 0 && all > 0 && float64(c.idle-before.idle) < teamIdle*float64(all)
}

// readCPUTimes reads /proc/stat.
func readCPUTimes() (c cpuTimes, err error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return c, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	if !lines.Scan() {
		return c, fmt.Errorf("read /proc/stat: %w", lines.Err())
	}
	return parseCPUTimes(lines.Text())
}

// parseCPUTimes parses the line of all CPUs: user, nice, system, idle, iowait, irq, softirq,
// steal, and what is in user and nice already.
func parseCPUTimes(line string) (c cpuTimes, err error) {
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return c, fmt.Errorf("/proc/stat begins with %.100q", line)
	}
	for n, field := range fields[1:9] {
		var ticks uint64
		if _, err := fmt.Sscan(field, &ticks); err != nil {
			return c, fmt.Errorf("/proc/stat begins with %.100q", line)
		}
		c.all += ticks
		if n == 3 || n == 4 {
			c.idle += ticks
		}
	}
	return c, nil
}
