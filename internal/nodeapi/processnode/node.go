// Package processnode is a nodeapi.Node for tests. Its sessions are folders, its
// commands are processes of this machine, and it isolates nothing: a command reads
// the files of the machine and reaches its network.
//
// The folder of a session stands for the root of a sandbox. Paths in calls of the
// Files interface, and working directories of commands, are paths in it. So is an
// argument of a command that is a path in the sandbox's working directory. Otherwise a
// command sees the machine's paths, so tests give it relative ones; what it prints of
// its folder can be used as a path of the sandbox. All sessions share the machine's
// ports.
//
// Snapshots are copies of the folder; what runs in a session is never saved. Programs
// that leave their process group outlive their session, so tests must not start any.
package processnode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// Point is a place in the operations of a Node where a test can step in.
type Point string

// The points. Except at Saved, nothing has been done yet.
const (
	Start   Point = "start"
	Stop    Point = "stop"
	Exec    Point = "exec"
	Save    Point = "save"  // before Snapshot copies the files
	Saved   Point = "saved" // when they are copied, but Snapshot has not returned
	Keep    Point = "keep"
	Capture Point = "capture"
	SetIdle Point = "set_idle"
)

// Hook runs at a Point, with the id of the session or, at Keep and Capture, of the capture. It
// may wait. If it returns an error, the operation fails with it.
type Hook func(ctx context.Context, id string) error

// used is what Stop says that a session used.
var used = nodeapi.Usage{ActiveCPU: time.Second, ResidentMBSeconds: 30, IngressBytes: 10, EgressBytes: 20}

// Node implements nodeapi.Node and nodeapi.Collector. Create one with New.
type Node struct {
	dir    string
	events *eventlog.Log

	mu    sync.Mutex
	hooks map[Point]Hook
	// refuses, if not nil, may refuse a change of what a session may reach.
	refuses  func(nodeapi.NetworkSpec) error
	sessions map[string]*session
	// past are the sessions that have ended and are not forgotten.
	past   map[string]*session
	starts int
	// leased are the leases of manifests.
	leased   map[string]string
	networks map[string]nodeapi.NetworkSpec
}

// Kill ends all sessions at once, whatever the hooks do, and removes nothing.
func (n *Node) Kill() {
	n.mu.Lock()
	ids := slices.Collect(maps.Keys(n.sessions))
	n.mu.Unlock()
	for _, id := range ids {
		n.Lose(id, "")
	}
}

// AwaitCommands returns when the commands that run now have ended.
func (n *Node) AwaitCommands() {
	n.mu.Lock()
	sessions := slices.Collect(maps.Values(n.sessions))
	n.mu.Unlock()
	for _, s := range sessions {
		s.mu.Lock()
		commands := slices.Collect(maps.Values(s.commands))
		s.mu.Unlock()
		for _, c := range commands {
			<-c.done
		}
	}
}

// session is a session that runs, or has ended and is not forgotten.
type session struct {
	spec nodeapi.SessionSpec
	root string
	// loss is how the session was lost, if its reason is not "". The node's mu
	// guards it.
	loss nodeapi.Loss
	// stopped is set by Stop.
	stopped bool
	events  *eventlog.Log
	// ctx ends with the session; work counts what follows its commands.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu sync.Mutex
	// ended is set when nothing can be started any more.
	ended     bool
	deadline  time.Time
	paused    bool
	idle      skerry.IdleState
	commands  map[string]*command
	terminals map[*terminal]struct{}
	conns     map[*conn]struct{}
}

// New returns a node that keeps everything in a folder.
func New(dir string) *Node {
	hearSignals()
	n := &Node{
		dir: dir, hooks: map[Point]Hook{}, sessions: map[string]*session{}, past: map[string]*session{},
		leased: map[string]string{}, networks: map[string]nodeapi.NetworkSpec{},
	}
	n.events = eventlog.New(eventlog.Size, n.listEvents)
	return n
}

// The node's folders.
func (n *Node) sessionDir(id string) string { return filepath.Join(n.dir, "sessions", id) }
func (n *Node) rootDir(id string) string    { return filepath.Join(n.sessionDir(id), "root") }
func (n *Node) outputDir(id string) string  { return filepath.Join(n.sessionDir(id), "output") }
func (n *Node) savedDir(id string) string   { return filepath.Join(n.dir, "saved", id) }
func (n *Node) driveDir(id string) string   { return filepath.Join(n.dir, "drives", id) }

// list returns the names in a folder of the node.
func (n *Node) list(folder string) []string {
	var names []string
	entries, _ := os.ReadDir(filepath.Join(n.dir, folder)) // none yet
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// On sets the hook of a point; nil removes it.
func (n *Node) On(p Point, h Hook) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hooks[p] = h
}

// reach runs the hook of a point.
func (n *Node) reach(ctx context.Context, p Point, id string) error {
	n.mu.Lock()
	h := n.hooks[p]
	n.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(ctx, id)
}

// OnSetNetwork sets what may refuse a change of what a session may reach; nil
// removes it.
func (n *Node) OnSetNetwork(refuses func(nodeapi.NetworkSpec) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuses = refuses
}

// Network returns what a session may reach.
func (n *Node) Network(id string) nodeapi.NetworkSpec {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.networks[id]
}

// Spec returns what a session was started with, the zero value if it is unknown.
func (n *Node) Spec(id string) nodeapi.SessionSpec {
	s, err := n.find(id)
	if err != nil {
		return nodeapi.SessionSpec{}
	}
	return s.spec
}

// Starts returns how many sessions were started.
func (n *Node) Starts() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// Running returns how many sessions run.
func (n *Node) Running() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.sessions)
}

// Paused reports whether a session is paused.
func (n *Node) Paused(id string) bool {
	s, err := n.session(id)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paused
}

// Commands returns how many commands of a session are known, running or ended.
func (n *Node) Commands(id string) int {
	s, err := n.session(id)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.commands)
}

// WaitCommands waits until all commands of a session have ended.
func (n *Node) WaitCommands(ctx context.Context, id string) error {
	s, err := n.session(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	commands := slices.Collect(maps.Values(s.commands))
	s.mu.Unlock()
	for _, c := range commands {
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Knows reports whether anything is left of a session.
func (n *Node) Knows(id string) bool {
	_, err := os.Stat(n.sessionDir(id))
	return err == nil
}

// Root returns the folder that stands for the root of a session.
func (n *Node) Root(id string) string { return n.rootDir(id) }

// SavedFiles returns the manifests of what is saved.
func (n *Node) SavedFiles() []string { return n.list("saved") }

// DriveIDs returns the drives.
func (n *Node) DriveIDs() []string { return n.list("drives") }

// Start implements nodeapi.Sessions.
func (n *Node) Start(ctx context.Context, spec nodeapi.SessionSpec) (err error) {
	defer edge(ctx, &err)
	if err := n.reach(ctx, Start, spec.ID); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.Knows(spec.ID) {
		return skerry.Errorf(skerry.CodeConflict, "session %s is there already", spec.ID)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(n.sessionDir(spec.ID)))
			if spec.ForkOf != "" {
				err = errors.Join(err, n.Discard(ctx, spec.Capture))
			}
		}
	}()
	if err := n.makeRoot(spec); err != nil {
		return err
	}
	s := &session{
		spec: spec, root: n.rootDir(spec.ID), events: n.events, deadline: time.Now().Add(spec.TimeLeft),
		commands: map[string]*command{}, terminals: map[*terminal]struct{}{}, conns: map[*conn]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions[spec.ID] = s
	n.networks[spec.ID] = spec.Network
	n.starts++
	return nil
}

// makeRoot makes the folder of a session from what it starts from.
func (n *Node) makeRoot(spec nodeapi.SessionSpec) error {
	if err := os.MkdirAll(n.sessionDir(spec.ID), 0o700); err != nil {
		return err
	}
	from := spec.Snapshot
	if spec.ForkOf != "" {
		source, err := n.session(spec.ForkOf)
		if err != nil {
			return err
		}
		if err := n.copyRoot(source, spec.Capture); err != nil {
			return err
		}
		from = spec.Capture
	}
	root := n.rootDir(spec.ID)
	if from != "" {
		if err := copyTree(n.savedDir(from), root); err != nil {
			return err
		}
	}
	for _, dir := range []string{skerry.WorkDir, "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for i, m := range spec.Mounts {
		if err := n.mount(spec.ID, i, m); err != nil {
			return err
		}
	}
	return nil
}

// mount makes a link to a drive, or to a copy of it.
func (n *Node) mount(id string, i int, m nodeapi.DriveMount) error {
	source := n.driveDir(m.DriveID)
	if !exists(source) {
		return skerry.Errorf(skerry.CodeConflict, "the drive for %s does not exist any more", m.Path)
	}
	if m.Frozen {
		frozen := filepath.Join(n.sessionDir(id), "frozen"+strconv.Itoa(i))
		if err := copyTree(source, frozen); err != nil {
			return err
		}
		source = frozen
	}
	at := filepath.Join(n.rootDir(id), m.Path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(at); err != nil {
		return err
	}
	return os.Symlink(source, at)
}

// find returns a session that runs, or has ended and is not forgotten.
func (n *Node) find(id string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[id]; s != nil {
		return s, nil
	}
	if s := n.past[id]; s != nil {
		return s, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "session %s is not on this machine", id)
}

// session returns a session that runs.
func (n *Node) session(id string) (*session, error) {
	s, err := n.find(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, errStopped(id)
	}
	return s, nil
}

func errStopped(id string) error {
	return skerry.Errorf(skerry.CodeSandboxStopped, "session %s has stopped", id)
}

// Stop implements nodeapi.Sessions.
func (n *Node) Stop(ctx context.Context, id string) (_ nodeapi.Usage, err error) {
	defer edge(ctx, &err)
	if err := n.reach(ctx, Stop, id); err != nil {
		return nodeapi.Usage{}, err
	}
	if s := n.remove(id, ""); s != nil {
		s.end()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.past[id]; s != nil && !s.stopped {
		s.stopped = true
		n.events.Append(nodeapi.Event{Kind: nodeapi.SessionStopped, SessionID: id})
	}
	return used, nil
}

// LoseAgent tells that nothing can run in a session any more. The session can still
// be saved.
func (n *Node) LoseAgent(id, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[id]; s != nil {
		n.lose(s, reason, true)
	}
}

// Lose ends a session with all that runs in it, for the given reason.
func (n *Node) Lose(id, reason string) {
	if s := n.remove(id, reason); s != nil {
		s.end()
	}
}

// remove returns a session that runs, which is to end: by itself, for a reason, or
// because it is stopped.
func (n *Node) remove(id, reason string) *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sessions[id]
	if s == nil {
		return nil
	}
	delete(n.sessions, id)
	n.past[id] = s
	if reason != "" {
		n.lose(s, reason, false)
	}
	return s
}

// lose tells that a session was lost; the first reason counts. mu is held.
func (n *Node) lose(s *session, reason string, savable bool) {
	if s.loss.Reason == "" {
		s.loss = nodeapi.Loss{Reason: reason, Savable: savable}
		n.events.Append(nodeapi.Event{Kind: nodeapi.SessionLost, SessionID: s.spec.ID, Loss: s.loss})
	}
}

// Events implements nodeapi.Events.
func (n *Node) Events(ctx context.Context, after nodeapi.Cursor) (_ nodeapi.Batch, err error) {
	defer edge(ctx, &err)
	return n.events.Events(ctx, after)
}

// listEvents is the node's eventlog.List.
func (n *Node) listEvents(after eventlog.Place, limit int) []nodeapi.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := maps.Clone(n.sessions)
	for id, s := range n.past {
		if !s.stopped {
			all[id] = s
		}
	}
	return eventlog.Page(slices.Collect(maps.Keys(all)), after, limit, func(id string) []nodeapi.Event {
		s := all[id]
		own := nodeapi.Event{Kind: nodeapi.SessionRuns, SessionID: id}
		if s.loss.Reason != "" {
			own.Kind, own.Loss = nodeapi.SessionLost, s.loss
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		events := []nodeapi.Event{own}
		if s.idle != "" {
			events = append(events, nodeapi.Event{Kind: nodeapi.SessionAsleep, SessionID: id, Hibernated: s.idle == skerry.IdleHibernated})
		}
		for cmd, c := range s.commands {
			events = append(events, c.event(id, cmd))
		}
		return events
	})
}

// end kills all that runs in a session, and waits for it.
func (s *session) end() {
	s.mu.Lock()
	s.ended = true
	s.cancel()
	for c := range s.conns {
		c.TCPConn.Close()
	}
	clear(s.conns)
	commands, terminals := s.commands, s.terminals
	s.commands, s.terminals = map[string]*command{}, map[*terminal]struct{}{}
	s.mu.Unlock()
	for _, c := range commands {
		c.kill()
	}
	s.work.Wait() // their ends have been told
	for _, c := range commands {
		c.log.Close()
	}
	for t := range terminals {
		t.kill()
		<-t.done
	}
}

// Forget implements nodeapi.Sessions.
func (n *Node) Forget(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	if _, err := n.Stop(ctx, id); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.past, id)
	delete(n.networks, id)
	n.mu.Unlock()
	return os.RemoveAll(n.sessionDir(id))
}

// Pause implements nodeapi.Sessions.
func (n *Node) Pause(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	return n.setPaused(id, true)
}

// Resume implements nodeapi.Sessions.
func (n *Node) Resume(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	return n.setPaused(id, false)
}

func (n *Node) setPaused(id string, paused bool) error {
	s, err := n.session(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused == paused {
		return nil
	}
	s.paused = paused
	for _, c := range s.commands {
		c.pause(paused)
	}
	for t := range s.terminals {
		t.pause(paused)
	}
	return nil
}

// Meters implements nodeapi.Sessions. All sessions use the same.
func (n *Node) Meters(ctx context.Context) (_ map[string]nodeapi.Meter, err error) {
	defer edge(ctx, &err)
	n.mu.Lock()
	defer n.mu.Unlock()
	meters := map[string]nodeapi.Meter{}
	for id := range n.sessions {
		meters[id] = nodeapi.Meter{Usage: used, MemoryBytes: 1 << 20}
	}
	return meters, nil
}

// SetDeadline implements nodeapi.Sessions. The node enforces no deadlines.
func (n *Node) SetDeadline(ctx context.Context, id string, left time.Duration) (err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = time.Now().Add(left)
	return nil
}

// SetIdle implements nodeapi.Sessions. The node pauses no session by itself.
func (n *Node) SetIdle(ctx context.Context, id string, mode skerry.IdleMode) (err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return err
	}
	if err := n.reach(ctx, SetIdle, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spec.Idle = mode
	return nil
}

// Sleep tells that a session is asleep, or awake again if state is "". Nothing happens to
// it.
func (n *Node) Sleep(id string, state skerry.IdleState) {
	s, err := n.session(id)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.idle = state
	s.mu.Unlock()
	kind := nodeapi.SessionAwake
	if state != "" {
		kind = nodeapi.SessionAsleep
	}
	n.events.Append(nodeapi.Event{Kind: kind, SessionID: id, Hibernated: state == skerry.IdleHibernated})
}

// Idle returns a session's mode.
func (n *Node) Idle(id string) skerry.IdleMode {
	s, err := n.session(id)
	if err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec.Idle
}

// TimeLeft returns how long a session may run on.
func (n *Node) TimeLeft(id string) time.Duration {
	s, err := n.session(id)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Until(s.deadline)
}

// Overdue tells what the real node tells when it has paused a session.
func (n *Node) Overdue(id string) {
	n.events.Append(nodeapi.Event{Kind: nodeapi.SessionOverdue, SessionID: id})
}

// SetNetwork implements nodeapi.Sessions.
func (n *Node) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) (err error) {
	defer edge(ctx, &err)
	if _, err := n.session(id); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuses != nil {
		if err := n.refuses(network); err != nil {
			return err
		}
	}
	n.networks[id] = network
	return nil
}

// NetworkEvents implements nodeapi.Sessions.
func (n *Node) NetworkEvents(ctx context.Context, id string, limit int) (_ []skerry.NetworkEvent, err error) {
	defer edge(ctx, &err)
	return []skerry.NetworkEvent{{Protocol: "tls", Domain: id}}[:min(limit, 1)], nil
}

// Recover implements nodeapi.Sessions.
func (n *Node) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) (_ []string, err error) {
	defer edge(ctx, &err)
	n.mu.Lock()
	var adopted, others []string
	for id := range n.sessions {
		if network, ok := keep[id]; ok {
			n.networks[id] = network
			adopted = append(adopted, id)
		} else {
			others = append(others, id)
		}
	}
	n.mu.Unlock()
	for _, id := range others {
		n.Lose(id, "")
	}
	// What a fork started from, and was not kept.
	for _, manifest := range n.SavedFiles() {
		n.mu.Lock()
		_, kept := n.leased[manifest]
		n.mu.Unlock()
		if !kept {
			err = errors.Join(err, n.Discard(ctx, manifest))
		}
	}
	return adopted, err
}

// Retain implements nodeapi.Sessions.
func (n *Node) Retain(ctx context.Context, ids []string) (err error) {
	defer edge(ctx, &err)
	for _, id := range n.list("sessions") {
		if !slices.Contains(ids, id) {
			err = errors.Join(err, n.Forget(ctx, id))
		}
	}
	return err
}

// conn is a connection to a session, which ends with it.
type conn struct {
	*net.TCPConn
	of *session
}

// Dial implements nodeapi.Ports: it connects to a port of this machine.
func (n *Node) Dial(ctx context.Context, id string, port int, _ netip.Addr) (_ net.Conn, err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return nil, err
	}
	if port < 1 || port > skerry.MaxPort {
		return nil, fmt.Errorf("connect to session %s: there is no port %d", id, port)
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, skerry.Errorf(skerry.CodeUnavailable, "nothing listens on port %d: %w", port, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		raw.Close()
		return nil, errStopped(id)
	}
	c := &conn{TCPConn: raw.(*net.TCPConn), of: s}
	s.conns[c] = struct{}{}
	return c, nil
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.TCPConn.Close()
}
