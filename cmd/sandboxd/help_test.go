package main

import (
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestFlagTextsStandAlone: flags are listed by name, so no text may refer to that
// of another flag.
func TestFlagTextsStandAlone(t *testing.T) {
	refers := regexp.MustCompile(`(?i)\bthe same (if|for|as)\b|\b(that|its) key\b|\bsuch a\b|\bthe other one`)
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if refers.MatchString(f.Usage) {
				t.Errorf("%s --%s: %s", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
		for _, sub := range cmd.Commands() {
			look(sub)
		}
	}
	look(newRoot())
}
