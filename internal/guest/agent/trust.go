package agent

import (
	"bytes"
	"errors"
	"os"
	"path"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

const (
	// authoritiesDir is where Debian's update-ca-certificates looks for certificates
	// of the administrator.
	authoritiesDir = "/usr/local/share/ca-certificates"
	storeDir       = "/etc/ssl/certs"
	// bundleLimit limits the size of a certificate bundle.
	bundleLimit = 8 << 20
)

// bundles are the certificate bundles of the distributions, the usual one first.
var bundles = []string{
	storeDir + "/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem",
}

// trust adds certificate authorities to the image's store. It does the same as
// update-ca-certificates, which takes seconds. It skips authorities that are already
// there.
func (p *preparer) trust(authorities []wire.Authority) {
	var added []wire.Authority
	var all bytes.Buffer
	for _, a := range authorities {
		all.WriteString(a.PEM)
		name := authoritiesDir + "/" + a.Name + ".crt"
		if have, err := readRegular(p.root+name, bundleLimit); err == nil && string(have) == a.PEM {
			continue
		}
		if err := p.file(name, a.PEM, 0o644); err != nil {
			p.warn("certificate "+a.Name, err)
			continue
		}
		added = append(added, a)
	}
	if len(authorities) > 0 {
		p.warn("certificates", p.file(wire.AuthoritiesFile, all.String(), 0o644))
	}
	if len(added) == 0 {
		return
	}
	p.warn("certificates", p.systemDir(storeDir, 0o755))
	for _, a := range added {
		// As in Debian, there are two links: the name, and the hash for OpenSSL.
		for _, link := range []string{a.Name + ".pem", a.Hash + ".0"} {
			err := os.Symlink(authoritiesDir+"/"+a.Name+".crt", p.root+path.Join(storeDir, link))
			if !errors.Is(err, os.ErrExist) {
				p.warn("certificate "+a.Name, err)
			}
		}
	}
	p.warn("certificates", p.extendBundles(added))
}

// extendBundles appends authorities to the bundles of the image. If the usual bundle is
// missing, it is created, with the content of another one if there is one.
func (p *preparer) extendBundles(added []wire.Authority) error {
	var errs []error
	for i, name := range bundles {
		have, err := readRegular(p.root+name, bundleLimit)
		for _, other := range bundles[1:] {
			if i == 0 && errors.Is(err, os.ErrNotExist) {
				have, err = readRegular(p.root+other, bundleLimit)
			}
		}
		if i > 0 && err != nil {
			continue
		}
		if target, err := os.Readlink(p.root + name); i > 0 && err == nil && target != "" {
			continue // most likely a link to one of the others
		}
		errs = append(errs, p.extendBundle(name, have, added))
	}
	return errors.Join(errs...)
}

func (p *preparer) extendBundle(name string, have []byte, added []wire.Authority) error {
	content := bytes.NewBuffer(have)
	for _, a := range added {
		if bytes.Contains(content.Bytes(), []byte(a.PEM)) {
			continue
		}
		if n := content.Len(); n > 0 && content.Bytes()[n-1] != '\n' {
			content.WriteByte('\n')
		}
		content.WriteString(a.PEM)
	}
	if content.Len() == len(have) {
		return nil
	}
	full := p.root + name
	if st, err := os.Lstat(full); err == nil && st.IsDir() {
		if err := displace(full); err != nil {
			return err
		}
	}
	return replaceFile(full, content.String(), 0o644)
}
