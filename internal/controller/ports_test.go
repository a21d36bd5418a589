package controller

import (
	"log/slog"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// TestRouteTokenLife: for how long a token of a private port is good, if nothing is
// said and at the most.
func TestRouteTokenLife(t *testing.T) {
	in, err := ingress.New(ingress.Config{Log: slog.New(slog.DiscardHandler), FirstPort: 21000, LastPort: 29999})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, func(c *Config) { c.Ingress = in })
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "web", Ports: []int{3000}, PrivatePorts: []int{3000}}); err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[time.Duration]time.Duration{0: skerry.DefaultRouteToken, skerry.MaxRouteToken: skerry.MaxRouteToken} {
		before := time.Now().Add(-time.Second) // it ends with a whole second
		token, err := l.RouteToken(t.Context(), scope, "web", 3000, skerry.Duration(asked))
		if err != nil {
			t.Fatal(err)
		}
		if end := token.ExpiresAt.Time; end.Before(before.Add(want)) || end.After(time.Now().Add(want)) {
			t.Errorf("a token for %v ends in %v, want %v", asked, time.Until(end), want)
		}
	}
	_, err = l.RouteToken(t.Context(), scope, "web", 3000, skerry.Duration(skerry.MaxRouteToken+time.Millisecond))
	wantCode(t, "a longer life", err, skerry.CodeBadRequest)
}
