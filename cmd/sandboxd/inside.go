package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/node"
)

// insideOptions are what the operator gives to every sandbox.
type insideOptions struct {
	ca  string
	env string
}

// Values of --sandbox-ca that name no file.
const (
	caOfMachine = "machine"
	caNone      = "none"
)

func (o *insideOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.ca, "sandbox-ca", caOfMachine, `PEM file with certificate authorities that all sandboxes trust, such as that of a proxy that inspects TLS; "machine": the authorities that were added to this machine's distribution; "none": none`)
	f.StringVar(&o.env, "sandbox-env", "", "file with lines KEY=VALUE: environment variables for all commands in sandboxes, such as HTTPS_PROXY, PIP_INDEX_URL or npm_config_registry; the variables of a sandbox or command take precedence. Sandboxes can read the values")
}

// load reads the files.
func (o *insideOptions) load(log *slog.Logger) ([]guest.Authority, map[string]string, error) {
	var env map[string]string
	if o.env != "" {
		b, err := os.ReadFile(o.env)
		if err != nil {
			return nil, nil, fmt.Errorf("--sandbox-env: %w", err)
		}
		if env, err = parseEnvironment(b); err != nil {
			return nil, nil, fmt.Errorf("--sandbox-env: %s: %w", o.env, err)
		}
	}
	authorities, err := o.authorities(log)
	return authorities, env, err
}

func (o *insideOptions) authorities(log *slog.Logger) ([]guest.Authority, error) {
	switch o.ca {
	case caNone, "":
		return nil, nil
	case caOfMachine:
		list, err := machineAuthorities("/")
		if err != nil {
			// Nobody has asked for them by name: sandboxes can do without.
			log.Warn("sandboxes do not trust what this machine's administrator has added; name it with --sandbox-ca", "error", err)
			return nil, nil
		}
		if len(list) > 0 {
			log.Info("sandboxes trust the certificate authorities that were added to this machine; --sandbox-ca=none turns that off", "authorities", len(list))
		}
		return list, nil
	}
	b, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, fmt.Errorf("--sandbox-ca: %w", err)
	}
	list, err := node.ParseAuthorities(b)
	if err != nil {
		return nil, fmt.Errorf("--sandbox-ca: %s: %w", o.ca, err)
	}
	return list, nil
}

// Where distributions have certificates: those that an administrator adds, those
// of the distribution itself, and all that are trusted.
var (
	addedDirs        = []string{"usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors", "usr/share/pki/trust/anchors"}
	distributionDirs = []string{"usr/share/ca-certificates"}
	bundleFiles      = []string{"etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem", "etc/ssl/cert.pem"}
)

// machineAuthorities returns the certificates that an administrator has added to
// the machine whose files are at root: those in the folders for that, and what
// the machine trusts beyond the distribution's list, where there is one.
func machineAuthorities(root string) ([]guest.Authority, error) {
	var added bytes.Buffer
	for _, dir := range addedDirs {
		if err := collect(filepath.Join(root, dir), func(c *x509.Certificate) { writeCertificate(&added, c) }); err != nil {
			return nil, err
		}
	}
	own := map[string]bool{}
	for _, dir := range distributionDirs {
		if err := collect(filepath.Join(root, dir), func(c *x509.Certificate) { own[string(c.Raw)] = true }); err != nil {
			return nil, err
		}
	}
	if len(own) > 0 {
		for _, name := range bundleFiles {
			b, err := os.ReadFile(filepath.Join(root, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			eachCertificate(b, func(c *x509.Certificate) {
				if !own[string(c.Raw)] {
					writeCertificate(&added, c)
				}
			})
			break
		}
	}
	if added.Len() == 0 {
		return nil, nil
	}
	return node.ParseAuthorities(added.Bytes())
}

func writeCertificate(to *bytes.Buffer, c *x509.Certificate) {
	_ = pem.Encode(to, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // to a buffer
}

// collect calls each for the certificates in the files of a folder, which may be
// missing.
func collect(dir string, each func(*x509.Certificate)) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if ext := filepath.Ext(path); entry.IsDir() || ext != ".crt" && ext != ".pem" {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a link to nowhere
		}
		if err == nil {
			eachCertificate(b, each)
		}
		return err
	})
}

// eachCertificate calls each for the certificates in PEM. What is none is
// skipped.
func eachCertificate(b []byte, each func(*x509.Certificate)) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			each(c)
		}
	}
}

// parseEnvironment reads lines KEY=VALUE. Empty lines and those that begin with
// "#" are skipped. Errors name a line, never its value.
func parseEnvironment(b []byte) (map[string]string, error) {
	env := map[string]string{}
	total, number := 0, 0
	for line := range strings.Lines(string(b)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("line %d does not have the form KEY=VALUE", number)
		case !skerry.ValidEnvName(name):
			return nil, fmt.Errorf("line %d: %.64q is not the name of an environment variable", number, name)
		case strings.ContainsRune(value, 0):
			return nil, fmt.Errorf("line %d contains a NUL byte", number)
		}
		env[name] = value
		total += len(name) + len(value)
	}
	if len(env) > skerry.MaxEnv || total > skerry.MaxEnvBytes {
		return nil, fmt.Errorf("it has %d variables with %d bytes in total; at most %d variables and %d bytes are allowed", len(env), total, skerry.MaxEnv, skerry.MaxEnvBytes)
	}
	return env, nil
}
