package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// fetchTimeout is for discovery and keys together.
	fetchTimeout = 10 * time.Second
	// maxRedirects is in one origin.
	maxRedirects = 3
	// wellKnown is where discovery is, below the issuer's URL.
	wellKnown = "/.well-known/openid-configuration"
)

// fetcher fetches the keys of an issuer.
type fetcher struct {
	issuer, jwks string
	loopbackHTTP bool
	client       *http.Client
}

func newFetcher(i *Issuer, o *Options) fetcher {
	transport := &http.Transport{
		DialContext: o.Dial, Proxy: http.ProxyFromEnvironment,
		// Requests are minutes apart, so no connection is kept, and nothing is to be closed.
		DisableKeepAlives: true,
		// A compressed document could be any size.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if i.CA != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool() // the issuer has its own
		}
		roots.AppendCertsFromPEM([]byte(i.CA))
		transport.TLSClientConfig.RootCAs = roots
	}
	return fetcher{
		issuer: i.URL, jwks: i.JWKSURL, loopbackHTTP: o.LoopbackHTTP,
		client: &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if origin(r.URL) != origin(via[0].URL) {
				return errors.New("a redirect leads to another origin")
			}
			if len(via) > maxRedirects {
				return errors.New("too many redirects")
			}
			return nil
		}},
	}
}

// fetch returns the keys that the issuer has now. Errors say what an operator needs to
// know, and are not for callers.
func (f *fetcher) fetch(ctx context.Context, clock func() time.Time) (*keySet, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	now, at := clock(), f.jwks
	if at == "" {
		var err error
		if at, err = f.discover(ctx); err != nil {
			return nil, err
		}
	}
	b, header, err := f.get(ctx, at)
	if err != nil {
		return nil, err
	}
	set, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("the document %s %w", at, err)
	}
	life := keyLife(header)
	set.fetched, set.refresh, set.expires, set.end = now, now.Add(life/4*3), now.Add(life), now.Add(MaxKeyLife)
	return set, nil
}

// discover returns where the keys are.
func (f *fetcher) discover(ctx context.Context) (string, error) {
	at := strings.TrimSuffix(f.issuer, "/") + wellKnown
	b, _, err := f.get(ctx, at)
	if err != nil {
		return "", err
	}
	var document struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(b, &document); err != nil {
		return "", fmt.Errorf("the document %s is not JSON of a discovery", at)
	}
	if document.Issuer != f.issuer {
		return "", fmt.Errorf("the document %s is of another issuer, %.256q", at, document.Issuer)
	}
	keys, err := validateURL("jwks_uri", document.JWKS, f.loopbackHTTP)
	if err != nil {
		return "", fmt.Errorf("the document %s: %w", at, err)
	}
	own, err := url.Parse(f.issuer)
	if err != nil {
		return "", err
	}
	if origin(keys) != origin(own) {
		return "", fmt.Errorf("the document %s has keys of another origin, %s: configure that as jwksUrl if it is right", at, keys.Redacted())
	}
	return document.JWKS, nil
}

func (f *fetcher) get(ctx context.Context, at string) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	r.Header.Set("User-Agent", "skerry")
	answer, err := f.client.Do(r)
	if err != nil {
		return nil, nil, err // it names the URL
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("get %s: status %d", at, answer.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, MaxDocument+1))
	if err != nil {
		return nil, nil, fmt.Errorf("get %s: %w", at, err)
	}
	if len(b) > MaxDocument {
		return nil, nil, fmt.Errorf("get %s: the document has more than %d bytes", at, MaxDocument)
	}
	return b, answer.Header, nil
}

// keyLife returns how long keys are good by the headers they came with.
func keyLife(h http.Header) time.Duration {
	life := DefaultKeyLife
	for directive := range strings.SplitSeq(strings.ToLower(strings.Join(h.Values("Cache-Control"), ",")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store", "no-cache":
			return MinKeyLife
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 32); err == nil {
				life = time.Duration(seconds) * time.Second
			}
		}
	}
	if age, err := strconv.ParseUint(h.Get("Age"), 10, 32); err == nil {
		life -= time.Duration(age) * time.Second
	}
	return min(max(life, MinKeyLife), MaxKeyLife)
}
