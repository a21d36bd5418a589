package egress

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry/internal/issuer"
)

// Protocols of events.
const (
	ProtocolTCP   = "tcp"   // let through or denied by the destination alone
	ProtocolTLS   = "tls"   // passed through by its name
	ProtocolHTTPS = "https" // a request in TLS that was ended here
	ProtocolHTTP  = "http"  // a request on port 80
	ProtocolDNS   = "dns"   // a query; only denied ones are told
)

// What Proxy.Tell is told of may also be of the protocols "udp", "icmp" and
// "ip", which is any other.

// Event is a decision about a connection, a request or a query.
type Event struct {
	Time time.Time
	// Sandbox is Sandbox.ID; Box and Claims are what else is known of it.
	Sandbox  string
	Box      string
	Claims   issuer.Sandbox
	Allowed  bool
	Protocol string
	// Reason is one of a fixed set of short texts, such as "domain" or "no
	// server name".
	Reason string
	// Domain is the name that was judged, if there was one. It comes from the
	// sandbox: lower-case letters, digits, "-", "_" and "." only, 253 bytes at
	// the most.
	Domain string
	// Destination is where the sandbox wanted to connect, Upstream where it was
	// connected to, or the address that was kept out of an answer; either may be
	// the zero value.
	Destination, Upstream netip.AddrPort
	// End tells that what was allowed before has ended; only then are the byte
	// counts set. A denied one has no end.
	End bool
	// BytesOut went from the sandbox, BytesIn to it, in payload of TCP. For
	// requests they are of the body.
	BytesIn, BytesOut int64
	Duration          time.Duration
	// Suppressed is how many events of this sandbox were not told before this
	// one because there were too many (Limits.EventsPerSecond).
	Suppressed int64
}

// Meter counts the payload of TCP that passed the proxy for a sandbox. It may
// be read at any time and given to Set again, so that a session's count goes
// on. The zero value is ready.
type Meter struct{ in, out atomic.Int64 }

// Ingress returns the bytes that went to the sandbox.
func (m *Meter) Ingress() int64 { return m.in.Load() }

// Egress returns the bytes that came from the sandbox.
func (m *Meter) Egress() int64 { return m.out.Load() }

// Reasons of events.
const (
	reasonAddress     = "address"              // allowed by a CIDR, or by allow-all
	reasonDomain      = "domain"               // allowed or not by the domains
	reasonForbidden   = "forbidden address"    // to every sandbox, or what Config.Forbidden says
	reasonDenied      = "denied address"       // by a CIDR, or by deny-all
	reasonPort        = "port"                 // neither 80 nor 443, and only a domain could allow it
	reasonTooMany     = "too many connections" // of the sandbox, or of all
	reasonNotTLS      = "no TLS"
	reasonHello       = "malformed ClientHello"
	reasonTimeout     = "timeout"
	reasonNoName      = "no server name"
	reasonECH         = "encrypted ClientHello"
	reasonBadName     = "no valid name"
	reasonHost        = "host is not the server name" // or has another port
	reasonPath        = "ambiguous path or query"
	reasonMethod      = "method"
	reasonCertificate = "upstream certificate"
	reasonUpstream    = "upstream not reached"
	reasonNameServer  = "no answer of a name server"
	reasonNoCA        = "no certificate authority"
	reasonHandshake   = "TLS handshake"
	reasonRule        = "rule" // answered, forwarded or transformed by one
	reasonPlain       = "transform left out over plain HTTP"
)
