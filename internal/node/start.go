package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// Start implements nodeapi.Node.
func (n *Node) Start(ctx context.Context, spec nodeapi.SessionSpec) (err error) {
	defer edge(ctx, &err)
	if !skerry.ValidID(skerry.PrefixSession, spec.ID) {
		return fmt.Errorf("start session: %q is not a session's id", spec.ID)
	}
	if !n.hasRecovered() { // Recover would take it for an earlier process's
		return errUnrecovered()
	}
	if err := n.cfg.Disk.Check(); err != nil {
		return err
	}
	s := newSession(n, spec.ID)
	if err := n.add(s); err != nil {
		return err
	}
	n.pool.opening()
	defer n.pool.opened()
	err = s.start(ctx, spec)
	if err == nil && s.unwritten {
		// Without its resolvers, say, the session would not be of use. If the disk has
		// room, it is the sandbox that is full, and commands may make room in it.
		err = n.cfg.Disk.Check()
	}
	if err != nil {
		err = n.notStarted(fmt.Errorf("start session %s: %w", spec.ID, err))
		// The end of the caller's ctx may be the reason for the failed start. If a
		// resource cannot be released now, Forget tries again.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		return errors.Join(err, n.Forget(ctx, spec.ID))
	}
	return nil
}

// notStarted converts the error of a failed start into the one for clients if the disk has
// become full meanwhile, as a machine's kernel that cannot write ends in some way or other,
// or if the host's kernel had no more processes, files or memory to give.
func (n *Node) notStarted(err error) error {
	if skerry.CodeOf(err) != skerry.CodeInternal {
		return err
	}
	full := n.cfg.Disk.Check()
	if full == nil && errors.Is(err, syscall.ENOSPC) {
		full = skerry.Errorf(skerry.CodeDiskFull, "the server's disk has no room for the session")
	}
	if e, ok := errors.AsType[*skerry.Error](full); ok {
		return &skerry.Error{Code: e.Code, Message: e.Message, Err: err}
	}
	for errno, what := range scarce {
		if errors.Is(err, errno) {
			return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the server's machine has no more " + what + " for another session; try again later", Err: err}
		}
	}
	return err
}

// scarce is what the host's kernel refuses when it has no more of it.
var scarce = map[syscall.Errno]string{
	syscall.EAGAIN: "processes", syscall.EMFILE: "open files", syscall.ENFILE: "open files", syscall.ENOMEM: "memory",
}

// releaseTimeout is the maximum time for releasing a session whose start failed.
const releaseTimeout = time.Minute

// start acquires the session's resources, top-down. release releases them.
func (s *session) start(ctx context.Context, spec nodeapi.SessionSpec) error {
	cfg := &s.node.cfg
	rootfs, err := cfg.Images.Path(spec.ImageDigest)
	if err != nil {
		return err
	}
	if (spec.Memory || spec.ForkOf != "") && len(spec.Mounts) > 0 {
		return skerry.Invalid("mounts", "must be empty for a sandbox that starts from a memory snapshot")
	}
	if err := s.node.canStart(spec); err != nil {
		return err
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return fmt.Errorf("create the session's folder: %w", err)
	}
	if err := s.makeOutputDir(); err != nil {
		return err
	}
	s.trust.own = append(ownTrust(spec.Env), ownTrust(cfg.Env)...)
	s.idle.mode = spec.Idle
	s.size = size{Image: spec.ImageDigest, VCPUs: spec.VCPUs, MemoryMB: spec.MemoryMB}
	if spec.TimeLeft > 0 {
		s.deadline = time.Now().Add(spec.TimeLeft)
	}
	if err := s.firstToken(ctx, &spec); err != nil {
		return err
	}
	s.node.pool.expect(spec)
	if s.claim(ctx, spec) {
		s.begin()
		return nil
	}
	s.fillBlank(ctx, spec)
	if err := s.connect(ctx, spec.Network); err != nil {
		return err
	}
	volumes, err := s.mount(ctx, spec.Mounts)
	if err != nil {
		return err
	}
	s.agent = s.node.currentAgent()
	if err := s.saveState(); err != nil {
		return err
	}
	sourceCtx, span := tracing.Start(ctx, tracing.StartSource)
	from, err := s.node.source(sourceCtx, spec)
	if span.End(err); err != nil {
		return err
	}
	machine := s.node.machineSpec(spec, rootfs, s.lease)
	machine.ID, machine.Hostname, machine.Volumes = s.machineID(), spec.Hostname, volumes
	setup := s.node.setup(spec, spec.Hostname)
	setup.Xattrs, setup.Token = from.xattrs, s.workload.first
	if err := from.end(s.boot(ctx, from, machine, setup)); err != nil {
		return volumeFailure(err)
	}
	if err := s.detachMounts(); err != nil {
		return err
	}
	s.begin()
	return nil
}

// machineSpec returns the driver's specification of a machine, without names and volumes.
func (n *Node) machineSpec(spec nodeapi.SessionSpec, rootfs string, lease nodeapi.Lease) driver.Spec {
	return driver.Spec{
		RootFS:      rootfs,
		Agent:       n.cfg.Agent,
		Interfaces:  interfaces(lease.Interface()),
		VCPUs:       spec.VCPUs,
		MemoryBytes: int64(spec.MemoryMB) << 20,
		DiskBytes:   n.cfg.DiskBytes,
		Processes:   n.cfg.hostProcesses(),
	}
}

// setup returns the setup of a session's agent, without the image's extended attributes.
func (n *Node) setup(spec nodeapi.SessionSpec, hostname string) guest.Setup {
	return guest.Setup{
		Hostname:    hostname,
		User:        guest.User{Name: skerry.DefaultUser, UID: skerry.DefaultUID, GID: skerry.DefaultGID},
		WorkDir:     skerry.WorkDir,
		Env:         n.cfg.environment(spec.Env),
		Authorities: n.cfg.Authorities,
		Resolv:      resolvConf(n.cfg.Networks.Resolvers()),
		Processes:   n.cfg.Processes,
	}
}

// connect acquires a lease of a network, unless the session has one, and sets its policy.
func (s *session) connect(ctx context.Context, network nodeapi.NetworkSpec) (err error) {
	ctx, span := tracing.Start(ctx, tracing.StartNetwork)
	defer span.Done(&err)
	for s.lease == nil {
		if s.lease, err = s.node.cfg.Networks.Acquire(ctx); err == nil {
			break
		}
		s.lease = nil // an interface that holds nil is not nil
		if skerry.CodeOf(err) != skerry.CodeUnavailable || !s.node.pool.giveUp(ctx) {
			return fmt.Errorf("connect to the network: %w", err)
		}
	}
	return s.setNetwork(ctx, network)
}

// setFirstNetwork sets the first policy of the session's lease.
func (s *session) setFirstNetwork(ctx context.Context, network nodeapi.NetworkSpec) (err error) {
	ctx, span := tracing.Start(ctx, tracing.StartNetwork)
	defer span.Done(&err)
	return s.setNetwork(ctx, network)
}

// interfaces returns a lease's interface for the driver.
func interfaces(i nodeapi.Interface) []driver.Interface {
	if i.NetNS == "" {
		return nil
	}
	return []driver.Interface{{Kind: driver.Veth, NetNS: i.NetNS, Name: i.Name, Address: i.Address, Gateway: i.Gateway}}
}

// hostProcesses returns the host's limit of processes for a session. The guest's
// kernel enforces the sandbox's own limit. The host counts the sentry's threads and
// at least one helper process for each of the sandbox's processes. So this limit
// only stops what got past the guest's limit, and then ends the sandbox.
func (c *Config) hostProcesses() int {
	most := 4*c.Processes + 1024
	if c.HostProcesses > 0 {
		most = min(most, c.HostProcesses)
	}
	return most
}

// boot starts the session's machine and sets up its agent.
func (s *session) boot(ctx context.Context, from *source, spec driver.Spec, setup guest.Setup) (err error) {
	greet := guest.Connect
	if spec.Source = from.Source; from.Runs() {
		greet = guest.Renew
		// Processes that continue have this file mapped, so it must be the same.
		if spec.Agent, err = s.node.agentImage(from.agent); err != nil {
			return err
		}
		s.agent = from.agent
		if err := s.saveState(); err != nil {
			return err
		}
	}
	machineCtx, span := tracing.Start(ctx, tracing.StartMachine)
	machine, err := s.startMachine(machineCtx, spec)
	if span.End(err); err != nil {
		return err
	}
	s.setMachine(machine)
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
	defer cancel()
	ctx, span = tracing.Start(ctx, tracing.StartAgent)
	defer span.Done(&err)
	conn, err := machine.Attach(ctx)
	if err != nil {
		return s.explain(err)
	}
	return s.greet(ctx, conn, setup, greet)
}

// maxWarnings is the maximum number of warnings about a sandbox's files in the log.
const maxWarnings = 16

// greeting is guest.Connect or guest.Renew.
type greeting func(context.Context, io.ReadWriteCloser, guest.Setup) (*guest.Client, guest.Info, error)

// greet sets up the guest agent.
func (s *session) greet(ctx context.Context, conn net.Conn, setup guest.Setup, how greeting) error {
	client, info, err := how(ctx, conn, setup)
	if err != nil {
		return s.explain(fmt.Errorf("set up the guest agent: %w", err))
	}
	if setup.Token != "" && !info.Tokens {
		return errors.Join(errOldAgent(), client.Close())
	}
	s.takeWarnings(info)
	s.guest = client
	return nil
}

// takeWarnings logs what an agent could not set up.
func (s *session) takeWarnings(info guest.Info) {
	s.unwritten = slices.ContainsFunc(info.Warnings, func(w string) bool { return strings.Contains(w, syscall.ENOSPC.Error()) })
	if slices.ContainsFunc(info.Warnings, func(w string) bool { return strings.HasPrefix(w, "token: ") }) {
		s.mu.Lock()
		s.workload.due = time.Time{} // it is not there: keepToken tries again
		s.mu.Unlock()
	}
	for _, w := range info.Warnings[:min(len(info.Warnings), maxWarnings)] {
		s.node.cfg.Log.Info("a sandbox's files were left as they are", "session", s.id, "what", fmt.Sprintf("%.256q", w))
	}
}

// explain adds the reason of the machine's end to an error of the agent's
// connection, if the machine's end caused it.
func (s *session) explain(err error) error {
	select {
	case <-s.machine().Done():
		return fmt.Errorf("%w (%s)", err, s.machine().Reason())
	default:
		return err
	}
}

func resolvConf(servers []string) []string {
	var lines []string
	for _, addr := range servers {
		lines = append(lines, "nameserver "+addr)
	}
	return lines
}
