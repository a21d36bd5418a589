// Package ca is a certificate authority of one installation, which lets the
// proxy end TLS of the sandboxes that trust it. Its certificate must be trusted
// nowhere else.
package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/internal/keyfile"
)

const (
	validity     = 10 * 365 * 24 * time.Hour
	leafValidity = 7 * 24 * time.Hour
	// leafReserve is how long a cached certificate must still be good for.
	leafReserve = 24 * time.Hour
	// backdate is for sandboxes whose clock is behind.
	backdate  = time.Hour
	maxCached = 4096

	typeKey, typeCertificate = "PRIVATE KEY", "CERTIFICATE"
)

// Authority signs certificates for names. It is safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	// leafKey is one for all names, and lives as long as the process.
	leafKey *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// Open reads the authority in the file at path, key and certificate in PEM, or
// makes one (ECDSA P-256, ten years). The file has mode 0600 and appears
// whole or not at all; two that open at the same time get the same one.
func Open(path string) (*Authority, error) {
	b, err := keyfile.Open(path, generate)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	a, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority %s: %w", path, err)
	}
	if a.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	return a, nil
}

func generate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: serial,
		// The serial number in the name tells installations apart.
		Subject:               pkix.Name{Organization: []string{"Skerry"}, CommonName: fmt.Sprintf("Skerry egress %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: keyDER})
	return append(b, pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der})...), nil
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive, and of the same length always
	return new(big.Int).SetBytes(b), nil
}

func parse(b []byte) (*Authority, error) {
	a := &Authority{leaves: map[string]*tls.Certificate{}}
	keyBlock, rest := pem.Decode(b)
	certBlock, _ := pem.Decode(rest)
	if keyBlock == nil || keyBlock.Type != typeKey || certBlock == nil || certBlock.Type != typeCertificate {
		return nil, errors.New("the file must have a private key and a certificate")
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.New("the private key is not readable")
	}
	var ok bool
	if a.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return nil, errors.New("the private key is not ECDSA")
	}
	if a.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	switch {
	case !a.key.PublicKey.Equal(a.cert.PublicKey):
		return nil, errors.New("the certificate is of another key")
	case !a.cert.IsCA:
		return nil, errors.New("the certificate is not an authority's")
	case time.Now().After(a.cert.NotAfter):
		return nil, fmt.Errorf("the certificate has expired at %s; remove the file to have a new one made", a.cert.NotAfter)
	}
	a.pem = pem.EncodeToMemory(certBlock)
	return a, nil
}

// CertificatePEM returns the certificate that sandboxes must trust.
func (a *Authority) CertificatePEM() []byte { return bytes.Clone(a.pem) }

// Certificate returns a certificate for a name, with its key: a cached one, or
// one signed now. It is good for a week.
func (a *Authority) Certificate(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	c := a.leaves[name]
	a.mu.Unlock()
	if c != nil && time.Until(c.Leaf.NotAfter) > leafReserve {
		return c, nil
	}
	c, err := a.sign(name)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for n := range a.leaves {
		if len(a.leaves) < maxCached {
			break
		}
		delete(a.leaves, n)
	}
	a.leaves[name] = c
	return c, nil
}

func (a *Authority) sign(name string) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	notAfter := now.Add(leafValidity)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber: serial,
		DNSNames:     []string{name},
		NotBefore:    now.Add(-backdate),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// For clients that want the extension.
		BasicConstraintsValid: true,
	}
	if len(name) <= 64 {
		leaf.Subject.CommonName = name
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, a.leafKey.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leafKey, Leaf: leaf}, nil
}
