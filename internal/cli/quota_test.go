package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// TestQuotaIsExplained: a sandbox that is larger than the quota is no matter of the token.
func TestQuotaIsExplained(t *testing.T) {
	home(t)
	one := 1
	s := servertest.New(t, func(c *controller.Config) {
		c.Quotas = func(context.Context, skerry.Scope) (skerry.Quotas, error) {
			return skerry.Quotas{Team: skerry.Quota{VCPUs: &one}}, nil
		}
	})
	v := invocation{env: map[string]string{"SKERRY_URL": s.URL, "SKERRY_TOKEN": s.Token}}
	got := v.run(t, "create", "--vcpus", "2")
	if got.code != exitFailure || !strings.Contains(got.err, "--vcpus: the team's quota is 1 vCPUs, and this one needs 2") || !strings.Contains(got.err, "Hint: ask who runs the server for a larger quota") {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "create", "--vcpus", "1"); got.code != 0 {
		t.Errorf("%+v", got)
	}
}
