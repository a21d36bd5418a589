package gvisor

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

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

// guestEnds are the agent's ends of its connection, to be passed on.
type guestEnds struct{ in, out *os.File }

func (g guestEnds) close() { closeAll([]*os.File{g.in, g.out}) }

// pipeSize is the capacity in bytes asked for each of a connection's pipes: one
// that holds several whole frames keeps both sides from waking each other in
// the middle of one. What a machine leaves in one is charged to its own cgroup.
const pipeSize = 1 << 20

// newConnection returns the two ends of a connection.
func newConnection() (_ net.Conn, guest guestEnds, err error) {
	var down, up [2]int
	if err := unix.Pipe2(down[:], unix.O_CLOEXEC); err != nil {
		return nil, guest, fmt.Errorf("create the agent's connection: %w", err)
	}
	guest.in = os.NewFile(uintptr(down[0]), "guest")
	if err := unix.Pipe2(up[:], unix.O_CLOEXEC); err != nil {
		err = errors.Join(err, unix.Close(down[1]), guest.in.Close())
		return nil, guest, fmt.Errorf("create the agent's connection: %w", err)
	}
	guest.out = os.NewFile(uintptr(up[1]), "guest")
	for _, fd := range []int{down[1], up[0]} {
		// Where so much is not to be had, the default does, at half the speed.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	}
	d, err := wire.NewDuplex(up[0], down[1])
	if err != nil {
		guest.close()
		return nil, guest, fmt.Errorf("create the agent's connection: %w", err)
	}
	return connection{d}, guest, nil
}
