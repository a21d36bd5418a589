// Package client is the Go SDK of Skerry: it creates sandboxes, runs commands
// in them, opens terminals and moves files.
//
//	c, err := client.FromEnvironment()
//	…
//	sb, err := c.CreateSandbox(ctx, client.CreateOptions{Timeout: 10 * time.Minute})
//	…
//	defer sb.Delete(context.WithoutCancel(ctx))
//	out, err := sb.Command(ctx, "node", "-e", "console.log(6 * 7)").Output()
//
// A [Sandbox] is a durable name with a configuration. Its commands run in a session,
// which ends when it is stopped or times out. A call that needs a session resumes a
// stopped sandbox, unless [Options].NoResume is set.
//
// When a session of a persistent sandbox (the default) ends, its files are saved as a
// [Snapshot], and the next session starts from it. Otherwise the next session starts
// anew. New sandboxes can start from a snapshot too. [Sandbox.Fork] creates one with the
// configuration of an existing sandbox.
//
// # Errors
//
// Errors of the server are [*Error], with the HTTP status and a code. [IsNotFound],
// [IsConflict] and similar functions test for the usual codes. A command that ran and
// failed is an [*ExitError], as in os/exec.
//
// # Retries
//
// A call is tried up to three times, with a growing random pause, if the server responds
// with 429 and a Retry-After of at most 20 seconds. Calls that can be repeated without
// harm are also tried again after 5xx and broken connections. Creating a sandbox,
// starting a command and extending a timeout are not repeated if they may have succeeded.
//
// A Client and its Sandboxes may be used by several goroutines at once. A call leaves no
// goroutine behind after its context has ended, or its result was closed or waited
// for.
package client
