package main

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/api"
)

// apiOptions are the flags of the API itself.
type apiOptions struct {
	heartbeat      time.Duration
	maxConnections int
}

func (o *apiOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.maxConnections, "max-connections", api.DefaultMaxConnections, "maximum number of open API connections; at most a quarter of the server's file descriptor limit (RLIMIT_NOFILE)")
	f.DurationVar(&o.heartbeat, "heartbeat", api.DefaultHeartbeat, "time after which a silent response sends a blank line; set it below the idle timeout of every proxy in front of the server")
}

// wantFiles is how many file descriptors the server would like to have.
const wantFiles = 1 << 20

// raiseFiles raises the limit of file descriptors as far as it goes, and
// returns it. What runs for sandboxes has limits of its own.
func raiseFiles() (int, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, fmt.Errorf("read the limit of file descriptors: %w", err)
	}
	free := min(now.Max, wantFiles) // as far as it goes without privileges
	for want := uint64(wantFiles); want > now.Cur; want = max(want/2, free) {
		raised := unix.Rlimit{Cur: want, Max: max(want, now.Max)}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			return int(want), nil
		}
		if want == free {
			break
		}
	}
	return int(min(now.Cur, wantFiles)), nil
}

// bound fits what may be open at once to the file descriptors that there are.
func (o *apiOptions) bound(files int) (connections, open int) {
	connections = min(o.maxConnections, files/4)
	return connections, min(api.DefaultMaxOpen, max(connections/2, 4))
}
