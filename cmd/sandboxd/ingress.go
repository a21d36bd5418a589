package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/acme"
	"github.com/skerry-dev/skerry/internal/certfile"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// ingressOptions are the flags about published ports.
type ingressOptions struct {
	// connections is how many the files suffice for.
	connections int

	address  string
	ports    string
	host     string
	maxPorts int
	resume   bool
	wait     time.Duration
	rewrite  bool
	loopback bool

	domain            string
	listen            string
	certFile, keyFile string
	urlPort           int
	plainListen       string
	acme              acmeOptions

	// given tells flags that are set.
	given func(flag string) bool
}

func (o *ingressOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.address, "publish-address", ingress.DefaultAddress, "address to listen at for published ports; if it is not a loopback address, other machines reach the ports without TLS")
	f.StringVar(&o.ports, "publish-ports", fmt.Sprintf("%d-%d", ingress.DefaultFirstPort, ingress.DefaultLastPort), "range of this machine's ports for published ports, one for each")
	f.StringVar(&o.host, "publish-host", "", "host in the URLs of published ports (default: --publish-address, and localhost for 127.0.0.1)")
	f.IntVar(&o.maxPorts, "max-ports", skerry.DefaultMaxPorts, "maximum number of published ports of a sandbox")
	f.StringVar(&o.domain, "domain", "", "domain for published ports: they get URLs https://SUBDOMAIN.DOMAIN instead of ports of this machine; every name below it must resolve to this server")
	f.StringVar(&o.listen, "ingress-listen", ":443", "address to listen at for published ports, with --domain")
	f.StringVar(&o.certFile, "ingress-tls-cert", "", "PEM file with the certificate chain for *.DOMAIN, reloaded when it changes (or use --acme)")
	f.StringVar(&o.keyFile, "ingress-tls-key", "", "PEM file with the private key of the certificate in --ingress-tls-cert (or use --acme)")
	f.StringVar(&o.plainListen, "ingress-http-listen", "", "address to listen at for plain HTTP with --domain, such as :80; it redirects clients to the https URLs, and answers the challenges of the --acme authority (default: none)")
	f.IntVar(&o.urlPort, "ingress-port", 0, "port in the URLs of published ports, with --domain (default: that of --ingress-listen)")
	o.acme.flags(f)
	o.given = func(flag string) bool {
		value := f.Lookup(flag).Value.String()
		return f.Changed(flag) && value != "" && value != "false" && value != "0"
	}
	f.BoolVar(&o.resume, "resume-on-request", true, "let a request to a published port resume a stopped persistent sandbox")
	f.DurationVar(&o.wait, "resume-wait", ingress.DefaultResumeWait, "maximum time that a request to a stopped sandbox waits for the start")
	f.BoolVar(&o.loopback, "reach-loopback", true, "let requests to a published port reach programs that listen only on the sandbox's loopback interface (127.0.0.1, ::1)")
	f.BoolVar(&o.rewrite, "ingress-rewrite-host", false, "set the Host header of requests to published ports to localhost:PORT, for development servers that refuse other names; X-Forwarded-Host has the original name")
}

// apiName is the host of the API, if its certificate comes from an ACME authority, and
// where the API listens.
type apiName struct {
	host string
	at   net.Addr
}

// open makes the ingress; it lets nothing in yet.
func (o *ingressOptions) open(ctx context.Context, state string, api apiName, log *slog.Logger) (*gate, error) {
	if o.domain != "" {
		return o.openDomain(ctx, state, api, log)
	}
	first, last, err := portRange(o.ports)
	if err != nil {
		return nil, err
	}
	in, err := ingress.New(ingress.Config{
		Log: log, Address: o.address, FirstPort: first, LastPort: last, Host: o.host, NoResume: !o.resume, ResumeWait: o.wait, RewriteHost: o.rewrite,
		MaxConnections: min(o.connections, ingress.DefaultMaxConnections),
	})
	if err != nil {
		return nil, err
	}
	g := &gate{Ingress: in}
	if api.host != "" {
		if g.certs, err = o.acme.open("", api.host, filepath.Join(state, "acme"), api.at, nil, log); err != nil {
			return nil, errors.Join(err, in.Close())
		}
	}
	return g, nil
}

// gate is the ingress, with what gets its certificates, and the API's, if that is ACME.
type gate struct {
	*ingress.Ingress
	certs *acme.Certificates
	plain *ingress.Redirect
}

// Start lets requests in, and certificates be asked for.
func (g *gate) Start(backend ingress.Backend) {
	g.Ingress.Start(backend)
	if g.plain != nil {
		g.plain.Start()
	}
	if g.certs != nil {
		g.certs.Start(g.Knows)
	}
}

// Close ends both. Proofs that are under way need the ingress.
func (g *gate) Close() error {
	if g.certs != nil {
		g.certs.Close()
	}
	var err error
	if g.plain != nil {
		err = g.plain.Close()
	}
	return errors.Join(err, g.Ingress.Close())
}

// openDomain makes the ingress of domain mode.
func (o *ingressOptions) openDomain(ctx context.Context, state string, api apiName, log *slog.Logger) (*gate, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for published ports: %w", err)
	}
	var plain net.Listener
	if o.plainListen != "" {
		if plain, err = new(net.ListenConfig).Listen(ctx, "tcp", o.plainListen); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for plain HTTP: %w", err), ln.Close())
		}
	}
	g := &gate{}
	conf, err := o.tls(g, ln, plain, state, api, log)
	if err == nil {
		g.Ingress, err = ingress.New(ingress.Config{
			Log: log, Domain: o.domain, Listener: ln, URLPort: o.urlPort, TLS: conf, NoResume: !o.resume, ResumeWait: o.wait, RewriteHost: o.rewrite,
			MaxConnections: min(o.connections, ingress.DefaultMaxConnections),
		})
	}
	if err != nil {
		if plain != nil {
			err = errors.Join(err, plain.Close())
		}
		return nil, errors.Join(err, ln.Close())
	}
	if plain != nil {
		var answer func(http.ResponseWriter, *http.Request) bool
		if g.certs != nil {
			answer = g.certs.Answer
		}
		g.plain = g.Redirect(plain, answer)
	}
	return g, nil
}

// tls returns the certificates of domain mode.
func (o *ingressOptions) tls(g *gate, ln, plain net.Listener, state string, api apiName, log *slog.Logger) (*tls.Config, error) {
	if o.acme.on || api.host != "" {
		domain, at := "", api.at
		if o.acme.on {
			domain, at = o.domain, ln.Addr()
		}
		certs, err := o.acme.open(domain, api.host, filepath.Join(state, "acme"), at, plain, log)
		if err != nil {
			return nil, err
		}
		g.certs = certs
	}
	if o.acme.on {
		return g.certs.TLS(), nil
	}
	cert, err := certfile.Load("the ingress", o.certFile, o.keyFile, log)
	if err != nil {
		return nil, fmt.Errorf("--ingress-tls-cert, --ingress-tls-key: %w", err)
	}
	return cert.TLS(), nil
}

// portRange parses "FIRST-LAST".
func portRange(s string) (first, last int, err error) {
	a, b, _ := strings.Cut(s, "-")
	if first, err = strconv.Atoi(a); err == nil {
		last, err = strconv.Atoi(b)
	}
	if err != nil || first < 1 || last < first || last > skerry.MaxPort {
		return 0, 0, fmt.Errorf("--publish-ports %q is not of the form FIRST-LAST, such as 20000-29999", s)
	}
	return first, last, nil
}
