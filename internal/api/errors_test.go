package api

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestDeadlineIsNoInternalError(t *testing.T) {
	status, body := visible(fmt.Errorf("start session: %w", context.DeadlineExceeded), "req_1")
	if status != http.StatusServiceUnavailable || body.Code != skerry.CodeUnavailable || body.RequestID != "req_1" {
		t.Errorf("a deadline is %d, %+v", status, body)
	}
}
