// Command cmd runs an issuer for tests in other languages. It serves plain HTTP on a
// free port of 127.0.0.1 and prints one line of JSON, {"issuer": URL}. For each line of
// JSON on its standard input it prints one line with a token; it ends with its input.
//
//	{"kind": "github", "claims": {"repository": "acme/api"}}   claims replace the usual ones; null removes one
//	{"kind": "vercel", "algorithm": "ES256"}                   a new key is made first, for this algorithm
//	{"kind": "keys"}                                           a line with the public keys, {"keys": [...]}
//
// Kinds of tokens are plain, github, gitlab, kubernetes, vercel and google.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "issuer:", err)
		os.Exit(1)
	}
}

type request struct {
	Kind      string                  `json:"kind"`
	Claims    map[string]any          `json:"claims"`
	Algorithm jose.SignatureAlgorithm `json:"algorithm"`
}

func run(in io.Reader, out io.Writer) error {
	i, err := issuertest.Start(issuertest.Options{})
	if err != nil {
		return err
	}
	defer i.Close()
	answers := json.NewEncoder(out)
	if err := answers.Encode(map[string]string{"issuer": i.URL()}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		if r.Kind == "keys" {
			if err := answers.Encode(json.RawMessage(i.JWKS())); err != nil {
				return err
			}
			continue
		}
		token, err := mint(i, r)
		if err != nil {
			return err
		}
		if err := answers.Encode(map[string]string{"token": token}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func mint(i *issuertest.Issuer, r request) (string, error) {
	if r.Algorithm != "" {
		if _, err := i.Rotate(r.Algorithm); err != nil {
			return "", err
		}
	}
	var c issuertest.Claims
	switch r.Kind {
	case "", "plain":
		c = i.Plain("someone")
	case "github":
		c = i.GitHub("acme/web", "refs/heads/main", "")
	case "gitlab":
		c = i.GitLab("acme/web", "main", true)
	case "kubernetes":
		c = i.Kubernetes("ci", "builder")
	case "vercel":
		c = i.Vercel("acme", "team_1", "web", "prj_1", "development")
	case "google":
		c = i.Google("jane@example.com", "example.com")
	default:
		return "", fmt.Errorf("unknown kind %q", r.Kind)
	}
	for name, v := range r.Claims {
		c = c.With(name, v)
	}
	return i.Key().Sign(c)
}
