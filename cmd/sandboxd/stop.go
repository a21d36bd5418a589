package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/usage"
)

// ending is how a server ends: by a signal, or as it is asked to over its socket.
type ending struct {
	cancel context.CancelFunc
	// begun is closed when the server is to end, forced when its sandboxes are
	// to end without being saved, over when they have ended.
	begun, forced, over chan struct{}
	once, forceOnce     sync.Once
	// Set before begun is closed.
	stopAll bool
	wait    time.Duration
	// Set before over is closed.
	report controller.StopReport
}

// stopOrder is how a server is to end.
type stopOrder struct {
	// Keep leaves the sandboxes running, Force ends them without saving them.
	Keep  bool `json:"keep"`
	Force bool `json:"force"`
	// WaitMillis bounds the time that saving them takes.
	WaitMillis int64 `json:"wait"`
}

// stopAllTimeout bounds the stop of all sandboxes when a signal ends the server.
const stopAllTimeout = 2 * time.Minute

// newEnding returns how the server ends whose context cancel ends.
func newEnding(cancel context.CancelFunc) *ending {
	return &ending{cancel: cancel, begun: make(chan struct{}), forced: make(chan struct{}), over: make(chan struct{})}
}

// order has the server end. Of several orders the first counts; one that forces
// does so at any time.
func (e *ending) order(o stopOrder) {
	if o.Force {
		e.forceOnce.Do(func() { close(e.forced) })
	}
	e.once.Do(func() {
		e.stopAll, e.wait = !o.Keep, stopAllTimeout
		if o.WaitMillis > 0 {
			e.wait = time.Duration(o.WaitMillis) * time.Millisecond
		}
		close(e.begun)
		e.cancel()
	})
}

// signals makes orders of signals: an interrupt stops all, a second one by force.
func (e *ending) signals(ctx context.Context, log *slog.Logger) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	for interrupts := 0; ; {
		select {
		case sig := <-signals:
			if sig == os.Interrupt {
				interrupts++
			}
			log.Info("ending", "signal", sig.String(), "stopping sandboxes", sig == os.Interrupt, "by force", interrupts > 1)
			e.order(stopOrder{Keep: sig != os.Interrupt, Force: interrupts > 1})
		case <-ctx.Done():
			return
		}
	}
}

// stopSandboxes ends the sandboxes as was ordered, or leaves them running.
func (e *ending) stopSandboxes(control *controller.Controller, log *slog.Logger) error {
	defer close(e.over)
	<-e.begun
	if !e.stopAll {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.wait)
	defer cancel()
	go func() {
		select {
		case <-e.forced:
			control.StopAll(ctx, true) // what the one below waits for ends too
		case <-e.over:
		}
	}()
	e.report = control.StopAll(ctx, e.isForced())
	r := &e.report
	log.Info("sandboxes stopped", "saved", r.Saved, "not persistent", r.Dropped, "unsaved", len(r.Unsaved), "left", len(r.Left))
	if len(r.Left) > 0 {
		return fmt.Errorf("%d sandboxes keep running", len(r.Left))
	}
	return nil
}

func (e *ending) isForced() bool {
	select {
	case <-e.forced:
		return true
	default:
		return false
	}
}

// handle orders the end and answers when the sandboxes have ended.
func (e *ending) handle(ctx context.Context, o stopOrder) (controller.StopReport, error) {
	e.order(o)
	select {
	case <-e.over:
		return e.report, nil
	case <-ctx.Done():
		return controller.StopReport{}, ctx.Err()
	}
}

func newStop() *cobra.Command {
	var order stopOrder
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the server and its sandboxes",
		Long: `Stop the server and its sandboxes. Persistent sandboxes are saved first. A sandbox
that makes its own save fail is stopped anyway, and keeps its last snapshot. One that
the server cannot save, because the disk is full for example, keeps running after
--timeout, and the next server on the same state folder takes it over. --force stops
all sandboxes without saving them.

With --keep-sandboxes all sandboxes keep running.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if order.Keep && order.Force {
				return usage.Errorf("--keep-sandboxes and --force exclude each other")
			}
			if wait <= 0 {
				return usage.Errorf("--timeout must be positive, not %s", wait)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			order.WaitMillis = max(wait-serverEnd, wait/2).Milliseconds()
			return stopServer(ctx, cmd.OutOrStdout(), stateDir(cmd), order)
		},
	}
	cmd.Flags().BoolVar(&order.Keep, "keep-sandboxes", false, "keep the sandboxes running")
	cmd.Flags().BoolVar(&order.Force, "force", false, "stop the sandboxes without saving them; also works while another stop is waiting")
	cmd.Flags().DurationVar(&wait, "timeout", stopAllTimeout+serverEnd, "how long to wait for the server to stop")
	return cmd
}

// serverEnd is what the end of the server itself is given.
const serverEnd = 20 * time.Second

// stopServer has the server of a state folder end, waits until it has, and says
// what became of its sandboxes.
func stopServer(ctx context.Context, out io.Writer, state string, order stopOrder) error {
	pid, err := runningPID(state)
	if err != nil {
		return err
	}
	if pid == 0 {
		fmt.Fprintln(out, "no server is running")
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the server, process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	var report controller.StopReport
	asked := ask(ctx, state, "POST", "/stop", order, &report)
	if errors.Is(asked, errNoSocket) {
		if order.Force {
			return errNoSocket
		}
		sig := unix.SIGINT
		if order.Keep {
			sig = unix.SIGTERM
		}
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal the server, process %d: %w", pid, err)
		}
	} else if asked != nil && !errors.Is(asked, io.EOF) && !errors.Is(asked, unix.ECONNRESET) {
		return asked // it ends before it had an answer otherwise: it was just starting
	}
	if err := awaitProcess(ctx, pid, fd); err != nil {
		return err
	}
	return told(out, order, report, asked == nil)
}

// awaitProcess returns when a process has ended.
func awaitProcess(ctx context.Context, pid, pidfd int) error {
	for ctx.Err() == nil {
		// Cut into pieces so that ctx is looked at.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("the server, process %d, has not stopped: %w", pid, ctx.Err())
}

// told says what became of the sandboxes.
func told(out io.Writer, order stopOrder, r controller.StopReport, known bool) error {
	switch {
	case !known:
		fmt.Fprintln(out, "stopped the server")
		return nil
	case order.Keep:
		fmt.Fprintln(out, "stopped the server; its sandboxes keep running")
		return nil
	}
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(r.Saved, "saved")
	add(r.Dropped, "not persistent")
	add(len(r.Unsaved), "not saved")
	detail := ""
	if len(parts) > 0 {
		detail = " (" + strings.Join(parts, ", ") + ")"
	}
	plural := "es"
	if r.Stopped() == 1 {
		plural = ""
	}
	fmt.Fprintf(out, "stopped the server and %d sandbox%s%s\n", r.Stopped(), plural, detail)
	for _, u := range r.Unsaved {
		fmt.Fprintf(out, "not saved: %q: %s\n", u.Sandbox, u.Reason)
	}
	for _, l := range r.Left {
		fmt.Fprintf(out, "still running: %q: %s\n", l.Sandbox, l.Reason)
	}
	if len(r.Left) > 0 {
		return fmt.Errorf("%d sandboxes keep running without a server; start it again, or stop them with \"sandboxd stop --force\" after that", len(r.Left))
	}
	return nil
}
