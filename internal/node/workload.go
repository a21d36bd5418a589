package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Tokens signs workload tokens.
type Tokens interface {
	// Workload returns a token that says whose a session is, and when the token ends.
	Workload(ctx context.Context, sessionID string, owner nodeapi.Owner, audience string) (token string, expires time.Time, err error)
}

// TokenVariable is the environment variable with the path of the file that has the
// workload token.
const TokenVariable = "SKERRY_OIDC_TOKEN_FILE"

const (
	// tokenLook is how often is looked whether a token has to be renewed.
	tokenLook = 20 * time.Second
	// tokenWait bounds the wait for an agent that gets a token.
	tokenWait = 10 * time.Second
	// tokenWakeWait is how long whoever wakes a sandbox waits for its token.
	tokenWakeWait = time.Second
)

// workload is the workload token of a session. audience and owner do not change after the
// start; due, which is when the token is renewed, is guarded by the session's mu.
type workload struct {
	audience string // "" without a token
	owner    nodeapi.Owner
	first    string // the token that the session starts with
	due      time.Time
	renewing gate
}

// firstToken signs the token of a session that starts, if it has one.
func (s *session) firstToken(ctx context.Context, spec *nodeapi.SessionSpec) error {
	if spec.Audience == "" {
		return nil
	}
	if s.node.cfg.Tokens == nil {
		return skerry.Invalid("oidcAudience", "must be empty: this server signs no tokens for sandboxes")
	}
	s.workload.audience, s.workload.owner = spec.Audience, spec.Network.Owner
	token, due, err := s.sign(ctx)
	if err != nil {
		return err
	}
	s.workload.first, s.workload.due = token, due
	env := maps.Clone(spec.Env)
	if env == nil {
		env = map[string]string{}
	}
	env[TokenVariable] = wire.TokenFile
	spec.Env = env
	return nil
}

// errOldAgent is the error of a session that cannot get a token.
func errOldAgent() error {
	return &skerry.Error{
		Code: skerry.CodeSnapshotIncompatible, Field: "oidcAudience",
		Message: "the memory snapshot is of an earlier version of the server, whose sandboxes take no tokens; start from its files, or without a token",
	}
}

// sign returns a new token, and when it has to be renewed: after half of its life, so that
// what reads it has at least the other half.
func (s *session) sign(ctx context.Context) (token string, due time.Time, err error) {
	now := time.Now()
	token, expires, err := s.node.cfg.Tokens.Workload(ctx, s.id, s.workload.owner, s.workload.audience)
	if err != nil {
		return "", due, fmt.Errorf("sign the session's token: %w", err)
	}
	return token, now.Add(expires.Sub(now) / 2).Round(0), nil // which goes on while the machine sleeps
}

// keepToken renews the token for as long as the session runs. A sandbox that is paused gets
// a new one when it goes on.
func (s *session) keepToken() {
	tick := time.NewTicker(s.node.tokenLook)
	defer tick.Stop()
	for failed := false; ; {
		if _, frozen := s.standstills(); !frozen && !s.isSaving() && s.tokenIsDue() {
			err := s.renewToken(s.ctx)
			if err != nil && !failed && s.ctx.Err() == nil {
				s.node.cfg.Log.Warn("cannot renew a sandbox's token", "session", s.id, "error", err)
			}
			failed = err != nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *session) tokenIsDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workload.audience != "" && time.Now().After(s.workload.due)
}

// renewToken gives the sandbox a new token, if it is due.
func (s *session) renewToken(ctx context.Context) error {
	if s.node.cfg.Tokens == nil {
		return errors.New("this node signs no tokens")
	}
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	if err := s.workload.renewing.enter(ctx); err != nil {
		return err
	}
	defer s.workload.renewing.leave()
	if !s.tokenIsDue() {
		return nil // someone else has done it
	}
	token, due, err := s.sign(ctx)
	if err != nil {
		return err
	}
	if err := s.guest.SetToken(ctx, token); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workload.due = due
	return nil
}

// tokenAfterPause renews the token of a sandbox that goes on after a pause, if it is due,
// before anything that was waiting for the sandbox finds the old one. If that fails,
// keepToken tries again.
func (s *session) tokenAfterPause(ctx context.Context) {
	s.mu.Lock()
	live := s.live // else keepToken begins with it
	s.mu.Unlock()
	if !live || !s.tokenIsDue() {
		return
	}
	renewed := make(chan struct{})
	spawned := s.spawn(func() {
		defer close(renewed)
		if err := s.renewToken(s.ctx); err != nil && s.ctx.Err() == nil {
			s.node.cfg.Log.Warn("cannot renew a sandbox's token after a pause", "session", s.id, "error", err)
		}
	})
	if !spawned {
		return
	}
	// An agent that does not take it must not keep the sandbox from going on.
	select {
	case <-renewed:
	case <-time.After(tokenWakeWait):
	case <-ctx.Done():
	}
}
