// Command sandbox runs code in isolated sandboxes on a Skerry server. See
// "sandbox --help".
package main

import (
	"os"

	"github.com/skerry-dev/skerry/internal/cli"
)

// version is set when a release is built.
var version = "dev"

func main() { os.Exit(cli.Main(cli.System(version))) }
