// Package wire is the protocol between the host and the guest agent: frames, messages,
// and the flow control of both sides. The host's side is package guest, the sandbox's
// side is package agent.
//
// # Connection
//
// The connection is a pipe in each direction. A third pipe, the door, announces a new
// connection over the same two (package pipes). All frames go over the two pipes.
// Neither side trusts the other. A violation of a rule below ends the connection, and
// nothing else.
//
// # Frame
//
// A frame has a header of 12 bytes and a payload. Integers are little-endian.
//
//	offset  size  field
//	0       4     length of the payload
//	4       1     type
//	5       1     stream: 0 to the guest, 1 standard output or file, 2 standard error
//	6       2     zero
//	8       4     id of the call that the frame belongs to
//
// Each type has a maximum length (see Type.MaxPayload). An unknown type, a length out of
// range or a non-zero byte at 6 or 7 ends the connection. The receiver reads and drops a
// frame with an unknown id, because the call may just have ended on its side.
//
// # Calls
//
// The host opens a call with a request. Its id must be new, also compared with earlier
// connections. Ids start at 1, and after Resume at LastID of the Listing plus one. The
// guest answers every request with one Reply. A Reply with a Failure reports an error.
//
//	type       from   payload
//	Setup      host   JSON Setup            first frame of the first connection
//	Resume     host   JSON Resume           first frame of every later one; Listing
//	Renew      host   JSON Setup            first frame in a restored sandbox, instead of Resume
//	Identify   host   JSON Identity         give a sandbox that was set up in advance its name and environment
//	Token      host   JSON Token            replace the workload token
//	Start      host   JSON Start            run a command
//	WriteTar   host   JSON PathRequest      extract the Data of stream 0 until EOF
//	ReadFile   host   JSON PathRequest      Reply with the size, then Data of stream 1, then EOF
//	Mkdir      host   JSON PathRequest
//	Ping       host   none
//	Relieve    host   none                  kill the process that uses the most memory
//	List       host   none                  answered by a Listing
//	Shutdown   host   JSON Shutdown         end all processes
//	Reply      guest  JSON Reply
//	Listing    guest  JSON Reply with all processes, instead of a Reply
//	Data       both   bytes of a stream
//	EOF        both   8 bytes: the stream's length; no Data follows
//	Ack        both   8 bytes: offset up to which the receiver has the stream
//	Exit       guest  JSON Exit             a command ended; its output was sent
//	Signal     host   4 bytes: number       to the command's process group
//	Resize     host   2 bytes columns, 2 bytes rows
//	Forget     host   none                  the host has stored the exit
//	Cancel     host   none                  cancels a WriteTar or ReadFile
//	Abort      guest  JSON Failure          a ReadFile failed after its Reply
//
// # Flow control
//
// A stream is a sequence of bytes with absolute offsets from 0. The sender may be at
// most Window bytes ahead of the last Ack. The receiver can buffer that much, and more
// ends the connection. So a call with output that nobody reads blocks, and does not
// delay other calls.
//
// # Resumption
//
// Processes outlive the connection. The guest keeps all output that is not
// acknowledged, and the host acknowledges output after it has stored it. On a new
// connection, the host's Resume has the offsets of each stream of the processes that it
// knows. The guest's Listing has all its processes, with the offsets at which their
// streams continue: those of Resume, within the output that the guest still has. Then
// the guest sends the rest of the output. It also sends the Exit again, until Forget.
// Standard input, uploads and downloads end with their connection.
//
// # Sandboxes that are set up in advance
//
// A host may set up a sandbox, and run commands in it, before it knows which session will
// use it. Identify gives it a name, an environment, resolvers and a token that replace those of Setup.
// It fails while a command runs.
//
// # Renewal
//
// A sandbox that was restored from a memory snapshot has the agent of an earlier
// session, with its hostname and its processes. Renew gives it the setup of the new
// session. The processes continue, but the agent drops them: they are not listed, their
// ends are not reported, and their output is read and dropped. Terminals are hung up.
package wire
