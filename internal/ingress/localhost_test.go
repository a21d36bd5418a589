package ingress

import (
	"errors"
	"net"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListenLocalhost: a port is at both addresses of localhost or at none.
func TestListenLocalhost(t *testing.T) {
	ln, err := listenLocalhost(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port // both have one of their own for port 0
	ln.Close()
	if ln, err = listenLocalhost(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ln.Accept()
		if err != nil || got.RemoteAddr().String() != conn.LocalAddr().String() {
			t.Fatalf("%s: %v, %v", host, got, err)
		}
		got.Close()
		conn.Close()
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	other, err := net.Listen("tcp", net.JoinHostPort("::1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if ln, err := listenLocalhost(t.Context(), port); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("beside another program at ::1: %v, %v", ln, err)
	}
	if ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
		t.Errorf("what could not be opened whole is left: %v", err)
	} else {
		ln.Close()
	}
}
