package ingress

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateCheck is how often files are looked at for a new certificate.
const certificateCheck = 5 * time.Second

// Certificate is a certificate in files, which is read again when they change.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	every             time.Duration

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// LoadCertificate reads a certificate chain and its key, both PEM.
func LoadCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log, every: certificateCheck}
	stamp, err := c.stampNow()
	if err == nil {
		err = c.load(stamp)
	}
	if err != nil {
		return nil, fmt.Errorf("ingress: load the certificate: %w", err)
	}
	return c, nil
}

// TLS is the configuration that serves it.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(time.Now()), nil },
	}
}

// get returns the certificate. One that cannot be read, such as while its two
// files are being replaced, leaves the one before in place.
func (c *Certificate) get(now time.Time) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) < c.every {
		return c.current
	}
	c.checked = now
	stamp, err := c.stampNow()
	if err == nil && stamp != c.stamp {
		if err = c.load(stamp); err == nil {
			c.log.Info("the ingress has a new certificate", "file", c.certFile)
		}
	}
	if err != nil {
		c.log.Error("cannot read the ingress's certificate again", "file", c.certFile, "error", err)
	}
	return c.current
}

func (c *Certificate) load(stamp [2]fileStamp) error {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.current, c.stamp = &cert, stamp
	return nil
}

func (c *Certificate) stampNow() (stamp [2]fileStamp, err error) {
	for n, file := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(file)
		if err != nil {
			return stamp, err
		}
		stamp[n] = fileStamp{info.ModTime(), info.Size()}
	}
	return stamp, nil
}
