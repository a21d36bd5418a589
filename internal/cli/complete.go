package cli

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
)

// completeWait bounds how long a press of the tab key may take.
const completeWait = time.Second

// completeFirst completes the name of a sandbox as first argument.
func (a *app) completeFirst(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.names(cmd.Context(), prefix, nil), cobra.ShellCompDirectiveNoFileComp
}

// completeAll completes names of sandboxes, each once.
func (a *app) completeAll(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.names(cmd.Context(), prefix, given), cobra.ShellCompDirectiveNoFileComp
}

// completeSnapshots completes ids of snapshots, each once.
func (a *app) completeSnapshots(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.snapshotIDs(cmd.Context(), prefix, given), cobra.ShellCompDirectiveNoFileComp
}

// snapshotIDs asks the server for the latest snapshots.
func (a *app) snapshotIDs(ctx context.Context, prefix string, but []string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWait)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil
	}
	page, err := c.ListSnapshotsPage(ctx, "", client.SnapshotOptions{Limit: 100})
	if err != nil {
		return nil
	}
	var ids []string
	for _, s := range page.Items {
		if strings.HasPrefix(s.ID, prefix) && !slices.Contains(but, s.ID) {
			ids = append(ids, clean(s.ID)+"\t"+clean(s.SandboxName)+", "+a.ago(s.CreatedAt))
		}
	}
	return ids
}

// names asks the server for names that begin with prefix. No answer is no
// completion: the tab key has no place for an error.
func (a *app) names(ctx context.Context, prefix string, but []string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWait)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil
	}
	page, err := c.ListSandboxesPage(ctx, client.ListOptions{Limit: 100, SortBy: "name", Ascending: true, NamePrefix: prefix})
	if err != nil {
		return nil
	}
	var names []string
	for _, sb := range page.Items {
		if !slices.Contains(but, sb.Name) {
			names = append(names, clean(sb.Name))
		}
	}
	return names
}

// completion adds the command that prints completion scripts.
func completion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion", "bash"})
	if err != nil {
		return
	}
	cmd.Long = `Print a script that completes commands, flags and the names of sandboxes in bash.

In the current shell:

	source <(sandbox completion bash)

In every new one, as root or for yourself:

	sandbox completion bash > /etc/bash_completion.d/sandbox
	echo 'source <(sandbox completion bash)' >> ~/.bashrc`
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		plain, err := cmd.Flags().GetBool("no-descriptions")
		if err != nil {
			return err
		}
		var script bytes.Buffer
		if err := root.GenBashCompletionV2(&script, !plain); err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write([]byte(strings.Replace(script.String(), needsPackage, withoutPackage, 1)))
		return err
	}
}

// Cobra's script for bash calls a function of the package bash-completion,
// which small images do not have, and prints an error at each press of the tab
// key there. Without it the line is split at blanks.
const (
	needsPackage   = `_get_comp_words_by_ref "$@" cur prev words cword`
	withoutPackage = `if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    local line=${COMP_LINE:0:COMP_POINT}
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=("")
    cword=$((${#words[@]} - 1))
    cur=${words[cword]}
    prev=${words[cword - 1]}`
)
