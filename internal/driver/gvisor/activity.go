package gvisor

import (
	"context"
	"fmt"

	"gvisor.dev/gvisor/pkg/sentry/control"

	"github.com/skerry-dev/skerry/internal/driver"
)

// agentPID is the process id of the guest agent, the sandbox's first process.
const agentPID = 1

// Activity implements driver.Machine.
func (m *machine) Activity(ctx context.Context) (driver.Activity, error) {
	var list []*control.Process
	err := m.callShortly(ctx, func() (err error) {
		list, err = m.box.Processes("") // of a restored machine, too, whose container had another id
		return err
	})
	if err != nil {
		return driver.Activity{}, fmt.Errorf("list the processes of machine %s: %w", m.id, err)
	}
	var a driver.Activity
	for _, p := range list {
		if p != nil && p.PID != agentPID {
			a.Processes++
		}
	}
	if a.Processes == 0 || m.sentry != sentryVersion() { // another sentry may not know its timers
		return a, nil
	}
	err = m.callShortly(ctx, func() (err error) {
		a.Timers, err = m.timers()
		return err
	})
	if err != nil {
		return driver.Activity{}, fmt.Errorf("list the timers of machine %s: %w", m.id, err)
	}
	return a, nil
}
