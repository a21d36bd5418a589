package nodeapi_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

func TestNarrow(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := skerry.Errorf(skerry.CodeSandboxStopped, "it has stopped")
	for what, c := range map[string]struct {
		ctx     context.Context
		err     error
		code    skerry.Code
		unknown bool
		keeps   error
	}{
		"no error":                {t.Context(), nil, "", false, nil},
		"an answer":               {t.Context(), fmt.Errorf("save: %w", stopped), skerry.CodeSandboxStopped, false, stopped},
		"unforeseen":              {t.Context(), fmt.Errorf("save: %w", os.ErrPermission), skerry.CodeInternal, false, os.ErrPermission},
		"the caller has gone":     {ended, fmt.Errorf("save: %w", context.Canceled), skerry.CodeInternal, true, context.Canceled},
		"a failure, caller gone":  {ended, os.ErrPermission, skerry.CodeInternal, false, os.ErrPermission},
		"the node's own deadline": {t.Context(), fmt.Errorf("ask: %w", context.DeadlineExceeded), skerry.CodeUnavailable, false, context.DeadlineExceeded},
		"unreachable":             {t.Context(), fmt.Errorf("ask: %w", nodeapi.Unreachable(os.ErrClosed)), skerry.CodeUnavailable, true, nodeapi.ErrUnreachable},
		"unreachable with a code": {t.Context(), nodeapi.Unreachable(stopped), skerry.CodeUnavailable, true, nodeapi.ErrUnreachable},
		"unreachable, no cause":   {t.Context(), nodeapi.Unreachable(nil), skerry.CodeUnavailable, true, nodeapi.ErrUnreachable},
	} {
		err := nodeapi.Narrow(c.ctx, c.err)
		if got := skerry.CodeOf(err); got != c.code {
			t.Errorf("%s: code %q, want %q", what, got, c.code)
		}
		if got := nodeapi.OutcomeUnknown(err); got != c.unknown {
			t.Errorf("%s: the outcome is unknown: %v", what, got)
		}
		if !errors.Is(err, c.keeps) {
			t.Errorf("%s: %v has lost %v", what, err, c.keeps)
		}
		if _, ours := errors.AsType[*skerry.Error](err); err != nil && !ours && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v may not cross the seam", what, err)
		}
	}
}
