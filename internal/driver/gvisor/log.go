package gvisor

import (
	"fmt"
	"log/slog"
	"time"

	gvlog "gvisor.dev/gvisor/pkg/log"
)

// emitter carries what runsc's packages log in this process into ours. Its
// warnings are mostly advice about runsc's own installation, which there is
// not, so they are debug messages here; what matters comes back as errors.
type emitter struct{ log *slog.Logger }

func (e emitter) Emit(_ int, level gvlog.Level, _ time.Time, format string, args ...any) {
	e.log.Debug(fmt.Sprintf(format, args...), "from", "runsc", "level", level.String())
}
