package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
)

const (
	// DefaultSkew is how much the clocks of issuers may differ from this one.
	DefaultSkew = time.Minute
	// DefaultMaxLife is the longest life of a token. Those of CI systems live minutes or
	// hours; one that lives longer is a password, and is better made here.
	DefaultMaxLife = 24 * time.Hour
	// VerifiedFor is how long a verified token is not verified again. It is short enough
	// that a key that an issuer removed is of no use soon, and long enough that the cost
	// of a signature does not matter.
	VerifiedFor = time.Minute
	// DefaultCacheSize is the number of verified tokens that are remembered, of about
	// half a KiB each.
	DefaultCacheSize = 8192
)

// Options are how a Verifier works. The zero value is right for a server.
type Options struct {
	// Clock is time.Now if it is nil.
	Clock func() time.Time
	// Skew is DefaultSkew if it is 0, and none if it is negative.
	Skew time.Duration
	// MaxLife is DefaultMaxLife if it is 0.
	MaxLife time.Duration
	// CacheSize is DefaultCacheSize if it is 0.
	CacheSize int
	// LoopbackHTTP allows issuers with http URLs of loopback addresses, for tests and
	// development.
	LoopbackHTTP bool
	// Dial makes the connections to issuers, if it is not nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log gets what an operator has to know of issuers. It is slog.Default() if it is nil.
	Log *slog.Logger
}

// Identity is who the caller with a token is. It is shared, and must not be changed.
type Identity struct {
	// IssuerID is the configured id of the issuer, RuleID the rule that matched.
	IssuerID, RuleID string
	// Subject is the token's "sub". It may have any printable characters, but no more
	// than MaxSubject bytes.
	Subject string
	// ExpiresAt is the end of the token. It is accepted until then, and the skew.
	ExpiresAt time.Time
	// Team and Project are ids, or a slug and a name: what the rule says. That they
	// exist is not checked. An empty Project means the whole team.
	Team, Project string
	Role          skerry.Role
	// OwnerID and ProjectID are the claims "owner_id" and "project_id", from which clients of
	// Vercel Sandbox take the team and the project that they name in requests. They grant nothing.
	OwnerID, ProjectID string
	// Principal is for logs: the issuer's id and the subject, with other than printable
	// characters escaped. One that is too long is cut, and has a hash. Different subjects
	// have different principals, and it begins with "oidc:" unlike those of access tokens.
	Principal string
}

// Verifier authenticates tokens. It is safe for concurrent use.
type Verifier struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	// setting is held while the configuration changes.
	setting sync.Mutex
	state   atomic.Pointer[state]

	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

// state is a configuration, with what was found out under it: a result of another
// one cannot get into its cache.
type state struct {
	issuers map[string]*issuer // by URL
	cache   cache
}

type issuer struct {
	*compiled
	*source
}

// New returns a Verifier without issuers. Close it at the end.
func New(o Options) *Verifier {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Skew == 0 {
		o.Skew = DefaultSkew
	}
	o.Skew = max(o.Skew, 0)
	if o.MaxLife == 0 {
		o.MaxLife = DefaultMaxLife
	}
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: fetchTimeout / 2}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	v := &Verifier{o: o}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.state.Store(v.newState(nil))
	return v
}

func (v *Verifier) newState(issuers map[string]*issuer) *state {
	return &state{issuers: issuers, cache: cache{size: v.o.CacheSize, entries: map[[sha256.Size]byte]entry{}}}
}

// Close ends all fetches and waits for them. Verify returns CodeUnavailable afterwards,
// if it needs keys that are not there.
func (v *Verifier) Close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.cancel()
	v.work.Wait()
}

// spawn runs a function that Close waits for.
func (v *Verifier) spawn(f func()) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return false
	}
	v.work.Go(f)
	return true
}

// Set replaces the issuers. Either all of them are in force when it returns, and
// what was verified with others is forgotten, or the error names the field at fault,
// such as "issuers[0].rules[1].when", and nothing has changed. It makes no connection,
// and keeps the keys of issuers whose addresses do not change.
func (v *Verifier) Set(issuers []Issuer) error {
	if len(issuers) > MaxIssuers {
		return skerry.Invalid("issuers", "must have at most %d entries, has %d", MaxIssuers, len(issuers))
	}
	v.setting.Lock()
	defer v.setting.Unlock()
	old := v.state.Load()
	next, ids, rules := v.newState(map[string]*issuer{}), map[string]bool{}, 0
	var made []*issuer
	set := false
	defer func() {
		for _, i := range made {
			if o := old.issuers[i.URL]; !set && (o == nil || o.source != i.source) {
				i.cancel()
			}
		}
	}()
	for n, i := range issuers {
		if rules += len(i.Rules); rules > MaxRules {
			return skerry.Invalid(fmt.Sprintf("issuers[%d].rules", n), "all issuers together must have at most %d rules", MaxRules)
		}
		one, err := v.newIssuer(i, old)
		if err == nil {
			made = append(made, one)
		}
		if e, is := errors.AsType[*skerry.Error](err); is {
			named := *e
			named.Field = fmt.Sprintf("issuers[%d].%s", n, e.Field)
			err = &named
		}
		switch {
		case err != nil:
		case ids[i.ID]:
			err = skerry.Invalid(fmt.Sprintf("issuers[%d].id", n), "must be unique, is %q again", i.ID)
		case next.issuers[i.URL] != nil:
			err = skerry.Invalid(fmt.Sprintf("issuers[%d].url", n), "must be unique, is %q again", i.URL)
		}
		if err != nil {
			return err
		}
		ids[i.ID], next.issuers[i.URL] = true, one
	}
	v.state.Store(next)
	set = true
	for url, i := range old.issuers {
		if n := next.issuers[url]; n == nil || n.source != i.source {
			i.cancel()
		}
	}
	return nil
}

// newIssuer compiles an issuer, unless the old state has the same one. Its keys are those
// that the old state has, if they are of the same place.
func (v *Verifier) newIssuer(i Issuer, old *state) (*issuer, error) {
	o := old.issuers[i.URL]
	if o != nil && reflect.DeepEqual(o.Issuer, i) {
		return o, nil
	}
	c, err := compile(i, v.o.LoopbackHTTP)
	if err != nil {
		return nil, err
	}
	if o != nil && o.ID == i.ID && o.JWKSURL == i.JWKSURL && o.Keys == i.Keys && o.CA == i.CA {
		return &issuer{c, o.source}, nil
	}
	s := &source{id: i.ID, static: c.keys, clock: v.o.Clock, log: v.o.Log, spawn: v.spawn}
	if c.keys == nil {
		s.fetcher = newFetcher(&i, &v.o)
	}
	s.ctx, s.cancel = context.WithCancel(v.ctx)
	return &issuer{c, s}, nil
}

// Validate is Issuer.Validate with the options of the Verifier: it also checks the URLs.
func (v *Verifier) Validate(i Issuer) error {
	one, err := v.newIssuer(i, &state{})
	if err == nil {
		one.cancel()
	}
	return err
}

// Probe validates an issuer, fetches its keys, and returns how many of them can verify
// tokens. It is for an operator who adds one: the error says what is wrong, also with
// addresses in the server's network.
func (v *Verifier) Probe(ctx context.Context, i Issuer) (int, error) {
	one, err := v.newIssuer(i, &state{})
	if err != nil {
		return 0, err
	}
	defer one.cancel()
	if one.static != nil {
		return len(one.static.keys), nil
	}
	set, err := one.fetch(ctx, v.o.Clock)
	if err != nil {
		return 0, &skerry.Error{Code: skerry.CodeUnavailable, Message: fmt.Sprintf("the keys of the issuer %s cannot be fetched: %v", i.ID, err)}
	}
	return len(set.keys), nil
}

// Status is what is known of an issuer's keys.
type Status struct {
	IssuerID string
	// Keys is their number, and Fetched when the issuer had them; both are zero before
	// the first token. Fetched is zero if the keys are configured.
	Keys    int
	Fetched time.Time
	// Err is why the last attempt to fetch them failed. It is for operators.
	Err error
}

// Status returns the states of all issuers, by their ids.
func (v *Verifier) Status() []Status {
	var all []Status
	for _, i := range v.state.Load().issuers {
		s := Status{IssuerID: i.ID}
		i.mu.Lock()
		set := i.set
		if i.static != nil {
			set = i.static
		}
		if set != nil {
			s.Keys, s.Fetched = len(set.keys), set.fetched
		}
		s.Err = i.failed
		i.mu.Unlock()
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.IssuerID, b.IssuerID) })
	return all
}

// Verify returns who the caller with a token is. See the package comment for what is
// verified, and for the errors.
func (v *Verifier) Verify(ctx context.Context, raw string) (*Identity, error) {
	if len(raw) > MaxToken {
		return nil, unauthorized("it has more than %d bytes", MaxToken)
	}
	hash := sha256.Sum256([]byte(raw))
	for {
		s := v.state.Load()
		now := v.o.Clock()
		if id := s.cache.get(hash, now); id != nil {
			return id, nil
		}
		id, err := v.verify(ctx, s, raw, now)
		if s != v.state.Load() && ctx.Err() == nil {
			continue // it may have waited for keys; the issuers are others now
		}
		if err != nil {
			return nil, err
		}
		s.cache.put(hash, id, now, earlier(now.Add(VerifiedFor), id.ExpiresAt.Add(v.o.Skew)))
		return id, nil
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (v *Verifier) verify(ctx context.Context, s *state, raw string, now time.Time) (*Identity, error) {
	t, err := parse(raw)
	if err != nil {
		return nil, err
	}
	i := s.issuers[t.claims.issuer]
	if i == nil {
		return nil, unauthorized("its issuer %.256q is not one that is accepted here", t.claims.issuer)
	}
	jws, err := jose.ParseSignedCompact(raw, i.algorithms)
	if _, is := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); is {
		return nil, unauthorized("its algorithm is not one of %v", i.algorithms)
	} else if err != nil {
		return nil, unauthorized("it does not have the form of a signed JWT")
	}
	if err := t.claims.check(i.Audiences, now, v.o.Skew, v.o.MaxLife); err != nil {
		return nil, err
	}
	if err := i.authenticate(ctx, t, jws); err != nil {
		return nil, err
	}
	id, err := i.apply(t.claims.all)
	if err != nil {
		return nil, err
	}
	id.OwnerID, id.ProjectID = t.claims.text("owner_id"), t.claims.text("project_id")
	id.IssuerID, id.Subject, id.ExpiresAt = i.ID, t.claims.subject, t.claims.expires
	id.Principal = principal(i.ID, t.claims.subject)
	return id, nil
}

// authenticate verifies the signature with the keys that are known, and with newer ones
// if it is not of one of those.
func (i *issuer) authenticate(ctx context.Context, t *token, jws *jose.JSONWebSignature) error {
	set, err := i.current(ctx)
	if err != nil {
		return err
	}
	if set.verify(t, jws) {
		return nil
	}
	if set, err = i.newer(ctx, set); err != nil {
		return err
	}
	if set != nil && set.verify(t, jws) {
		return nil
	}
	return unauthorized("its signature is not of a key of its issuer")
}

// maxPrincipal is the length of a principal's subject, in bytes.
const maxPrincipal = 192

func principal(issuerID, subject string) string {
	quoted := strconv.Quote(subject)
	s := quoted[1 : len(quoted)-1]
	if len(s) > maxPrincipal {
		sum := sha256.Sum256([]byte(subject))
		cut := maxPrincipal
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		// No id of an issuer has a tilde, so no other subject has this principal.
		return "oidc:" + issuerID + "~" + hex.EncodeToString(sum[:16]) + ":" + s[:cut]
	}
	return "oidc:" + issuerID + ":" + s
}
