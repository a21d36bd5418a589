package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// A new connection comes in by a second process of the agent's own binary,
// which the host executes in the sandbox with the connection as descriptors 3
// and 4. It hands them to the agent over an abstract unix socket: one packet of
// the secret with the descriptors beside it, answered by one byte.
//
// Everything in the sandbox can connect to that socket. It gets nothing for
// it: the agent talks to root alone, wants the secret that the host gave it in
// Setup, and after a wrong one listens to nobody for a while.

// SecretEnv is the environment variable that gives Attach the secret.
const SecretEnv = "SKERRY_ATTACH_SECRET"

const (
	doorName = "@skerry-agent" // "@": the abstract name space
	// doorPatience is how long a caller may take to say the secret.
	doorPatience = 2 * time.Second
	// doorPenalty is how long nobody is heard after a wrong secret.
	doorPenalty = 100 * time.Millisecond
	// maxSecret bounds the packet.
	maxSecret = 1 << 10

	doorTaken   = 1
	doorRefused = 2
)

// door is the listening end.
type door struct {
	a    *Agent
	f    *os.File
	raw  syscall.RawConn
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// listenAttach opens the door before any command can take its name.
func listenAttach(a *Agent) (*door, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the attach socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: doorName})
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("opening the attach socket: %w", err)
	}
	d := &door{a: a}
	if d.f, d.raw, err = pollable(fd, "attach"); err != nil {
		return nil, err
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.wg.Go(d.run)
	return d, nil
}

// pollable takes over a non-blocking descriptor.
func pollable(fd int, name string) (*os.File, syscall.RawConn, error) {
	f := os.NewFile(uintptr(fd), name)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
	}
	return f, raw, err
}

func (d *door) close() {
	d.stop()
	d.f.Close()
	d.wg.Wait()
}

// run hears one caller at a time.
func (d *door) run() {
	for d.ctx.Err() == nil {
		fd, err := d.accept()
		if err == nil {
			err = d.hear(fd)
		}
		if err == nil || errors.Is(err, errNotRoot) {
			continue
		}
		select {
		case <-d.ctx.Done():
		case <-time.After(doorPenalty):
		}
	}
}

func (d *door) accept() (fd int, err error) {
	waitErr := d.raw.Read(func(listener uintptr) bool {
		fd, _, err = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return -1, waitErr
	}
	return fd, err
}

var errNotRoot = errors.New("the caller is not root")

// hear takes the connection that a caller has brought, if it may bring one.
func (d *door) hear(fd int) error {
	f, raw, err := pollable(fd, "caller")
	if err != nil {
		return err
	}
	defer f.Close()
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 {
		return errNotRoot
	}
	if err := f.SetDeadline(time.Now().Add(doorPatience)); err != nil {
		return err
	}
	secret, in, out, err := receiveSecret(raw)
	if err != nil {
		return err
	}
	setup, _ := d.a.config()
	if setup == nil || !sameSecret(secret, []byte(setup.Secret)) {
		unix.Close(in)
		unix.Close(out)
		f.Write([]byte{doorRefused}) // a caller that does not listen is none of ours
		return errors.New("wrong secret")
	}
	t, err := wire.NewDuplex(in, out)
	if err != nil {
		return err
	}
	d.a.serve(t)
	_, err = f.Write([]byte{doorTaken})
	return err
}

// sameSecret compares in a time that tells nothing but the lengths.
func sameSecret(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	var diff byte
	for i := range a {
		diff |= a[i] ^ b[i]
	}
	return diff == 0
}

// receiveSecret returns the packet and the two pipes that came with it.
func receiveSecret(raw syscall.RawConn) (secret []byte, in, out int, err error) {
	buf, oob := make([]byte, maxSecret), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn int
	waitErr := raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		err = waitErr
	}
	if err != nil {
		return nil, -1, -1, fmt.Errorf("receiving a connection: %w", err)
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return nil, -1, -1, err
	}
	if len(fds) != 2 || !isPipe(fds[0]) || !isPipe(fds[1]) {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, -1, -1, fmt.Errorf("received %d descriptors, want two pipes", len(fds))
	}
	return buf[:n], fds[0], fds[1], nil
}

// rights returns all descriptors of a control message.
func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receiving a connection: %w", err)
	}
	var fds []int
	for i := range messages {
		if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, more...)
		}
	}
	return fds, nil
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// Attach hands a connection of two pipes to the agent of this sandbox and
// returns once the agent has taken it.
func Attach(in, out int, secret string) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("attaching: %w", err)
	}
	defer unix.Close(s)
	// The agent hears its callers one after the other.
	const patience = 10 // seconds
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return fmt.Errorf("attaching: %w", err)
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: doorName}); err != nil {
		return fmt.Errorf("attaching: %w", err)
	}
	if err := unix.Sendmsg(s, []byte(secret), unix.UnixRights(in, out), nil, 0); err != nil {
		return fmt.Errorf("attaching: %w", err)
	}
	var answer [1]byte
	n, err := unix.Read(s, answer[:])
	switch {
	case err != nil:
		return fmt.Errorf("attaching: %w", err)
	case n != 1 || answer[0] != doorTaken:
		return errors.New("attaching: the agent refused the connection")
	}
	return nil
}
