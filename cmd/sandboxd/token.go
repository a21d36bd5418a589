package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/store"
)

// firstToken sees to it that the user who runs the server can use it at once:
// the first token is written where the CLI and the SDKs look for one. A
// configuration for another server is left alone.
func firstToken(ctx context.Context, accounts *auth.Auth, url string, log *slog.Logger) error {
	project, err := accounts.Bootstrap(ctx)
	if err != nil {
		return err
	}
	path, err := config.Path()
	if err != nil {
		// No home folder, as under some init systems: tokens are made by hand.
		log.Info("no token was written", "why", err)
		return nil
	}
	have, err := config.Load(path)
	if err != nil {
		return err
	}
	if have.Token != "" {
		if have.URL != url {
			return nil
		}
		if _, err := accounts.Authenticate(ctx, have.Token); err == nil {
			return nil
		}
	}
	token, err := accounts.CreateToken(ctx, project.ID, "first token", 0)
	if err != nil {
		return err
	}
	id, err := accounts.Authenticate(ctx, token)
	if err != nil {
		return err
	}
	log.Info("wrote a token for the CLI and the SDKs", "file", path)
	return config.Config{URL: url, Token: token, Team: id.Team.ID, Project: id.Project.ID}.Save(path)
}

func newToken() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make, list and revoke access tokens"}
	var expires time.Duration
	create := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token and print it; it cannot be printed again",
		Args:  cobra.ExactArgs(1),
		RunE: withAccounts(func(cmd *cobra.Command, a *auth.Auth, args []string) error {
			project, err := a.Bootstrap(cmd.Context())
			if err != nil {
				return err
			}
			token, err := a.CreateToken(cmd.Context(), project.ID, args[0], expires)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		}),
	}
	create.Flags().DurationVar(&expires, "expires", 0, "how long the token is good, such as 720h; 0 is for ever")
	list := &cobra.Command{
		Use:   "ls",
		Short: "List the tokens",
		Args:  cobra.NoArgs,
		RunE: withAccounts(func(cmd *cobra.Command, a *auth.Auth, _ []string) error {
			tokens, err := a.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tCREATED\tLAST USED\tEXPIRES")
			for _, t := range tokens {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, day(t.CreatedAt.Time), day(t.LastUsedAt.Time), day(t.ExpiresAt.Time))
			}
			return w.Flush()
		}),
	}
	revoke := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token; a running server takes note within ten seconds",
		Args:  cobra.ExactArgs(1),
		RunE: withAccounts(func(cmd *cobra.Command, a *auth.Auth, args []string) error {
			return a.RevokeToken(cmd.Context(), args[0])
		}),
	}
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format("2006-01-02 15:04")
}

// withAccounts opens the store that a running server may have open too.
func withAccounts(f func(*cobra.Command, *auth.Auth, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		db, err := store.Open(cmd.Context(), filepath.Join(stateDir(cmd), "db"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		return f(cmd, auth.New(db), args)
	}
}
