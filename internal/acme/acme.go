// Package acme gets the certificates of the ingress and of the API from a
// certificate authority that speaks ACME, with certmagic, and keeps them.
//
// With a way to set DNS records there is one certificate for all names below
// the domain (DNS-01). Without, each name has its own, which is asked for when
// the first handshake wants it and proved at the server's own listeners
// (TLS-ALPN-01, HTTP-01). As anyone can name any name in a handshake, only
// those that are routes are asked for, and those at a bounded rate.
//
// The API has one name, and a certificate of its own, which is asked for at the
// start. Both have one account at the authority. A proof may be looked for at
// either's listener, as there is one port 443.
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	protocol "github.com/mholt/acmez/v3/acme"
	"golang.org/x/time/rate"
)

// DefaultCA is the directory of Let's Encrypt.
const DefaultCA = certmagic.LetsEncryptProductionCA

// Config says which certificates are wanted of whom. Zero fields mean the
// defaults.
type Config struct {
	Log *slog.Logger
	// Dir is where certificates and the account's key are kept.
	Dir string
	// Domain is the one whose subdomains have certificates, Host is the name of
	// the API. Either may be empty.
	Domain, Host string
	// CA is the URL of the authority's directory; Roots are trusted in its TLS,
	// nil means the system's.
	CA    string
	Roots *x509.CertPool
	// Email is where the authority may write to.
	Email string
	// Binding binds the account to one that the authority has already.
	Binding *Binding
	// DNS sets the records that prove that the domain is ours. Without, each
	// name is proved at Listener and, if it is set, at HTTPListener.
	DNS          DNS
	Listener     net.Addr
	HTTPListener net.Addr
	// Resolver is the DNS server, HOST:PORT, that is asked whether a record is
	// there. Empty means that the system's are asked for the domain's own, and
	// those for the record.
	Resolver string

	// retry is the wait after a first failure; it doubles. check is how often
	// certificates are looked at for renewal. wait is how long a handshake waits
	// for its certificate, patience how long an attempt to get one may take.
	retry, check, wait, patience time.Duration
}

const (
	// attemptTimeout bounds one attempt to get a certificate; DNS records may
	// take minutes to be seen.
	attemptTimeout = 10 * time.Minute
	// firstRetry and lastRetry are within what authorities allow: Let's Encrypt
	// takes five failures an hour for a name.
	firstRetry = 30 * time.Second
	lastRetry  = time.Hour
	// checkEvery is how often certificates are looked at for renewal.
	checkEvery = 10 * time.Minute
	// cleanEvery is how often files of certificates are removed that have
	// expired cleanAfter ago.
	cleanEvery = 24 * time.Hour
	cleanAfter = 14 * 24 * time.Hour
)

// Certificates are those below a domain, and that of the API.
type Certificates struct {
	cfg     Config
	storage *storage
	cache   *certmagic.Cache
	magic   *certmagic.Config

	// ctx ends with Close; work counts what ends by then.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	// known tells routes' names, once there are routes.
	known func(name string) bool
	// orders are under way; rests are names whose last order failed; names are
	// those that have a certificate. All are those of single names.
	orders map[string]*order
	rests  map[string]rest
	names  map[string]bool
	pace   *rate.Limiter
	slots  chan struct{}
}

// Open reads what there is. Nothing is asked for before Start.
func Open(cfg Config) (*Certificates, error) {
	if cfg.CA == "" {
		cfg.CA = DefaultCA
	}
	cfg.retry = cmp.Or(cfg.retry, firstRetry)
	cfg.check = cmp.Or(cfg.check, checkEvery)
	cfg.wait = cmp.Or(cfg.wait, orderWait)
	cfg.patience = cmp.Or(cfg.patience, attemptTimeout)
	if u, err := url.Parse(cfg.CA); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("acme: the authority %q is no https URL", cfg.CA)
	}
	if cfg.Domain == "" && cfg.Host == "" {
		return nil, errors.New("acme: there is no name to get a certificate for")
	}
	if cfg.DNS == nil && cfg.Listener == nil {
		return nil, errors.New("acme: there is neither DNS nor a listener to prove names with")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	c := &Certificates{
		cfg: cfg, storage: newStorage(cfg.Dir),
		orders: map[string]*order{}, rests: map[string]rest{}, names: map[string]bool{},
		pace: rate.NewLimiter(orderRate, orderBurst), slots: make(chan struct{}, ordersAtOnce),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.setUp()
	return c, nil
}

// setUp makes what certmagic needs, with nothing of its global defaults.
func (c *Certificates) setUp() {
	log := zapLogger(c.cfg.Log)
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil },
		RenewCheckInterval: c.cfg.check,
		Logger:             log,
	})
	// Its own upkeep cannot be cancelled while it waits for the network. Ours
	// does the same with a context.
	c.cache.Stop()
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Storage: c.storage, Logger: log, OnEvent: c.event,
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		OCSP:      certmagic.OCSPConfig{DisableStapling: true},
	})
	issuer := certmagic.ACMEIssuer{
		CA: c.cfg.CA, Email: c.cfg.Email, Agreed: true, TrustedRoots: c.cfg.Roots, Logger: log,
		DisableDistributedSolvers: true,
	}
	if b := c.cfg.Binding; b != nil {
		issuer.ExternalAccount = &protocol.EAB{KeyID: b.id, MACKey: b.key}
	}
	if c.cfg.DNS != nil {
		solver := &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{DNSProvider: c.cfg.DNS, TTL: recordTTL, Logger: log}}
		if c.cfg.Resolver != "" {
			solver.Resolvers = []string{c.cfg.Resolver}
		}
		issuer.DNS01Solver = solver
	} else {
		// certmagic would listen itself at these addresses were we not there.
		issuer.ListenHost, issuer.AltTLSALPNPort = hostPort(c.cfg.Listener)
		if issuer.DisableHTTPChallenge = c.cfg.HTTPListener == nil; !issuer.DisableHTTPChallenge {
			_, issuer.AltHTTPPort = hostPort(c.cfg.HTTPListener)
		}
	}
	c.magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(c.magic, issuer)}
}

func hostPort(a net.Addr) (host string, port int) {
	host, p, _ := net.SplitHostPort(a.String())
	port, _ = strconv.Atoi(p)
	return host, port
}

// TLS is the configuration of the ingress' listener.
func (c *Certificates) TLS() *tls.Config { return c.serving(c.get) }

// HostTLS is the configuration of the API's listener.
func (c *Certificates) HostTLS() *tls.Config { return c.serving(c.getHost) }

func (c *Certificates) serving(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1", acmez.ACMETLS1Protocol},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmez.ACMETLS1Protocol {
				return c.proof(strings.ToLower(hello.ServerName))
			}
			return get(hello)
		},
	}
}

// Start lets certificates be asked for: of the API's name at once, of all below
// the domain at once if there is DNS, of each that is known when a handshake
// wants it if there is not. It is called once.
func (c *Certificates) Start(known func(name string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.known = known
	c.work.Go(c.keep)
}

// Close ends what is under way. What there is stays for the next process.
func (c *Certificates) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	c.storage.close()
}

// keep gets the certificate of the API, and that for all names below the
// domain unless each has its own, and renews what there is.
func (c *Certificates) keep() {
	c.cfg.Log.Info("certificates come from an ACME authority", "authority", c.cfg.CA, "domain", c.cfg.Domain, "wildcard", c.cfg.DNS != nil, "host", c.cfg.Host)
	if c.cfg.Host != "" {
		c.work.Go(c.keepTryingHost)
	}
	if c.cfg.DNS != nil && c.cfg.Domain != "" {
		c.work.Go(func() { c.keepTrying("*." + c.cfg.Domain) })
	}
	tick := time.NewTicker(c.cfg.check)
	defer tick.Stop()
	for cleaned := (time.Time{}); ; {
		if time.Since(cleaned) > cleanEvery {
			cleaned = time.Now()
			if err := certmagic.CleanStorage(c.ctx, c.storage, certmagic.CleanStorageOptions{
				Logger: zapLogger(c.cfg.Log), ExpiredCerts: true, ExpiredCertGracePeriod: cleanAfter,
			}); err != nil && c.ctx.Err() == nil {
				c.cfg.Log.Warn("cannot remove certificates that have expired", "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		c.forget()
		if err := c.cache.RenewManagedCertificates(c.ctx); err != nil && c.ctx.Err() == nil {
			c.cfg.Log.Warn("cannot look for certificates to renew", "error", err)
		}
	}
}

// keepTrying gets a certificate, however long it takes.
func (c *Certificates) keepTrying(name string) {
	for wait := c.cfg.retry; ; wait = min(2*wait, lastRetry) {
		err := c.attempt(name, nil)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		c.cfg.Log.Error("there is no certificate: published ports cannot be reached yet", "name", name, "authority", c.cfg.CA, "retry", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			return
		}
	}
}

// keepTryingHost does the same for the API's name, as orders, so that a
// handshake can wait for one.
func (c *Certificates) keepTryingHost() {
	for {
		o, err := c.begin(c.cfg.Host)
		if err == nil {
			select {
			case <-o.done:
			case <-c.ctx.Done():
				return
			}
			if o.err == nil {
				return
			}
		}
		select {
		case <-time.After(c.restOf(c.cfg.Host)):
		case <-c.ctx.Done():
			return
		}
	}
}

// attempt puts a certificate in service: the one in the files, or a new one if
// there is none or it has expired. With a limit, that is asked before.
func (c *Certificates) attempt(name string, limit func() (release func(), err error)) error {
	ctx, done := context.WithTimeoutCause(c.ctx, c.cfg.patience, fmt.Errorf("no certificate within %v", c.cfg.patience))
	defer done()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	ctx = context.WithValue(ctx, attemptKey{}, fail)
	old, err := c.magic.CacheManagedCertificate(ctx, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !old.Expired() {
		return nil // upkeep renews it if it is due
	}
	if limit != nil {
		release, err := limit()
		if err != nil {
			return err
		}
		defer release()
	}
	if old.Empty() {
		err = c.magic.ObtainCertAsync(ctx, name)
	} else {
		err = c.magic.RenewCertAsync(ctx, name, false)
	}
	if err == nil {
		_, err = c.magic.CacheManagedCertificate(ctx, name)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	if !old.Empty() {
		c.cache.Remove([]string{old.Hash()})
	}
	return nil
}

// attemptKey is for what ends an attempt, in its context.
type attemptKey struct{}

// event is told by certmagic what happens. It would try again by itself for a
// month; when that is done is ours to say.
func (c *Certificates) event(ctx context.Context, event string, data map[string]any) error {
	switch event {
	case "cert_obtained":
		c.cfg.Log.Info("new certificate", "name", data["identifier"], "renewed", data["renewal"])
	case "cert_failed":
		if fail, ok := ctx.Value(attemptKey{}).(context.CancelCauseFunc); ok {
			err, _ := data["error"].(error)
			fail(err)
		}
	}
	return nil
}

// get returns the certificate for a handshake with the ingress. One for which
// there is none fails.
func (c *Certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if c.isHost(name) {
		return nil, fmt.Errorf("acme: %q is the API's, and is no published port", name)
	}
	return c.certificate(hello, name)
}

// getHost returns the certificate for a handshake with the API, whatever name
// the client has for it: there is only one, and the client sees whether it fits.
func (c *Certificates) getHost(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	named := *hello
	named.ServerName = c.cfg.Host
	return c.certificate(&named, c.cfg.Host)
}

func (c *Certificates) certificate(hello *tls.ClientHelloInfo, name string) (*tls.Certificate, error) {
	if !c.has(name) {
		if err := c.order(hello, name); err != nil {
			return nil, err
		}
	}
	return c.magic.GetCertificate(hello)
}

// proof returns what an authority looks for in a handshake.
func (c *Certificates) proof(name string) (*tls.Certificate, error) {
	challenge, ok := certmagic.GetACMEChallenge(name)
	if !ok || challenge.Type != "tls-alpn-01" || c.cfg.DNS != nil {
		return nil, fmt.Errorf("acme: nobody has asked for a proof of %q", name)
	}
	return acmez.TLSALPN01ChallengeCert(challenge.Challenge)
}

func (c *Certificates) has(name string) bool {
	return name != "" && len(c.cache.AllMatchingCertificates(name)) > 0
}

// challengePath is where authorities look for proofs over HTTP.
const challengePath = "/.well-known/acme-challenge/"

// Answer answers a request over plain HTTP if it is an authority's, for a proof
// that is under way.
func (c *Certificates) Answer(w http.ResponseWriter, r *http.Request) bool {
	if c.cfg.HTTPListener == nil || r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, challengePath) {
		return false
	}
	host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
	challenge, ok := certmagic.GetACMEChallenge(host)
	if !ok || challenge.Type != "http-01" || r.URL.Path != challenge.HTTP01ResourcePath() {
		return false
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte(challenge.KeyAuthorization))
	return true
}
