package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"github.com/skerry-dev/skerry"
)

// policyFile, in the store's directory, says which images may be taken in:
//
//	{
//	  "default": {"deny": true},
//	  "repositories": {
//	    "docker.io/library": {"unsigned": true},
//	    "ghcr.io/acme": {"keys": ["/etc/skerry/acme.pub"]}
//	  }
//	}
//
// A repository's rule holds for those below it too, and the longest that fits
// holds. Keys are PEM files of public keys (ECDSA, Ed25519, RSA), as cosign makes
// them: an image needs a signature by one of them. Without the file, any image may
// be taken in. It holds for what is taken in from then on.
const policyFile = "policy.json"

// maxPolicy bounds the file and each key.
const maxPolicy = 1 << 20

type policy struct {
	Default      *policyRule           `json:"default"`
	Repositories map[string]policyRule `json:"repositories"`
}

// policyRule is what is asked of the images of a repository: one of these.
type policyRule struct {
	Deny     bool     `json:"deny,omitempty"`
	Unsigned bool     `json:"unsigned,omitempty"`
	Keys     []string `json:"keys,omitempty"`
}

// ruleFor reads the policy and returns what it asks of a repository's images.
func (s *Store) ruleFor(repository string) (policyRule, error) {
	b, err := readSmall(s.path(policyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return policyRule{Unsigned: true}, nil
	}
	if err != nil {
		return policyRule{}, fmt.Errorf("the image policy: %w", err)
	}
	p, err := parsePolicy(b)
	if err != nil {
		return policyRule{}, fmt.Errorf("the image policy %s: %w", s.path(policyFile), err)
	}
	return p.ruleFor(repository), nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPolicy {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxPolicy)
	}
	return os.ReadFile(path)
}

func parsePolicy(b []byte) (policy, error) {
	var p policy
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, err
	}
	if d.More() {
		return p, errors.New("there is data after the end of the JSON object")
	}
	if p.Default == nil {
		return p, errors.New(`"default" is missing: {"deny": true} or {"unsigned": true}`)
	}
	if err := p.Default.check(); err != nil {
		return p, fmt.Errorf(`"default": %w`, err)
	}
	for name, rule := range p.Repositories {
		if name == "" || strings.Trim(name, "/") != name || strings.ContainsAny(name, "*@: ") && !strings.Contains(name, ":") {
			return p, fmt.Errorf("%q is not a registry or repository", name)
		}
		if registry, _, _ := strings.Cut(name, "/"); !strings.ContainsAny(registry, ".:") && registry != "localhost" {
			return p, fmt.Errorf("%q does not begin with a registry; docker.io/library/%s, for example", name, name)
		}
		if err := rule.check(); err != nil {
			return p, fmt.Errorf("%q: %w", name, err)
		}
	}
	return p, nil
}

func (r policyRule) check() error {
	asked := 0
	for _, is := range []bool{r.Deny, r.Unsigned, len(r.Keys) > 0} {
		if is {
			asked++
		}
	}
	if asked != 1 {
		return errors.New(`it must have one of "deny", "unsigned" and "keys"`)
	}
	for _, key := range r.Keys {
		if !filepath.IsAbs(key) {
			return fmt.Errorf("key %q is not an absolute path", key)
		}
	}
	return nil
}

// ruleFor returns the rule of the longest name that a repository is at or below.
func (p policy) ruleFor(repository string) policyRule {
	repository = canonical(repository)
	rule, longest := *p.Default, -1
	for name, r := range p.Repositories {
		full := canonical(name)
		if (repository == full || strings.HasPrefix(repository, full+"/")) && len(full) > longest {
			rule, longest = r, len(full)
		}
	}
	return rule
}

// dockerHub is what Docker calls its registry.
const dockerHub = "index.docker.io"

// canonical gives a registry or repository one spelling. A client reaches the
// same registry in capital and in full-width letters, with the port of HTTPS,
// and with the dot that ends a full domain name. Docker's registry has many names.
func canonical(repository string) string {
	registry, rest, below := strings.Cut(repository, "/")
	if colon := strings.LastIndexByte(registry, ':'); colon >= 0 {
		if port, err := strconv.Atoi(registry[colon+1:]); err == nil && port == 443 {
			registry = registry[:colon]
		}
	}
	if ascii, err := idna.Lookup.ToASCII(registry); err == nil {
		registry = ascii
	}
	registry = strings.TrimSuffix(strings.ToLower(registry), ".")
	if registry == "docker.io" || registry == "hub.docker.com" ||
		strings.HasSuffix(registry, ".docker.io") || strings.HasSuffix(registry, ".hub.docker.com") {
		registry = dockerHub
	}
	if !below {
		return registry
	}
	return registry + "/" + rest
}

// refused is the error of an image that the policy does not let in.
func refused(repository, why string) error {
	return &skerry.Error{
		Code: skerry.CodeForbidden, Field: "image",
		Message: fmt.Sprintf("the image policy does not allow images from %s: %s", repository, why),
	}
}

// checkUnsigned refuses an image that comes without a registry's signatures.
func (s *Store) checkUnsigned(repository string) error {
	rule, err := s.ruleFor(repository)
	switch {
	case err != nil:
		return err
	case rule.Deny:
		return refused(repository, "it is denied")
	case len(rule.Keys) > 0:
		return refused(repository, "they must be signed, and an image from a file has no signature that can be verified")
	}
	return nil
}

// readKeys reads a rule's public keys.
func (r policyRule) readKeys() ([]crypto.PublicKey, error) {
	var keys []crypto.PublicKey
	for _, path := range r.Keys {
		b, err := readSmall(path)
		if err != nil {
			return nil, fmt.Errorf("a key of the image policy: %w", err)
		}
		key, err := parseKey(b)
		if err != nil {
			return nil, fmt.Errorf("key %s of the image policy: %w", path, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// minRSA is the shortest RSA key that is taken.
const minRSA = 2048

func parseKey(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("it is not a PEM file")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errors.New("it is not a public key (PKIX)")
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return key, nil
	case *rsa.PublicKey:
		if key.N.BitLen() < minRSA {
			return nil, fmt.Errorf("an RSA key must have at least %[2]d bits, has %[1]d", key.N.BitLen(), minRSA)
		}
		return key, nil
	}
	return nil, fmt.Errorf("keys of type %T are not supported", key)
}
