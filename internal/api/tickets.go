package api

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

const (
	// ticketLife is how long a token for a terminal is valid.
	ticketLife = 60 * time.Second
	// maxTickets limits the valid tokens, maxTicketsEach those of one project and
	// maxTicketsTeam those of one team, so that one does not block others.
	maxTickets     = 10000
	maxTicketsEach = 500
	maxTicketsTeam = maxTickets * 3 / 4
)

// ticketOffice issues the tokens for the WebSockets of terminals. A token is for one
// caller and one session. It can be used once. Only its hash is kept.
type ticketOffice struct {
	mu   sync.Mutex
	out  map[[sha256.Size]byte]ticket
	each map[string]int // by project id, and by team id
}

// ticket is the caller and the session of a token.
type ticket struct {
	caller  caller
	session string
	expires time.Time
}

// issue returns a new token for a session.
func (o *ticketOffice) issue(by caller, session string) (string, error) {
	var secret [32]byte
	rand.Read(secret[:])
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.out == nil {
		o.out, o.each = map[[sha256.Size]byte]ticket{}, map[string]int{}
	}
	project, team := by.scope.ProjectID, by.scope.TeamID
	full := func() bool {
		return len(o.out) >= maxTickets || o.each[project] >= maxTicketsEach || o.each[team] >= maxTicketsTeam
	}
	if full() {
		o.sweep()
	}
	if full() {
		return "", skerry.Errorf(skerry.CodeRateLimited, "too many terminal tokens have not been used; each expires after %s", ticketLife)
	}
	o.out[sha256.Sum256([]byte(token))] = ticket{caller: by, session: session, expires: time.Now().Add(ticketLife)}
	o.each[project]++
	o.each[team]++
	return token, nil
}

// redeem removes a token and returns its ticket. The lookup is by hash, so its time
// reveals nothing about other tokens.
func (o *ticketOffice) redeem(token, session string) (ticket, bool) {
	key := sha256.Sum256([]byte(token))
	o.mu.Lock()
	defer o.mu.Unlock()
	t, ok := o.out[key]
	if !ok {
		return ticket{}, false
	}
	o.remove(key, t)
	return t, t.session == session && time.Now().Before(t.expires)
}

// sweep removes expired tokens. It runs only if there are many, so that no goroutine is
// needed.
func (o *ticketOffice) sweep() {
	now := time.Now()
	for key, t := range o.out {
		if !now.Before(t.expires) {
			o.remove(key, t)
		}
	}
}

func (o *ticketOffice) remove(key [sha256.Size]byte, t ticket) {
	delete(o.out, key)
	for _, id := range []string{t.caller.scope.ProjectID, t.caller.scope.TeamID} {
		if o.each[id]--; o.each[id] == 0 {
			delete(o.each, id)
		}
	}
}
