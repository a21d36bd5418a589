package acme

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// Update sets records with dynamic updates (RFC 2136) at a DNS server.
type Update struct {
	server               string
	key, algorithm, sign string
}

// NewUpdate takes HOST[:PORT] of the server, and the file of the key that
// updates are signed with (TSIG): one line ALGORITHM:NAME:SECRET, such as
// hmac-sha256:acme.:c2VjcmV0, with the secret in base64.
func NewUpdate(server, keyFile string) (*Update, error) {
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "53")
	}
	line, err := readSecret(keyFile)
	if err != nil {
		return nil, fmt.Errorf("acme: key of DNS updates: %w", err)
	}
	part := strings.Split(line, ":")
	bad := fmt.Errorf("acme: key of DNS updates: %s is not of the form ALGORITHM:NAME:SECRET, with hmac-sha256, -384 or -512", keyFile)
	if len(part) != 3 || part[1] == "" {
		return nil, bad
	}
	u := &Update{server: server, key: dns.CanonicalName(part[1]), algorithm: dns.CanonicalName(part[0]), sign: part[2]}
	if secret, err := base64.StdEncoding.DecodeString(u.sign); err != nil || len(secret) == 0 {
		return nil, bad
	}
	switch u.algorithm {
	case dns.HmacSHA256, dns.HmacSHA384, dns.HmacSHA512:
		return u, nil
	}
	return nil, bad
}

// AppendRecords implements libdns.RecordAppender.
func (u *Update) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return u.update(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords implements libdns.RecordDeleter.
func (u *Update) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return u.update(ctx, zone, records, (*dns.Msg).Remove)
}

// tsigFudge is how many seconds the server's clock may be off.
const tsigFudge = 300

func (u *Update) update(ctx context.Context, zone string, records []libdns.Record, how func(*dns.Msg, []dns.RR)) ([]libdns.Record, error) {
	ctx, cancel := within(ctx)
	defer cancel()
	return each(zone, records, func(name, value string) error {
		m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
		how(m, []dns.RR{&dns.TXT{
			Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(recordTTL / time.Second)},
			Txt: []string{value},
		}})
		m.SetTsig(u.key, u.algorithm, tsigFudge, time.Now().Unix())
		client := &dns.Client{Net: "tcp", TsigSecret: map[string]string{u.key: u.sign}}
		answer, _, err := client.ExchangeContext(ctx, m, u.server)
		if err != nil {
			return fmt.Errorf("DNS update at %s: %w", u.server, err)
		}
		if answer.Rcode != dns.RcodeSuccess {
			return fmt.Errorf("DNS update at %s: %w", u.server, errors.New(dns.RcodeToString[answer.Rcode]))
		}
		return nil
	})
}
