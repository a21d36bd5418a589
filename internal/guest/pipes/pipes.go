// Package pipes makes the pipes between the host and a guest agent, and finds
// those of a running one again.
//
// There are three. Two carry the connection, one for each direction; the third,
// the door, tells the agent that a host begins anew on them. A host that takes
// an agent over, since the one before has died or since the sandbox was restored
// from a snapshot, opens new ends of the same pipes and knocks: it writes a
// nonce into the door, the agent drops what it was in the middle of, and says
// the nonce as the first bytes of the new connection. So nothing is handed into
// a sandbox that runs, and nothing in it can ask for a connection.
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

// Guest are the agent's ends, to be passed on.
type Guest struct {
	In, Out *os.File
	// Door is open for writing too: a reader that has a writer itself meets no
	// end when the host dies.
	Door *os.File
}

// Close closes those that are open.
func (g Guest) Close() error {
	var errs []error
	for _, f := range []*os.File{g.In, g.Out, g.Door} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Names tell an agent's pipes from all others on this machine as long as it
// runs: they are inode numbers.
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
		return 0, fmt.Errorf("look at a pipe: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return 0, errors.New("it is no pipe")
	}
	return st.Ino, nil
}

// size is the capacity in bytes asked for each of the connection's pipes: one
// that holds several whole frames keeps both sides from waking each other in
// the middle of one. What a sandbox leaves in one is charged to its own cgroup.
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
	host = nil // NewDuplex closes what it is given
	for _, fd := range []int{down[1], up[0]} {
		// Where so much is not to be had, the default does, at half the speed.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
	}
	d, err := wire.NewDuplex(up[0], down[1])
	return d, guest, err
}

// reopen returns a new end of a pipe. It never waits for another end.
func reopen(fd, how int) (int, error) {
	end, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), how|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a pipe again: %w", err)
	}
	return end, nil
}

// Take begins anew on the pipes of an agent, of which the process pid holds its
// ends. Nobody else may use them.
func Take(ctx context.Context, pid int, names Names) (_ *wire.Duplex, err error) {
	// What the process has open may change at any time, and is its own choice:
	// a descriptor is looked at before it is opened.
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

// find returns a reference (O_PATH) to each of the pipes, also when it fails.
func find(pid int, names Names) (map[uint64]int, error) {
	held := map[uint64]int{}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return held, fmt.Errorf("look for the agent's pipes: %w", err)
	}
	for _, e := range entries {
		fd, err := unix.Open(filepath.Join(dir, e.Name()), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it was closed meanwhile
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
		return held, fmt.Errorf("process %d holds %d of the agent's 3 pipes", pid, len(held))
	}
	return held, nil
}

// knock has the agent begin anew, and skips what an earlier host has left
// unread.
func knock(ctx context.Context, door int, conn *wire.Duplex) error {
	nonce := make([]byte, wire.KnockSize)
	rand.Read(nonce)
	// So little is written whole or not at all, and the latter where an agent
	// has left the door full.
	if _, err := unix.Write(door, nonce); err != nil {
		return fmt.Errorf("knock at the agent's door: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	err := skipPast(conn, nonce)
	if !stop() {
		return fmt.Errorf("wait for the agent: %w", context.Cause(ctx))
	}
	return err
}

// maxStale bounds what is skipped: both pipes' worth of bytes is already more
// than an agent that stopped can have left.
const maxStale = 4 * size

// skipPast reads until the nonce. After it an agent says nothing unasked.
func skipPast(r io.Reader, nonce []byte) error {
	buf := make([]byte, 64<<10)
	kept := 0 // the end of what was read before, which may begin the nonce
	for total := 0; total < maxStale; {
		n, err := r.Read(buf[kept:])
		if at := bytes.Index(buf[:kept+n], nonce); at >= 0 {
			if at+len(nonce) != kept+n {
				return errors.New("the agent speaks unasked")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for the agent: %w", err)
		}
		total += n
		have := kept + n
		kept = min(have, len(nonce)-1)
		copy(buf, buf[have-kept:have])
	}
	return errors.New("the agent does not come to the door")
}
