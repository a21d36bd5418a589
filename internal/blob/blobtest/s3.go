// Package blobtest starts the storage that tests of blobs need.
package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/blob"
)

const (
	bucket = "skerry-test"
	// startTime is what a machine under load may take to start the server.
	startTime = 30 * time.Second
	// startPoll is how often it is looked at meanwhile.
	startPoll = 20 * time.Millisecond
)

// S3Server is an S3 server on a loopback port.
type S3Server struct {
	// Config names an empty bucket on it.
	Config blob.S3Config
	// Dir has the bucket's objects, as files with their names.
	Dir string

	address string
	stop    func()
}

// StartS3 starts an S3 server that ends with the test. The first test on a
// machine compiles it, which takes minutes (scripts/test does so before). Under
// -short, which is how "make check" runs, the test is left out.
func StartS3(t testing.TB) *S3Server {
	t.Helper()
	if testing.Short() {
		t.Skip("S3 is left out under -short")
	}
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := &S3Server{address: address, Dir: filepath.Join(t.TempDir(), bucket)}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.Config = blob.S3Config{
		Endpoint: "http://" + address, Bucket: bucket, AccessKey: "test-access", SecretKey: "test-secret",
	}
	s.Start(t)
	return s
}

// Start starts the server again that Stop ended.
func (s *S3Server) Start(t testing.TB) {
	t.Helper()
	program, err := serverProgram()
	if err != nil {
		t.Fatal(err)
	}
	output := &bytes.Buffer{}
	cmd := exec.Command(program, "--quiet", "--port", s.address, "posix", filepath.Dir(s.Dir))
	cmd.Env = []string{"ROOT_ACCESS_KEY_ID=" + s.Config.AccessKey, "ROOT_SECRET_ACCESS_KEY=" + string(s.Config.SecretKey)}
	cmd.Stdout, cmd.Stderr = output, output
	// The server does not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		// What Pdeathsig waits for is the end of this thread.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		<-ended
	})
	t.Cleanup(s.stop)
	if err := awaitServer(s.address, ended); err != nil {
		s.stop()
		t.Fatalf("%v: %s", err, output)
	}
}

// Stop ends the server. Its objects stay for the next Start.
func (s *S3Server) Stop() { s.stop() }

// serverProgram returns the path of the compiled server.
var serverProgram = sync.OnceValues(func() (string, error) {
	folder, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/skerry-dev/skerry/internal/blob/blobtest").Output()
	if err != nil {
		return "", fmt.Errorf("find the S3 server's module: %w", err)
	}
	// The go command keeps the program in its cache.
	cmd := exec.Command("go", "tool", "-n", "versitygw")
	cmd.Dir = filepath.Join(strings.TrimSpace(string(folder)), "s3server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off")
	var output bytes.Buffer
	cmd.Stderr = &output
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("compile the S3 server: %w: %s", err, &output)
	}
	return strings.TrimSpace(string(path)), nil
})

// freeAddress returns a loopback address that nothing listened on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// awaitServer waits until a server takes connections.
func awaitServer(address string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ended:
			return fmt.Errorf("the S3 server ended at once")
		case <-ctx.Done():
			return fmt.Errorf("the S3 server takes no connections: %w", err)
		}
	}
}
