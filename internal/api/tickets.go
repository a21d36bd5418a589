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
	// ticketLife is how long the token of a terminal is good.
	ticketLife = 60 * time.Second
	// maxTickets bounds the tokens that are out at once, maxTicketsEach
	// those of one project, so that none can use up the others'.
	maxTickets     = 10000
	maxTicketsEach = 500
)

// ticketOffice gives out the tokens that open a terminal's WebSocket. A token
// stands for an identity and a session, is good once, and is kept as a hash
// only.
type ticketOffice struct {
	mu   sync.Mutex
	out  map[[sha256.Size]byte]ticket
	each map[string]int // by project id
}

// ticket is what a token stands for.
type ticket struct {
	identity *skerry.Identity
	session  string
	expires  time.Time
}

// issue returns a new token for a session.
func (o *ticketOffice) issue(id *skerry.Identity, session string) (string, error) {
	var secret [32]byte
	rand.Read(secret[:])
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.out == nil {
		o.out, o.each = map[[sha256.Size]byte]ticket{}, map[string]int{}
	}
	project := id.Project.ID
	if len(o.out) >= maxTickets || o.each[project] >= maxTicketsEach {
		o.sweep()
	}
	if len(o.out) >= maxTickets || o.each[project] >= maxTicketsEach {
		return "", skerry.Errorf(skerry.CodeRateLimited, "too many terminals were asked for and not opened; they expire after %s", ticketLife)
	}
	o.out[sha256.Sum256([]byte(token))] = ticket{identity: id, session: session, expires: time.Now().Add(ticketLife)}
	o.each[project]++
	return token, nil
}

// redeem takes a token back and returns what it stood for. The table is looked
// up by hash, so that the time it takes tells nothing about the tokens in it.
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

// sweep drops the tokens that were never used. It runs when they are many, so
// what an idle server keeps is bounded without a goroutine of its own.
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
	project := t.identity.Project.ID
	if o.each[project]--; o.each[project] == 0 {
		delete(o.each, project)
	}
}
