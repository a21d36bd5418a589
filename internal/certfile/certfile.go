// Package certfile serves TLS with a certificate and a key from files, and reads them
// again when they change.
package certfile

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// checkEvery is how often the files are looked at, at most. It happens in a handshake.
	checkEvery = 5 * time.Second
	// maxFile limits each file. A chain of certificates has some 10 KiB.
	maxFile = 1 << 20
)

// Certificate is a certificate in files.
type Certificate struct {
	// of says whose it is, for the log.
	of                string
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time // except in tests, time.Now

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
	// complaint is what was logged last, so that it is not repeated at every check.
	complaint string
}

// fileStamp tells whether a file has changed. The inode differs for a file that was
// renamed into place within the clock's resolution.
type fileStamp struct {
	modified time.Time
	size     int64
	file     os.FileInfo
}

func (s fileStamp) same(o fileStamp) bool {
	return s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.file, o.file)
}

// Load reads a certificate chain and its key, both PEM. of says whose they are, such as
// "the API". An expired certificate is served, and logged, because clients then see
// what is wrong.
func Load(of, certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{of: of, certFile: certFile, keyFile: keyFile, log: log, now: time.Now}
	stamp, err := c.stampNow()
	if err != nil {
		return nil, err
	}
	if c.current, err = Read(certFile, keyFile); err != nil {
		return nil, err
	}
	c.stamp = stamp
	if err := c.usable(c.current); err != nil {
		c.complain(err)
	}
	return c, nil
}

// Read reads a certificate chain and its key once.
func Read(certFile, keyFile string) (*tls.Certificate, error) {
	var pem [2][]byte
	for n, file := range []string{certFile, keyFile} {
		b, err := readFile(file)
		if err != nil {
			return nil, err
		}
		pem[n] = b
	}
	cert, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fmt.Errorf("%s with the key %s: %w", certFile, keyFile, err)
	}
	return &cert, nil
}

func readFile(file string) ([]byte, error) {
	// A pipe would block here for as long as nobody writes to it.
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxFile)
	}
	return b, nil
}

// TLS is the configuration of a server with the certificate.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(), nil },
	}
}

// get returns the certificate. Files that cannot be used, such as while they are being
// replaced, leave the one before in place.
func (c *Certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if now.Sub(c.checked) < checkEvery {
		return c.current
	}
	c.checked = now
	if err := c.renew(); err != nil {
		c.complain(err)
	}
	return c.current
}

// renew reads the files if they have changed.
func (c *Certificate) renew() error {
	stamp, err := c.stampNow()
	if err != nil {
		return fmt.Errorf("the one before is still used: %w", err)
	}
	worn := c.usable(c.current)
	if stamp[0].same(c.stamp[0]) && stamp[1].same(c.stamp[1]) {
		return worn
	}
	cert, err := Read(c.certFile, c.keyFile)
	if err == nil && worn == nil {
		err = c.usable(cert)
	}
	if err != nil {
		return fmt.Errorf("the one before is still used: %w", err)
	}
	c.current, c.stamp, c.complaint = cert, stamp, ""
	c.log.Info("new certificate", "of", c.of, "file", c.certFile, "expires", cert.Leaf.NotAfter)
	return c.usable(cert)
}

// usable refuses a certificate that clients refuse at this time.
func (c *Certificate) usable(cert *tls.Certificate) error {
	switch now := c.now(); {
	case now.After(cert.Leaf.NotAfter):
		return fmt.Errorf("the certificate has expired at %s", cert.Leaf.NotAfter.Format(time.RFC3339))
	case now.Before(cert.Leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", cert.Leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func (c *Certificate) complain(err error) {
	if text := err.Error(); text != c.complaint {
		c.complaint = text
		c.log.Error("certificate cannot be used", "of", c.of, "file", c.certFile, "error", err)
	}
}

func (c *Certificate) stampNow() (stamp [2]fileStamp, err error) {
	for n, file := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(file)
		if err != nil {
			return stamp, err
		}
		stamp[n] = fileStamp{modified: info.ModTime(), size: info.Size(), file: info}
	}
	return stamp, nil
}
