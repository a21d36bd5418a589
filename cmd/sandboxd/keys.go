package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/issuer"
)

// rotateRequest asks for a new key.
type rotateRequest struct {
	Revoke bool `json:"revoke,omitempty"`
}

var (
	listKeys = operation[struct{}, []issuer.KeyState]{name: "key.list", do: func(ctx context.Context, a *auth.Auth, _ struct{}) ([]issuer.KeyState, error) {
		return a.SigningKeys(ctx)
	}}
	rotateKeys = operation[rotateRequest, []issuer.KeyState]{"key.rotate", func(ctx context.Context, a *auth.Auth, r rotateRequest) ([]issuer.KeyState, error) {
		return a.RotateKeys(ctx, r.Revoke)
	}, func(_ rotateRequest, keys []issuer.KeyState) []audit.Target {
		if len(keys) == 0 {
			return nil
		}
		return []audit.Target{{Kind: audit.TargetKey, ID: keys[len(keys)-1].ID}}
	}}
)

func newKey() *cobra.Command {
	show := func(cmd *cobra.Command, keys []issuer.KeyState) error {
		var rows [][]string
		for _, k := range keys {
			rows = append(rows, []string{k.ID, k.State, k.Created.UTC().Format(time.RFC3339)})
		}
		return table(cmd, "ID|STATE|CREATED", rows)
	}
	list := command("ls", "List the keys, the oldest first", 0, func(cmd *cobra.Command, _ []string) error {
		keys, err := listKeys.run(cmd, struct{}{})
		if err != nil {
			return err
		}
		return show(cmd, keys)
	})
	var r rotateRequest
	rotate := command("rotate", "Make a new key now", 0, func(cmd *cobra.Command, _ []string) error {
		keys, err := rotateKeys.run(cmd, r)
		if err != nil {
			return err
		}
		if err := show(cmd, keys); err != nil {
			return err
		}
		if r.Revoke {
			fmt.Fprintln(cmd.OutOrStdout(), "all development tokens made so far are no longer valid")
		}
		return nil
	})
	rotate.Flags().BoolVar(&r.Revoke, "revoke", false, "remove the other keys, and use the new one at once: when a key may have been stolen")
	return group("key", "Manage the keys that sign development tokens", `Manage the keys that sign development tokens.

Keys are rotated without being asked: each signs for 30 days. A new one is published for a day before it signs, and an
old one for a day after, at /.well-known/jwks. Nodes rotate the keys for the tokens of sandboxes in the same way;
to revoke those, stop the server (sandboxd stop --keep-sandboxes), and the node if it is a process of its own; remove
STATE/firewall/tokens; and start them again. Running sandboxes then get new tokens at once.`, list, rotate)
}
