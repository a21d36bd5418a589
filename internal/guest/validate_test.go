package guest

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// FuzzAcceptedCommands: the agent accepts every command and path that is accepted from a
// client. The agent does not link the rules for clients.
func FuzzAcceptedCommands(f *testing.F) {
	f.Add("sh", "-c", "/tmp", "A", "b", "file")
	f.Add("a\x00", "\x00", "x\x00", "A=B", "\x00", "\x00")
	f.Add("", "", strings.Repeat("x", 4095), "a-b.c", "\xff", strings.Repeat("x", 4096))
	f.Fuzz(func(t *testing.T, name, arg, cwd, variable, value, path string) {
		p := skerry.CommandParams{Name: name, Args: []string{arg}, Cwd: cwd, Env: map[string]string{variable: value}}
		if p.Validate() == nil {
			start := wire.Start{Key: "cmd_1", Name: p.Name, Args: p.Args, Cwd: p.Cwd, Env: p.Env}
			if err := start.Validate(); err != nil {
				t.Errorf("the agent refuses %+v: %v", p, err)
			}
		}
		if skerry.ValidateFile(cwd, path) == nil {
			request := wire.PathRequest{Path: path, Cwd: cwd}
			if err := request.Validate(); err != nil {
				t.Errorf("the agent refuses the path %q from %q: %v", path, cwd, err)
			}
		}
	})
}
