package issuer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/skerry-dev/skerry"
)

// How long tokens are good.
const (
	ForwardedLifetime   = 5 * time.Minute
	WorkloadLifetime    = time.Hour
	DevelopmentLifetime = 12 * time.Hour
)

// Issuer signs tokens with a ring. It is safe for concurrent use.
type Issuer struct {
	url  string
	ring *Ring
}

// Open returns an issuer with the keys of a keeper; it makes the first one. url is what the
// tokens name as their issuer, without a slash at its end; what Handler serves must be
// reachable below it.
func Open(ctx context.Context, k Keeper, url string, log *slog.Logger) (*Issuer, error) {
	if err := checkURL(url); err != nil {
		return nil, err
	}
	ring, err := OpenRing(ctx, k, log)
	if err != nil {
		return nil, err
	}
	return &Issuer{url, ring}, nil
}

func checkURL(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(issuer, "/") {
		return fmt.Errorf("the issuer of tokens %q must be an http or https URL without query and final slash", issuer)
	}
	return nil
}

// URL returns the issuer's URL.
func (i *Issuer) URL() string { return i.url }

// Ring returns the keys.
func (i *Issuer) Ring() *Ring { return i.ring }

// PublicKeys returns the public keys as a JWKS document.
func (i *Issuer) PublicKeys(ctx context.Context) ([]byte, error) { return i.ring.PublicKeys(ctx) }

// standard returns the claims that every token has.
func (i *Issuer) standard(subject, audience string, life time.Duration) jwt.Claims {
	now := i.ring.clock()
	return jwt.Claims{
		Issuer: i.url, Subject: subject, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(life)),
		ID: rand.Text(),
	}
}

// Sandbox is what tokens say of a sandbox.
type Sandbox struct {
	TeamID      string `json:"team_id"`
	ProjectID   string `json:"project_id"`
	SessionID   string `json:"-"`
	SandboxName string `json:"sandbox_name"`
}

// Forwarded returns a token that tells the service at a forwardURL from which sandbox a
// request comes. It is good for ForwardedLifetime.
func (i *Issuer) Forwarded(ctx context.Context, s Sandbox, audience string) (string, error) {
	// The public SDK's proxy library takes the session's id for that of the sandbox, and no
	// token without this claim: so no program of a sandbox can pass its workload token for this.
	own := map[string]any{"sandbox_id": s.SessionID}
	return i.ring.sign(ctx, i.standard("sandbox:"+s.SessionID, audience, ForwardedLifetime), s, own)
}

// Workload returns a token with which the programs of a sandbox can say to a service outside
// who they are, and when it ends: after WorkloadLifetime. Its subject has ids of the team and the
// project: unlike names, no other team gets them. What follows them is the sandbox's name.
//
// It cannot be for this server itself.
func (i *Issuer) Workload(ctx context.Context, s Sandbox, audience string) (token string, expires time.Time, err error) {
	if strings.TrimRight(audience, "/") == i.url {
		return "", expires, skerry.Invalid("oidcAudience", "must not be the URL of this server, which accepts no such tokens")
	}
	claims := i.standard("team:"+s.TeamID+":project:"+s.ProjectID+":sandbox:"+s.SandboxName, audience, WorkloadLifetime)
	token, err = i.ring.sign(ctx, claims, s, map[string]any{"session_id": s.SessionID})
	return token, claims.Expiry.Time(), err
}

// Development is what the token of a developer says: who they work for. The names of the
// claims and the form of the subject are those that the public SDKs know.
type Development struct {
	Team      string `json:"owner"`
	TeamID    string `json:"owner_id"`
	Project   string `json:"project"`
	ProjectID string `json:"project_id"`
	UserID    string `json:"user_id,omitempty"`
	// TokenID is the access token that it was made with. It allows no more than that does.
	TokenID string `json:"token_id"`
}

type environment struct {
	Environment string `json:"environment"`
}

const development = "development"

func (d *Development) subject() string {
	return "owner:" + d.Team + ":project:" + d.Project + ":environment:" + development
}

// Development returns a token for a developer, and when it ends: after DevelopmentLifetime, or
// at latest if that is earlier and not zero.
func (i *Issuer) Development(ctx context.Context, d Development, latest time.Time) (token string, expires time.Time, err error) {
	claims := i.standard(d.subject(), i.url, DevelopmentLifetime)
	if end := claims.Expiry.Time(); !latest.IsZero() && latest.Before(end) {
		claims.Expiry = jwt.NewNumericDate(latest)
	}
	token, err = i.ring.sign(ctx, claims, d, environment{development})
	return token, claims.Expiry.Time(), err
}

// Signed reports whether a token names a key of this issuer. Nothing of it is verified.
func (i *Issuer) Signed(ctx context.Context, token string) bool {
	t, err := jwt.ParseSigned(token, algorithms)
	return err == nil && i.ring.find(ctx, t) != nil
}

// Verified is a token of a developer that is good.
type Verified struct {
	Development
	KeyID   string
	Expires time.Time
}

// VerifyDevelopment verifies the token of a developer. The clocks of servers may differ by a
// minute.
func (i *Issuer) VerifyDevelopment(ctx context.Context, token string) (v Verified, err error) {
	var claims jwt.Claims
	var env environment
	if v.KeyID, err = i.ring.verify(ctx, token, &claims, &v.Development, &env); err != nil {
		return Verified{}, err
	}
	if err := claims.Validate(jwt.Expected{Issuer: i.url, AnyAudience: jwt.Audience{i.url}, Time: i.ring.clock()}); err != nil {
		return Verified{}, err
	}
	if env.Environment != development || claims.Subject != v.subject() || slices.Contains([]string{v.TeamID, v.ProjectID, v.TokenID}, "") ||
		claims.Expiry == nil || claims.IssuedAt == nil || claims.Expiry.Time().Sub(claims.IssuedAt.Time()) > DevelopmentLifetime {
		return Verified{}, errors.New("it is not a development token")
	}
	v.Expires = claims.Expiry.Time()
	return v, nil
}

// ForwardedAudience returns the audience of tokens for a forwardURL: the URL without a
// default port, and without slashes at its end, which is how the proxy library
// of the public SDK derives it from the requests that it gets.
func ForwardedAudience(forward *url.URL) string {
	host := strings.ToLower(forward.Host)
	if forward.Scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	}
	return strings.ToLower(forward.Scheme) + "://" + host + strings.TrimRight(forward.EscapedPath(), "/")
}
