package main

import (
	"context"
	"log/slog"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/config"
)

// firstToken sees to it that the user who runs the server can use it at once:
// the first token is written where the CLI and the SDKs look for one. A
// configuration for another server is left alone.
func firstToken(ctx context.Context, accounts *auth.Auth, url string, records *auditing, log *slog.Logger) error {
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
	secret, token, err := accounts.CreateToken(ctx, skerry.TokenParams{
		Name: "first token", TeamID: project.TeamID, ProjectID: project.ID, Role: skerry.RoleOwner,
	})
	if err != nil {
		return err
	}
	records.add(audit.Event{
		Operation: "token.create", Actor: audit.Actor{Kind: audit.ActorServer}, Team: project.TeamID, Project: project.ID,
		Targets: []audit.Target{{Kind: audit.TargetToken, ID: token.ID, Name: token.Name}},
	})
	log.Info("wrote a token for the CLI and the SDKs", "file", path)
	return config.Config{URL: url, Token: secret, Team: project.TeamID, Project: project.ID}.Save(path)
}
