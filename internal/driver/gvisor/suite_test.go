package gvisor

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/drivertest"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) *drivertest.Lab {
		l := newLab(t)
		spec := func(id string) driver.Spec {
			s := l.spec(id)
			s.RootFS, s.Agent = programs.root, programs.agent
			return s
		}
		change := func(id string, f func(*driver.Spec)) driver.Spec {
			s := spec(id)
			f(&s)
			return s
		}
		return &drivertest.Lab{
			Driver: l.Driver,
			Reopen: func(t *testing.T) driver.Driver { return openLab(t, l.cfg).Driver },
			Spec:   spec,
			Tool:   "/tool",
			Broken: func(t *testing.T, id string) map[string]driver.Spec {
				empty := t.TempDir()
				return map[string]driver.Spec{
					"no image":                 change(id, func(s *driver.Spec) { s.RootFS = "/etc/passwd" }),
					"no agent":                 change(id, func(s *driver.Spec) { s.Agent = programs.root }),
					"image that is not there":  change(id, func(s *driver.Spec) { s.RootFS = empty + "/image" }),
					"memory that is not there": change(id, func(s *driver.Spec) { s.Source.Memory = empty }),
					"files that are not there": change(id, func(s *driver.Spec) { s.Source.Files = empty }),
					"no interface":             change(id, func(s *driver.Spec) { s.Interfaces = veth(empty + "/ns") }),
					"tap":                      change(id, func(s *driver.Spec) { s.Interfaces = []driver.Interface{{Kind: driver.Tap, NetNS: empty}} }),
					"no volume": change(id, func(s *driver.Spec) {
						s.Volumes = []driver.Volume{{Kind: driver.Tree, Path: "/x", Source: os.NewFile(1<<20, "none")}}
					}),
				}
			},
			Kill: func(t *testing.T, m drivertest.Running) { sendTo(t, m, unix.SIGKILL) },
			Hang: func(t *testing.T, m drivertest.Running) { sendTo(t, m, unix.SIGSTOP) },
			Left: func(t *testing.T, id string) []string { return l.left(t, id) },
		}
	})
}

func sendTo(t *testing.T, m drivertest.Running, sig unix.Signal) {
	t.Helper()
	if b, ok := m.(*blank); ok {
		m = b.m
	}
	p := m.(*machine).proc
	if err := p.send(sig); err != nil {
		t.Fatal(err)
	}
	// On a busy host a sentry may still answer before it stops.
	for sig == unix.SIGSTOP {
		if stopped, err := p.isStopped(); err != nil {
			t.Fatal(err)
		} else if stopped {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("the sentry does not stop")
		}
	}
}

// TestSilentSentryAtTheStart stops sentries while they are being started.
func TestSilentSentryAtTheStart(t *testing.T) {
	l := newLab(t)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for ctx.Err() == nil {
				procs, err := running(l.cfg.Dir)
				if err != nil || procs["mute"].sentry == 0 {
					continue
				}
				if p, err := openProcess(procs["mute"].sentry); err == nil {
					_ = p.send(unix.SIGSTOP)
					p.close()
				}
				return
			}
		}()
		m, err := l.Start(ctx, l.spec("mute"))
		if err == nil { // it was stopped later
			err = m.Stop(t.Context())
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start() = %v", err)
		}
		cancel()
		<-stopped
		l.assertNothingLeft(t, "mute")
	}
}

// TestHungSentryEnds: a sentry that does not answer what it has to answer at once is
// killed.
func TestHungSentryEnds(t *testing.T) {
	l := newLab(t)
	l.callWait = 200 * time.Millisecond
	m, _ := l.start(t, l.spec("hung"))
	sendTo(t, m, unix.SIGSTOP)
	if err := m.Pause(t.Context()); err == nil {
		t.Error("a sentry that hangs is paused")
	}
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if m.Reason() != "the sandbox's kernel does not answer" {
		t.Errorf("Reason() = %q", m.Reason())
	}
}
