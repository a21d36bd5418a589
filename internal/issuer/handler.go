package issuer

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"

	"github.com/go-jose/go-jose/v4"
)

// KeySource returns public keys as a JWKS document.
type KeySource func(context.Context) ([]byte, error)

// Handler serves what it takes to verify the tokens of an issuer whose keys are those of
// all the sources: GET /.well-known/jwks and /.well-known/openid-configuration. The keys of a source that does not answer are those
// that it had before; without any, the answer is 503, since a verifier that got some of the
// keys would refuse the tokens of the others.
func Handler(url string, log *slog.Logger, sources ...KeySource) (http.Handler, error) {
	if err := checkURL(url); err != nil {
		return nil, err
	}
	discovery, err := json.Marshal(map[string]any{
		"issuer":                                url,
		"jwks_uri":                              url + "/.well-known/jwks",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		"claims_supported": []string{
			"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "team_id", "project_id", "sandbox_id", "session_id", "sandbox_name",
			"owner", "owner_id", "project", "environment", "user_id",
		},
	})
	if err != nil {
		return nil, err
	}
	keys := &published{log: log, sources: sources, last: make([][]json.RawMessage, len(sources))}
	mux := http.NewServeMux()
	mux.Handle("GET /.well-known/jwks", keys)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) { document(w, discovery) })
	return mux, nil
}

func document(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Write(b)
}

// published serves the keys of the sources.
type published struct {
	log     *slog.Logger
	sources []KeySource

	mu   sync.Mutex
	last [][]json.RawMessage // of each source
}

func (p *published) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	all := []json.RawMessage{}
	for n, source := range p.sources {
		keys, err := p.of(r.Context(), n, source)
		if err != nil {
			p.log.Error("cannot get the keys that verify tokens", "error", err)
			http.Error(w, "the keys are not available", http.StatusServiceUnavailable)
			return
		}
		all = append(all, keys...)
	}
	b, err := json.Marshal(map[string]any{"keys": all})
	if err != nil {
		http.Error(w, "the keys are not available", http.StatusInternalServerError)
		return
	}
	document(w, b)
}

// of returns the keys of a source, or those that it had before.
func (p *published) of(ctx context.Context, n int, source KeySource) ([]json.RawMessage, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	b, err := source(ctx)
	if err == nil {
		err = json.Unmarshal(b, &set)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.last[n] != nil {
			return p.last[n], nil
		}
		return nil, err
	}
	p.last[n] = set.Keys
	return set.Keys, nil
}
