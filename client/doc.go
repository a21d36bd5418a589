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
// A [Sandbox] is a durable name; what runs is its session, which ends when it
// is stopped or times out. A call that needs a session resumes the sandbox if
// it has stopped, unless [Options].NoResume is set.
//
// What becomes of the files when a session ends is the sandbox's choice: a
// persistent one (the default) is saved as a [Snapshot] and goes on from there,
// another starts anew. A snapshot is also what new sandboxes can start from;
// [Sandbox.Fork] does so with the configuration of an existing one.
//
// # Errors
//
// What the server refuses is an [*Error] with the HTTP status and a code;
// [IsNotFound], [IsConflict] and their like ask for the usual ones. A command
// that ran and failed is an [*ExitError], as in os/exec.
//
// # Retries
//
// A call is tried up to three times, with a growing random pause, when the
// server answers 429 (and does not ask for more than 20 seconds of patience),
// and, when repeating it can do no harm, on 5xx and on broken connections.
// Creating a sandbox, starting a command and extending a timeout are not
// repeated after an answer that leaves open whether they happened.
//
// A Client and its Sandboxes may be used by many goroutines at once. No call
// leaves a goroutine behind once its context has ended or its result was
// closed or waited for.
package client
