package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/usage"
)

// wellKnown are the addresses of issuers that many use, by the id that stands for them.
var wellKnown = map[string]federation.Issuer{
	"github": {URL: "https://token.actions.githubusercontent.com"},
	"gitlab": {URL: "https://gitlab.com"},
	// Google's keys are at another host than its issuer.
	"google": {URL: "https://accounts.google.com", JWKSURL: "https://www.googleapis.com/oauth2/v3/certs"},
}

// issuerRequest asks for a change of an issuer.
type issuerRequest struct {
	Issuer  federation.Issuer `json:"issuer"`
	Rule    federation.Rule   `json:"rule"`
	Unasked bool              `json:"unasked,omitempty"`
}

// issuerAnswer is an issuer, and how many keys it had when it was asked.
type issuerAnswer struct {
	Issuer federation.Issuer `json:"issuer"`
	Keys   int               `json:"keys"`
}

// issuerRow is an issuer with what each of its rules leads to.
type issuerRow struct {
	Issuer federation.Issuer `json:"issuer"`
	Scopes []string          `json:"scopes,omitempty"`
}

var (
	addIssuer = operation[issuerRequest, issuerAnswer]{"issuer.add", func(ctx context.Context, a *auth.Auth, r issuerRequest) (answer issuerAnswer, err error) {
		if !r.Unasked {
			if answer.Keys, err = a.Probe(ctx, r.Issuer); err != nil {
				return answer, err
			}
		}
		one, err := a.ChangeIssuer(ctx, r.Issuer.ID, func(i *federation.Issuer, isNew bool) error {
			if !isNew {
				return skerry.Errorf(skerry.CodeConflict, "there is an issuer %q already; remove it first", i.ID)
			}
			*i = r.Issuer
			return nil
		})
		if err != nil {
			return answer, err
		}
		answer.Issuer = *one
		return answer, nil
	}, func(r issuerRequest, _ issuerAnswer) []audit.Target { return aboutIssuer(r.Issuer.ID, "") }}
	listIssuers = operation[struct{}, []issuerRow]{name: "issuer.list", do: func(ctx context.Context, a *auth.Auth, _ struct{}) ([]issuerRow, error) {
		all, err := a.Issuers(ctx)
		if err != nil {
			return nil, err
		}
		rows := make([]issuerRow, 0, len(all))
		for _, i := range all {
			row := issuerRow{Issuer: i}
			for _, rule := range i.Rules {
				scope, err := namedScope(ctx, a, rule)
				if err != nil {
					return nil, err
				}
				row.Scopes = append(row.Scopes, scope)
			}
			rows = append(rows, row)
		}
		return rows, nil
	}}
	removeIssuer = operation[string, struct{}]{"issuer.remove", func(ctx context.Context, a *auth.Auth, id string) (struct{}, error) {
		return struct{}{}, a.RemoveIssuer(ctx, id)
	}, func(id string, _ struct{}) []audit.Target { return aboutIssuer(id, "") }}
	allowIssuer = operation[issuerRequest, federation.Issuer]{"issuer.allow", func(ctx context.Context, a *auth.Auth, r issuerRequest) (federation.Issuer, error) {
		if err := literalScope(ctx, a, &r.Rule); err != nil {
			return federation.Issuer{}, err
		}
		return changeRules(ctx, a, r, func(i *federation.Issuer, n int) error {
			if n >= 0 {
				return skerry.Errorf(skerry.CodeConflict, "the issuer has a rule %q already; remove it first", r.Rule.ID)
			}
			i.Rules = append(i.Rules, r.Rule)
			return nil
		})
	}, aboutRule}
	disallowIssuer = operation[issuerRequest, federation.Issuer]{"issuer.disallow", func(ctx context.Context, a *auth.Auth, r issuerRequest) (federation.Issuer, error) {
		return changeRules(ctx, a, r, func(i *federation.Issuer, n int) error {
			if n < 0 {
				return skerry.Errorf(skerry.CodeNotFound, "the issuer has no rule %q", r.Rule.ID)
			}
			i.Rules = slices.Delete(i.Rules, n, n+1)
			return nil
		})
	}, aboutRule}
)

func aboutRule(r issuerRequest, _ federation.Issuer) []audit.Target {
	return append(aboutIssuer(r.Issuer.ID, r.Rule.ID), audit.Target{Kind: audit.TargetTeam, Name: r.Rule.Team}, audit.Target{Kind: audit.TargetProject, Name: r.Rule.Project})
}

func aboutIssuer(id, rule string) []audit.Target {
	return []audit.Target{{Kind: audit.TargetIssuer, ID: id}, {Kind: audit.TargetRule, ID: rule}}
}

// changeRules changes the rules of an issuer that exists. change gets the index of the rule
// of the request, -1 if there is none.
func changeRules(ctx context.Context, a *auth.Auth, r issuerRequest, change func(i *federation.Issuer, n int) error) (federation.Issuer, error) {
	one, err := a.ChangeIssuer(ctx, r.Issuer.ID, func(i *federation.Issuer, isNew bool) error {
		if isNew {
			return skerry.Errorf(skerry.CodeNotFound, "there is no issuer %q", i.ID)
		}
		return change(i, slices.IndexFunc(i.Rules, func(have federation.Rule) bool { return have.ID == r.Rule.ID }))
	})
	if err != nil {
		return federation.Issuer{}, err
	}
	return *one, nil
}

// literalScope puts ids in the place of the names of a team and a project: a rule must not lead
// to another team that gets the name later. What is made of claims is known only when a token
// comes.
func literalScope(ctx context.Context, a *auth.Auth, r *federation.Rule) error {
	if strings.Contains(r.Team, "${") {
		return nil
	}
	team, err := a.Team(ctx, r.Team)
	if err != nil {
		return err
	}
	r.Team = team.ID
	if r.Project == "" || strings.Contains(r.Project, "${") {
		return nil
	}
	project, err := a.Project(ctx, team.ID, r.Project)
	if err != nil {
		return err
	}
	r.Project = project.ID
	return nil
}

// namedScope is for people: names in the place of ids.
func namedScope(ctx context.Context, a *auth.Auth, r federation.Rule) (string, error) {
	name, project := r.Team, r.Project
	team, err := a.Team(ctx, r.Team)
	switch {
	case skerry.CodeOf(err) == skerry.CodeNotFound && !strings.Contains(r.Team, "${"):
		name += " (deleted)"
	case err == nil:
		name = team.Slug
		p, err := a.Project(ctx, team.ID, r.Project)
		switch {
		case err == nil:
			project = p.Name
		case skerry.CodeOf(err) != skerry.CodeNotFound:
			return "", err
		case r.Project != "" && !strings.Contains(r.Project, "${"):
			project += " (deleted)"
		}
	case skerry.CodeOf(err) != skerry.CodeNotFound:
		return "", err
	}
	return name + "/" + cmp.Or(project, "*"), nil
}

func newIssuer() *cobra.Command {
	var r issuerRequest
	var keys, ca string
	add := command("add ID", "Accept the tokens of an issuer", 1, func(cmd *cobra.Command, args []string) error {
		r.Issuer.ID = args[0]
		if len(r.Issuer.Audiences) == 0 {
			return usage.Errorf("--audience is missing: whom the tokens are for, such as the URL of this server")
		}
		known, isKnown := wellKnown[args[0]]
		if r.Issuer.URL == "" {
			if !isKnown {
				return usage.Errorf("--url is missing; only %s are known without", strings.Join(slices.Sorted(maps.Keys(wellKnown)), ", "))
			}
			r.Issuer.URL = known.URL
			if r.Issuer.JWKSURL == "" && keys == "" {
				r.Issuer.JWKSURL = known.JWKSURL
			}
		}
		for file, to := range map[string]*string{keys: &r.Issuer.Keys, ca: &r.Issuer.CA} {
			if file == "" {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			*to = string(b)
		}
		answer, err := addIssuer.run(cmd, r)
		if err != nil {
			return err
		}
		checked := ""
		if !r.Unasked {
			checked = fmt.Sprintf(" with keys (%d)", answer.Keys)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "added issuer %s (%s)%s; 'sandboxd issuer allow' says what its tokens may do\n", answer.Issuer.ID, answer.Issuer.URL, checked)
		return nil
	})
	f := add.Flags()
	f.StringVar(&r.Issuer.URL, "url", "", "URL of the issuer, as in the claim iss (default for github, gitlab and google: theirs)")
	f.StringArrayVar(&r.Issuer.Audiences, "audience", nil, "audience that a token must be for, such as the URL of this server; required, repeatable")
	f.StringVar(&r.Issuer.JWKSURL, "jwks-url", "", "URL of the issuer's keys (default: by discovery)")
	f.StringVar(&keys, "keys", "", "file with the issuer's keys (JWKS), for an issuer that this machine cannot reach")
	f.StringVar(&ca, "ca", "", "file with certificates (PEM) that connections to the issuer trust besides the system's")
	f.StringArrayVar(&r.Issuer.Algorithms, "algorithm", nil, "algorithm of signatures that is accepted, repeatable (default RS256, ES256, EdDSA)")
	f.BoolVar(&r.Unasked, "no-check", false, "do not fetch the issuer's keys now, to see whether that works")

	list := command("ls", "List the issuers and their rules", 0, func(cmd *cobra.Command, _ []string) error {
		all, err := listIssuers.run(cmd, struct{}{})
		if err != nil {
			return err
		}
		var rows [][]string
		for _, row := range all {
			i := row.Issuer
			if len(i.Rules) == 0 {
				rows = append(rows, []string{i.ID, "-", "-", "-", "-"})
			}
			for n, rule := range i.Rules {
				rows = append(rows, []string{i.ID, rule.ID, row.Scopes[n], string(rule.Role), conditions(rule)})
			}
		}
		return table(cmd, "ISSUER|RULE|FOR|ROLE|IF", rows)
	})
	show := command("show ID", "Show an issuer as JSON", 1, func(cmd *cobra.Command, args []string) error {
		all, err := listIssuers.run(cmd, struct{}{})
		if err != nil {
			return err
		}
		for _, row := range all {
			if i := row.Issuer; i.ID == args[0] {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				out.SetEscapeHTML(false)
				return out.Encode(i)
			}
		}
		return fmt.Errorf("there is no issuer %q", args[0])
	})
	remove := command("rm ID", "Accept no tokens of an issuer any more; open calls that they allowed end within a second", 1, func(cmd *cobra.Command, args []string) error {
		if _, err := removeIssuer.run(cmd, args[0]); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed issuer %s\n", args[0])
		return nil
	})
	var match []string
	allow := command("allow ID RULE", "Add a rule: what an issuer's tokens with certain claims may do", 2, func(cmd *cobra.Command, args []string) error {
		r.Issuer.ID, r.Rule.ID = args[0], args[1]
		if r.Rule.Team == "" {
			return usage.Errorf("--team is missing")
		}
		if len(match) == 0 && r.Rule.When == "" {
			return usage.Errorf("--match or --when is missing: every token of the issuer would be admitted")
		}
		r.Rule.Match = map[string]string{}
		for _, m := range match {
			claim, pattern, ok := strings.Cut(m, "=")
			if !ok || r.Rule.Match[claim] != "" {
				return usage.Errorf("--match %s: want CLAIM=PATTERN, once for each claim", m)
			}
			if strings.Trim(pattern, "*") == "" && len(match) == 1 && r.Rule.When == "" {
				return usage.Errorf("--match %s: every token of the issuer would be admitted; if that is meant, give --when true", m)
			}
			r.Rule.Match[claim] = pattern
		}
		if _, err := allowIssuer.run(cmd, r); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "added rule %s to issuer %s\n", args[1], args[0])
		return nil
	})
	f = allow.Flags()
	f.StringArrayVar(&match, "match", nil, "CLAIM=PATTERN that a token must have, repeatable; * is any text without / and :, ** any text")
	f.StringVar(&r.Rule.When, "when", "", "expression (CEL) over claims that must be true, such as 'claims.ref_protected == \"true\"'")
	f.StringVar(&r.Rule.Team, "team", "", "slug or id of the team; ${claims.NAME} is taken from the token")
	f.StringVar(&r.Rule.Project, "project", "", "name or id of the project; ${claims.NAME} is taken from the token (default: all projects of the team)")
	roleFlag(&r.Rule.Role, skerry.RoleDeveloper, allow)
	disallow := command("disallow ID RULE", "Remove a rule; open calls that it allowed end within a second", 2, func(cmd *cobra.Command, args []string) error {
		r.Issuer.ID, r.Rule.ID = args[0], args[1]
		if _, err := disallowIssuer.run(cmd, r); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed rule %s from issuer %s\n", args[1], args[0])
		return nil
	})
	return group("issuer", "Accept tokens of CI systems, clusters and identity providers (OIDC)", `Accept tokens of CI systems, clusters and identity providers (OIDC).

A job or a service that has such a token uses it in place of an access token, so no secret needs to be stored:

  sandboxd issuer add github --audience https://sandbox.example.com
  sandboxd issuer allow github deploy --match repository=acme/web --match ref=refs/heads/main --team acme --project web

Of the rules of an issuer, the first one that matches decides. A rule whose claim is missing does not match; one that
cannot be evaluated refuses the token. A token that no rule matches is refused.`, add, list, show, remove, allow, disallow)
}

// conditions describes what a rule wants of a token.
func conditions(r federation.Rule) string {
	var all []string
	for _, claim := range slices.Sorted(maps.Keys(r.Match)) {
		all = append(all, claim+"="+r.Match[claim])
	}
	if r.When != "" {
		all = append(all, r.When)
	}
	return strings.Join(all, " and ")
}
