package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/top"
	"github.com/skerry-dev/skerry/internal/usage"
)

// topEvery is the interval between two samples of "top".
const topEvery = time.Second

func newTop() *cobra.Command {
	var once, asJSON bool
	var by string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what the running sandboxes use, as a live table",
		Long: `Show what the running sandboxes use, as a table that is updated every second: CPU in
percent of one CPU, memory, bytes received and sent per second, running commands, and the
time since their start.

Keys: q quits, left and right choose the column to sort by, r reverses the order, up,
down, Page Up, Page Down, Home and End scroll.

With --once, or if the output is not a terminal, it prints one table, measured over one
second.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			column, ok := top.SortBy(by)
			if !ok {
				return usage.Errorf("--sort must be one of %s, not %q", strings.Join(top.Sorts(), ", "), by)
			}
			state := stateDir(cmd)
			pid, err := runningPID(state)
			if err != nil {
				return err
			}
			if pid == 0 {
				return errors.New("the server is not running")
			}
			source := func(ctx context.Context) (*top.Sample, error) {
				ctx, cancel := context.WithTimeout(ctx, topPatience)
				defer cancel()
				var s top.Sample
				err := ask(ctx, state, http.MethodGet, "/top", nil, &s)
				if errors.Is(err, errNoSocket) {
					if pid, perr := runningPID(state); perr == nil && pid == 0 {
						err = errors.New("the server is not running")
					}
				}
				return &s, err
			}
			in, isIn := cmd.InOrStdin().(*os.File)
			out, isOut := cmd.OutOrStdout().(*os.File)
			if !once && !asJSON && isIn && isOut && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) {
				screen := top.Screen{In: in, Out: out, Source: source, Every: topEvery, By: column}
				return screen.Run(cmd.Context())
			}
			table, err := oneTable(cmd.Context(), source, column)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(table)
			}
			return printTable(cmd.OutOrStdout(), table, column)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one table and exit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one table as JSON and exit")
	cmd.Flags().StringVar(&by, "sort", "cpu", "column to sort by: "+strings.Join(top.Sorts(), ", "))
	return cmd
}

// topPatience is how long a sample may take.
const topPatience = 10 * time.Second

// oneTable returns what sandboxes use between two samples.
func oneTable(ctx context.Context, source top.Source, by top.Column) (*top.Table, error) {
	before, err := source(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(topEvery):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now, err := source(ctx)
	if err != nil {
		return nil, err
	}
	table := top.Compare(before, now)
	table.Sort(by, false)
	return &table, nil
}

func printTable(out io.Writer, table *top.Table, by top.Column) error {
	view := top.View{Width: top.Wide(table), By: by, Plain: true}
	_, err := fmt.Fprintln(out, strings.Join(view.Lines(table), "\n"))
	return err
}

// sampler answers "top". The meters are read at most once per topRest, however many clients
// ask.
type sampler struct {
	// read is nil until the controller has started.
	read    atomic.Pointer[func(context.Context) ([]controller.Metered, error)]
	machine machineSize
	began   time.Time

	mu   sync.Mutex
	last *top.Sample
}

const topRest = 200 * time.Millisecond

func newSampler() *sampler { return &sampler{began: time.Now()} }

// begin makes the sampler answer from now on.
func (s *sampler) begin(read func(context.Context) ([]controller.Metered, error), machine machineSize) {
	s.machine = machine
	s.read.Store(&read)
}

func (s *sampler) sample(ctx context.Context, _ struct{}) (*top.Sample, error) {
	read := s.read.Load()
	if read == nil {
		return nil, skerry.Errorf(skerry.CodeUnavailable, "the server is starting")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.began)-s.last.Clock < topRest {
		return s.last, nil
	}
	all, err := (*read)(ctx)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	now := &top.Sample{Clock: time.Since(s.began), CPUs: s.machine.cpus, MemoryBytes: s.machine.memory, Sandboxes: make([]top.Sandbox, 0, len(all))}
	for _, m := range all {
		now.Sandboxes = append(now.Sandboxes, sampled(m))
	}
	s.last = now
	return now, nil
}

func sampled(m controller.Metered) top.Sandbox {
	run := &m.Session
	s := top.Sandbox{
		Name: run.SandboxName, Project: run.Scope.ProjectID, Session: run.ID, State: string(run.Status),
		VCPUs: run.VCPUs, MemoryLimitBytes: int64(run.MemoryMB) << 20,
		Age: time.Since(run.RequestedAt.Time), Commands: m.Commands,
	}
	if run.Status == skerry.StatusRunning && !run.PausedAt.IsZero() {
		s.State = "paused"
	} else if run.IdleState != "" {
		s.State = run.IdleState.Shown()
	}
	if m.Meter != nil {
		s.Metered, s.CPU, s.MemoryBytes = true, m.Meter.ActiveCPU, m.Meter.MemoryBytes
		s.ReceivedBytes, s.SentBytes = m.Meter.IngressBytes, m.Meter.EgressBytes
	}
	return s
}
