package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// guardEvery is the interval at which the guard checks the rules without a
// notification: the kernel does not report every change.
const guardEvery = 10 * time.Second

// guard keeps the rules up to date with the host's routes, and restores them if
// another program removes them, until ctx ends.
func (p *Pool) guard(ctx context.Context) {
	routes, touched, lost := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	p.work.Go(func() { p.routes.each(ctx, p.cfg.Log, isRouting, routes, routes) })
	// In a container, its own changes cannot be told from those of others. So the
	// rules are checked after each change, and recreated if they differ.
	foreign, told := idsAreForeign("/proc/self/ns/pid"), touched
	if foreign {
		told = lost
	}
	p.work.Go(func() { p.tables.each(ctx, p.cfg.Log, p.rules.touchedByOthers(foreign), told, lost) })
	tick, relief := time.NewTicker(guardEvery), time.NewTicker(reliefEvery)
	defer tick.Stop()
	defer relief.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-touched:
			p.cfg.Log.Error("another program has changed the rules of sandboxes' networks; they are made anew", "table", p.rules.table().Name)
			err = p.rules.remake()
		case <-lost:
			err = p.check()
		case <-routes:
			err = errors.Join(p.followUplinks(), p.addGateRules())
		case <-relief.C:
			if err := p.relieve(); err != nil {
				p.cfg.Log.Error("the host's connection table may be full of sandboxes' connections", "error", err)
			}
		case <-tick.C:
			err = errors.Join(p.check(), p.followUplinks(), p.addGateRules())
		}
		if err != nil {
			p.cfg.Log.Error("sandboxes may have no network: the host's rules are not as they should be", "error", err)
		}
	}
}

// check checks the rules themselves.
func (p *Pool) check() error {
	intact, err := p.rules.intact()
	if err != nil || intact {
		return err
	}
	p.cfg.Log.Error("the rules of sandboxes' networks were not as they had been made; they are made anew", "table", p.rules.table().Name)
	return p.rules.remake()
}

// remake recreates the table from what is remembered of it.
func (r *rules) remake() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.restore()
}

// intact reports whether the table has the rules and sets with which it was
// created.
func (r *rules) intact() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := r.fingerprint()
	return now == r.made, err
}

// fingerprint describes the content of a table: the names of its chains and sets,
// and the kernel's handles of its rules, which are never reused.
type fingerprint string

func (r *rules) fingerprint() (fingerprint, error) {
	var c nftables.Conn
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list chains: %w", err)
	}
	var parts []string
	for _, ch := range chains {
		if ch.Table.Name != r.table().Name {
			continue
		}
		rules, err := c.GetRules(r.table(), ch)
		if err != nil {
			return "", fmt.Errorf("list the rules of %s: %w", ch.Name, err)
		}
		part := "chain " + ch.Name
		for _, rule := range rules {
			part += fmt.Sprintf(" %d", rule.Handle)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return "", nil // there is no table
	}
	sets, err := c.GetSets(r.table())
	if err != nil {
		return "", fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		parts = append(parts, "set "+s.Name)
	}
	slices.Sort(parts)
	return fingerprint(strings.Join(parts, "\n")), nil
}

// The kernel's interface: linux/netfilter/nf_tables.h.
const (
	nftNewGen       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	nftTableName    = 1 // of every object that is in a table
	nftGenProcess   = 2
	nfGroupNFTables = 7
)

// touchedByOthers matches, among the kernel's change notifications, the end of a
// change of the table by another process.
func (r *rules) touchedByOthers(foreignIDs bool) func(netlink.Message) bool {
	ours := false
	return func(m netlink.Message) bool {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsgBytes {
			return false
		}
		attributes, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgBytes:])
		if err != nil {
			return false
		}
		attributes.ByteOrder = binary.BigEndian
		end, process := m.Header.Type == nftNewGen, uint32(0)
		for attributes.Next() {
			switch {
			case !end && attributes.Type() == nftTableName:
				ours = ours || attributes.String() == r.table().Name
			case end && attributes.Type() == nftGenProcess:
				process = attributes.Uint32()
			}
		}
		if !end {
			return false
		}
		touched := ours && (foreignIDs || !r.threads.has(process))
		ours = false
		return touched
	}
}

// initialPIDNamespace is the inode of the initial PID namespace, whose process ids
// the kernel reports: PROC_PID_INIT_INO in include/linux/proc_ns.h.
const initialPIDNamespace = 0xEFFFFFFC

// idsAreForeign reports whether the process ids that the kernel reports differ from
// those in this process's PID namespace, as in a container. path is the PID
// namespace.
func idsAreForeign(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) != nil || st.Ino != initialPIDNamespace
}

// threads remembers the threads of this process that have changed the rules lately.
// One may have ended when its change is reported, and then /proc does not have it. If
// another program gets the id of such a thread, the guard finds its changes with the
// check every guardEvery.
type threads struct {
	mu     sync.Mutex
	recent []int // the last is the newest
}

// maxThreads is more than are used between a change and its report.
const maxThreads = 64

func (t *threads) note(id int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent = append(slices.DeleteFunc(t.recent, func(other int) bool { return other == id }), id)
	t.recent = t.recent[max(0, len(t.recent)-maxThreads):]
}

// has reports whether a thread is one of these. Another installation in this process
// changes its own table only.
func (t *threads) has(id uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return id != 0 && slices.Contains(t.recent, int(id))
}

// commit sends the changes to the kernel, which makes all of them or none.
func (r *rules) commit(c *nftables.Conn) error {
	runtime.LockOSThread() // the kernel tells others which thread it was
	defer runtime.UnlockOSThread()
	r.threads.note(unix.Gettid())
	return c.Flush()
}

// followUplinks updates the interfaces of the default routes in the rules.
func (p *Pool) followUplinks() error {
	found, err := findUplinks()
	if err != nil {
		return err
	}
	if maps.Equal(found, *p.uplinks.Load()) {
		return nil
	}
	if err := p.rules.setUplinks(found.names()); err != nil {
		return err
	}
	p.uplinks.Store(&found)
	p.cfg.Log.Info("the host's default routes have changed", "interfaces", found.names())
	return nil
}

// setUplinks replaces the interfaces through which sandboxes reach the outside, and
// enables forwarding of the replies.
func (r *rules) setUplinks(names []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	opened, err := r.toOpen()
	if err != nil {
		return err
	}
	var c nftables.Conn
	for _, s := range []struct {
		set   *nftables.Set
		names []string
	}{{uplinksSet(r.table()), names}, {openedSet(r.table()), opened}} {
		c.FlushSet(s.set)
		if err := c.SetAddElements(s.set, interfaceElements(s.names)); err != nil {
			return err
		}
	}
	r.uplinks, r.opened = names, opened
	err = r.commit(&c)
	if errors.Is(err, unix.ENOENT) { // somebody has taken the table away
		return r.restore()
	}
	if err != nil {
		return fmt.Errorf("tell the rules of the default routes: %w", err)
	}
	return setForwarding(opened, "1")
}

// isRouting matches the relevant changes of routes and routing rules: changes of
// default routes, and removed rules.
func isRouting(m netlink.Message) bool {
	const prefixLength = 1 // in struct rtmsg
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) > prefixLength && m.Data[prefixLength] <= 1
	}
	return m.Header.Type == unix.RTM_DELRULE
}

const watchBuffer = 4 << 20

// watcher receives change notifications from the kernel.
type watcher struct {
	conn *netlink.Conn
	once sync.Once
}

func watch(family int, groups ...uint32) (*watcher, error) {
	conn, err := netlink.Dial(family, nil)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := conn.JoinGroup(g); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	// Room for the burst of a table with many elements. Messages that do not fit
	// are reported as lost.
	if err := conn.SetReadBuffer(watchBuffer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &watcher{conn: conn}, nil
}

func (w *watcher) close() (err error) {
	w.once.Do(func() { err = w.conn.Close() })
	return err
}

// each puts a token into changed, unless it has one, for each relevant message, and
// into lost when messages were lost. It returns when ctx ends.
func (w *watcher) each(ctx context.Context, log *slog.Logger, matters func(netlink.Message) bool, changed, lost chan<- struct{}) {
	defer context.AfterFunc(ctx, func() { w.close() })()
	for {
		messages, err := w.conn.Receive()
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrClosed), errors.Is(err, unix.EBADF):
			return
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			log.Error("the host's network is no longer watched", "error", err)
			return
		}
		to := lost
		if err == nil {
			to = nil
			for _, m := range messages {
				if matters(m) { // each is looked at: the function remembers
					to = changed
				}
			}
		}
		select {
		case to <- struct{}{}: // never, if nil
		default:
		}
	}
}
