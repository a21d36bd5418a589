package controller

import (
	"context"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// StopReport says what became of the sessions that StopAll was to end.
type StopReport struct {
	// Saved were saved and stopped, Dropped are those that are not persistent.
	Saved   int `json:"saved"`
	Dropped int `json:"dropped"`
	// Unsaved ended although they could not be saved, or were not to be.
	Unsaved []StopFailure `json:"unsaved,omitempty"`
	// Left run on: the host could not save or end them in time.
	Left []StopFailure `json:"left,omitempty"`
}

// StopFailure is a session that did not stop as it should.
type StopFailure struct {
	Sandbox string `json:"sandbox"`
	Session string `json:"session"`
	Reason  string `json:"reason"`
}

// Stopped is how many sessions have ended.
func (r *StopReport) Stopped() int { return r.Saved + r.Dropped + len(r.Unsaved) }

// StopAll stops every session and returns when they have ended, or ctx does. From
// its beginning on no session starts. One that its sandbox keeps from being saved
// ends without; one that the host cannot save is tried again until ctx ends. With
// force nothing is saved, also not by an earlier call that is still under way.
func (c *sessions) StopAll(ctx context.Context, force bool) StopReport {
	c.admitting.Lock() // what was admitted before is listed
	c.registry.Lock()
	c.stopping = true
	all := make([]*session, 0, len(c.byID))
	for _, s := range c.byID {
		all = append(all, s)
	}
	c.registry.Unlock()
	c.admitting.Unlock()
	var mu sync.Mutex
	var report StopReport
	var stops sync.WaitGroup
	for _, s := range all {
		stops.Go(func() {
			saved, err := c.stopFinally(ctx, s, force)
			mu.Lock()
			defer mu.Unlock()
			report.add(s.state(), saved, err)
		})
	}
	stops.Wait()
	return report
}

func (r *StopReport) add(run skerry.Session, saved bool, err error) {
	f := StopFailure{Sandbox: run.SandboxName, Session: run.ID, Reason: run.Reason}
	switch {
	case err != nil:
		f.Reason = sentence(err)
		r.Left = append(r.Left, f)
	case saved:
		r.Saved++
	case run.Reason != "":
		r.Unsaved = append(r.Unsaved, f)
	default:
		r.Dropped++
	}
}

// stopFinally stops one session for StopAll.
func (c *sessions) stopFinally(ctx context.Context, s *session, force bool) (saved bool, err error) {
	how := s.usualSaving()
	how.final = true
	err = skerry.Errorf(skerry.CodeUnavailable, "the session did not stop in time")
	for waits := c.backoff(); ; {
		e, mine, asked := s.stop(ctx, how, force)
		if asked != nil {
			return false, err
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			select {
			case <-s.ended:
				<-e.done // which is about to say so
			default:
				return false, err
			}
		}
		if e.err == nil {
			return e.snapshot != nil, nil
		}
		if err = e.err; !mine {
			continue
		}
		select {
		case <-time.After(waits.wait()):
		case <-ctx.Done():
			return false, err
		}
	}
}
