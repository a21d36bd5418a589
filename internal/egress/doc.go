// Package egress is the way out of sandboxes: a transparent proxy for TCP and a
// DNS server, which let out what each sandbox's policy allows.
//
// The kernel redirects a sandbox's connections here (nftables, dnat or redirect
// where the sandbox's packets enter the host); which sandbox it is, is known
// by the source address, which the kernel must have checked, and where it
// wanted to go by SO_ORIGINAL_DST. The package knows nothing of who sandboxes
// belong to and opens no file.
//
// How a connection is judged, in this order:
//
//   - its destination, by Config.Forbidden and by the policy's CIDRs: denied,
//     or let through to just there, whatever it carries;
//   - port 443: the name in the TLS ClientHello. Without one, or with an
//     encrypted one (ECH), there is nothing more to judge by: denied;
//   - port 80: the Host of each request;
//   - anything else is denied.
//
// An allowed name is resolved here, never by what the sandbox was told or says,
// and the address must be neither forbidden nor in a denied CIDR. So neither
// a forged name nor an answer that a name's owner forged leads elsewhere.
//
// TLS is passed through untouched (by splice, in the kernel) unless the domain
// has rules. Then it is ended here with a certificate of Config.CA, each
// request's Host must be the ClientHello's name (421 if not), and the request
// goes out over TLS that is verified against Config.Roots. The upstream
// connection is made first: its certificate not being valid is a TLS alert to
// the sandbox, and its choice of HTTP/1.1 or HTTP/2 is offered to the sandbox.
//
// What cannot be seen: in TLS that is passed through, which site the requests
// ask for (domain fronting at a server that allows it). A rule on the domain,
// even one that matches nothing, ends TLS and makes the Host count.
//
// Rules are chosen by how servers in general read a request, not by how it is
// written: one that another rule would be for in another reading is refused
// (policy.Site.Choose).
package egress
