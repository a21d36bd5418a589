package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/usage"
)

// quotaRequest asks for the quota of a team, of a project, or of all teams that set none.
type quotaRequest struct {
	accountRequest
	Defaults bool         `json:"defaults,omitempty"`
	Change   skerry.Quota `json:"change,omitzero"`
	Force    bool         `json:"force,omitempty"`
}

// scope returns whose quota it is.
func (r *quotaRequest) scope(ctx context.Context, a *auth.Auth) (scope skerry.Scope, err error) {
	if r.Defaults {
		return scope, nil
	}
	team, err := teamOf(ctx, a, r.Team)
	if err != nil {
		return scope, err
	}
	scope.TeamID = team.ID
	if r.Project == "" {
		return scope, nil
	}
	p, err := a.Project(ctx, team.ID, r.Project)
	if err != nil {
		return scope, err
	}
	scope.ProjectID = p.ID
	return scope, nil
}

var (
	showQuota = operation[quotaRequest, auth.QuotaState]{name: "quota.show", do: func(ctx context.Context, a *auth.Auth, r quotaRequest) (state auth.QuotaState, err error) {
		scope, err := r.scope(ctx, a)
		if err != nil {
			return state, err
		}
		return a.Quota(ctx, scope)
	}}
	setQuota = operation[quotaRequest, auth.QuotaState]{"quota.set", func(ctx context.Context, a *auth.Auth, r quotaRequest) (state auth.QuotaState, err error) {
		scope, err := r.scope(ctx, a)
		if err != nil {
			return state, err
		}
		return a.SetQuota(ctx, scope, r.Change, r.Force)
	}, func(r quotaRequest, state auth.QuotaState) []audit.Target {
		if r.Defaults {
			return nil
		}
		team := audit.Target{Kind: audit.TargetTeam, ID: state.Scope.TeamID, Name: r.Team}
		if r.Project == "" {
			return []audit.Target{team}
		}
		return []audit.Target{{Kind: audit.TargetProject, ID: state.Scope.ProjectID, Name: r.Project}, team}
	}}
)

// quotaFlags are the flags of the limits, by the limits' names.
var quotaFlags = map[string]struct{ flag, usage string }{
	"sandboxes":         {"sandboxes", "running sandboxes"},
	"vcpus":             {"vcpus", "vCPUs of running sandboxes together"},
	"memoryMB":          {"memory", "memory of running sandboxes together, in MiB"},
	"startsPerMinute":   {"starts-per-minute", "sandboxes that are created, forked or resumed in a minute"},
	"requestsPerMinute": {"requests-per-minute", "requests of the API in a minute"},
}

// limitFlag is a flag with a number, or "none".
type limitFlag struct{ to **int }

func (f limitFlag) String() string { return "" }
func (f limitFlag) Type() string   { return "N" }
func (f limitFlag) Set(s string) error {
	n := skerry.Unlimited
	if s != "none" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 0 {
			return errors.New(`must be a number, 0 or larger, or "none"`)
		}
	}
	*f.to = &n
	return nil
}

func newQuota() *cobra.Command {
	var r quotaRequest
	table := func(cmd *cobra.Command, state auth.QuotaState) error {
		var rows [][]string
		used := map[string]int{}
		if state.Use != nil {
			used = map[string]int{"sandboxes": state.Use.Sandboxes, "vcpus": state.Use.VCPUs, "memoryMB": state.Use.MemoryMB}
		}
		set := state.Set.Limits()
		for n, l := range state.Quota.Limits() {
			limit, use, from := "none", "-", ""
			if most, limited := skerry.LimitOf(*l.Value); limited {
				limit = strconv.Itoa(most)
				if *set[n].Value == nil {
					from = " (default)"
				}
			}
			if n, known := used[l.Name]; known {
				use = strconv.Itoa(n)
			}
			rows = append(rows, []string{l.What, use, limit + from})
		}
		return table(cmd, "WHAT|USED|LIMIT", rows)
	}
	whose := func(cmd *cobra.Command) error {
		if err := oneOf(cmd, "defaults", "team"); err != nil {
			return err
		}
		return oneOf(cmd, "defaults", "project")
	}
	show := command("show", "Show the quota of a team or a project, and what is used of it", 0, func(cmd *cobra.Command, _ []string) error {
		if err := whose(cmd); err != nil {
			return err
		}
		state, err := showQuota.run(cmd, r)
		if err != nil {
			return err
		}
		return table(cmd, state)
	})
	set := command("set", "Change limits of a quota; the others stay", 0, func(cmd *cobra.Command, _ []string) error {
		if err := whose(cmd); err != nil {
			return err
		}
		if r.Change == (skerry.Quota{}) {
			return usage.Errorf("there is no limit to set; see --help")
		}
		state, err := setQuota.run(cmd, r)
		if err != nil {
			return err
		}
		return table(cmd, state)
	})
	for _, l := range r.Change.Limits() {
		f := quotaFlags[l.Name]
		set.Flags().Var(limitFlag{l.Value}, f.flag, f.usage+`; "none" is no limit`)
	}
	set.Flags().BoolVar(&r.Force, "force", false, "also if a limit is below what is in use; nothing is stopped, and nothing more starts")
	for _, cmd := range []*cobra.Command{show, set} {
		cmd.Flags().StringVar(&r.Project, "project", "", "name or id of the project (default: the team as a whole)")
		cmd.Flags().BoolVar(&r.Defaults, "defaults", false, "the limits of all teams that have none of their own")
	}
	teamFlag(&r.accountRequest, show, set)
	return group("quota", "Limit what teams and projects may use", fmt.Sprintf(`Limit what teams and projects may use.

A sandbox starts if the quotas of its project and of its team both allow it. Limits that a team does not set are those of
--defaults; without those there are none. What is refused gets 429 and Retry-After, or 403 if it alone is larger than
the quota. Limits are from 0 to %d.`, skerry.MaxQuota), show, set)
}
