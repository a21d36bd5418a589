package share

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rates limits how often holders do something. As much as a holder may do in a minute, it
// may do at once. It is safe for concurrent use.
type Rates[Holder comparable] struct {
	mu       sync.Mutex
	limiters map[Holder]*rate.Limiter
}

// Rate is how often a holder may do something.
type Rate[Holder comparable] struct {
	Holder    Holder
	PerMinute int
}

// maxIdle is how many limiters there are before those that limit nothing now are removed.
const maxIdle = 1024

// Take counts one more for each of the holders, or for none if one of them may not now. It
// returns how long that one has to wait, and which of the rates it is.
func (r *Rates[Holder]) Take(now time.Time, rates ...Rate[Holder]) (wait time.Duration, which int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var taken []*rate.Reservation
	for n, one := range rates {
		if one.PerMinute <= 0 {
			wait, which = time.Minute, n
			break
		}
		got := r.limiter(now, one).ReserveN(now, 1)
		taken = append(taken, got)
		if wait = got.DelayFrom(now); wait > 0 {
			which = n
			break
		}
	}
	if wait > 0 {
		for _, got := range taken {
			got.CancelAt(now)
		}
	}
	return wait, which
}

func (r *Rates[Holder]) limiter(now time.Time, one Rate[Holder]) *rate.Limiter {
	every := rate.Limit(one.PerMinute) / 60
	l := r.limiters[one.Holder]
	if l != nil {
		if l.Burst() != one.PerMinute {
			l.SetLimitAt(now, every)
			l.SetBurstAt(now, one.PerMinute)
		}
		return l
	}
	if len(r.limiters) >= maxIdle {
		for h, l := range r.limiters {
			if l.TokensAt(now) >= float64(l.Burst()) {
				delete(r.limiters, h)
			}
		}
	}
	if r.limiters == nil {
		r.limiters = map[Holder]*rate.Limiter{}
	}
	l = rate.NewLimiter(every, one.PerMinute)
	r.limiters[one.Holder] = l
	return l
}
