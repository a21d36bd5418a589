package pipes

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// The process of the tests stands for the sentry: it has the guest's ends open.

func newGuest(t *testing.T) (*wire.Duplex, Guest, Names) {
	t.Helper()
	host, guest, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		guest.Close()
	})
	names, err := guest.Names()
	if err != nil {
		t.Fatal(err)
	}
	return host, guest, names
}

func take(t *testing.T, names Names) (*wire.Duplex, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := Take(ctx, os.Getpid(), names)
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// answer acts as the agent: after a knock it writes stale data, the nonce and after.
func answer(t *testing.T, guest Guest, stale, after string) {
	t.Helper()
	nonce := make([]byte, wire.KnockSize)
	if _, err := io.ReadFull(guest.Door, nonce); err != nil {
		t.Error(err)
	}
	if _, err := guest.Out.Write([]byte(stale + string(nonce) + after)); err != nil {
		t.Error(err)
	}
}

func TestTakeSkipsWhatIsStale(t *testing.T) {
	for _, size := range []int{0, 1, wire.KnockSize, 64<<10 - 1, 64 << 10, 1_000_000} {
		host, guest, names := newGuest(t)
		if err := host.Close(); err != nil {
			t.Fatal(err)
		}
		go answer(t, guest, strings.Repeat("x", size), "")
		conn, err := take(t, names)
		if err != nil {
			t.Fatalf("%d stale bytes: %v", size, err)
		}
		if _, err := guest.Out.Write([]byte("up")); err != nil {
			t.Fatal(err)
		}
		up := make([]byte, 2)
		if _, err := io.ReadFull(conn, up); err != nil || string(up) != "up" {
			t.Errorf("%d stale bytes: %q, %v", size, up, err)
		}
		if _, err := conn.Write([]byte("down")); err != nil {
			t.Fatal(err)
		}
		down := make([]byte, 4)
		if _, err := io.ReadFull(guest.In, down); err != nil || string(down) != "down" {
			t.Errorf("%d stale bytes: %q, %v", size, down, err)
		}
	}
}

func TestTakeRefuses(t *testing.T) {
	t.Run("other pipes", func(t *testing.T) {
		_, guest, names := newGuest(t)
		names.Out = names.In + 1<<40
		if _, err := take(t, names); err == nil || !strings.Contains(err.Error(), "2 of the agent's 3") {
			t.Error(err)
		}
		guest.Close()
	})
	t.Run("an agent that sends data after the nonce", func(t *testing.T) {
		host, guest, names := newGuest(t)
		host.Close()
		go answer(t, guest, "", "more")
		if _, err := take(t, names); err == nil || !strings.Contains(err.Error(), "before the first request") {
			t.Error(err)
		}
	})
	t.Run("an agent that never says it", func(t *testing.T) {
		host, guest, names := newGuest(t)
		host.Close()
		go func() {
			if _, err := io.ReadFull(guest.Door, make([]byte, wire.KnockSize)); err != nil {
				t.Error(err)
			}
			for line := bytes.Repeat([]byte("never "), 10_000); ; {
				if _, err := guest.Out.Write(line); err != nil {
					return
				}
			}
		}()
		if _, err := take(t, names); err == nil || !strings.Contains(err.Error(), "instead of reconnecting") {
			t.Error(err)
		}
	})
	t.Run("an agent that says nothing", func(t *testing.T) {
		host, _, names := newGuest(t)
		host.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := Take(ctx, os.Getpid(), names); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
