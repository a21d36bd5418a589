package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// dialTimeout limits the time until a program accepts the connection.
const dialTimeout = 10 * time.Second

// Dial connects standard input and output to a port of the loopback interface. It runs
// in a process of its own, beside the agent. Its first byte of output is
// wire.Connected, after the connection is established.
//
// When the program at the port closes its half, Dial writes the number of bytes that it
// sent to standard error. The host needs this, because it sees the end of an output
// only when the process ends.
func Dial(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not a port", port)
	}
	conn, err := dialLoopback(port)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := os.Stdout.Write([]byte{wire.Connected}); err != nil {
		return err
	}
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		up <- errors.Join(err, conn.CloseWrite())
	}()
	sent, err := io.Copy(os.Stdout, conn)
	if err != nil {
		return err
	}
	if _, err := os.Stderr.Write(binary.BigEndian.AppendUint64(nil, uint64(sent))); err != nil {
		return err
	}
	return <-up
}

func dialLoopback(port string) (*net.TCPConn, error) {
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), dialTimeout)
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
