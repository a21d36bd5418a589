package controller

import "time"

// What is deleted because it has expired is gone for good, and a machine's clock
// may be wrong: after a start without a battery, a bad time server, a restored
// virtual machine. So nothing is deleted until the clock has gone as evenly as the
// processor's own counter for a while.
const (
	// clockSettles is how long that while is. Time servers set a clock right
	// within minutes.
	clockSettles = 15 * time.Minute
	// clockSlack is how far the two may drift apart between two looks. A clock
	// that is being adjusted gains or loses up to 0.5 ms a second.
	clockSlack = 10 * time.Second
)

// steadiness watches the clock for jumps. Its zero value has seen nothing.
type steadiness struct {
	seen bool
	// clock and counter are those of the last look; since is the counter at the
	// first look after the last jump.
	clock          time.Time
	counter, since time.Duration
}

// look takes the time and the counter, and reports whether the clock has been
// steady for clockSettles. jumped is how far it has jumped since the last look,
// 0 if it has not.
func (s *steadiness) look(clock time.Time, counter time.Duration) (steady bool, jumped time.Duration) {
	clock = clock.Round(0) // without the counter's reading, which Sub would use
	drift := clock.Sub(s.clock) - (counter - s.counter)
	if !s.seen {
		s.seen, s.since = true, counter
	} else if drift > clockSlack || drift < -clockSlack {
		s.since, jumped = counter, drift
	}
	s.clock, s.counter = clock, counter
	return counter-s.since >= clockSettles, jumped
}
