package api

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

const (
	// recheckEvery is the interval at which the tokens of open calls are checked. A call
	// outlives its token by about this time.
	recheckEvery = 500 * time.Millisecond
	// recheckTimeout limits one check. If a check fails, no call is ended.
	recheckTimeout = 5 * time.Second
	// goodbye is the time for telling the client that its token was revoked. Then the
	// connection is cut.
	goodbye = time.Second
)

// DefaultMaxOpen limits the calls that may stay open for hours. Each has buffers of up
// to 1 MiB. One team may have three quarters of them, one token half and one session a
// quarter, so that others are not blocked.
const DefaultMaxOpen = 4000

// errRevoked is the error of open calls whose token was revoked or has expired.
var errRevoked = &skerry.Error{Code: skerry.CodeUnauthorized, Message: "the access token was revoked, has expired, or does not grant this any more"}

// openCalls are the streams, terminals, uploads and downloads in progress.
type openCalls struct {
	accounts Accounts
	log      *slog.Logger
	most     int
	every    time.Duration // recheckEvery, except in tests

	mu         sync.Mutex
	calls      map[*openCall]struct{}
	perToken   map[string]int
	perTeam    map[string]int
	perSession map[string]int
	timer      *time.Timer // of the next check of the tokens; nil while no call is open
}

// openCall is an open call.
type openCall struct {
	access  skerry.Access
	session string
	revoke  func()
}

func newOpenCalls(accounts Accounts, log *slog.Logger, most int) *openCalls {
	return &openCalls{
		accounts: accounts, log: log, most: most, every: recheckEvery,
		calls: map[*openCall]struct{}{}, perToken: map[string]int{}, perTeam: map[string]int{}, perSession: map[string]int{},
	}
}

// enter counts a call as open until leave is called. revoke is called at most once, if
// the access is not allowed any more.
func (o *openCalls) enter(access skerry.Access, session string, revoke func()) (leave func(), err error) {
	token := access.TokenID
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.calls) >= o.most:
		return nil, skerry.Errorf(skerry.CodeRateLimited, "too many streams, terminals and transfers are open on this server: at most %d are allowed; try again later", o.most)
	case o.perToken[token] >= o.most/2:
		return nil, skerry.Errorf(skerry.CodeRateLimited, "too many streams, terminals and transfers are open with this access token: at most %d are allowed; close some first", o.most/2)
	case o.perTeam[access.Scope.TeamID] >= o.most*3/4:
		return nil, skerry.Errorf(skerry.CodeRateLimited, "too many streams, terminals and transfers of this team are open: at most %d are allowed; close some first", o.most*3/4)
	case session != "" && o.perSession[session] >= o.most/4:
		return nil, skerry.Errorf(skerry.CodeRateLimited, "too many streams, terminals and transfers are open on this session: at most %d are allowed; close some first", o.most/4)
	}
	call := &openCall{access: access, session: session, revoke: revoke}
	o.calls[call] = struct{}{}
	o.perToken[token]++
	o.perTeam[access.Scope.TeamID]++
	o.perSession[session]++
	if o.timer == nil {
		o.timer = time.AfterFunc(o.every, o.recheck)
	}
	return func() { o.leave(call) }, nil
}

// any reports whether a call is open.
func (o *openCalls) any() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.calls) > 0
}

func (o *openCalls) leave(call *openCall) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.calls, call)
	for counts, key := range map[*map[string]int]string{&o.perToken: call.access.TokenID, &o.perTeam: call.access.Scope.TeamID, &o.perSession: call.session} {
		if (*counts)[key]--; (*counts)[key] <= 0 {
			delete(*counts, key)
		}
	}
}

// recheck ends the calls whose access is not allowed any more. It runs again as long as
// calls are open.
func (o *openCalls) recheck() {
	o.mu.Lock()
	accesses := map[skerry.Access]bool{}
	for call := range o.calls {
		accesses[call.access] = true
	}
	o.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), recheckTimeout)
	ended, err := o.accounts.Ended(ctx, slices.Collect(maps.Keys(accesses)))
	cancel()
	if err != nil {
		o.log.Error("cannot check the tokens of all open calls", "error", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for call := range o.calls {
		if slices.Contains(ended, call.access) {
			call.revoke()
		}
	}
	if len(o.calls) > 0 {
		o.timer.Reset(o.every)
	} else {
		o.timer = nil
	}
}

// openContext returns a context for a call that may take hours. It ends with the
// request and with the token. The call counts as open until done is called.
func (s *Server) openContext(c *call) (ctx context.Context, done func(), err error) {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	var once sync.Once
	var cut *time.Timer
	leave, err := s.open.enter(c.access(), c.path("session"), func() {
		once.Do(func() {
			cancel(errRevoked)
			cut = time.AfterFunc(goodbye, c.w.cut)
		})
	})
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	return ctx, func() {
		leave()
		once.Do(func() {}) // the connection is not cut any more
		if cut != nil {
			cut.Stop()
		}
		cancel(nil)
	}, nil
}

// streamContext is openContext for a stream. It also ends when the server stops, unless
// the session has ended: then the stream ends by itself soon.
func (s *Server) streamContext(c *call) (ctx context.Context, done func(), err error) {
	ctx, leave, err := s.openContext(c)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.draining, func() {
		if !s.sessionEnded(c) {
			cancel()
		}
	})
	return ctx, func() { stop(); cancel(); leave() }, nil
}

// sessionEnded reports whether the session of a call has ended.
func (s *Server) sessionEnded(c *call) bool {
	run, err := s.service.GetSession(context.WithoutCancel(c.r.Context()), c.scope, c.path("session"))
	return err == nil && run != nil && run.Session.Status.Ended()
}

// revoked reports whether a context of openContext has ended because of its token.
func revoked(ctx context.Context) bool { return context.Cause(ctx) == error(errRevoked) }
