package cli

import (
	"context"
	"slices"
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
