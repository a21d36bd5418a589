package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// TestMain gives the examples a server where FromEnvironment looks for one.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "client-test-")
		if err != nil {
			log.Print(err)
			return 1
		}
		defer os.RemoveAll(dir)
		s, stop, err := servertest.Start(dir)
		if err != nil {
			log.Print(err)
			return 1
		}
		defer stop()
		for name, value := range map[string]string{
			"SKERRY_URL": s.URL, "SKERRY_TOKEN": s.Token, "SKERRY_TEAM": "", "SKERRY_PROJECT": "", "XDG_CONFIG_HOME": dir,
		} {
			os.Setenv(name, value)
		}
		return m.Run()
	}())
}

// A sandbox for one job.
func Example() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{Timeout: 10 * time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	if err := sb.WriteFile(ctx, "hello.sh", []byte("echo hello from $1"), 0o644); err != nil {
		log.Fatal(err)
	}
	out, err := sb.Command(ctx, "sh", "hello.sh", "a sandbox").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output: hello from a sandbox
}

// Output as it comes, and an exit code that is not 0.
func ExampleCmd_Wait() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	cmd := sb.Command(ctx, "sh", "-c", "echo testing $WHAT; exit 3")
	cmd.Env = map[string]string{"WHAT": "everything"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*client.ExitError](err); ok {
		fmt.Println("the tests failed with", exit.Code)
	} else if err != nil {
		log.Fatal(err)
	}
	// Output:
	// testing everything
	// the tests failed with 3
}

// A command that outlives this process, and its output from the start.
func ExampleCmd_Logs() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	server := sb.Command(ctx, "sh", "-c", "echo listening; sleep 60")
	server.Detached = true
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	for piece, err := range server.Logs(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s", piece.Stream, piece.Data)
		if err := server.Kill(ctx, client.SIGTERM); err != nil {
			log.Fatal(err)
		}
	}
	err = server.Wait()
	fmt.Println(err)
	// Output:
	// stdout: listening
	// sh: exit code 143
}

// A context bounds a command: when it ends, the command is killed.
func ExampleSandbox_Command() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	err = sb.Command(short, "sleep", "60").Run()
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output: true
}

// A tree of files in, and one out.
func ExampleSandbox_WriteFiles() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	files := fstest.MapFS{ // os.DirFS("app") is a directory of this machine
		"src/main.txt": {Data: []byte("main"), Mode: 0o644},
		"README.txt":   {Data: []byte("read me"), Mode: 0o644},
	}
	if err := sb.WriteFiles(ctx, "app", files); err != nil {
		log.Fatal(err)
	}
	data, err := sb.ReadFile(ctx, "app/src/main.txt")
	fmt.Printf("%s %v\n", data, err)

	_, err = sb.ReadFile(ctx, "app/none")
	fmt.Println(client.IsNotFound(err))
	// Output:
	// main <nil>
	// true
}

// A terminal, as a program sees it; see the command "sandbox connect" for one
// that a person sits at.
func ExampleSandbox_Terminal() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	t, err := sb.Terminal(ctx, client.TerminalOptions{
		Command: "sh", Args: []string{"-c", "stty size; exit 4"}, Cols: 100, Rows: 30,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	var rows, cols int
	if _, err := fmt.Fscan(t, &rows, &cols); err != nil {
		log.Fatal(err)
	}
	code, err := t.Wait()
	fmt.Println(rows, cols, code, err)
	// Output: 30 100 4 <nil>
}

// All sandboxes with a tag, page after page.
func ExampleClient_ListSandboxes() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		sb, err := c.CreateSandbox(ctx, client.CreateOptions{Name: name, Tags: map[string]string{"team": "web"}})
		if err != nil {
			log.Fatal(err)
		}
		defer sb.Delete(ctx)
	}

	opts := client.ListOptions{Tags: map[string]string{"team": "web"}, SortBy: "name", Ascending: true}
	for sb, err := range c.ListSandboxes(ctx, opts) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(sb.Name, sb.Status)
	}
	// Output:
	// one running
	// two running
}

// Get a sandbox, or create it.
func ExampleClient_GetSandbox() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.GetSandbox(ctx, "mine", client.GetOptions{Resume: true})
	if client.IsNotFound(err) {
		sb, err = c.CreateSandbox(ctx, client.CreateOptions{Name: "mine"})
	}
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)
	fmt.Println(sb.Name(), sb.Session().Status)
	// Output: mine running
}

// Files outlive a stop, and a snapshot is where other sandboxes can start.
func ExampleSandbox_Snapshot() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{Name: "prepared"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.DeleteSandbox(ctx, "prepared", client.DeleteOptions{OrphanSnapshots: true})
	if err := sb.WriteFile(ctx, "packages.txt", []byte("all installed"), 0o644); err != nil {
		log.Fatal(err)
	}

	week := 7 * 24 * time.Hour
	snap, err := sb.Snapshot(ctx, client.TakeOptions{Expiration: &week})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("after the snapshot:", sb.Session().Status)

	other, err := c.CreateSandbox(ctx, client.CreateOptions{Source: snap.Source()})
	if err != nil {
		log.Fatal(err)
	}
	defer other.Delete(ctx)
	out, err := other.Command(ctx, "cat", "packages.txt").Output()
	fmt.Printf("in a new sandbox: %s %v\n", out, err)

	// The next command on the first one resumes it.
	out, err = sb.Command(ctx, "cat", "packages.txt").Output()
	fmt.Printf("in the first: %s %v\n", out, err)
	// Output:
	// after the snapshot: stopped
	// in a new sandbox: all installed <nil>
	// in the first: all installed <nil>
}

// Try something in a copy of a sandbox that goes on meanwhile.
func ExampleSandbox_Fork() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)
	if err := sb.WriteFile(ctx, "plan.txt", []byte("the old plan"), 0o644); err != nil {
		log.Fatal(err)
	}

	keep := false
	fork, err := sb.Fork(ctx, client.ForkOptions{Live: true, Persistent: &keep, Tags: map[string]string{"attempt": "1"}})
	if err != nil {
		log.Fatal(err)
	}
	defer fork.Delete(ctx)
	if err := fork.Command(ctx, "sh", "-c", "printf 'a new plan' > plan.txt").Run(); err != nil {
		log.Fatal(err)
	}

	for _, sb := range []*client.Sandbox{sb, fork} {
		b, err := sb.ReadFile(ctx, "plan.txt")
		fmt.Printf("%s: %s %v\n", sb.Session().Status, b, err)
	}
	// Output:
	// running: the old plan <nil>
	// running: a new plan <nil>
}

// Go back to how the files were at an earlier stop.
func ExampleSandbox_Update() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{Count: 3}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.DeleteSandbox(ctx, sb.Name(), client.DeleteOptions{OrphanSnapshots: true})
	for _, text := range []string{"good", "bad"} {
		if err := sb.WriteFile(ctx, "state", []byte(text), 0o644); err != nil {
			log.Fatal(err)
		}
		if _, err := sb.Stop(ctx); err != nil {
			log.Fatal(err)
		}
	}

	current, err := c.GetSnapshot(ctx, sb.Info().CurrentSnapshotID)
	if err != nil {
		log.Fatal(err)
	}
	for node, err := range current.Ancestors(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if err := sb.Update(ctx, client.UpdateOptions{CurrentSnapshotID: &node.Snapshot.ID}); err != nil {
			log.Fatal(err)
		}
		break // the parent
	}
	b, err := sb.ReadFile(ctx, "state")
	fmt.Printf("%s %v\n", b, err)
	// Output: good <nil>
}

// The snapshots of a sandbox, and an end to all but the latest.
func ExampleSandbox_Snapshots() {
	ctx := context.Background()
	c, err := client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{Name: "kept"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.DeleteSandbox(ctx, "kept", client.DeleteOptions{OrphanSnapshots: true})
	for range 2 {
		if err := sb.Resume(ctx); err != nil {
			log.Fatal(err)
		}
		if _, err := sb.Stop(ctx); err != nil {
			log.Fatal(err)
		}
	}
	for snap, err := range sb.Snapshots(ctx, client.SnapshotOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		current := snap.ID == sb.Info().CurrentSnapshotID
		fmt.Println(snap.CreationMethod, current)
		if !current {
			if _, err := c.DeleteSnapshot(ctx, snap.ID); err != nil {
				log.Fatal(err)
			}
		}
	}
	// Output:
	// automatic true
	// automatic false
}

func ExampleNew() {
	c, err := client.New(client.Options{URL: "https://sandboxes.example.com/", Token: "secret"})
	fmt.Println(c.URL(), err)

	_, err = client.New(client.Options{URL: "sandboxes.example.com"})
	fmt.Println(err)
	// Output:
	// https://sandboxes.example.com <nil>
	// the server's address "sandboxes.example.com" is not an http or https URL
}

func ExampleError_Is() {
	var err error = fmt.Errorf("create the sandbox: %w",
		&client.Error{Status: 409, Code: skerry.CodeConflict, Message: "the name is taken"})
	fmt.Println(errors.Is(err, &client.Error{Code: skerry.CodeConflict}), client.IsConflict(err), client.IsNotFound(err))
	// Output: true true false
}

func ExampleNetworkPolicy() {
	b, _ := json.Marshal(client.NetworkPolicy{AllowDomains: []string{"*.example.com"}, DenyCIDRs: []string{"10.0.0.0/8"}})
	fmt.Println(string(b))
	// Output: {"allow":["*.example.com"],"subnets":{"deny":["10.0.0.0/8"]}}
}
