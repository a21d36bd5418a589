package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/certfile"
	"github.com/skerry-dev/skerry/internal/ingress"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/usage"
)

// bounds are the least and the most that each numeric flag of serve may be.
var bounds = map[string]struct{ least, most, unit string }{
	"disk":              {"1", "16384", " GiB"}, // a snapshot's files have at most 16 TiB
	"max-sandboxes":     {"1", "1000000", ""},
	"max-vcpus":         {"1", "256", ""},
	"max-timeout":       {"1s", "8760h", ""},
	"stop-grace":        {"1s", "24h", ""},
	"save-grace":        {"1s", "720h", ""},
	"idle-pause":        {"0s", "24h", ""},
	"idle-hibernate":    {"0s", "720h", ""},
	"keep-output":       {"1", "65536", " MiB"},
	"snapshot-cache":    {"0", "1048576", " GiB"},
	"drive-size":        {"1", "1024", " GiB"}, // skerry.MaxDriveSize
	"max-drive-size":    {"1", "1024", " GiB"},
	"max-commands":      {"1", "100000", ""},
	"max-processes":     {"64", "1000000", ""},
	"max-connections":   {"16", "1000000", ""},
	"heartbeat":         {"100ms", "1h", ""},
	"overcommit-cpu":    {"0", "1000000", ""},
	"overcommit-memory": {"0", "1000000", ""},
	"sandbox-memory":    {"0", "1048576", " GiB"},
	"disk-reserve":      {"0", "1073741824", " MiB"},
	"ready-networks":    {"0", "1000", ""},
	"warm":              {"0", "1000", ""},
	"warm-memory":       {"0", "1048576", " MiB"},
	"max-ports":         {"1", "1000", ""},
	"ingress-port":      {"0", "65535", ""},
	"resume-wait":       {"1s", "1h", ""},
	"audit-keep-days":   {"1", "36500", ""},
	"audit-max-size":    {"1", "1048576", " MiB"},
}

// checkIdle checks the idle mode.
func (o *serveOptions) checkIdle() error {
	if !slices.Contains(skerry.IdleModes, skerry.IdleMode(o.idle)) {
		return fmt.Errorf("--idle must be default, never, pause or hibernate, not %q", o.idle)
	}
	switch {
	case o.idlePause > 0:
	case skerry.IdleMode(o.idle).WithProcesses():
		return fmt.Errorf("--idle %s has no effect with --idle-pause 0, which pauses no sandbox", o.idle)
	case o.idleHibernate > 0:
		return errors.New("--idle-hibernate has no effect with --idle-pause 0, which pauses no sandbox")
	}
	return nil
}

// check refuses flags with which no server can run. It makes nothing.
func (o *serveOptions) check(f *pflag.FlagSet) error {
	var wrong error
	f.VisitAll(func(flag *pflag.Flag) {
		if wrong == nil {
			wrong = checkBounds(flag)
		}
	})
	for _, check := range []func() error{
		func() error { return o.checkSizes(f) }, o.checkIdle, o.ingress.check, o.checkURLs, o.checkPlaces, o.observe.check, o.audit.check, o.checkTLS, o.network.check, o.storage.check, o.checkFiles, o.checkCertificates,
	} {
		if wrong == nil {
			wrong = check()
		}
	}
	if wrong != nil {
		return usage.Error{Err: wrong}
	}
	return nil
}

func checkBounds(flag *pflag.Flag) error {
	b, is := bounds[flag.Name]
	if !is {
		return nil
	}
	number := func(s string) float64 {
		if d, err := time.ParseDuration(s); err == nil && flag.Value.Type() == "duration" {
			return float64(d)
		}
		n, _ := strconv.ParseFloat(s, 64) // the flag was parsed, and the bounds are tested
		return n
	}
	// Not a number is neither.
	if n := number(flag.Value.String()); n >= number(b.least) && n <= number(b.most) {
		return nil
	}
	return notWithin(flag.Name, flag.Value.String())
}

func notWithin(flag, value string) error {
	b := bounds[flag]
	return fmt.Errorf("--%s must be %s to %s%s, not %s", flag, b.least, b.most, b.unit, value)
}

// flagError says what a flag may be whose value could not be read.
func flagError(cmd *cobra.Command, err error) error {
	if wrong, is := errors.AsType[*pflag.InvalidValueError](err); is {
		if name := wrong.GetFlag().Name; bounds[name].most != "" {
			err = notWithin(name, wrong.GetValue())
		}
	}
	return usage.FlagError(cmd, err)
}

// checkSizes checks what depends on more than the flag itself.
func (o *serveOptions) checkSizes(f *pflag.FlagSet) error {
	if o.maxVCPUs&(o.maxVCPUs-1) != 0 {
		return fmt.Errorf("--max-vcpus must be a power of two, as the number of a sandbox's vCPUs is, not %d", o.maxVCPUs)
	}
	if f.Changed("drive-size") && o.driveGB > o.maxDriveGB {
		return fmt.Errorf("--drive-size must be at most --max-drive-size, %d GiB, not %d", o.maxDriveGB, o.driveGB)
	}
	machine, err := machineMemory()
	if err != nil {
		return err
	}
	if has := (machine + 1<<30 - 1) >> 30; int64(o.capacity.memoryGB) > has {
		return fmt.Errorf("--sandbox-memory must be at most this machine's memory, %d GiB, not %d", has, o.capacity.memoryGB)
	}
	return o.warm.check(o.capacity.sandboxMemory(machine))
}

func (o *serveOptions) checkURLs() error {
	for _, u := range []struct{ flag, value string }{
		{"public-url", o.publicURL}, {"oidc-issuer", o.network.issuer}, {"s3-endpoint", o.storage.endpoint}, {"acme-ca", o.ingress.acme.ca},
	} {
		if u.value == "" {
			continue
		}
		p, err := url.Parse(u.value)
		if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Hostname() == "" || p.RawQuery != "" || p.Fragment != "" {
			return fmt.Errorf("--%s %q is not a URL such as https://skerry.example.com", u.flag, u.value)
		}
	}
	return nil
}

// checkPlaces checks addresses and hosts.
func (o *serveOptions) checkPlaces() error {
	for _, a := range []struct{ flag, value string }{
		{"listen", o.listen.Addr}, {"ingress-listen", o.ingress.listen}, {"ingress-http-listen", o.ingress.plainListen},
		{"acme-resolver", o.ingress.acme.resolver}, {"metrics-listen", o.observe.metrics}, {"pprof-listen", o.observe.pprof},
	} {
		if a.value == "" && a.flag != "listen" && a.flag != "ingress-listen" {
			continue
		}
		host, port, err := net.SplitHostPort(a.value)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n > skerry.MaxPort || host != "" && !isHost(host) {
			return fmt.Errorf("--%s %q is not of the form HOST:PORT, such as 127.0.0.1:7700 or :443", a.flag, a.value)
		}
	}
	for _, h := range []struct{ flag, value string }{{"publish-address", o.ingress.address}, {"publish-host", o.ingress.host}} {
		if h.value != "" && !isHost(h.value) {
			return fmt.Errorf("--%s %q is neither an address nor a host name", h.flag, h.value)
		}
	}
	return nil
}

func (o *serveOptions) checkTLS() error {
	if (o.api.certFile == "") != (o.api.keyFile == "") {
		return errors.New("--tls-cert and --tls-key need each other")
	}
	if err := o.api.check(o.publicURL); err != nil {
		return err
	}
	o.listen.TLS = o.api.tls()
	err := o.listen.Check()
	if errors.Is(err, api.ErrPlaintext) {
		return fmt.Errorf("--listen %q is not a loopback address: tokens would cross the network in the clear; give --tls-cert and --tls-key, or --tls-acme, or, behind a proxy that terminates TLS, --allow-plaintext", o.listen.Addr)
	}
	return err
}

// checkCertificates sees whether keys fit their certificates, before there is anything
// that a server that ends would leave.
func (o *serveOptions) checkCertificates() error {
	for _, c := range []struct{ prefix, cert, key string }{{"", o.api.certFile, o.api.keyFile}, {"ingress-", o.ingress.certFile, o.ingress.keyFile}} {
		if c.cert == "" {
			continue
		}
		if _, err := certfile.Read(c.cert, c.key); err != nil {
			return fmt.Errorf("--%stls-cert, --%stls-key: %w", c.prefix, c.prefix, err)
		}
	}
	return nil
}

// isHost reports whether s can be the host of a URL.
func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || ingress.CheckDomain(strings.ToLower(s)) == nil
}

func (o *networkOptions) check() error {
	if _, err := o.networks(); err != nil {
		return err
	}
	if o.prefix != "" {
		if err := network.CheckPrefix(o.prefix); err != nil {
			return fmt.Errorf("--network %q: %w", o.prefix, err)
		}
	}
	for _, s := range o.resolvers {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return fmt.Errorf("--resolver %q is not an IPv4 address", s)
		}
	}
	if o.log != "" && o.log != "-" && !filepath.IsAbs(o.log) {
		return fmt.Errorf(`--network-log must be an absolute path or "-", not %q`, o.log)
	}
	return nil
}

// checkFiles sees whether the files that flags name are there.
func (o *serveOptions) checkFiles() error {
	if !filepath.IsAbs(o.run) {
		return fmt.Errorf("--run-dir must be an absolute path, not %q", o.run)
	}
	authorities := o.inside.ca
	if authorities == caOfMachine || authorities == caNone {
		authorities = ""
	}
	in := &o.ingress
	for _, f := range []struct{ flag, path string }{
		{"tls-cert", o.api.certFile}, {"tls-key", o.api.keyFile}, {"ingress-tls-cert", in.certFile}, {"ingress-tls-key", in.keyFile},
		{"acme-ca-root", in.acme.root}, {"acme-dns-hook", in.acme.hook}, {"acme-tsig-file", in.acme.key}, {"acme-eab-key-file", in.acme.eabFile},
		{"sandbox-ca", authorities}, {"sandbox-env", o.inside.env},
	} {
		if f.path == "" {
			continue
		}
		info, err := os.Stat(f.path)
		if err == nil && info.IsDir() {
			err = errors.New("it is a folder")
		}
		if err != nil {
			var p *os.PathError
			if errors.As(err, &p) {
				err = p.Err
			}
			return fmt.Errorf("--%s %s: %w", f.flag, f.path, err)
		}
	}
	return nil
}
