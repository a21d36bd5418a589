// Package driver is the seam between a node and a way to isolate: a Driver
// starts machines, each of which runs the guest agent of one session and
// nothing else of ours. A driver knows nothing of commands, names or tenants.
package driver

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// Driver starts isolated machines.
type Driver interface {
	// Start starts a machine and returns it with the host's end of its guest
	// agent's connection. If it fails, or ctx ends, nothing is left behind.
	Start(ctx context.Context, spec Spec) (Machine, net.Conn, error)
	// Restore starts a machine that goes on from a folder that
	// Machine.SnapshotMemory filled, in the place of spec.Snapshot. memory
	// returns the folder; it is called when all else is ready, so that it can
	// be filled meanwhile. RootFS, Agent, VCPUs and MemoryBytes must be as they
	// were (CodeBadRequest), and so must this program's version of the isolation
	// (skerry.CodeSnapshotIncompatible). The guest agent has lost its
	// connection: Attach makes one.
	Restore(ctx context.Context, spec Spec, memory func() (dir string, err error)) (Machine, error)
	// Recover returns the machines that an earlier process of this
	// installation started and that still run, after removing whatever it
	// left that is not a running machine.
	Recover(ctx context.Context) ([]Machine, error)
}

// Spec is what a machine is made of.
type Spec struct {
	// ID names the machine; it is unique on this host and a plain file name.
	ID       string
	Hostname string
	// RootFS is the EROFS image that the machine's root starts from.
	RootFS string
	// Agent is an EROFS image that holds the guest agent as "agent".
	Agent string
	// NetNS is the path of the network namespace that holds the machine's
	// only interface; empty for a machine with a loopback alone.
	NetNS string
	// VCPUs and MemoryBytes are what the machine sees and is held to.
	VCPUs       int
	MemoryBytes int64
	// DiskBytes bounds what can be written over the image.
	DiskBytes int64
	// Processes bounds the machine's processes as the host counts them.
	Processes int
	// Snapshot is a folder that Machine.Snapshot filled; the machine's files
	// start from it. Empty for the image alone.
	Snapshot string
	// Mounts are the host's file trees that the machine sees beside its own.
	// Machine.Snapshot leaves them out.
	Mounts []Mount
}

// Mount shows a file tree of the host to a machine. Nothing that is in the
// tree is ever executed, followed or opened as a device by the host.
type Mount struct {
	// Path is where the machine sees the tree: absolute, and not at, above or
	// below another mount's. A directory that is missing there is made.
	Path string
	// Tree is a detached mount (open_tree(2), fsmount(2)). The machine's is the
	// only place it is attached to, so it goes with the machine, whatever ends
	// that. The caller closes its own reference after Start.
	Tree     *os.File
	ReadOnly bool
}

// MountError says that a mount's path cannot be made a folder of the machine:
// there is a file, for example.
type MountError struct {
	Path string
	Err  error
}

func (e *MountError) Error() string { return fmt.Sprintf("mount %s: %v", e.Path, e.Err) }
func (e *MountError) Unwrap() error { return e.Err }

// Machine is a running isolated machine.
type Machine interface {
	ID() string
	// Attach opens a new connection to the guest agent, in place of the one
	// that was lost: the caller has closed it, or it was an earlier process's.
	Attach(ctx context.Context) (net.Conn, error)
	// Done is closed when the machine has ended, for whatever reason.
	Done() <-chan struct{}
	// Reason says in a sentence why the machine ended by itself; valid after
	// Done.
	Reason() string
	// Snapshot writes the machine's files, as far as they differ from the
	// image, into dir, an empty folder on a filesystem with room for them. All
	// files are of one moment, in which nothing in the machine runs; it goes
	// on afterwards. If it fails, what is in dir is of no use.
	Snapshot(ctx context.Context, dir string, attrs AttrReader) error
	// SnapshotMemory writes all that the machine is into dir, an empty folder:
	// its files, its memory and its processes, at one moment. It goes on
	// afterwards, connections and all, from which a machine that is restored
	// finds itself cut off. If it fails, what is in dir is of no use.
	SnapshotMemory(ctx context.Context, dir string) error
	// Pause stops everything in the machine, the guest agent included, and
	// Resume lets it go on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Usage reads what the machine has used; it works until Stop.
	Usage() (Usage, error)
	// Stop ends the machine if it runs and gives back all that it held.
	Stop(ctx context.Context) error
}

// AttrReader asks the machine's guest about files, by their absolute paths. It
// answers for each, in their order.
type AttrReader func(ctx context.Context, paths []string) ([]Attrs, error)

// Attrs is what a guest says of a file. Of a file that is not there any more
// only Missing is set.
type Attrs struct {
	Missing bool
	ModTime time.Time
	// Xattrs are the extended attributes that are not text.
	Xattrs map[string]string
}

// Usage is what a machine has used since its start.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
}
