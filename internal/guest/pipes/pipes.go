// Package pipes creates the pipes between the host and a guest agent, and finds the
// pipes of a running agent.
//
// There are three pipes. Two carry the connection, one in each direction. The third,
// the door, announces a new connection over the same two pipes. A host takes over an
// agent after the previous host has died, or after the sandbox was restored from a
// snapshot. It opens new ends of the pipes and knocks: it writes a nonce to the door.
// The agent drops the old connection and sends the nonce as the first bytes of the
// new one. So no descriptor is passed into a running sandbox, and nothing in the
// sandbox can request a connection.
package pipes

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Guest is the agent's ends of the pipes, for the process of the agent.
type Guest struct {
	In, Out *os.File
	// Door is open for reading and writing. Because the agent is a writer itself, it
	// does not read an EOF when the host dies.
	Door *os.File
}

// Close closes the ends that are open.
func (g Guest) Close() error {
	var errs []error
	for _, f := range []*os.File{g.In, g.Out, g.Door} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Names identifies the pipes of a running agent on this machine, by their inode
// numbers.
type Names struct {
	In   uint64 `json:"in"`
	Out  uint64 `json:"out"`
	Door uint64 `json:"door"`
}

// Names returns the names of the pipes.
func (g Guest) Names() (n Names, err error) {
	for _, p := range []struct {
		f    *os.File
		name *uint64
	}{{g.In, &n.In}, {g.Out, &n.Out}, {g.Door, &n.Door}} {
		ino, ferr := pipeInode(int(p.f.Fd()))
		err = errors.Join(err, ferr)
		*p.name = ino
	}
	return n, err
}

func pipeInode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat a pipe: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return 0, errors.New("not a pipe")
	}
	return st.Ino, nil
}

// size is the requested capacity of each pipe of the connection, in bytes. With several
// whole frames in a pipe, the sides do not wake each other in the middle of a frame.
// Data that a sandbox leaves in a pipe is charged to its own cgroup.
const size = 1 << 20

// New returns the host's end of a new connection and the agent's ends.
func New() (_ *wire.Duplex, guest Guest, err error) {
	var host []int
	defer func() {
		if err != nil {
			for _, fd := range host {
				unix.Close(fd)
			}
			err = fmt.Errorf("create the agent's connection: %w", errors.Join(err, guest.Close()))
		}
	}()
	var down, up, door [2]int
	if err := unix.Pipe2(down[:], unix.O_CLOEXEC); err != nil {
		return nil, guest, err
	}
	guest.In, host = os.NewFile(uintptr(down[0]), "guest"), append(host, down[1])
	if err := unix.Pipe2(up[:], unix.O_CLOEXEC); err != nil {
		return nil, guest, err
	}
	guest.Out, host = os.NewFile(uintptr(up[1]), "guest"), append(host, up[0])
	if err := unix.Pipe2(door[:], unix.O_CLOEXEC); err != nil {
		return nil, guest, err
	}
	host = append(host, door[0], door[1])
	fd, err := reopen(door[0], unix.O_RDWR)
	if err != nil {
		return nil, guest, err
	}
	guest.Door = os.NewFile(uintptr(fd), "guest")
	unix.Close(door[0])
	unix.Close(door[1])
	host = nil // NewDuplex owns the rest, also on error
	for _, fd := range []int{down[1], up[0]} {
		// If the system refuses this size, the default works at half the speed.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
	}
	d, err := wire.NewDuplex(up[0], down[1])
	return d, guest, err
}

// reopen opens a new end of a pipe. It never waits for the other end.
func reopen(fd, how int) (int, error) {
	end, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), how|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("reopen a pipe: %w", err)
	}
	return end, nil
}

// Take opens a new connection over the pipes of an agent. Process pid has the agent's
// ends open. No other host may use the pipes at the same time.
func Take(ctx context.Context, pid int, names Names) (_ *wire.Duplex, err error) {
	// The process may be hostile, and its descriptors may change at any time. So find
	// checks each one before it is opened.
	held, err := find(pid, names)
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return nil, err
	}
	door, err := reopen(held[names.Door], unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(door)
	up, err := reopen(held[names.Out], unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	down, err := reopen(held[names.In], unix.O_WRONLY)
	if err != nil {
		unix.Close(up)
		return nil, err
	}
	conn, err := wire.NewDuplex(up, down)
	if err != nil {
		return nil, err
	}
	if err := knock(ctx, door, conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// find returns a reference (O_PATH) to each of the pipes. On error it returns those
// that it found.
func find(pid int, names Names) (map[uint64]int, error) {
	held := map[uint64]int{}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return held, fmt.Errorf("find the agent's pipes: %w", err)
	}
	for _, e := range entries {
		fd, err := unix.Open(filepath.Join(dir, e.Name()), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // closed in the meantime
		}
		ino, err := pipeInode(fd)
		wanted := err == nil && (ino == names.In || ino == names.Out || ino == names.Door)
		if _, known := held[ino]; !wanted || known {
			unix.Close(fd)
			continue
		}
		held[ino] = fd
	}
	if len(held) != 3 {
		return held, fmt.Errorf("process %d has %d of the agent's 3 pipes open", pid, len(held))
	}
	return held, nil
}

// knock asks the agent for a new connection. It skips data that an earlier host has not
// read.
func knock(ctx context.Context, door int, conn *wire.Duplex) error {
	nonce := make([]byte, wire.KnockSize)
	rand.Read(nonce)
	// A write of this size is atomic. It fails if the agent has left the door full.
	if _, err := unix.Write(door, nonce); err != nil {
		return fmt.Errorf("announce a new connection to the agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	err := skipPast(conn, nonce)
	if !stop() {
		return fmt.Errorf("wait for the agent to reconnect: %w", context.Cause(ctx))
	}
	return err
}

// maxStale limits the skipped bytes. The capacity of both pipes is already more than an
// agent that has stopped can leave.
const maxStale = 4 * size

// skipPast reads up to the nonce. The agent must not send anything after it without a
// request.
func skipPast(r io.Reader, nonce []byte) error {
	buf := make([]byte, 64<<10)
	kept := 0 // bytes of earlier reads at the start of buf, which may begin the nonce
	for total := 0; total < maxStale; {
		n, err := r.Read(buf[kept:])
		if at := bytes.Index(buf[:kept+n], nonce); at >= 0 {
			if at+len(nonce) != kept+n {
				return errors.New("the agent sent data before the first request")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for the agent to reconnect: %w", err)
		}
		total += n
		have := kept + n
		kept = min(have, len(nonce)-1)
		copy(buf, buf[have-kept:have])
	}
	return errors.New("the agent sent other data instead of reconnecting")
}
