// Package guest is the host's side of the connection to a sandbox's agent: it
// starts commands, takes in their output and moves files.
//
// A Client stands for one connection. When the connection is lost, the agent
// and its processes live on; Reconnect takes them up again over a new one,
// from the output offsets that the caller has stored. So a caller
//
//   - stores what Process.Next returns and then calls Process.Ack,
//   - stores what Process.Wait returns and then calls Process.Forget,
//
// and whatever was not acknowledged comes again after a Reconnect, once.
//
// The agent is in the hands of whoever has become root in the sandbox, so a
// Client believes it nothing: what breaks the protocol (package wire) ends the
// connection, and what it holds for a process is bounded by the window of each
// stream.
package guest
