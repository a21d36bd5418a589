// Package workloads installs real programs in sandboxes, from the package
// registries, and runs them: other sandboxes, containers, debuggers, databases,
// browsers and development servers. It needs SKERRY_URL and SKERRY_TOKEN of a
// server that lets sandboxes reach the registries; without them it fails. With
// -short it runs what takes seconds.
package workloads

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// workload is a program and how it shows that it works.
type workload struct {
	name string
	// packages are Debian's that it needs.
	packages string
	// install and run are shell scripts of the default user; each must succeed.
	install, run string
	// want are lines that run prints, in their order.
	want []string
	// slow is left out with -short.
	slow bool
}

// group is workloads that share a sandbox.
type group struct {
	name      string
	workloads []workload
}

func connect(t *testing.T) *client.Client {
	t.Helper()
	for _, name := range []string{"SKERRY_URL", "SKERRY_TOKEN"} {
		if os.Getenv(name) == "" {
			t.Fatalf("%s is not set; these tests need a server", name)
		}
	}
	c, err := client.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// create makes a sandbox that lives as long as the test.
func create(t *testing.T, opts client.CreateOptions) *client.Sandbox {
	t.Helper()
	persistent := false
	opts.Persistent, opts.Timeout = &persistent, 30*time.Minute
	sb, err := connect(t).CreateSandbox(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := sb.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	return sb
}

// shell runs a script, which must succeed, and returns what it printed.
func shell(t *testing.T, sb *client.Sandbox, script string) string {
	t.Helper()
	cmd := sb.Command(t.Context(), "bash", "-eo", "pipefail", "-c", script)
	cmd.Timeout = 10 * time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// install installs Debian packages.
func install(t *testing.T, sb *client.Sandbox, packages string) {
	t.Helper()
	shell(t, sb, "sudo apt-get -qq update; sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "+packages+" >/tmp/apt.log 2>&1 || { tail -20 /tmp/apt.log; exit 1; }")
}

func TestWorkloads(t *testing.T) {
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			var packages []string
			var chosen []workload
			for _, w := range g.workloads {
				if w.slow && testing.Short() {
					continue
				}
				packages, chosen = append(packages, w.packages), append(chosen, w)
			}
			if len(chosen) == 0 {
				return // only with -short
			}
			sb := create(t, client.CreateOptions{VCPUs: 2})
			install(t, sb, strings.Join(packages, " "))
			for _, w := range chosen {
				t.Run(w.name, func(t *testing.T) { w.test(t, sb) })
			}
		})
	}
}

func (w *workload) test(t *testing.T, sb *client.Sandbox) {
	if w.install != "" {
		shell(t, sb, w.install)
	}
	out := shell(t, sb, w.run)
	rest := out
	for _, line := range w.want {
		i := strings.Index(rest, line)
		if i < 0 {
			t.Fatalf("%q is missing, or in the wrong place, in\n%s", line, out)
		}
		rest = rest[i+len(line):]
	}
}
