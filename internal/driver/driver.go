// Package driver is the interface between a node and a way to isolate: a Driver
// starts machines, each of which runs the guest agent of one session and
// nothing else of ours. A driver knows nothing of commands, names or tenants.
package driver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// Driver starts isolated machines.
type Driver interface {
	// Name says what isolates, in a word.
	Name() string
	// Capabilities are what the driver can do beyond starting machines and saving
	// their files. A call that needs more than that fails.
	Capabilities() Capabilities
	// Format returns the format that Source.Files must have, or Source.Memory.
	Format(memory bool) Format
	// Start starts a machine. Its guest agent is reached by Attach. If Start fails,
	// or ctx ends, nothing is left behind.
	Start(ctx context.Context, spec Spec) (Machine, error)
	// Prepare makes a machine as far as that is possible before it is known what
	// it starts from. Of the specification, ID, Interfaces, VCPUs, MemoryBytes,
	// DiskBytes, Processes and Background count; Agent is any image of an agent.
	// Recover removes what an earlier process has prepared and not started.
	Prepare(ctx context.Context, spec Spec) (Blank, error)
	// Recover returns the machines that an earlier process of this
	// installation started and that still run, after removing whatever it
	// left that is not a running machine.
	Recover(ctx context.Context) ([]Machine, error)
	// Memory reads how close all machines together are to their limit; Limit is 0
	// if there is none.
	Memory() (Memory, error)
}

// Capabilities are what one driver can do and another cannot.
type Capabilities struct {
	// Memory: Saving.Memory, and a start from Source.Memory.
	Memory bool
	// Fork: a start from Source.Fork.
	Fork bool
	// Pause: Machine.Pause and Resume, and Saving.Hold.
	Pause bool
	// Prepare: Driver.Prepare.
	Prepare bool
	// Volumes are the kinds of volumes that a machine can have.
	Volumes []VolumeKind
}

// Blank is a machine that was prepared and has not started. Nothing runs in it, and it
// has no data of anyone.
type Blank interface {
	ID() string
	// Alive reports whether it still runs. It does not ask the machine's kernel.
	Alive() bool
	// Check asks the machine's kernel whether it answers.
	Check(ctx context.Context) error
	// Start starts the machine, as Driver.Start does. It can be called once. What
	// counted for Prepare, except Background, must be the same, and there are no
	// volumes. A machine that goes on (Source.Runs) can have other Interfaces, as many.
	// Nothing is left behind if it fails.
	Start(ctx context.Context, spec Spec) (Machine, error)
	// Stop gives back all that it holds, unless Start was called. It can be repeated.
	Stop(ctx context.Context) error
}

// Format says what made a saved folder. A machine starts from one of its own
// driver's Format, and from no other.
type Format struct {
	Driver string
	// Kind is "files" or "memory", Version what must be the same to start from it.
	Kind, Version string
}

func (f Format) String() string { return f.Driver + " " + f.Kind + " " + f.Version }

// Spec is what a machine is made of.
type Spec struct {
	// ID names the machine; it is unique on this host and a plain file name.
	ID       string
	Hostname string
	// RootFS is the EROFS image that the machine's root starts from.
	RootFS string
	// Agent is an EROFS image that holds the guest agent as "agent".
	Agent string
	// Interfaces are the machine's network interfaces beside its loopback.
	Interfaces []Interface
	// VCPUs and MemoryBytes are what the machine sees and is held to.
	VCPUs       int
	MemoryBytes int64
	// DiskBytes bounds what can be written over the image.
	DiskBytes int64
	// Processes bounds the machine's processes as the host counts them.
	Processes int
	// Background gives the machine a small CPU weight until Weigh.
	Background bool
	// Source is what the machine starts from.
	Source Source
	// Volumes are what the machine sees beside its own files. Machine.Save
	// leaves them out.
	Volumes []Volume
}

// Source is what a machine starts from: its image alone if no field is set. At
// most one is.
type Source struct {
	// Files is a folder that Machine.Save filled. The caller keeps it until
	// Start has returned.
	Files string
	// Memory is a folder that Machine.Save filled with memory. RootFS, Agent, VCPUs
	// and MemoryBytes must be as they were (CodeBadRequest), and so must the
	// driver's version (skerry.CodeSnapshotIncompatible).
	Memory string
	// Fork is a save of a running machine of the same driver. The rest of the
	// specification must be the same as that machine's own. Start returns without an
	// error only if the save has succeeded.
	Fork Fork
}

// Runs reports whether the machine continues processes that ran before. Their guest
// agent has lost its connection, and the caller must renew it.
func (s Source) Runs() bool { return s.Memory != "" || s.Fork != nil }

// Fork is a save of a running machine with its memory. Any number of machines start from
// it, also while it is under way. The running machine goes on.
type Fork interface {
	// Standing reports whether the running machine has done nothing yet that will not be
	// saved. Whoever wants it as it is now can start from this Fork then.
	Standing() bool
	// Done is closed when the save has ended. Err is its error, valid after that.
	Done() <-chan struct{}
	Err() error
}

// Interface is a network interface of the host's that becomes the machine's.
type Interface struct {
	Kind InterfaceKind
	// NetNS is the path of the network namespace that holds the interface, and
	// Name its name there. A namespace of a veth holds no other.
	NetNS string
	Name  string
	// Address is the machine's address, Gateway its default gateway. MTU 0 is the
	// interface's own MTU.
	Address netip.Prefix
	Gateway netip.Addr
	MTU     int
}

// InterfaceKind is how packets come out of an Interface.
type InterfaceKind string

const (
	// Veth is one end of a pair, with the machine's addresses and routes set on it.
	Veth InterfaceKind = "veth"
	// Tap is a tap device, whose frames the machine's monitor reads and writes.
	Tap InterfaceKind = "tap"
)

// Volume is a part of the host's filesystem that a machine sees. The host never
// executes, follows or opens as a device anything that is in it.
type Volume struct {
	Kind VolumeKind
	// Path is where the machine sees the volume: absolute, and not at, above or
	// below another one's. A directory that is missing there is made.
	Path string
	// Source is what the kind says. The caller closes its own reference after
	// Start.
	Source   *os.File
	ReadOnly bool
}

// VolumeKind is what the source of a Volume is.
type VolumeKind string

const (
	// Tree is a detached mount of the host's (open_tree(2), fsmount(2)). It is attached
	// in the machine only, so it disappears when the machine ends.
	Tree VolumeKind = "tree"
	// Disk is a file with an ext4 filesystem, which only the machine's kernel
	// mounts.
	Disk VolumeKind = "disk"
)

// VolumeError says that a volume's path cannot be made a folder of the machine:
// there is a file, for example.
type VolumeError struct {
	Path string
	Err  error
}

func (e *VolumeError) Error() string { return fmt.Sprintf("volume at %s: %v", e.Path, e.Err) }
func (e *VolumeError) Unwrap() error { return e.Err }

// UnsavableError says that a machine cannot be saved as it is: its kernel does
// not answer, or its state cannot be serialized. Other failures of a save are the
// host's: a full disk, for example.
type UnsavableError struct {
	// Why is a sentence for the sandbox's user: it has no path of the host.
	Why string
	Err error
}

func (e *UnsavableError) Error() string {
	return fmt.Sprintf("the sandbox cannot be saved: %s: %v", e.Why, e.Err)
}
func (e *UnsavableError) Unwrap() error { return e.Err }

// Saving are the options of a Save.
type Saving struct {
	// Memory saves the memory and the processes too, and not only the files, as far
	// as they differ from the image. The machine's connections go on; a machine that
	// starts from what was saved has none.
	Memory bool
	// Hold leaves the machine paused, so that nothing happens in it that is not
	// saved.
	Hold bool
	// GoesOn, if not nil, is called when a machine whose memory is saved goes on, which
	// may be before all is saved. Save returns later.
	GoesOn func()
}

// Machine is a running isolated machine.
type Machine interface {
	ID() string
	// Attach opens a connection to the guest agent: the first one, or a new one if the
	// caller has closed the last one or an earlier process had it.
	Attach(ctx context.Context) (net.Conn, error)
	// Done is closed when the machine has ended, for whatever reason.
	Done() <-chan struct{}
	// Reason says in a sentence why the machine ended by itself; valid after
	// Done.
	Reason() string
	// Save writes the machine into dir, an empty folder on a filesystem with room
	// for it. The files are those of one moment, in which nothing in the machine runs; it
	// continues afterwards. Nothing that runs in the machine takes part. A machine that is
	// paused is paused afterwards. If Save fails, the content of dir is undefined, and
	// the machine is as before. It fails with an UnsavableError if the machine is
	// why.
	Save(ctx context.Context, dir string, how Saving) error
	// Fork begins a Save with memory into dir. goesOn is called once, when the machine
	// goes on or the save has failed, and before the save is done. ctx ends the save.
	Fork(ctx context.Context, dir string, goesOn func()) (Fork, error)
	// Format is that of what Save writes. A machine that an earlier process started
	// may have another one than its driver.
	Format(memory bool) Format
	// SaveSize returns about how many bytes Save would write now. It works until
	// Stop.
	SaveSize(memory bool) (int64, error)
	// Pause stops everything in the machine, the guest agent included, and
	// Resume lets it go on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Activity returns what runs in the machine besides the guest agent. The machine must
	// not be paused. The answer comes from the machine itself, so the host must not
	// rely on it.
	Activity(ctx context.Context) (Activity, error)
	// Usage reads what the machine has used; it works until Stop.
	Usage() (Usage, error)
	// Memory reads how close the machine is to running out of memory.
	Memory() (Memory, error)
	// PinnedMemory returns the bytes that the machine holds and that the host's
	// kernel cannot take back from it. A result of at most enough may be too high,
	// which is cheaper to compute.
	PinnedMemory(enough int64) (int64, error)
	// Confine lowers the amount of memory at which the host's kernel kills processes of
	// the machine; 0 restores the machine's limit.
	Confine(bytes int64) error
	// Reclaim has the host's kernel take back the machine's memory, above all by writing it
	// to swap, as far as that is possible until ctx ends. It returns the bytes that were
	// given back, 0 if the driver cannot; they come back when they are used. What fails
	// changes nothing for the machine.
	Reclaim(ctx context.Context) (int64, error)
	// Weigh sets the machine's CPU weight to factor times the usual one of its size, which is
	// also that of a machine that was not started in the background. It is bounded by what the
	// kernel takes.
	Weigh(factor float64) error
	// Relieve ends the process that holds most of the machine's memory, without
	// the guest agent's help, and returns what the machine says about it.
	Relieve(ctx context.Context) (string, error)
	// End makes the machine end as if by itself, for the given reason. It does not
	// wait.
	End(reason string)
	// Stop ends the machine if it runs and gives back all that it held.
	Stop(ctx context.Context) error
}

// Activity is what runs in a machine besides its guest agent.
type Activity struct {
	// Processes is the number of processes.
	Processes int
	// Timers are those that the processes wait for, at most MaxTimers, the earliest
	// first. It is empty if the driver cannot list timers.
	Timers []Timer
}

// Timer is a timer of a process.
type Timer struct {
	// ID changes when the timer is set again.
	ID int64
	// Left is the time until it expires.
	Left time.Duration
}

// MaxTimers is the maximum number of timers in an Activity.
const MaxTimers = 1024

// Usage is what a machine has used since its start.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
	// OOMKills is the number of processes of the machine that the host's kernel killed
	// because memory ran out.
	OOMKills int64
}

// Memory is the use of the memory of a machine, or of all together.
type Memory struct {
	// Used is what they hold, without what the host's kernel can take
	// back from them. It is exact only near the limit.
	Used int64
	// Limit is the amount at which the host's kernel begins to kill processes of the
	// machine; 0 if it is not known. Size is the memory that the machine sees, a little
	// less.
	Limit, Size int64
}
