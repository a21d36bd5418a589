package eventlog

import (
	"context"
	"fmt"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Await lists the state of a node, and then follows its events, until f returns true.
func Await(ctx context.Context, node nodeapi.Events, f func(nodeapi.Event) bool) error {
	var at nodeapi.Cursor
	for {
		batch, err := node.Events(ctx, at)
		if err != nil {
			return err
		}
		if batch.Unrecovered {
			return fmt.Errorf("the node has not recovered")
		}
		for _, e := range batch.Events {
			if f(e) {
				return nil
			}
		}
		at = batch.Next
	}
}

// AwaitExit returns how a command ended, nil if it ended with its session. The command
// must be known to the node.
func AwaitExit(ctx context.Context, node nodeapi.Events, sessionID, commandID string) (exit *nodeapi.Exit, err error) {
	err = Await(ctx, node, func(e nodeapi.Event) bool {
		exit = e.Exit
		return e.Kind == nodeapi.CommandEnded && e.SessionID == sessionID && e.CommandID == commandID
	})
	return exit, err
}

// AwaitLoss returns how a session was lost.
func AwaitLoss(ctx context.Context, node nodeapi.Events, sessionID string) (loss nodeapi.Loss, err error) {
	err = Await(ctx, node, func(e nodeapi.Event) bool {
		loss = e.Loss
		return e.Kind == nodeapi.SessionLost && e.SessionID == sessionID
	})
	return loss, err
}
