package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/usage"
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
	cmd := &cobra.Command{Use: "token", Short: "Create, list and revoke access tokens",
		Long: `Create, list and revoke access tokens.

Every token has administrator rights in the installation's only project: its holder can use and remove all
sandboxes, snapshots and drives. Give each person and program a separate token, so that each can be
revoked.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var expires usage.Duration
	create := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a token and print it; it cannot be printed again",
		Args:  usage.Args(cobra.ExactArgs(1)),
		RunE: withTokens(func(cmd *cobra.Command, t tokens, args []string) error {
			token, err := t.create(cmd.Context(), newTokenRequest{Name: args[0], Lifetime: time.Duration(expires)})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		}),
	}
	create.Flags().Var(&expires, "expires", "how long the token is valid, such as 12h or 30d; 0 is unlimited")
	list := &cobra.Command{
		Use:   "ls",
		Short: "List the tokens",
		Args:  usage.Args(cobra.NoArgs),
		RunE: withTokens(func(cmd *cobra.Command, t tokens, _ []string) error {
			list, err := t.list(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tCREATED\tLAST USED\tEXPIRES")
			for _, t := range list {
				expires := day(t.ExpiresAt.Time)
				if !t.ExpiresAt.IsZero() && !time.Now().Before(t.ExpiresAt.Time) {
					expires += " (expired)"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, day(t.CreatedAt.Time), day(t.LastUsedAt.Time), expires)
			}
			return w.Flush()
		}),
	}
	revoke := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token by its id; its open streams and terminals end within seconds",
		Args:  usage.Args(cobra.ExactArgs(1)),
		RunE: withTokens(func(cmd *cobra.Command, t tokens, args []string) error {
			list, err := t.list(cmd.Context())
			if err != nil {
				return err
			}
			if err := t.revoke(cmd.Context(), args[0]); err != nil {
				return err
			}
			for _, t := range list {
				if t.ID == args[0] {
					fmt.Fprintf(cmd.OutOrStdout(), "revoked token %s (%s)\n", t.ID, t.Name)
				}
			}
			return nil
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

// tokens is what the commands about tokens do, here or in a server that runs.
type tokens interface {
	create(context.Context, newTokenRequest) (string, error)
	list(context.Context) ([]store.Token, error)
	revoke(ctx context.Context, id string) error
}

type newTokenRequest struct {
	Name     string        `json:"name"`
	Lifetime time.Duration `json:"lifetime"`
}

// localTokens are those of a database that this process has open.
type localTokens struct{ *auth.Auth }

func (t localTokens) create(ctx context.Context, req newTokenRequest) (string, error) {
	project, err := t.Bootstrap(ctx)
	if err != nil {
		return "", err
	}
	return t.CreateToken(ctx, project.ID, req.Name, req.Lifetime)
}

func (t localTokens) list(ctx context.Context) ([]store.Token, error) {
	list, err := t.Tokens(ctx)
	for i := range list {
		list[i].Hash = nil
	}
	return list, err
}

func (t localTokens) revoke(ctx context.Context, id string) error { return t.RevokeToken(ctx, id) }

// remoteTokens are those of the server that runs on a state folder.
type remoteTokens string

func (t remoteTokens) create(ctx context.Context, req newTokenRequest) (token string, err error) {
	err = ask(ctx, string(t), "POST", "/tokens", req, &token)
	return token, err
}

func (t remoteTokens) list(ctx context.Context) (list []store.Token, err error) {
	err = ask(ctx, string(t), "GET", "/tokens", nil, &list)
	return list, err
}

func (t remoteTokens) revoke(ctx context.Context, id string) error {
	return ask(ctx, string(t), "POST", "/tokens/revoke", id, nil)
}

// healthTimeout is how long the database may take to answer before the server counts
// as not working.
const healthTimeout = 5 * time.Second

// socketHandler answers what is asked of a running server.
func socketHandler(end *ending, accounts *auth.Auth, db *store.Store, samples *sampler, url string) http.Handler {
	t := localTokens{accounts}
	mux := http.NewServeMux()
	mux.Handle("POST /stop", answering(end.handle))
	mux.Handle("GET /top", answering(samples.sample))
	mux.Handle("GET /url", answering(func(context.Context, struct{}) (string, error) { return url, nil }))
	mux.Handle("GET /health", answering(func(ctx context.Context, _ struct{}) (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, healthTimeout)
		defer cancel()
		_, err := db.Images(ctx)
		return struct{}{}, err
	}))
	mux.Handle("POST /tokens", answering(t.create))
	mux.Handle("GET /tokens", answering(func(ctx context.Context, _ struct{}) ([]store.Token, error) { return t.list(ctx) }))
	mux.Handle("POST /tokens/revoke", answering(func(ctx context.Context, id string) (struct{}, error) { return struct{}{}, t.revoke(ctx, id) }))
	mux.Handle("GET /images", answering(func(ctx context.Context, _ struct{}) ([]string, error) { return db.Images(ctx) }))
	return mux
}

// withTokens asks the server that runs, whose database is its own. Without one it
// opens the database, and keeps a server from being started meanwhile.
func withTokens(f func(*cobra.Command, tokens, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := withStore(cmd, func(db *store.Store) error {
			return f(cmd, localTokens{auth.New(db)}, args)
		})
		if errors.Is(err, errRunning) {
			return f(cmd, remoteTokens(stateDir(cmd)), args)
		}
		return err
	}
}

// withStore opens the database of a state folder, unless a server runs on it
// (errRunning).
func withStore(cmd *cobra.Command, f func(*store.Store) error) (err error) {
	state := stateDir(cmd)
	claimed, err := claim(state, lockPath(state))
	if err != nil {
		return err
	}
	defer closing(&err, claimed.release)
	url, err := databaseURL(cmd)
	if err != nil {
		return err
	}
	db, err := openDatabase(cmd.Context(), state, url, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	return f(db)
}
