package acme

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libdns/libdns"
)

// DNS sets and removes records. Records of one name with different values are
// there at once.
type DNS interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// recordTTL is short: a proof is looked at once.
const recordTTL = time.Minute

// each calls do with the name and value of each record, all of which are TXT.
func each(zone string, records []libdns.Record, do func(name, value string) error) ([]libdns.Record, error) {
	for n, r := range records {
		rr := r.RR()
		if rr.Type != "TXT" {
			return records[:n], errors.New("acme: only TXT records are set")
		}
		name := strings.TrimSuffix(libdns.AbsoluteName(rr.Name, zone), ".") + "."
		if err := do(name, rr.Data); err != nil {
			return records[:n], fmt.Errorf("acme: record %s: %w", name, err)
		}
	}
	return records, nil
}

// providerTimeout bounds one call of what sets records.
const providerTimeout = 2 * time.Minute

func within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, providerTimeout, fmt.Errorf("it took longer than %v", providerTimeout))
}
