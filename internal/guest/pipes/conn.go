package pipes

import (
	"net"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Conn is the host's end of a connection as a net.Conn.
type Conn struct{ *wire.Duplex }

var _ net.Conn = Conn{}

type addr struct{}

func (addr) Network() string { return "pipe" }
func (addr) String() string  { return "pipe" }

// LocalAddr and RemoteAddr implement net.Conn.
func (Conn) LocalAddr() net.Addr  { return addr{} }
func (Conn) RemoteAddr() net.Addr { return addr{} }
