package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/acme"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/certfile"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// apiOptions are the flags of the API itself.
type apiOptions struct {
	heartbeat      time.Duration
	maxConnections int

	certFile, keyFile string
	// acme gets the certificate from the authority that the flags of the ingress name.
	acme         bool
	allowedHosts []string
	corsOrigins  []string
}

func (o *apiOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.maxConnections, "max-connections", api.DefaultMaxConnections, "maximum number of open API connections; at most a quarter of the server's file descriptor limit (RLIMIT_NOFILE)")
	f.StringVar(&o.certFile, "tls-cert", "", "PEM file with the TLS certificate chain, reloaded when it changes (or use --tls-acme)")
	f.StringVar(&o.keyFile, "tls-key", "", "PEM file with the private key of the certificate in --tls-cert (or use --tls-acme)")
	f.BoolVar(&o.acme, "tls-acme", false, "get and renew the certificate for the host of --public-url from an ACME authority; without --acme-dns-hook or --acme-rfc2136, port 443 of that host must lead to --listen, or to --ingress-listen with --acme")
	f.StringSliceVar(&o.allowedHosts, "allowed-host", nil, "host name or address by which clients may reach the server, besides the loopback ones and that of --public-url; repeatable. Without either, a server at a loopback address accepts only loopback names, others accept any")
	f.StringSliceVar(&o.corsOrigins, "cors-origin", nil, "origin, such as https://app.example.com, whose pages may use the API with a token from a browser (CORS); repeatable (default: none)")
	f.DurationVar(&o.heartbeat, "heartbeat", api.DefaultHeartbeat, "time after which a silent response sends a blank line; set it below the idle timeout of every proxy in front of the server")
}

// wantFiles is how many file descriptors the server would like to have.
const wantFiles = 1 << 20

// raiseFiles raises the limit of file descriptors as far as it goes, and
// returns it. What runs for sandboxes has limits of its own.
func raiseFiles() (int, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, fmt.Errorf("read the limit of file descriptors: %w", err)
	}
	free := min(now.Max, wantFiles) // as far as it goes without privileges
	for want := uint64(wantFiles); want > now.Cur; want = max(want/2, free) {
		raised := unix.Rlimit{Cur: want, Max: max(want, now.Max)}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			return int(want), nil
		}
		if want == free {
			break
		}
	}
	return int(min(now.Cur, wantFiles)), nil
}

// bound fits what may be open at once to the file descriptors that there are.
func (o *apiOptions) bound(files int) (connections, open int) {
	connections = min(o.maxConnections, files/4)
	return connections, min(api.DefaultMaxOpen, max(connections/2, 4))
}

// tls reports whether the API speaks TLS itself.
func (o *apiOptions) tls() bool { return o.certFile != "" || o.acme }

// secure wraps the listener in TLS, if flags say so. certs are those of an ACME
// authority, if there are any.
func (o *apiOptions) secure(ln net.Listener, certs *acme.Certificates, log *slog.Logger) (net.Listener, error) {
	switch {
	case o.acme:
		return tls.NewListener(ln, certs.HostTLS()), nil
	case o.certFile != "":
		cert, err := certfile.Load("the API", o.certFile, o.keyFile, log)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
		return tls.NewListener(ln, cert.TLS()), nil
	}
	return ln, nil
}

// check refuses flags of the API that contradict each other.
func (o *apiOptions) check(publicURL string) error {
	for _, host := range o.allowedHosts {
		if err := api.CheckHost(host); err != nil {
			return fmt.Errorf("--allowed-host %q %w", host, err)
		}
	}
	for _, origin := range o.corsOrigins {
		if err := api.CheckOrigin(origin); err != nil {
			return fmt.Errorf("--cors-origin %q %w", origin, err)
		}
	}
	if !o.acme {
		return nil
	}
	u, err := url.Parse(publicURL)
	if err != nil || u.Scheme != "https" || ingress.CheckDomain(u.Hostname()) != nil || !strings.Contains(u.Hostname(), ".") {
		return fmt.Errorf("--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not %q", publicURL)
	}
	return nil
}

// acmeHost is the name of the API's certificate, if that is from an ACME authority.
func (o *serveOptions) acmeHost() string {
	u, err := url.Parse(o.publicURL)
	if !o.api.acme || err != nil {
		return ""
	}
	return u.Hostname()
}

// hosts are the names of the server besides that of its public URL. Who verifies tokens
// of sandboxes asks for the keys at the issuer's host.
func (o *serveOptions) hosts() []string {
	hosts := slices.Clone(o.api.allowedHosts)
	if u, err := url.Parse(o.network.issuer); err == nil && u.Hostname() != "" && (o.publicURL != "" || len(hosts) > 0 || o.listen.Loopback()) {
		hosts = append(hosts, u.Hostname())
	}
	return hosts
}
