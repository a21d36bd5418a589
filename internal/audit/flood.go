package audit

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// Limits of the records of refused calls. With them, a flood that lasts for all of the
// default 90 days takes less than half of the default gigabyte, and so does not push other
// records out of the log.
const (
	refusedBurst = 200
	refusedEvery = 10 * time.Second
	// refusedBurstEach and refusedEveryEach are those of one source, so that one does not
	// hide the others.
	refusedBurstEach = 20
	refusedEveryEach = time.Minute
	// maxSources bounds the sources that are told apart, and maxNamed those that a
	// summary names.
	maxSources = 1024
	maxNamed   = 8
	// summarizeEvery is the interval of the summaries.
	summarizeEvery = time.Minute
)

// flood decides which refused calls have a record of their own. Its owner has a lock.
type flood struct {
	all     *rate.Limiter
	sources map[string]*source
	since   time.Time // of the first call without a record; zero if there is none
}

type source struct {
	limit      *rate.Limiter
	suppressed int64
}

func newFlood() *flood {
	return &flood{all: rate.NewLimiter(rate.Every(refusedEvery), refusedBurst), sources: map[string]*source{}}
}

// elsewhere stands for the sources that are not told apart.
const elsewhere = "others"

// admit reports whether a refused call gets a record.
func (f *flood) admit(e *Event, now time.Time) bool {
	from := e.Actor.ID
	if from == "" {
		from = network(e.Remote)
	}
	s := f.sources[from]
	if s == nil && len(f.sources) >= maxSources {
		from = elsewhere
		s = f.sources[from]
	}
	if s == nil {
		s = &source{limit: rate.NewLimiter(rate.Every(refusedEveryEach), refusedBurstEach)}
		f.sources[from] = s
	}
	if s.limit.AllowN(now, 1) && f.all.AllowN(now, 1) {
		return true
	}
	if s.suppressed++; f.since.IsZero() {
		f.since = now
	}
	return false
}

// summary returns a note of the calls since the last one that have no record, nil if
// there are none. It forgets the sources that are quiet.
func (f *flood) summary(now time.Time) *Note {
	var n Note
	for from, s := range f.sources {
		if s.suppressed > 0 {
			n.Count += s.suppressed
			n.From = append(n.From, Source{From: from, Count: s.suppressed})
			s.suppressed = 0
		} else if s.limit.TokensAt(now) >= refusedBurstEach {
			delete(f.sources, from)
		}
	}
	if n.Count == 0 {
		return nil
	}
	slices.SortFunc(n.From, func(a, b Source) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.From, b.From)) })
	n.From = n.From[:min(len(n.From), maxNamed)]
	n.Since = formatTime(f.since)
	f.since = time.Time{}
	return &n
}

// network returns the part of an address that counts as one client, which usually has all
// addresses of an IPv6 /64.
func network(remote string) string {
	a, err := netip.ParseAddr(remote)
	if err != nil {
		return "unknown"
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, _ := a.Prefix(64)
	return p.String()
}
