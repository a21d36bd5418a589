// Package wire is the protocol between the host and the guest agent: the
// frames on their one connection, the messages in them, and the flow control
// that both sides share. The host's side is package guest, the sandbox's is
// package agent.
//
// # Connection
//
// The two sides are joined by a pipe in each direction, and by a third one, the
// door, over which a host says that it begins anew on them (package pipes).
// Everything that they do goes over the two, in frames. Either side takes the other for hostile or
// broken: what breaks a rule below ends the connection, and nothing else.
//
// # Frame
//
// A frame is a header of 12 bytes and a payload. Integers are little-endian.
//
//	offset  size  field
//	0       4     length of the payload
//	4       1     type
//	5       1     stream: 0 to the guest, 1 standard output or file, 2 standard error
//	6       2     zero
//	8       4     id of the call that the frame belongs to
//
// The length is bounded by type (see Type.MaxPayload). An unknown type, a
// length beyond the bound or a non-zero byte at 6 or 7 ends the connection.
// A frame for an id that its receiver does not know (any more) is read and
// dropped: the call may just have ended on that side.
//
// # Calls
//
// The host opens a call by a request with an id that it has not used on this
// or an earlier connection; ids begin at 1, and after Resume beyond the LastID
// that the guest names. The guest answers every request by one Reply, in which
// a Failure says that it did not work.
//
//	type       from   payload
//	Setup      host   JSON Setup            first frame of the first connection
//	Resume     host   JSON Resume           first frame of every later one; Listing
//	Renew      host   JSON Setup            first frame in a restored sandbox, in the place of Resume
//	Start      host   JSON Start            run a command
//	WriteTar   host   JSON PathRequest      extract the Data of stream 0 until EOF
//	ReadFile   host   JSON PathRequest      Reply with the size, then Data of stream 1, then EOF
//	Mkdir      host   JSON PathRequest
//	Ping       host   none
//	List       host   none                  answered by a Listing
//	Shutdown   host   JSON Shutdown         end all processes
//	Reply      guest  JSON Reply
//	Listing    guest  JSON Reply with all processes, in the place of a Reply
//	Data       both   bytes of a stream
//	EOF        both   8 bytes: the stream's length; no Data follows
//	Ack        both   8 bytes: offset up to which the stream was taken in
//	Exit       guest  JSON Exit             a command ended; its output was sent
//	Signal     host   4 bytes: number       to the command's process group
//	Resize     host   2 bytes columns, 2 bytes rows
//	Forget     host   none                  the host has stored the exit
//	Cancel     host   none                  gives up a WriteTar or ReadFile
//	Abort      guest  JSON Failure          a ReadFile failed after its Reply
//
// # Flow control
//
// A stream is bytes with absolute offsets from 0. Its sender may be at most
// Window bytes ahead of the last Ack; its receiver has room for that much and
// ends a connection on which more comes. So a call whose output nobody takes
// stops by itself and delays no other.
//
// # Resumption
//
// Processes outlive the connection. For the output of a process the guest
// keeps every byte that is not acknowledged, and the host acknowledges what it
// has stored for good. On a new connection the host's Resume names, for each
// process that it knows, the offset up to which it has each stream; the
// guest's Listing has all its processes with the offsets that it goes on from
// (those it was told, within what it still has), and then sends the rest, and
// the Exit again where it was not forgotten. Standard input, uploads and
// downloads end with the connection that they began on.
//
// # Renewal
//
// A sandbox that was restored from a snapshot of its memory wakes up with the
// agent of another session: with its name and its processes. Renew gives the
// agent those of the new session. The processes go on, but are nobody's: they are in no listing, nothing is said of their ends, and
// what they print is read and dropped. Terminals are hung up.
package wire
