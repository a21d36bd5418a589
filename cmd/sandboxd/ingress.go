package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// ingressOptions are the flags about published ports.
type ingressOptions struct {
	address  string
	ports    string
	host     string
	maxPorts int
	resume   bool
	wait     time.Duration
}

func (o *ingressOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.address, "publish-address", ingress.DefaultAddress, "address at which published ports are reached; beyond loopback, other machines reach them without TLS")
	f.StringVar(&o.ports, "publish-ports", fmt.Sprintf("%d-%d", ingress.DefaultFirstPort, ingress.DefaultLastPort), "this machine's ports for published ports, one each")
	f.StringVar(&o.host, "publish-host", "", "host in the URLs of published ports (default: --publish-address)")
	f.IntVar(&o.maxPorts, "max-ports", skerry.DefaultMaxPorts, "how many ports a sandbox may publish")
	f.BoolVar(&o.resume, "resume-on-request", true, "let a request to a published port start its persistent sandbox again if that has stopped")
	f.DurationVar(&o.wait, "resume-wait", ingress.DefaultResumeWait, "how long such a request waits for the start")
}

// open makes the ingress; it lets nothing in yet.
func (o *ingressOptions) open(_ context.Context, log *slog.Logger) (*ingress.Ingress, error) {
	first, last, err := portRange(o.ports)
	if err != nil {
		return nil, err
	}
	return ingress.New(ingress.Config{
		Log: log, Address: o.address, FirstPort: first, LastPort: last, Host: o.host, NoResume: !o.resume, ResumeWait: o.wait,
	})
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
