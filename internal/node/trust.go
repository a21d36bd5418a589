package node

import (
	"context"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Files with the certificate authority in a sandbox: a file of its own, and the
// bundle of all authorities that the image trusts.
const (
	authorityFile = "/usr/local/share/ca-certificates/skerry.crt"
	bundleFile    = "/etc/ssl/certs/ca-certificates.crt"
)

// trustVariables are for programs that do not use the image's store.
var trustVariables = map[string]string{
	"NODE_EXTRA_CA_CERTS": wire.AuthoritiesFile,
	"DENO_CERT":           wire.AuthoritiesFile,
	"SSL_CERT_FILE":       bundleFile,
	"REQUESTS_CA_BUNDLE":  bundleFile,
	"CURL_CA_BUNDLE":      bundleFile,
	"GIT_SSL_CAINFO":      bundleFile,
	"PIP_CERT":            bundleFile,
	"AWS_CA_BUNDLE":       bundleFile,
	"npm_config_cafile":   bundleFile,
}

// trustScript adds the authority to the image's store once. It does not run
// update-ca-certificates, which takes seconds. It also supports the stores of other
// distributions, and creates the usual one from them. It adds the authority to the
// image's Java stores if there is a keytool, which takes a second for each.
const trustScript = `set -e
umask 022
mkdir -p /usr/local/share/ca-certificates /usr/local/share/skerry /etc/ssl/certs
printf '%s' "$SKERRY_AUTHORITY" > ` + authorityFile + `
grep -qF -- "$SKERRY_LINE" ` + wire.AuthoritiesFile + ` 2>/dev/null || printf '%s' "$SKERRY_AUTHORITY" >> ` + wire.AuthoritiesFile + `
[ -z "$SKERRY_HASH" ] || ln -sf ` + authorityFile + ` /etc/ssl/certs/$SKERRY_HASH.0
usual=` + bundleFile + `
for b in /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem /etc/ssl/ca-bundle.pem; do
  if [ ! -e $usual ] && [ -f $b ]; then cat $b > $usual; fi
done
for b in $usual /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem /etc/ssl/ca-bundle.pem; do
  if [ $b = $usual ] || [ -f $b ]; then
    grep -qF -- "$SKERRY_LINE" $b 2>/dev/null || printf '\n%s' "$SKERRY_AUTHORITY" >> $b
  fi
done
# Java has stores of its own, which only its own program writes.
done=
for k in /etc/ssl/certs/java/cacerts /etc/pki/java/cacerts /usr/lib/jvm/*/lib/security/cacerts /usr/lib/jvm/*/jre/lib/security/cacerts \
  /opt/java/*/lib/security/cacerts /usr/local/openjdk-*/lib/security/cacerts; do
  [ -f "$k" ] || continue
  k=$(readlink -f "$k")
  case " $done " in *" $k "*) continue ;; esac
  done="$done $k"
  for t in /usr/lib/jvm/*/bin/keytool /opt/java/*/bin/keytool /usr/local/openjdk-*/bin/keytool; do
    [ -x "$t" ] || continue
    "$t" -importcert -noprompt -trustcacerts -alias skerry -file ` + authorityFile + ` -keystore "$k" -storepass changeit >/dev/null 2>&1 || true
    break
  done
done
`

// trustPatience is the maximum time for the script.
const trustPatience = 20 * time.Second

// trust is the state of a sandbox's trust in the authority that terminates TLS for
// rules. Only sandboxes with such rules trust it, because it costs a process and
// makes Node.js start slower.
type trust struct {
	// own are the trustVariables that the sandbox sets itself.
	own []string

	// trying is held while the authority is installed, which waits for the guest.
	trying gate
	// mu is held only for short accesses.
	mu     sync.Mutex
	wanted bool
	tried  bool
	done   bool
}

// ownTrust returns the trustVariables that an environment sets itself.
func ownTrust(env map[string]string) (own []string) {
	for name := range env {
		if _, ours := trustVariables[name]; ours {
			own = append(own, name)
		}
	}
	return own
}

func (t *trust) want(p *skerry.NetworkPolicy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = t.wanted || p.NeedsAuthority()
}

// trusting installs the authority in the sandbox if it must trust it, and returns
// the environment of a command. If the installation fails in an image, commands run
// without it.
func (s *session) trusting(ctx context.Context, env map[string]string) map[string]string {
	t := &s.trust
	if !s.trusts(ctx) {
		return env
	}
	all := maps.Clone(trustVariables)
	maps.DeleteFunc(all, func(name, _ string) bool { return slices.Contains(t.own, name) })
	maps.Copy(all, env)
	return all
}

// trusts reports whether the sandbox trusts the authority. It first installs the
// authority if that is necessary.
func (s *session) trusts(ctx context.Context) bool {
	t := &s.trust
	if wanted, tried, done := t.look(); !wanted || tried {
		return wanted && done
	}
	if t.trying.enter(ctx) != nil {
		return false
	}
	defer t.trying.leave()
	if _, tried, done := t.look(); tried {
		return done
	}
	err := s.installAuthority(ctx)
	if ctx.Err() != nil {
		return false // the next one tries again
	}
	t.mu.Lock()
	t.tried, t.done = true, err == nil
	t.mu.Unlock()
	if err != nil {
		s.node.cfg.Log.Warn("a sandbox does not trust the proxy", "session", s.id, "error", err)
	}
	return err == nil
}

func (t *trust) look() (wanted, tried, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wanted, t.tried, t.done
}

// trustLater installs the authority for running commands, in the background. A session
// that its client has paused is left alone: its next command installs it.
func (s *session) trustLater() {
	if wanted, tried, _ := s.trust.look(); !wanted || tried {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live || s.stopping || s.frozen && !s.idle.asleep {
		return
	}
	s.work.Go(func() {
		if done, err := s.use(s.ctx); err == nil {
			defer done()
			s.trusts(s.ctx)
		}
	})
}

// prefixErrand begins the ids of the processes that the node itself runs in the
// guest. The name is historical: sandboxes started by earlier versions have such
// processes too.
const prefixErrand = "describe_"

// installAuthority runs the script.
func (s *session) installAuthority(ctx context.Context) error {
	authority := string(s.node.cfg.Networks.Authority())
	line := certificateLine(authority)
	if line == "" {
		return fmt.Errorf("there is no authority")
	}
	ctx, cancel := context.WithTimeout(ctx, trustPatience)
	defer cancel()
	exit, said, err := errand(ctx, s.guest, guest.StartSpec{
		Name: "/bin/sh", Args: []string{"-c", trustScript}, Cwd: "/", Root: true, Timeout: trustPatience,
		Env: map[string]string{"SKERRY_AUTHORITY": authority, "SKERRY_LINE": line, "SKERRY_HASH": subjectHash(authority), "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}, s.reap)
	if err != nil {
		return s.failure(err)
	}
	if exit.Code != 0 {
		return fmt.Errorf("adding the certificate ended with %d: %q", exit.Code, said)
	}
	return nil
}

// maxSaid is how much of an errand's output is kept.
const maxSaid = 300

// errand runs a process for the node itself, and returns how it ended and the beginning
// of its output. abandon gets one that has not ended with ctx.
func errand(ctx context.Context, client *guest.Client, spec guest.StartSpec, abandon func(*guest.Process)) (exit guest.Exit, said string, err error) {
	spec.ID = skerry.NewID(prefixErrand)
	proc, err := client.Start(ctx, spec)
	if err != nil {
		return guest.Exit{}, "", err
	}
	for {
		chunk, err := proc.Next(ctx)
		if err != nil {
			break
		}
		said = (said + string(chunk.Data))[:min(maxSaid, len(said)+len(chunk.Data))]
		_ = proc.Ack(chunk.Stream, chunk.End())
	}
	if exit, err = proc.Wait(ctx); err != nil {
		_ = proc.Signal(syscall.SIGHUP)
		abandon(proc) // neither it nor what it prints stays
		return guest.Exit{}, said, err
	}
	return exit, said, proc.Forget()
}

// certificateLine returns a line of a PEM certificate that occurs in no other
// certificate.
func certificateLine(authority string) string {
	_, body, _ := strings.Cut(authority, "-----BEGIN CERTIFICATE-----\n")
	lines := strings.Split(body, "\n")
	if len(lines) < 4 {
		return ""
	}
	return lines[2]
}

// subjectHash returns the name under which OpenSSL looks up a certificate in a
// folder: the beginning of a hash of its subject, in UTF-8 and lower case. It
// returns "" if the input is not a certificate.
func subjectHash(authority string) string {
	block, _ := pem.Decode([]byte(authority))
	if block == nil {
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	var subject pkix.RDNSequence
	if _, err := asn1.Unmarshal(cert.RawSubject, &subject); err != nil {
		return ""
	}
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	hash := sha1.New()
	for _, set := range subject {
		var list []attribute
		for _, a := range set {
			list = append(list, attribute{a.Type, strings.ToLower(strings.Join(strings.Fields(fmt.Sprint(a.Value)), " "))})
		}
		b, err := asn1.MarshalWithParams(list, "set")
		if err != nil {
			return ""
		}
		hash.Write(b)
	}
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(hash.Sum(nil)))
}
