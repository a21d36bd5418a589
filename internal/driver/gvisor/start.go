package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/sandbox"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// sentryMemory is what a machine's cgroup gets on top of what its user asked
// for: the sentry's own heap and page tables. An idle one needs 30 MiB; file
// metadata and many processes need more.
const sentryMemory = 192 << 20

// helperOOMScore makes the kernel choose a sandboxed process over the sentry
// when the machine is out of memory: losing one process is better than losing
// the machine. The sandboxed processes' memory belongs to the sentry's helper
// processes on the host.
const helperOOMScore = 800

// The guest agent's descriptors of its pipes to the host.
const (
	fromHostFD = 3
	toHostFD   = 4
	doorFD     = 5
)

// name is in the formats of snapshots.
const name = "gvisor"

// Name implements driver.Driver.
func (d *Driver) Name() string { return name }

// Capabilities implements driver.Driver.
func (d *Driver) Capabilities() driver.Capabilities {
	return driver.Capabilities{Memory: true, Fork: true, Pause: true, Volumes: []driver.VolumeKind{driver.Tree}}
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := d.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec) (_ *machine, err error) {
	if _, err := network(spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	host, guest, err := pipes.New()
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	if spec.Source.Runs() {
		// The agent finds its connection ended, until Attach knocks.
		if err := host.Close(); err != nil {
			return nil, err
		}
		return d.proceed(ctx, spec, guest)
	}
	m, err := d.launch(ctx, spec, guest, func(m *machine) error {
		if err := m.box.StartRoot(m.conf, m.oci); err != nil {
			return err
		}
		if spec.Source.Files != "" {
			m.work.Go(m.awaitFiles)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	m.first.Store(&pipes.Conn{Duplex: host})
	return m, nil
}

// proceed starts a machine that goes on with processes that ran before.
func (d *Driver) proceed(ctx context.Context, spec driver.Spec, guest pipes.Guest) (*machine, error) {
	dir, ready := spec.Source.Memory, func() error { return nil }
	if fork := spec.Source.Fork; fork != nil {
		of, ok := fork.Of.(*machine)
		if !ok {
			return nil, fmt.Errorf("machine %s is another driver's", fork.Of.ID())
		}
		// It is saved while the new machine is made.
		done := make(chan struct{})
		var failed error
		go func() {
			defer close(done)
			failed = of.Save(ctx, fork.Dir, driver.Saving{Memory: true})
			fork.Saved(failed)
		}()
		defer func() { <-done }()
		dir = fork.Dir
		ready = func() error {
			if <-done; failed != nil {
				return failed
			}
			return checkImage(dir, spec)
		}
	} else if err := checkImage(dir, spec); err != nil {
		return nil, err
	}
	return d.launch(ctx, spec, guest, func(m *machine) error {
		if err := ready(); err != nil {
			return err
		}
		return m.load(dir, spec.Processes)
	})
}

// network returns the namespace with the machine's interface, "" for none. The
// sentry takes addresses, routes and sizes from what it finds there.
func network(spec driver.Spec) (netns string, err error) {
	switch {
	case len(spec.Interfaces) == 0:
		return "", nil
	case len(spec.Interfaces) > 1:
		return "", fmt.Errorf("%d interfaces: gVisor has one", len(spec.Interfaces))
	case spec.Interfaces[0].Kind != driver.Veth || spec.Interfaces[0].NetNS == "":
		return "", fmt.Errorf("an interface of kind %q: gVisor needs a veth in a namespace", spec.Interfaces[0].Kind)
	}
	return spec.Interfaces[0].NetNS, nil
}

// maxWeight is the kernel's own bound of a group's weight.
const maxWeight = 10_000

// launch makes a machine, puts it under its limits, and only then has begin
// bring it to life. guest is the agent's ends of its pipes.
func (d *Driver) launch(ctx context.Context, spec driver.Spec, guest pipes.Guest, begin func(*machine) error) (_ *machine, err error) {
	dir := d.machineDir(spec.ID)
	oci := ociSpec(spec, dir)
	if err := writeBundle(dir, oci, len(spec.Volumes)); err != nil {
		return nil, err
	}
	m := &machine{
		d: d, id: spec.ID, oci: oci, done: make(chan struct{}), calling: make(chan struct{}, 1), stopping: make(chan struct{}, 1),
		sentry: sentryVersion(), vcpus: spec.VCPUs, memory: spec.MemoryBytes, user: d.users.take(),
		diskLimit: spec.DiskBytes,
	}
	defer func() {
		if err == nil {
			return
		}
		aerr := d.abandon(ctx, spec.ID, m.proc, m.gofer)
		if m.words != nil {
			m.words.started()
			if said := m.words.last(); said != "" {
				err = fmt.Errorf("%w: %s", err, said)
			}
			m.words.close()
		}
		d.users.giveBack(m.user)
		err = errors.Join(withMount(spec.Volumes, err), aerr)
	}()
	if m.pipes, err = guest.Names(); err != nil {
		return nil, err
	}
	m.group, err = d.cfg.Cgroups.Create(spec.ID, cgroup.Limits{
		CPUs:        spec.VCPUs,
		MemoryBytes: spec.MemoryBytes + sentryMemory,
		Processes:   spec.Processes,
		Weight:      min(100*spec.VCPUs, maxWeight),
	})
	if err != nil {
		return nil, err
	}
	if m.conf, err = d.runscConfig(spec.ID, len(spec.Interfaces) > 0); err != nil {
		return nil, err
	}
	args, closeArgs, err := d.sandboxArgs(spec, m.group)
	if err != nil {
		return nil, err
	}
	defer closeArgs()
	runAs(args, m.user)
	args.Spec = oci
	args.BundleDir = dir
	args.PassFiles = map[int]*os.File{fromHostFD: guest.In, toHostFD: guest.Out, doorFD: guest.Door}
	if args.MountHints, err = boot.NewPodMountHints(oci); err != nil {
		return nil, err
	}
	if m.disk, err = dup(args.GoferFilestoreFiles[0]); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.disk.Close()
		}
	}()
	if m.words, err = hearWords(dir, true); err != nil {
		return nil, err
	}
	defer d.killLate(ctx, spec.ID)()
	if err := d.startProcesses(m, spec, args); err != nil {
		return nil, late(ctx, err)
	}
	m.words.started()
	if m.proc, err = openProcess(m.box.Getpid()); err != nil {
		return nil, err
	}
	if err := confine(m.group, m.proc.pid, args.CloneIntoCgroupFD == nil); err != nil {
		return nil, err
	}
	if err := m.limitProcesses(spec); err != nil {
		return nil, err
	}
	if err := m.save(); err != nil {
		return nil, err
	}
	// From here on sandboxed code runs.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := begin(m); err != nil {
		return nil, late(ctx, err)
	}
	if err := ctx.Err(); err != nil { // it may have been killed for that
		return nil, err
	}
	m.begin()
	return m, nil
}

// late names the end of ctx as the reason of what failed for it.
func late(ctx context.Context, err error) error {
	if end := ctx.Err(); end != nil && !errors.Is(err, end) {
		return fmt.Errorf("%w: %w", end, err)
	}
	return err
}

// socketPathMax is what the path of a Unix socket must be shorter than.
const socketPathMax = 108

// startProcesses starts a machine's gofer, if it needs one, and its sentry.
func (d *Driver) startProcesses(m *machine, spec driver.Spec, args *sandbox.Args) (err error) {
	if len(filepath.Join(m.conf.RootDir, "runsc-"+args.ID+".sock")) >= socketPathMax {
		// gVisor makes a socket with so long a path by way of its folder, and
		// has that open such that a process which is forked meanwhile inherits
		// it. A sentry does not start with a folder of the host.
		d.longPaths.Lock()
		defer d.longPaths.Unlock()
	}
	if len(spec.Volumes) > 0 {
		if m.gofer, err = d.startGofer(m.conf, spec, args); err != nil {
			return err
		}
		if args.CloneIntoCgroupFD == nil {
			if err := m.group.Add(m.gofer.pid); err != nil {
				return fmt.Errorf("limit the gofer: %w", err)
			}
		}
		if err := rank(m.gofer.pid, 0); err != nil {
			return err
		}
	}
	m.box, err = sandbox.New(m.conf, args)
	return err
}

// sandboxArgs opens the files that a sentry is started with. runsc closes
// those that it is given to keep; closeArgs closes the others.
func (d *Driver) sandboxArgs(spec driver.Spec, group *cgroup.Group) (_ *sandbox.Args, closeArgs func(), err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	open := func(f *os.File, ferr error) *os.File {
		if ferr != nil {
			err = errors.Join(err, ferr)
			return nil
		}
		if f != nil {
			files = append(files, f)
		}
		return f
	}
	rootfs := open(os.Open(spec.RootFS))
	agent := open(os.Open(spec.Agent))
	disk := open(nameless(d.cfg.DiskDir))
	cg := open(group.OpenForClone())
	if err != nil {
		return nil, nil, fmt.Errorf("open the machine's files: %w", err)
	}
	return &sandbox.Args{
		ID:                  spec.ID,
		IOFiles:             []*os.File{rootfs, agent},
		GoferFilestoreFiles: []*os.File{disk},
		GoferMountConfs: specutils.GoferMountConfFlags{
			{Lower: specutils.Erofs, Upper: specutils.AnonOverlay, Size: strconv.FormatInt(spec.DiskBytes, 10)},
			{Lower: specutils.Erofs, Upper: specutils.NoOverlay},
		},
		Cgroup:             visible{vcpus: spec.VCPUs, memory: spec.MemoryBytes},
		CloneIntoCgroupFD:  cg,
		FSRestoreImagePath: spec.Source.Files,
	}, func() { closeAll(files) }, nil
}

// nameless creates a file without a name: it is gone with its last user, and
// so cannot be left behind.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "disk"), nil
	}
	// Not every filesystem has O_TMPFILE.
	f, err := os.CreateTemp(dir, "disk-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// dup returns another descriptor of an open file.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// confine puts a sentry and its helpers under the machine's limits. It waits
// to be told to run code, so nothing escapes: on cgroup v2 it was born in its
// group, on v1 it is moved there now.
func confine(group *cgroup.Group, sentry int, move bool) error {
	helpers := descendants(sentry)
	if move {
		if err := group.Add(append(helpers, sentry)...); err != nil {
			return fmt.Errorf("limit the machine: %w", err)
		}
	}
	for _, pid := range helpers {
		if err := rank(pid, helperOOMScore); err != nil {
			return err
		}
	}
	return rank(sentry, 0)
}

// rank says how readily the kernel ends a process when memory runs out. Without,
// it would inherit this process's own rank.
func rank(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("rank the machine's processes: %w", err)
	}
	return nil
}

// abandon removes what a failed start has made. The processes are nil as far
// as the start did not come to know them.
func (d *Driver) abandon(ctx context.Context, id string, sentry, gofer *process) error {
	// The caller's ctx may be what ended the start.
	ctx = context.WithoutCancel(ctx)
	var procs found
	if all, err := running(d.cfg.Dir); err == nil {
		procs = all[id]
	}
	if sentry != nil {
		procs.sentry = sentry.pid
		defer sentry.close()
	}
	if gofer != nil {
		procs.gofer = gofer.pid
		defer gofer.close()
	}
	return d.sweep(ctx, id, procs)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// withMount tells a mount that the sentry could not make from other failures.
func withMount(mounts []driver.Volume, err error) error {
	for _, m := range mounts {
		if strings.Contains(err.Error(), "mount submount "+strconv.Quote(m.Path)) {
			return &driver.VolumeError{Path: m.Path, Err: err}
		}
	}
	return err
}
