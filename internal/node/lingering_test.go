package node

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// lingering is a machine with processes that print and end at SIGKILL alone.
type lingering struct {
	*earlier
	agent net.Conn
	// signals are what the processes got; forgotten is closed when one of them
	// was dropped.
	signals   chan syscall.Signal
	forgotten chan struct{}
}

func newLingering() *lingering {
	return &lingering{earlier: &earlier{}, signals: make(chan syscall.Signal, 8), forgotten: make(chan struct{})}
}

func (m *lingering) Attach(context.Context) (net.Conn, error) {
	var host net.Conn
	host, m.agent = net.Pipe()
	go m.serve(wire.NewLink(pipe{m.agent}))
	return host, nil
}

func (m *lingering) serve(l *wire.Link) {
	for {
		h, err := l.Receive()
		if err != nil {
			return
		}
		payload := make([]byte, h.Length)
		if l.ReadFull(payload) != nil {
			return
		}
		switch h.Type {
		case wire.TypeResume:
			err = l.SendJSON(wire.TypeListing, h.ID, wire.Reply{})
		case wire.TypePing:
			err = l.SendJSON(wire.TypeReply, h.ID, wire.Reply{})
		case wire.TypeStart:
			if err = l.SendJSON(wire.TypeReply, h.ID, wire.Reply{PID: 2}); err == nil {
				err = l.Send(wire.TypeData, wire.StreamOut, h.ID, []byte("begun\n"), nil)
			}
		case wire.TypeSignal:
			sig := syscall.Signal(binary.LittleEndian.Uint32(payload))
			m.signals <- sig
			if sig == syscall.SIGKILL {
				err = l.SendJSON(wire.TypeExit, h.ID, wire.Exit{Code: 137, Signal: 9, Stdout: 6})
			}
		case wire.TypeForget:
			close(m.forgotten)
		}
		if err != nil {
			return
		}
	}
}

// take has a node take the machine over.
func (m *lingering) take(t *testing.T) (*Node, *session) {
	t.Helper()
	n, keep := nodeAfter(t, t.TempDir(), time.Hour, m.earlier)
	n.cfg.Driver, n.cfg.Networks = machines{m}, someAuthority{}
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	s, err := n.running(m.id)
	if err != nil {
		t.Fatal(err)
	}
	return n, s
}

type someAuthority struct{ noNetworks }

func (someAuthority) Authority() []byte {
	return []byte("-----BEGIN CERTIFICATE-----\nA\nB\nC\nD\n-----END CERTIFICATE-----\n")
}

// TestTrustScriptIsGivenUp: a script that does not end is killed and forgotten
// when its time is over, and commands run without it.
func TestTrustScriptIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newLingering()
		n, s := m.take(t)
		defer n.Close()
		s.trust.want(&skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{
			Domain: "example.com", Rules: []skerry.NetworkRule{{Transform: []skerry.HeaderTransform{{}}}},
		}}})
		start := time.Now()
		if s.trusts(t.Context()) {
			t.Error("the authority is trusted without the script's end")
		}
		if waited := time.Since(start); waited != trustPatience {
			t.Errorf("the script was given up after %v", waited)
		}
		select {
		case <-m.forgotten:
		case <-time.After(time.Minute):
			t.Error("the script is not forgotten")
		}
		close(m.signals)
		var got []syscall.Signal
		for sig := range m.signals {
			got = append(got, sig)
		}
		if want := []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL}; !slices.Equal(got, want) {
			t.Errorf("the script got %v, want %v", got, want)
		}
	})
}

// TestLossIsToldToCommands: the standard error of a command whose sandbox was lost
// says why.
func TestLossIsToldToCommands(t *testing.T) {
	m := newLingering()
	n, _ := m.take(t)
	defer n.Close()
	out, err := n.Exec(t.Context(), m.id, nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "sleep"}}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said := map[skerry.Stream]string{}
	next := func() bool {
		chunk, err := out.Next()
		said[chunk.Stream] += string(chunk.Data)
		return err == nil
	}
	for next() && !strings.HasSuffix(said[skerry.Stdout], "\n") {
	}
	close(m.done) // the machine ends, and the agent with it
	m.agent.Close()
	for next() {
	}
	if got, want := said[skerry.Stderr], "skerry: the sandbox was lost: "+m.Reason()+"\n"; got != want {
		t.Errorf("standard error is %q, want %q", got, want)
	}
}
