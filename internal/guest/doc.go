// Package guest is the host's side of the connection to the agent in a sandbox. It
// starts commands, receives their output and transfers files.
//
// A Client is one connection. When the connection is lost, the agent and its processes
// continue. Reconnect resumes them over a new connection, from the output offsets that
// the caller has stored. So a caller
//
//   - stores the result of Process.Next and then calls Process.Ack,
//   - stores the result of Process.Wait and then calls Process.Forget.
//
// After Reconnect, everything that was not acknowledged is sent again, once.
//
// Root in the sandbox controls the agent, so a Client does not trust it. A violation of
// the protocol (package wire) ends the connection. The memory for the output of a
// process is limited by the window of each stream.
package guest
