package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

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

	if err := sb.WriteFile(ctx, "hello.js", []byte("console.log('hello')"), 0o644); err != nil {
		log.Fatal(err)
	}
	out, err := sb.Command(ctx, "node", "hello.js").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
}

func ExampleCmd_Wait() {
	ctx := context.Background()
	var sb *client.Sandbox // from CreateSandbox or GetSandbox

	cmd := sb.Command(ctx, "npm", "test")
	cmd.Dir, cmd.Env = "app", map[string]string{"CI": "1"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*client.ExitError](err); ok {
		log.Fatalf("the tests failed with %d", exit.Code)
	}
}

func ExampleCmd_Logs() {
	ctx := context.Background()
	var sb *client.Sandbox // from CreateSandbox or GetSandbox

	server := sb.Command(ctx, "node", "server.js")
	server.Detached = true
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	for line, err := range server.Logs(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s", line.Stream, line.Data)
	}
}

func ExampleClient_ListSandboxes() {
	ctx := context.Background()
	var c *client.Client // from New or FromEnvironment

	for sb, err := range c.ListSandboxes(ctx, client.ListOptions{Tags: map[string]string{"team": "web"}}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(sb.Name, sb.Status)
	}
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
