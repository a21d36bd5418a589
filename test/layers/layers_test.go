// Package layers holds the imports of the source tree to the picture in
// ARCHITECTURE.md.
package layers

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/skerry-dev/skerry"

// allowed are the packages of this module that each package may import, besides
// the root, which all may. A package that is not here may import no other. What
// is wired together in cmd/sandboxd is free.
var allowed = map[string]string{
	"client":      "internal/config",
	"cmd/sandbox": "internal/cli internal/version", "internal/cli": "client internal/atomicfile internal/config internal/terminal internal/usage internal/version",
	"cmd/skerry-agent": "internal/guest/agent", "internal/top": "internal/terminal",

	// The server, from the top. Neither of the controller and the node knows the
	// other, nor which network, driver or store it has.
	"internal/api":   "internal/audit internal/share internal/tracing",
	"internal/audit": "internal/atomicfile", "internal/audit/otlp": "internal/audit internal/tracing/export",
	"internal/auth":       "internal/federation internal/issuer internal/store",
	"internal/controller": "internal/nodeapi internal/share internal/tracing",
	"internal/store":      "internal/keyfile internal/nodeapi internal/tracing",
	"internal/metrics":    "internal/nodeapi internal/tracing",
	"internal/node":       "internal/atomicfile internal/drive internal/driver internal/guest internal/guest/wire internal/image internal/nodeapi internal/nodeapi/eventlog internal/output internal/room internal/share internal/snapshot internal/socketpair internal/tracing",
	"internal/image":      "internal/atomicfile internal/guest/wire internal/nodeapi",
	"internal/snapshot":   "internal/blob internal/nodeapi", "internal/blob/blobtest": "internal/blob",
	"internal/driver/gvisor": "internal/atomicfile internal/cgroup internal/driver internal/guest/pipes internal/tracing patches",
	"internal/driver/fake":   "internal/driver internal/guest/agent internal/guest/pipes", "internal/driver/drivertest": "internal/driver internal/guest",
	"internal/guest": "internal/guest/wire internal/nodeapi internal/tracing", "internal/guest/agent": "internal/guest/wire", "internal/guest/pipes": "internal/guest/wire",

	"internal/firewall": "internal/egress internal/egress/ca internal/egress/dns internal/egress/policy internal/issuer internal/network internal/nodeapi",
	"internal/egress": "internal/cgivar internal/egress/ca internal/egress/dns internal/egress/hello internal/egress/policy internal/issuer " +
		"internal/share",
	"internal/egress/ca": "internal/keyfile", "internal/issuer": "internal/atomicfile internal/keyfile", "internal/egress/dns": "internal/share",
	"internal/ingress":                   "internal/cgivar internal/share",
	"internal/federation/issuertest/cmd": "internal/federation/issuertest",

	"internal/blob": "internal/atomicfile", "internal/config": "internal/atomicfile", "internal/drive": "internal/atomicfile", "internal/keyfile": "internal/atomicfile",

	"internal/nodeapi/eventlog": "internal/nodeapi", "internal/nodeapi/remote": "internal/nodeapi internal/socketpair internal/tracing",

	// Servers for the tests of other packages, of real parts over a node without
	// isolation. Nothing but tests imports them.
	"internal/nodeapi/processnode":       "internal/nodeapi internal/nodeapi/eventlog internal/output",
	"internal/nodeapi/nodetest":          "internal/nodeapi internal/nodeapi/eventlog internal/nodeapi/processnode",
	"internal/controller/controllertest": "internal/controller internal/nodeapi/processnode internal/store",
	"internal/servertest":                "internal/api internal/auth internal/controller internal/controller/controllertest",

	"bench": "bench/meter bench/native client", "bench/hostile": "client", "bench/memory": "bench/meter client", "bench/ingress": "internal/ingress",
	"bench/paths": "bench/meter client", "bench/scale": "bench/meter client", "bench/streams": "bench/meter client", "bench/workloads": "bench/meter bench/native client",
	"bench/wake": "bench/meter client", "test/soak": "client",
	"test/conformance/ts/issuer": "internal/issuer",
}

// free are packages that may import all others.
var free = []string{"cmd/sandboxd"}

func TestLayers(t *testing.T) {
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	list.Dir = "../.."
	out, err := list.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := list.Start(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for d := json.NewDecoder(out); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name, _ := strings.CutPrefix(p.ImportPath, module+"/")
		seen[name] = true
		if slices.Contains(free, name) {
			continue
		}
		may := strings.Fields(allowed[name])
		for _, imported := range p.Imports {
			below, ours := strings.CutPrefix(imported, module+"/")
			if ours && !slices.Contains(may, below) {
				t.Errorf("%s may not import %s", name, below)
			}
		}
	}
	if err := list.Wait(); err != nil {
		t.Fatal(err)
	}
	for name := range allowed {
		if !seen[name] {
			t.Errorf("there is no package %s", name)
		}
	}
}
