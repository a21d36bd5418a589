package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/usage"
)

const (
	// linkFile says to which project a folder belongs. The public SDKs look for it in the
	// working directory and in the folders above.
	linkFile = ".vercel/project.json"
	// envFile is where programs look for variables that are not in the repository.
	envFile = ".env.local"
	// maxEnvFile bounds what is read of it, and of the other files here.
	maxEnvFile = 1 << 20

	tokenVariable = "VERCEL_OIDC_TOKEN"
)

// link is the content of linkFile.
type link struct {
	ProjectID   string `json:"projectId"`
	TeamID      string `json:"orgId"`
	ProjectName string `json:"projectName,omitempty"`
}

func (a *app) linkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "link [flags]", Short: "Link this folder to a project", Args: usage.Args(cobra.NoArgs),
		Long: `Link this folder to a project, so that programs in it need no credentials in their
code: .vercel/project.json names the project, and .env.local gets a development
token as VERCEL_OIDC_TOKEN, as "sandbox env pull" does. Both are added to
.gitignore.`,
		Example: `  sandbox link
  sandbox link --scope acme --project web
  node --env-file .env.local app.js`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.link(cmd.Context()) },
	}
}

func (a *app) envCommand() *cobra.Command {
	env := &cobra.Command{
		Use: "env", Short: "Get the variables that programs need", Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	env.AddCommand(&cobra.Command{
		Use: "pull [FILE]", Short: "Write a development token to .env.local", Args: usage.Args(cobra.MaximumNArgs(1)),
		Long: `Write a development token for the linked project to FILE (default .env.local) as
VERCEL_OIDC_TOKEN, in place of the one that is there. All else in the file stays.

The token is good for 12 hours, or as long as the access token that it is made with,
and allows no more than that one in this project. Run this again for a new one.`,
		Example: "  sandbox env pull\n  sandbox env pull .env.development.local",
		RunE: func(cmd *cobra.Command, args []string) error {
			file := envFile
			if len(args) > 0 {
				file = args[0]
			}
			if a.flags.project != "" || a.flags.scope != "" || a.flags.team != "" {
				return usage.Errorf(`the token is for the project that this folder is linked to; to change that, run "sandbox link --scope TEAM --project PROJECT"`)
			}
			linked, err := findLink()
			if err != nil {
				return err
			}
			return a.pullEnv(cmd.Context(), linked, file)
		},
	})
	return env
}

func (a *app) link(ctx context.Context) error {
	opts, err := a.options()
	if err != nil {
		return err
	}
	c, err := client.New(opts)
	if err != nil {
		return err
	}
	teams, err := c.Teams(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, t := range teams {
		names = append(names, t.Slug)
	}
	if opts.Team == "" {
		if opts.Team, err = only(names, "team", "--scope"); err != nil {
			return err
		}
	}
	n := slices.IndexFunc(teams, func(t client.Team) bool { return t.ID == opts.Team || t.Slug == opts.Team })
	if n < 0 {
		return fmt.Errorf("the access token is not for the team %q", clean(opts.Team))
	}
	if c, err = client.New(opts); err != nil {
		return err
	}
	if opts.Project == "" {
		if opts.Project, err = onlyProject(ctx, c); err != nil {
			return err
		}
	}
	p, err := c.Project(ctx, opts.Project)
	if err != nil {
		return err
	}
	linked := link{ProjectID: p.ID, TeamID: teams[n].ID, ProjectName: p.Name}
	b, err := json.MarshalIndent(linked, "", "  ")
	if err != nil {
		return err
	}
	if info, err := os.Lstat(filepath.Dir(linkFile)); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a folder", filepath.Dir(linkFile))
	}
	if err := os.MkdirAll(filepath.Dir(linkFile), 0o755); err != nil {
		return err
	}
	if err := writeOver(linkFile, append(b, '\n'), false); err != nil {
		return err
	}
	if err := ignore(".vercel", ".env*.local"); err != nil {
		return err
	}
	fmt.Fprintf(a.Err, "%s Linked to %s/%s.\n", a.err.green("✔"), clean(teams[n].Slug), clean(p.Name))
	return a.pullEnv(ctx, linked, envFile)
}

// findLink looks for the link of the working directory, or of a folder above it.
func findLink() (l link, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return l, err
	}
	for {
		path := filepath.Join(dir, linkFile)
		b, err := readSmall(path)
		if err == nil {
			if err := json.Unmarshal(b, &l); err != nil || l.ProjectID == "" || l.TeamID == "" {
				return l, fmt.Errorf(`%s does not name a project: run "sandbox link" again`, path)
			}
			return l, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return l, errors.New(`this folder is not linked to a project: run "sandbox link" first`)
		}
		dir = up
	}
}

// pullEnv writes a new token to a file.
func (a *app) pullEnv(ctx context.Context, l link, file string) error {
	opts, err := a.options()
	if err != nil {
		return err
	}
	opts.Team, opts.Project = l.TeamID, l.ProjectID
	c, err := client.New(opts)
	if err != nil {
		return err
	}
	before, err := readSmall(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	token, err := c.DevelopmentToken(ctx)
	if err != nil {
		return err
	}
	if err := writeOver(file, setVariable(before, tokenVariable, token.Token), true); err != nil {
		return err
	}
	if inRepository(ctx, file) {
		fmt.Fprintf(a.Err, "%s %s is not ignored by git, or is in the repository already. It has a secret: do not commit it.\n", a.err.yellow("Warning:"), file)
	}
	fmt.Fprintf(a.Err, "%s %s is in %s, good until %s.\n", a.err.green("✔"), tokenVariable, file, token.ExpiresAt.Local().Format("2006-01-02 15:04"))
	return nil
}

// setVariable returns the content of a file of variables with one of them set.
func setVariable(content []byte, name, value string) []byte {
	line := name + `="` + value + `"`
	set := regexp.MustCompile(`(?m)^[ \t]*(?:export[ \t]+)?` + regexp.QuoteMeta(name) + `[ \t]*=.*$`)
	text, done := string(content), false
	text = set.ReplaceAllStringFunc(text, func(old string) string {
		done = true
		if strings.HasSuffix(old, "\r") {
			return line + "\r"
		}
		return line
	})
	if done {
		return []byte(text)
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return []byte(text + line + "\n")
}

// ignore adds patterns to the working directory's .gitignore, if they are not in it.
func ignore(patterns ...string) error {
	const file = ".gitignore"
	b, err := readSmall(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := string(b)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	for _, p := range patterns {
		if !ignores(string(b), p) {
			text += p + "\n"
		}
	}
	if text == string(b) {
		return nil
	}
	return writeOver(file, []byte(text), false)
}

// ignores reports whether a .gitignore has a pattern, and nothing after it that may take it back.
func ignores(content, pattern string) (has bool) {
	for line := range strings.Lines(content) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "!"):
			has = false
		case strings.Trim(line, "/") == pattern:
			has = true
		}
	}
	return has
}

// gitWait bounds what git may take.
const gitWait = 3 * time.Second

// inRepository reports whether git would commit a file, or has it already. Without git, or
// outside of a repository, it is false.
func inRepository(ctx context.Context, file string) bool {
	ctx, cancel := context.WithTimeout(ctx, gitWait)
	defer cancel()
	git := func(args ...string) int {
		// No program that the repository names is run.
		cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false", "-C", filepath.Dir(file)}, args...)...)
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			return -1
		}
		return cmd.ProcessState.ExitCode()
	}
	name := filepath.Base(file)
	return git("ls-files", "--error-unmatch", "--", name) == 0 || git("check-ignore", "--quiet", "--", name) == 1
}

// readSmall reads a regular file. What came with a repository may be a link to a secret of the
// user, so none is followed.
func readSmall(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil || !os.SameFile(info, opened) {
		return nil, errors.Join(fmt.Errorf("%s is being changed", path), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err == nil && len(b) > maxEnvFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxEnvFile)
	}
	return b, err
}

// writeOver replaces a file, which keeps its mode. One that gets a secret can be read by its
// owner alone.
func writeOver(path string, content []byte, secret bool) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		mode = info.Mode().Perm()
	}
	if secret {
		mode = 0o600
	}
	if err := atomicfile.Write(path, content); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
