package gvisor

import (
	"net"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// connection is the host's end of the guest agent's connection.
type connection struct{ *wire.Duplex }

var _ net.Conn = connection{}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// LocalAddr and RemoteAddr implement net.Conn.
func (connection) LocalAddr() net.Addr  { return pipeAddr{} }
func (connection) RemoteAddr() net.Addr { return pipeAddr{} }
