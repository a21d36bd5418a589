// Command sandbox runs code in isolated sandboxes on a Skerry server. See
// "sandbox --help".
package main

import (
	"os"

	"github.com/skerry-dev/skerry/internal/cli"
	"github.com/skerry-dev/skerry/internal/version"
)

func main() { os.Exit(cli.Main(cli.System(version.Version))) }
