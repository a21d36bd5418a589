package node

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/nodetest"
	"github.com/skerry-dev/skerry/internal/nodeapi/remote"
	"github.com/skerry-dev/skerry/internal/output"
	"github.com/skerry-dev/skerry/internal/snapshot"
)

// TestConformance holds the node, with a driver that isolates nothing, to the suite.
func TestConformance(t *testing.T) { nodetest.Run(t, conforming) }

// TestConformanceThroughSocket does it through the socket.
func TestConformanceThroughSocket(t *testing.T) {
	nodetest.Run(t, func(t *testing.T) nodetest.Fixture {
		f := conforming(t)
		path := filepath.Join(t.TempDir(), "node.sock")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := remote.NewServer(remote.ServerConfig{Node: f.Node, Collector: f.Collector, Log: slog.New(slog.DiscardHandler)})
		served := make(chan error, 1)
		go func() { served <- server.Serve(ln) }()
		client := remote.NewClient(remote.ClientConfig{Dial: remote.DialUnix(path)})
		t.Cleanup(func() {
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			if err := server.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		f.Node, f.Collector = client, client
		return f
	})
}

// conforming returns a node with real storage of snapshots, folders as drives, and
// the machine's own network. It ends with the test.
func conforming(t *testing.T) nodetest.Fixture {
	dir := t.TempDir()
	var mu sync.Mutex
	steps := map[string]func(string) error{}
	d, err := fake.New(fake.Config{Dir: filepath.Join(dir, "machines"), Before: func(op, id string) error {
		mu.Lock()
		f := steps[op]
		mu.Unlock()
		if f == nil {
			return nil
		}
		return f(id)
	}})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.OpenDir(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	snapshots, err := snapshot.Open(snapshot.Options{
		Blobs: blobs, Key: make([]byte, snapshot.KeySize), CacheDir: filepath.Join(dir, "cache"), CacheBytes: 1 << 30, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{
		Dir: filepath.Join(dir, "sessions"), SnapshotWork: filepath.Join(dir, "work"), Driver: d, Networks: hostNetworks{}, Images: anyImage{},
		Snapshots: snapshots, Drives: folders(filepath.Join(dir, "drives")), Agent: "agent", Output: output.Config{}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	points := map[nodetest.Point]string{nodetest.Start: "start", nodetest.Stop: "stop", nodetest.Save: "save"}
	return nodetest.Fixture{
		Node: n, Collector: snapshots,
		Spec: nodeapi.SessionSpec{Hostname: "one", VCPUs: 1, MemoryMB: 512},
		Step: func(p nodetest.Point, f func(string) error) {
			mu.Lock()
			defer mu.Unlock()
			steps[points[p]] = f
		},
		Lose: func(id string) {
			if err := d.Machine(id).Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		},
		Listen: nodetest.Loopback,
		Lacks: map[nodetest.Capability]string{
			nodetest.Memory: "the fake driver has no memory snapshots",
			nodetest.Forks:  "the fake driver has no memory snapshots",
			nodetest.Bytes:  "the protocol of the guest agent is JSON; clients of the API cannot send other arguments either",
		},
	}
}

// hostNetworks gives all sessions the machine's own network.
type hostNetworks struct{ noNetworks }

func (hostNetworks) Acquire(context.Context) (nodeapi.Lease, error)       { return hostLease{}, nil }
func (hostNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) { return hostLease{}, nil }
func (hostNetworks) Events(context.Context, string, int) ([]skerry.NetworkEvent, error) {
	return []skerry.NetworkEvent{{Protocol: "tls"}}, nil
}

type hostLease struct{ noLease }

func (hostLease) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}

// folders are drives.
type folders string

func (f folders) path(id string) string { return filepath.Join(string(f), id) }

func (f folders) Create(_ context.Context, id string, _ int64) error {
	return os.MkdirAll(f.path(id), 0o777)
}

func (f folders) Delete(_ context.Context, id string) error { return os.RemoveAll(f.path(id)) }

func (f folders) Fork(_ context.Context, id, from string) error {
	if _, err := os.Stat(f.path(from)); err != nil {
		return err
	}
	return exec.Command("cp", "-a", f.path(from), f.path(id)).Run()
}

func (f folders) Retain(_ context.Context, ids []string) error {
	entries, err := os.ReadDir(string(f))
	for _, e := range entries {
		if !slices.Contains(ids, e.Name()) {
			err = os.RemoveAll(f.path(e.Name()))
		}
	}
	return err
}

func (f folders) Attach(_ context.Context, id string) (*drive.Mount, error) { return open(f.path(id)) }

func (f folders) Freeze(ctx context.Context, id string) (*drive.Mount, error) {
	if _, err := os.Stat(f.path(id)); err != nil {
		return nil, fs.ErrNotExist
	}
	frozen := f.path(skerry.NewID("frozen_"))
	if err := exec.CommandContext(ctx, "cp", "-a", f.path(id), frozen).Run(); err != nil {
		return nil, err
	}
	return open(frozen)
}

func open(path string) (*drive.Mount, error) {
	tree, err := os.Open(path)
	return &drive.Mount{Tree: tree}, err
}

func (f folders) Settle(context.Context, string) error { return nil }
func (f folders) Recover(context.Context) error        { return nil }
