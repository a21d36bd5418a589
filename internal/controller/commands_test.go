package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestStartOfACommandIsBounded: one that takes too long is an error, and no
// command is left; nor does it end the session.
func TestStartOfACommandIsBounded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.execTimeout = 10 * time.Millisecond })
	run := l.create("one")
	l.node.On(processnode.Exec, func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	_, _, err := l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
	if !errors.Is(err, context.DeadlineExceeded) { // 503 to a client
		t.Errorf("error %v", err)
	}
	if list, _, err := l.ListCommands(t.Context(), scope, run.Session.ID, skerry.Page{}); err != nil || len(list) != 0 {
		t.Errorf("commands %v, %v", list, err)
	}
	l.node.On(processnode.Exec, nil)
	l.run(run.Session.ID, "true")
}

// TestEndedCommandsTakeNoMemory keeps ended commands in the store alone, and of
// long arguments a part.
func TestEndedCommandsTakeNoMemory(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	live := l.session(run.Session.ID)
	long := strings.Repeat("x", 1<<17-1)
	const count = 20
	var ids []string
	for range count {
		cmd, _, err := l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true", Args: []string{long}}, false)
		if err != nil || len(cmd.Args) != 1 || cmd.Args[0] != long || cmd.ArgsTruncated {
			t.Fatalf("who runs a command is told %d arguments, %v", len(cmd.Args), err)
		}
		ids = append(ids, cmd.ID)
		if _, err := l.WaitCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil {
			t.Fatal(err)
		}
	}
	l.eventually("the commands to be let go of", func() bool {
		live.commands.mu.Lock()
		defer live.commands.mu.Unlock()
		return len(live.commands.running) == 0 && len(live.commands.ended) == count
	})
	for _, id := range ids {
		now, err := l.GetCommand(t.Context(), scope, run.Session.ID, id)
		if err != nil || !now.Finished() || *now.ExitCode != 0 || !now.ArgsTruncated || len(now.Args[0]) > skerry.MaxKeptArgs {
			t.Errorf("an ended command is %+v, %v", now, err)
		}
	}
	_, err := l.GetCommand(t.Context(), scope, l.create("two").Session.ID, ids[0])
	wantCode(t, "a command of another session", err, skerry.CodeNotFound)

	// They are listed a page at a time, in their order.
	var listed []string
	page := skerry.Page{Limit: 7, Ascending: true}
	for pages := 1; ; pages++ {
		list, next, err := l.ListCommands(t.Context(), scope, run.Session.ID, page)
		if err != nil || len(list) > page.Limit {
			t.Fatalf("page %d has %d commands, %v", pages, len(list), err)
		}
		for _, cmd := range list {
			listed = append(listed, cmd.ID)
		}
		if page.Cursor = next; next == "" {
			if pages != 3 {
				t.Errorf("%d commands fill %d pages", count, pages)
			}
			break
		}
	}
	seen := map[string]bool{}
	for _, id := range listed {
		seen[id] = true
	}
	if len(listed) != count || len(seen) != count {
		t.Errorf("listed are %v, want %v", listed, fmt.Sprint(ids))
	}

	// A restart reads them in pages too.
	l.restart()
	if now, err := l.GetCommand(t.Context(), scope, run.Session.ID, ids[0]); err != nil || !now.Finished() {
		t.Errorf("after a restart an ended command is %+v, %v", now, err)
	}
}
