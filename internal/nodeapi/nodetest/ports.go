package nodetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/skerry-dev/skerry"
)

var portTests = map[string]func(*suite){
	"both ways":  (*suite).bothWays,
	"half-close": (*suite).halfClose,
	"close":      (*suite).closeConn,
	"peer ends":  (*suite).peerEnds,
	"nobody":     (*suite).nobody,
	"deadline":   (*suite).connDeadline,
	"stop":       (*suite).stopWithConn,
}

// pair connects to a listener of a session.
func (s *suite) pair(session string) (ours net.Conn, theirs *net.TCPConn) {
	s.Helper()
	ln, port := s.Listen(s.T, session)
	defer ln.Close()
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			s.Error(err)
			return
		}
		accepted <- c.(*net.TCPConn)
	}()
	conn, err := s.Node.Dial(s.ctx, session, port, netip.MustParseAddr("192.0.2.1"))
	s.ok(err)
	s.Cleanup(func() { conn.Close() })
	peer := wait(s, "a connection", accepted)
	s.Cleanup(func() { peer.Close() })
	for _, c := range []net.Conn{conn, peer} {
		s.ok(c.SetDeadline(time.Now().Add(patience / 2)))
	}
	return conn, peer
}

func closeWrite(s *suite, c net.Conn) {
	s.Helper()
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		s.Errorf("a %T cannot be closed for writing", c)
		c.Close()
	} else if err := half.CloseWrite(); err != nil {
		s.Error(err)
	}
}

// bothWays sends a lot in both directions at once.
func (s *suite) bothWays() {
	ours, theirs := s.pair(s.start())
	up, down := noise(3<<20), noise(2<<20)
	send := func(c net.Conn, b []byte) {
		if _, err := c.Write(b); err != nil {
			s.Error(err)
		}
	}
	got := make(chan []byte, 1)
	go send(ours, up)
	go send(theirs, down)
	go func() {
		b := make([]byte, len(up))
		_, err := io.ReadFull(theirs, b)
		if err != nil {
			s.Error(err)
		}
		got <- b
	}()
	b := make([]byte, len(down))
	_, err := io.ReadFull(ours, b)
	s.ok(err)
	if !bytes.Equal(b, down) || !bytes.Equal(wait(s, "the data", got), up) {
		s.Error("the data is another")
	}
}

// halfClose ends one direction after the other.
func (s *suite) halfClose() {
	ours, theirs := s.pair(s.start())
	request := noise(1 << 20)
	go func() {
		if _, err := ours.Write(request); err != nil {
			s.Error(err)
		}
		closeWrite(s, ours)
	}()
	got, err := io.ReadAll(theirs)
	s.ok(err)
	if !bytes.Equal(got, request) {
		s.Errorf("%d bytes arrived, want %d", len(got), len(request))
	}
	// The other direction is open still.
	go func() {
		if _, err := theirs.Write(request); err != nil {
			s.Error(err)
		}
		if err := theirs.CloseWrite(); err != nil {
			s.Error(err)
		}
	}()
	got, err = io.ReadAll(ours)
	s.ok(err)
	if !bytes.Equal(got, request) {
		s.Errorf("%d bytes came back, want %d", len(got), len(request))
	}
}

// closeConn closes a connection: what was written arrives, and the end.
func (s *suite) closeConn() {
	id := s.start()
	ours, theirs := s.pair(id)
	_, err := ours.Write([]byte("the last words"))
	s.ok(err)
	s.ok(ours.Close())
	got, err := io.ReadAll(theirs)
	if string(got) != "the last words" || err != nil {
		s.Errorf("%q arrived, %v", got, err)
	}
	if _, err := ours.Read(make([]byte, 1)); err == nil {
		s.Error("a closed connection is read from")
	}
	// Also one whose other side goes on sending.
	ours, theirs = s.pair(id)
	flooded := make(chan error, 1)
	go func() {
		for {
			if _, err := theirs.Write(make([]byte, 64<<10)); err != nil {
				flooded <- err
				return
			}
		}
	}()
	_, err = ours.Read(make([]byte, 1))
	s.ok(err)
	s.ok(ours.Close())
	wait(s, "the end of the other side", flooded)
}

// peerEnds has the other side end: well, and by a reset.
func (s *suite) peerEnds() {
	id := s.start()
	ours, theirs := s.pair(id)
	_, err := theirs.Write([]byte("all"))
	s.ok(err)
	s.ok(theirs.Close())
	if got, err := io.ReadAll(ours); string(got) != "all" || err != nil {
		s.Errorf("%q, %v", got, err)
	}
	ours, theirs = s.pair(id)
	s.ok(theirs.SetLinger(0))
	s.ok(theirs.Close())
	if got, err := io.ReadAll(ours); err == nil {
		s.Errorf("a connection that was reset ended well, after %q", got)
	}
}

// nobody listens.
func (s *suite) nobody() {
	id := s.start()
	ln, port := s.Listen(s.T, id)
	s.ok(ln.Close())
	_, err := s.Node.Dial(s.ctx, id, port, netip.Addr{})
	s.code("Dial to where nobody listens", err, skerry.CodeUnavailable)
	for _, port := range []int{-1, 0, skerry.MaxPort + 1} {
		if _, err := s.Node.Dial(s.ctx, id, port, netip.Addr{}); err == nil {
			s.Errorf("there is a port %d", port)
		}
	}
}

// connDeadline ends a read that waits.
func (s *suite) connDeadline() {
	ours, theirs := s.pair(s.start())
	s.ok(ours.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		s.Errorf("a read at its deadline: %v", err)
	}
	s.ok(ours.SetReadDeadline(time.Time{}))
	_, err := theirs.Write([]byte("x"))
	s.ok(err)
	_, err = ours.Read(make([]byte, 1))
	s.ok(err)
	s.ok(ours.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)))
	for err == nil { // nobody reads
		_, err = ours.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		s.Errorf("a write at its deadline: %v", err)
	}
}

// stopWithConn ends a session with a connection.
func (s *suite) stopWithConn() {
	id := s.start()
	ours, _ := s.pair(id)
	read := make(chan error, 1)
	go func() {
		_, err := ours.Read(make([]byte, 1))
		read <- err
	}()
	s.stop(id)
	if err := wait(s, "the end of a connection", read); err == nil || errors.Is(err, io.EOF) {
		s.Errorf("at the end of the session, a connection says %v", err)
	}
}
