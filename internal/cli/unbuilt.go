package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// unbuilt returns commands of the npm tool whose features this version does
// not have: pairs of a name and what it would be about. They are not shown,
// and say so whatever flags and arguments they get.
func unbuilt(pairs ...string) []*cobra.Command {
	var list []*cobra.Command
	for i := 0; i < len(pairs); i += 2 {
		what := pairs[i+1]
		list = append(list, &cobra.Command{
			Use: pairs[i], Short: "Not supported yet: " + what, Hidden: true, DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return fmt.Errorf("%s is not supported by this version of Skerry", what)
			},
		})
	}
	return list
}
