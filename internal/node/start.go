package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/image"
)

// Start implements controller.Node.
func (n *Node) Start(ctx context.Context, spec controller.SessionSpec) error {
	if !skerry.ValidID(skerry.PrefixSession, spec.ID) {
		return fmt.Errorf("start session: %q is not a session's id", spec.ID)
	}
	s := newSession(n, spec.ID)
	if err := n.add(s); err != nil {
		return err
	}
	if err := s.start(ctx, spec); err != nil {
		n.remove(spec.ID)
		// The caller's ctx may be what ended the start.
		cleanup := s.release(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("start session %s: %w", spec.ID, err), cleanup, os.RemoveAll(s.dir))
	}
	return nil
}

// start acquires what the session needs, top down; release gives it back.
func (s *session) start(ctx context.Context, spec controller.SessionSpec) error {
	cfg := &s.node.cfg
	rootfs, err := cfg.Images.Path(spec.ImageDigest)
	if err != nil {
		return err
	}
	if (spec.Memory || spec.ForkOf != "") && len(spec.Mounts) > 0 {
		return skerry.Invalid("mounts", "cannot be given to a sandbox that goes on from a snapshot of memory")
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return fmt.Errorf("create the session's folder: %w", err)
	}
	if err := s.makeOutputDir(); err != nil {
		return err
	}
	if s.lease, err = cfg.Networks.Acquire(ctx); err != nil {
		return fmt.Errorf("connect to the network: %w", err)
	}
	if err := s.setNetwork(ctx, spec.Network); err != nil {
		return err
	}
	mounts, err := s.mount(ctx, spec.Mounts)
	if err != nil {
		return err
	}
	s.trust.own = ownTrust(spec.Env)
	s.agent = filepath.Base(cfg.Agent)
	if err := s.saveState(); err != nil {
		return err
	}
	snapshot, release, err := s.node.loadSnapshot(ctx, spec.Snapshot)
	if err != nil {
		return err
	}
	defer release() // the machine holds the files open
	machine := driver.Spec{
		ID:          s.id,
		Hostname:    spec.Hostname,
		RootFS:      rootfs,
		Mounts:      mounts,
		Agent:       cfg.Agent,
		NetNS:       s.lease.NetNSPath(),
		VCPUs:       spec.VCPUs,
		MemoryBytes: int64(spec.MemoryMB) << 20,
		DiskBytes:   cfg.DiskBytes,
		Processes:   cfg.hostProcesses(),
	}
	xattrs, err := s.node.xattrs(spec)
	if err != nil {
		return err
	}
	setup := guest.Setup{
		Hostname:  spec.Hostname,
		User:      guest.User{Name: skerry.DefaultUser, UID: skerry.DefaultUID, GID: skerry.DefaultGID},
		WorkDir:   skerry.WorkDir,
		Env:       spec.Env,
		Xattrs:    xattrs,
		Resolv:    resolvConf(cfg.Networks.Resolvers()),
		Processes: cfg.Processes,
	}
	switch {
	case spec.ForkOf != "":
		err = s.fork(ctx, machine, setup, spec.ForkOf, spec.Capture)
	case spec.Memory:
		err = s.wake(ctx, machine, setup, snapshot)
	default:
		machine.Snapshot = snapshot
		err = s.boot(ctx, machine, setup)
	}
	if err != nil {
		return mountFailure(err)
	}
	if err := s.detachMounts(); err != nil {
		return err
	}
	s.begin()
	return nil
}

// hostProcesses is what the host allows a session. The guest's kernel holds the
// sandbox to its limit. What the host counts is the sentry's threads and a
// helper process or more for each of the sandbox's, so this only stops what got
// past the guest's, and then ends the sandbox.
func (c *Config) hostProcesses() int {
	most := 4*c.Processes + 1024
	if c.HostProcesses > 0 {
		most = min(most, c.HostProcesses)
	}
	return most
}

// xattrs are the extended attributes that the guest has to set: the image's,
// unless the files come from a snapshot, which has them.
func (n *Node) xattrs(spec controller.SessionSpec) (image.Xattrs, error) {
	if spec.Snapshot != "" || spec.ForkOf != "" {
		return nil, nil
	}
	return n.cfg.Images.Xattrs(spec.ImageDigest)
}

// boot starts the session's machine.
func (s *session) boot(ctx context.Context, spec driver.Spec, setup guest.Setup) error {
	machine, conn, err := s.node.cfg.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	s.machine = machine
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
	defer cancel()
	return s.greet(ctx, conn, setup, guest.Connect)
}

// greeting is guest.Connect or guest.Renew.
type greeting func(context.Context, io.ReadWriteCloser, guest.Setup) (*guest.Client, guest.Info, error)

// greet sets the guest agent up.
func (s *session) greet(ctx context.Context, conn net.Conn, setup guest.Setup, how greeting) error {
	client, _, err := how(ctx, conn, setup)
	if err != nil {
		return s.explain(fmt.Errorf("set up the guest agent: %w", err))
	}
	s.guest = client
	return nil
}

// explain adds to an error of the agent's connection why the machine ended,
// if that is what ended the connection.
func (s *session) explain(err error) error {
	select {
	case <-s.machine.Done():
		return fmt.Errorf("%w (%s)", err, s.machine.Reason())
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
