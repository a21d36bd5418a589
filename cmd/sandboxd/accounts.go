package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/usage"
)

// operation is something that the operator does with teams and what they have. The server
// that runs does it when it is asked over its socket; without one, the command itself does.
// It is recorded in the audit log, unless it only reads.
type operation[Request, Answer any] struct {
	// name is that in the audit log, and the path of the socket.
	name string
	do   func(context.Context, *auth.Auth, Request) (Answer, error)
	// about is what it was done to, for the audit log, nil if it only reads. The answer may be
	// zero if it failed.
	about func(Request, Answer) []audit.Target
}

func (o operation[Request, Answer]) path() string { return "/" + o.name }

func (o operation[Request, Answer]) recorded(ctx context.Context, accounts *auth.Auth, records *auditing, req Request) (Answer, error) {
	began := time.Now()
	answer, err := o.do(ctx, accounts, req)
	if o.about != nil {
		records.operator(ctx, o.name, began, err, given(req, answer), o.about(req, answer)...)
	}
	return answer, err
}

// given returns the role that an operation gives, "" if it gives none.
func given(req, answer any) skerry.Role {
	switch answer := answer.(type) {
	case *skerry.Member:
		if answer != nil {
			return answer.Role
		}
	case newTokenAnswer:
		return answer.Token.Role
	}
	if r, ok := req.(issuerRequest); ok {
		return r.Rule.Role
	}
	return ""
}

// serve adds the operation to those of the socket.
func (o operation[Request, Answer]) serve(mux *http.ServeMux, accounts *auth.Auth, records *auditing) {
	mux.Handle("POST "+o.path(), answering(func(ctx context.Context, req Request) (Answer, error) { return o.recorded(ctx, accounts, records, req) }))
}

// run does the operation for a command.
func (o operation[Request, Answer]) run(cmd *cobra.Command, req Request) (answer Answer, err error) {
	err = withStore(cmd, func(db *store.Store) error {
		return withoutServer(stateDir(cmd), func(records *auditing) error {
			accounts := auth.New(db)
			defer accounts.Close()
			answer, err = o.recorded(cmd.Context(), accounts, records, req)
			return err
		})
	})
	if errors.Is(err, errRunning) {
		err = ask(cmd.Context(), stateDir(cmd), http.MethodPost, o.path(), req, &answer)
	}
	return answer, err
}

// What operations are about: the id and the name that are known, from the answer or from the
// request of one that failed.

func aboutTeam(r accountRequest, t *skerry.Team) []audit.Target {
	if t == nil {
		return []audit.Target{{Kind: audit.TargetTeam, Name: cmp.Or(r.Team, r.Slug)}}
	}
	return []audit.Target{{Kind: audit.TargetTeam, ID: t.ID, Name: t.Slug}}
}

func aboutProject(r accountRequest, p *skerry.Project) []audit.Target {
	team := audit.Target{Kind: audit.TargetTeam, Name: r.Team}
	if p == nil {
		return []audit.Target{{Kind: audit.TargetProject, Name: cmp.Or(r.Project, r.Name)}, team}
	}
	team.ID = p.TeamID
	return []audit.Target{{Kind: audit.TargetProject, ID: p.ID, Name: p.Name}, team}
}

func aboutMember(r accountRequest, m *skerry.Member) []audit.Target {
	member := audit.Target{Kind: audit.TargetMember, Name: r.User}
	if m != nil {
		member.ID, member.Name = m.User.ID, m.User.Name
	}
	return []audit.Target{member, {Kind: audit.TargetTeam, Name: r.Team}}
}

// operations are those that the socket serves.
var operations = []interface {
	serve(*http.ServeMux, *auth.Auth, *auditing)
}{
	createTeam, listTeams, updateTeam, deleteTeam,
	createProject, listProjects, renameProject, deleteProject,
	addMember, listMembers, setMember, removeMember,
	createToken, listTokens, revokeToken,
	addIssuer, listIssuers, removeIssuer, allowIssuer, disallowIssuer,
	listKeys, rotateKeys,
	showQuota, setQuota,
}

// accountRequest is what operations are asked with: each uses some of it.
type accountRequest struct {
	// Team and Project are an id, or a slug and a name. Team may be "" if there is one team.
	Team    string `json:"team,omitempty"`
	Project string `json:"project,omitempty"`
	User    string `json:"user,omitempty"`
	// Name is that of what is made, or the new one.
	Name string      `json:"name,omitempty"`
	Slug string      `json:"slug,omitempty"`
	Role skerry.Role `json:"role,omitempty"`
}

var (
	createTeam = operation[accountRequest, *skerry.Team]{"team.create", func(ctx context.Context, a *auth.Auth, r accountRequest) (*skerry.Team, error) {
		return a.CreateTeam(ctx, r.Slug, r.Name)
	}, aboutTeam}
	listTeams = operation[accountRequest, []skerry.Team]{name: "team.list", do: func(ctx context.Context, a *auth.Auth, _ accountRequest) ([]skerry.Team, error) {
		return a.Teams(ctx)
	}}
	updateTeam = operation[accountRequest, *skerry.Team]{"team.update", func(ctx context.Context, a *auth.Auth, r accountRequest) (*skerry.Team, error) {
		return a.UpdateTeam(ctx, r.Team, r.Slug, r.Name)
	}, aboutTeam}
	deleteTeam = operation[accountRequest, *skerry.Team]{"team.delete", func(ctx context.Context, a *auth.Auth, r accountRequest) (*skerry.Team, error) {
		return a.DeleteTeam(ctx, r.Team)
	}, aboutTeam}

	createProject = inTeam("project.create", aboutProject, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Project, error) {
		return a.CreateProject(ctx, team.ID, r.Name)
	})
	listProjects = inTeam("project.list", nil, func(ctx context.Context, a *auth.Auth, team *skerry.Team, _ accountRequest) ([]skerry.Project, error) {
		return auth.All(ctx, func(ctx context.Context, p skerry.Page) ([]skerry.Project, string, error) {
			return a.Projects(ctx, team.ID, p)
		})
	})
	renameProject = inTeam("project.rename", aboutProject, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Project, error) {
		return a.RenameProject(ctx, team.ID, r.Project, r.Name)
	})
	deleteProject = inTeam("project.delete", aboutProject, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Project, error) {
		return a.DeleteProject(ctx, team.ID, r.Project)
	})

	addMember = inTeam("member.add", aboutMember, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Member, error) {
		return a.AddMember(ctx, team.ID, r.User, r.Role)
	})
	listMembers = inTeam("member.list", nil, func(ctx context.Context, a *auth.Auth, team *skerry.Team, _ accountRequest) ([]skerry.Member, error) {
		return auth.All(ctx, func(ctx context.Context, p skerry.Page) ([]skerry.Member, string, error) {
			return a.Members(ctx, team.ID, p)
		})
	})
	setMember = inTeam("member.set", aboutMember, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Member, error) {
		return a.SetRole(ctx, team.ID, r.User, r.Role)
	})
	removeMember = inTeam("member.remove", aboutMember, func(ctx context.Context, a *auth.Auth, team *skerry.Team, r accountRequest) (*skerry.Member, error) {
		return a.RemoveMember(ctx, team.ID, r.User)
	})
)

// inTeam is an operation in one team.
func inTeam[Answer any](name string, about func(accountRequest, Answer) []audit.Target, do func(context.Context, *auth.Auth, *skerry.Team, accountRequest) (Answer, error)) operation[accountRequest, Answer] {
	return operation[accountRequest, Answer]{name: name, about: about, do: func(ctx context.Context, a *auth.Auth, r accountRequest) (answer Answer, err error) {
		team, err := teamOf(ctx, a, r.Team)
		if err != nil {
			return answer, err
		}
		return do(ctx, a, team, r)
	}}
}

// teamOf returns the team with an id or slug, or the only one if that is "".
func teamOf(ctx context.Context, a *auth.Auth, ref string) (*skerry.Team, error) {
	if ref != "" {
		return a.Team(ctx, ref)
	}
	if _, err := a.Bootstrap(ctx); err != nil { // in an empty database
		return nil, err
	}
	teams, err := a.Teams(ctx)
	if err != nil {
		return nil, err
	}
	if len(teams) != 1 {
		return nil, skerry.Invalid("team", "is required, as there are %d: name one with --team", len(teams))
	}
	return &teams[0], nil
}

// group makes a command that has others.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}

// command makes a command that takes some arguments.
func command(use, short string, args int, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: usage.Args(cobra.ExactArgs(args)), RunE: run}
}

// teamFlag adds --team to commands.
func teamFlag(r *accountRequest, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.Flags().StringVar(&r.Team, "team", "", "slug or id of the team (default: the only one)")
	}
}

// roleFlag adds --role to commands.
func roleFlag(role *skerry.Role, byDefault skerry.Role, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.Flags().Var((*roleValue)(role), "role", "viewer, developer or owner")
		*role = byDefault
		cmd.Flags().Lookup("role").DefValue = string(byDefault)
	}
}

type roleValue skerry.Role

func (v *roleValue) String() string { return string(*v) }
func (v *roleValue) Type() string   { return "role" }
func (v *roleValue) Set(s string) error {
	if err := skerry.ValidateRole("", skerry.Role(s)); err != nil {
		return errors.New("want viewer, developer or owner")
	}
	*v = roleValue(s)
	return nil
}

// oneOf refuses more than one of some flags.
func oneOf(cmd *cobra.Command, names ...string) error {
	given := ""
	for _, name := range names {
		switch {
		case !cmd.Flags().Changed(name):
		case given != "":
			return usage.Errorf("--%s and --%s exclude each other", given, name)
		default:
			given = name
		}
	}
	return nil
}

// table prints rows with a heading.
func table(cmd *cobra.Command, heading string, rows [][]string) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(heading, "|", "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

func newTeam() *cobra.Command {
	var r accountRequest
	create := command("create SLUG", "Create a team", 1, func(cmd *cobra.Command, args []string) error {
		r.Slug = args[0]
		team, err := createTeam.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "created team %s (%s)\n", team.Slug, team.ID)
		return nil
	})
	create.Flags().StringVar(&r.Name, "name", "", "display name (default: the slug)")
	list := command("ls", "List the teams", 0, func(cmd *cobra.Command, _ []string) error {
		teams, err := listTeams.run(cmd, r)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, t := range teams {
			rows = append(rows, []string{t.Slug, t.ID, t.Name, day(t.CreatedAt.Time)})
		}
		return table(cmd, "SLUG|ID|NAME|CREATED", rows)
	})
	update := command("update TEAM", "Change the slug or the name of a team", 1, func(cmd *cobra.Command, args []string) error {
		r.Team = args[0]
		if r.Slug == "" && r.Name == "" {
			return usage.Errorf("give --slug or --name")
		}
		team, err := updateTeam.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "team %s is now %s, %s\n", args[0], team.Slug, team.Name)
		return nil
	})
	update.Flags().StringVar(&r.Slug, "slug", "", "new slug; URLs and configurations with the old one stop working")
	update.Flags().StringVar(&r.Name, "name", "", "new display name")
	remove := command("rm TEAM", "Delete a team with its projects, which must be empty, members and tokens", 1, func(cmd *cobra.Command, args []string) error {
		r.Team = args[0]
		team, err := deleteTeam.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "deleted team %s with its projects, members and tokens\n", team.Slug)
		return nil
	})
	return group("team", "Create, list, change and delete teams", `Create, list, change and delete teams.

A team has projects, members and access tokens. Teams do not see each other: everything that exists belongs to a
project of one team.`, create, list, update, remove)
}

func newProject() *cobra.Command {
	var r accountRequest
	create := command("create NAME", "Create a project", 1, func(cmd *cobra.Command, args []string) error {
		r.Name = args[0]
		p, err := createProject.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "created project %s (%s)\n", p.Name, p.ID)
		return nil
	})
	list := command("ls", "List the projects of a team", 0, func(cmd *cobra.Command, _ []string) error {
		projects, err := listProjects.run(cmd, r)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, p := range projects {
			rows = append(rows, []string{p.Name, p.ID, day(p.CreatedAt.Time)})
		}
		return table(cmd, "NAME|ID|CREATED", rows)
	})
	rename := command("rename PROJECT NAME", "Change the name of a project", 2, func(cmd *cobra.Command, args []string) error {
		r.Project, r.Name = args[0], args[1]
		p, err := renameProject.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "project %s is now %s\n", args[0], p.Name)
		return nil
	})
	remove := command("rm PROJECT", "Delete an empty project with its tokens", 1, func(cmd *cobra.Command, args []string) error {
		r.Project = args[0]
		p, err := deleteProject.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "deleted project %s\n", p.Name)
		return nil
	})
	teamFlag(&r, create, list, rename, remove)
	return group("project", "Create, list, rename and delete projects", `Create, list, rename and delete projects.

A project has sandboxes, snapshots and drives. Their names are unique in the project.`, create, list, rename, remove)
}

func newMember() *cobra.Command {
	var r accountRequest
	told := func(cmd *cobra.Command, m *skerry.Member, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s has the role %s\n", m.User.Name, m.Role)
		return nil
	}
	add := command("add USER", "Make a user a member of a team", 1, func(cmd *cobra.Command, args []string) error {
		r.User = args[0]
		m, err := addMember.run(cmd, r)
		return told(cmd, m, err)
	})
	list := command("ls", "List the members of a team", 0, func(cmd *cobra.Command, _ []string) error {
		members, err := listMembers.run(cmd, r)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, m := range members {
			rows = append(rows, []string{m.User.Name, string(m.Role), m.User.ID, day(m.CreatedAt.Time)})
		}
		return table(cmd, "USER|ROLE|ID|SINCE", rows)
	})
	set := command("set USER", "Change the role of a member", 1, func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("role") {
			return usage.Errorf("--role is missing")
		}
		r.User = args[0]
		m, err := setMember.run(cmd, r)
		return told(cmd, m, err)
	})
	remove := command("rm USER", "Remove a member from a team", 1, func(cmd *cobra.Command, args []string) error {
		r.User = args[0]
		m, err := removeMember.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is not a member any more; a user without a team is deleted with their tokens\n", m.User.Name)
		return nil
	})
	teamFlag(&r, add, list, set, remove)
	roleFlag(&r.Role, "", set)
	roleFlag(&r.Role, skerry.RoleDeveloper, add)
	return group("member", "Add, list, change and remove the members of a team", `Add, list, change and remove the members of a team.

A user is a person, and has a role in each team that they are a member of:

  viewer     sees what there is, and the output of commands
  developer  also does everything with sandboxes, snapshots and drives
  owner      also manages projects, members and tokens`, add, list, set, remove)
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format("2006-01-02 15:04")
}
