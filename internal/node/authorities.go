package node

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"

	"github.com/skerry-dev/skerry/internal/guest"
)

// MaxAuthorities is the maximum number of certificate authorities that sandboxes
// are given.
const MaxAuthorities = 64

// ParseAuthorities returns the certificates in a PEM file, for sandboxes to trust.
// The file may contain nothing else, because its content goes into every sandbox.
func ParseAuthorities(file []byte) ([]guest.Authority, error) {
	var list []guest.Authority
	seen := map[string]bool{}
	for {
		var block *pem.Block
		block, file = pem.Decode(file)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it contains a %s; it may contain only certificates, because sandboxes can read it", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("its certificate %d: %w", len(list)+1, err)
		}
		a := newAuthority(cert)
		if !seen[a.Name] {
			seen[a.Name] = true
			list = append(list, a)
		}
	}
	switch {
	case bytes.Contains(file, []byte("PRIVATE KEY")):
		return nil, fmt.Errorf("it contains a private key; it may contain only certificates, because sandboxes can read it")
	case len(list) == 0:
		return nil, fmt.Errorf("it contains no certificate in PEM format")
	case len(list) > MaxAuthorities:
		return nil, fmt.Errorf("it contains %d certificates; at most %d are allowed", len(list), MaxAuthorities)
	}
	return list, nil
}

// newAuthority makes an authority of the certificate only. Everything else in the
// file is left out.
func newAuthority(cert *x509.Certificate) guest.Authority {
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	sum := sha256.Sum256(cert.Raw)
	return guest.Authority{Name: fmt.Sprintf("skerry-ca-%x", sum[:8]), PEM: text, Hash: subjectHash(text)}
}

// environment returns the default environment of a sandbox's commands: the
// variables that point programs to the authorities, then the operator's variables,
// then the sandbox's own.
func (c *Config) environment(sandbox map[string]string) map[string]string {
	env := map[string]string{}
	if len(c.Authorities) > 0 {
		maps.Copy(env, trustVariables)
	}
	maps.Copy(env, c.Env)
	maps.Copy(env, sandbox)
	return env
}
