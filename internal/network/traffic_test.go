package network

import (
	"maps"
	"os"
	"testing"
)

func TestParseDevices(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000       7    0    0    0     0          0         0     1000       7    0    0    0     0       0          0
sky0a1b0001:  10       3    0    0    0     0          0         0       20       4    0    0    0     0       0          0
sky0a1b0002: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
sky0a1c0001: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
`
	got, err := parseDevices([]byte(text), "sky0a1b")
	if want := map[string]uint64{"0001": 7, "0002": 0}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"sky0a1b0001: 1 2 3", "sky0a1b0001: 0 x 0 0 0 0 0 0 0 0 0 0 0 0 0 0"} {
		if got, err := parseDevices([]byte(bad), "sky0a1b"); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// TestTraffic: packets of one lease count for it alone, and a connection as long as it
// is open.
func TestTraffic(t *testing.T) {
	p := newPool(t, nil)
	busy, quiet := acquire(t, p), acquire(t, p)
	read := func() map[string]uint64 {
		t.Helper()
		all, err := p.Traffic(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	connected := func() bool {
		t.Helper()
		all, err := p.Connected(t.Context())
		if err != nil || all[quiet.Address()] {
			t.Fatal(all, err)
		}
		return all[busy.Address()]
	}
	before := read()
	if _, ok := before[quiet.ID()]; !ok || connected() {
		t.Fatalf("before the first packet: %v", before)
	}
	var f *os.File
	err := inside(t, busy.NetNSPath(), func() error {
		fd, err := blockingDial(labAddr+":"+labPort, patience)
		f = os.NewFile(uintptr(fd), "lab")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	after := read()
	if after[busy.ID()] <= before[busy.ID()] || after[quiet.ID()] != before[quiet.ID()] || !connected() {
		t.Errorf("%v, then %v, connected: %v", before, after, connected())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the connection", func() bool { return !connected() })
}
