package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"unsafe"
)

// bufferTransport reads from one buffer and writes to another.
type bufferTransport struct {
	io.Reader
	written bytes.Buffer
}

func (t *bufferTransport) WriteVec(bufs [][]byte) error {
	for _, b := range bufs {
		t.written.Write(b)
	}
	return nil
}

func (t *bufferTransport) Close() error { return nil }

func TestFramesSurviveTheWire(t *testing.T) {
	sent := &bufferTransport{Reader: bytes.NewReader(nil)}
	l := NewLink(sent)
	payloads := []struct {
		t    Type
		a, b []byte
	}{
		{TypePing, nil, nil},
		{TypeData, []byte("first"), []byte(" second")},
		{TypeData, bytes.Repeat([]byte("x"), MaxData), nil},
		{TypeSignal, []byte{15, 0, 0, 0}, nil},
	}
	for i, p := range payloads {
		if err := l.Send(p.t, 1, uint32(i), p.a, p.b); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Send(TypeData, 1, 9, make([]byte, MaxData), []byte{1}); !errors.Is(err, ErrTooLong) {
		t.Errorf("a frame that is too long: %v", err)
	}
	r := NewLink(&bufferTransport{Reader: &sent.written})
	for i, p := range payloads {
		h, err := r.Receive()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, h.Length)
		if err := r.ReadFull(got); err != nil {
			t.Fatal(err)
		}
		if h.Type != p.t || h.ID != uint32(i) || h.Stream != 1 || !bytes.Equal(got, append(bytes.Clone(p.a), p.b...)) {
			t.Errorf("frame %d: %+v with %d bytes", i, h, len(got))
		}
	}
	if _, err := r.Receive(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

func TestMalformedFrames(t *testing.T) {
	for name, b := range map[string][]byte{
		"type 0":          {0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0},
		"unknown type":    {0, 0, 0, 0, byte(typeEnd), 0, 0, 0, 1, 0, 0, 0},
		"unknown stream":  {1, 0, 0, 0, byte(TypeData), 3, 0, 0, 1, 0, 0, 0},
		"reserved byte":   {0, 0, 0, 0, byte(TypePing), 0, 1, 0, 1, 0, 0, 0},
		"too long":        {1, 0, MaxData >> 16, 0, byte(TypeData), 1, 0, 0, 1, 0, 0, 0},
		"huge":            {255, 255, 255, 255, byte(TypeReply), 0, 0, 0, 1, 0, 0, 0},
		"too short":       {7, 0, 0, 0, byte(TypeAck), 1, 0, 0, 1, 0, 0, 0},
		"empty data":      {0, 0, 0, 0, byte(TypeData), 1, 0, 0, 1, 0, 0, 0},
		"ping with bytes": {1, 0, 0, 0, byte(TypePing), 0, 0, 0, 1, 0, 0, 0},
	} {
		if h, err := parseHeader(b); !errors.Is(err, errFrame) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

// fill puts a Data frame of p into in.
func fill(in *Inbox, stream uint8, p []byte) error {
	l := NewLink(&bufferTransport{Reader: bytes.NewReader(p)})
	return in.Fill(l, Header{Type: TypeData, Stream: stream, Length: uint32(len(p))})
}

func TestInboxKeepsOrderAndOffsets(t *testing.T) {
	in := NewInbox()
	in.StartAt(StreamOut, 1000)
	in.StartAt(StreamErr, 0)
	want := map[uint8][]byte{}
	for i := range 300 {
		stream := StreamOut + uint8(i%2)
		p := bytes.Repeat([]byte{byte(i)}, 1+i*3)
		want[stream] = append(want[stream], p...)
		if err := fill(in, stream, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.End(StreamOut, 1000+int64(len(want[StreamOut]))); err != nil {
		t.Fatal(err)
	}
	if err := in.End(StreamErr, int64(len(want[StreamErr]))); err != nil {
		t.Fatal(err)
	}
	got := map[uint8][]byte{}
	last := byte(0)
	for {
		c, err := in.Next(context.Background())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		start := map[uint8]int64{StreamOut: 1000}[c.Stream]
		if c.Offset != start+int64(len(got[c.Stream])) {
			t.Fatalf("stream %d: offset %d after %d bytes", c.Stream, c.Offset, len(got[c.Stream]))
		}
		if c.Data[0]-last > 1 {
			t.Fatalf("%d comes after %d", c.Data[0], last)
		}
		last = c.Data[len(c.Data)-1]
		got[c.Stream] = append(got[c.Stream], c.Data...)
	}
	for s := range want {
		if !bytes.Equal(got[s], want[s]) {
			t.Errorf("stream %d differs", s)
		}
	}
}

func TestInboxRefusesMoreThanTheWindow(t *testing.T) {
	in := NewInbox(StreamOut)
	frame := make([]byte, MaxData)
	for range Window / MaxData {
		if err := fill(in, StreamOut, frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(in, StreamOut, []byte{1}); !errors.Is(err, errFrame) {
		t.Fatalf("a byte beyond the window: %v", err)
	}
	if in.Ack(StreamOut, 1<<40) {
		t.Error("what was not consumed was acknowledged")
	}
	for told := false; !told; {
		c, err := in.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		end := c.Offset + int64(len(c.Data))
		if told = in.Ack(StreamOut, end); told != (end >= AckEvery) {
			t.Fatalf("told the sender at %d: %v", end, told)
		}
	}
	if err := fill(in, StreamOut, frame); err != nil {
		t.Errorf("after an Ack: %v", err)
	}
	if err := fill(in, StreamErr, frame); !errors.Is(err, errFrame) {
		t.Errorf("a stream that is not open: %v", err)
	}
	if err := in.End(StreamOut, 5); !errors.Is(err, errFrame) {
		t.Errorf("an end elsewhere: %v", err)
	}
}

// TestInboxOfTinyFrames: frames of one byte from a hostile sender must cost little more
// memory than their bytes.
func TestInboxOfTinyFrames(t *testing.T) {
	in := NewInbox(StreamOut, StreamErr)
	l := NewLink(&bufferTransport{Reader: bytes.NewReader(make([]byte, 2*Window))})
	for i := range 2 * Window {
		if err := in.Fill(l, Header{Type: TypeData, Stream: StreamOut + uint8(i%2), Length: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if blocks := len(in.blocks); blocks > 2*Window/largeBlock+2 {
		t.Errorf("%d blocks", blocks)
	}
	if runs := len(in.runs); runs != 2*Window {
		t.Errorf("%d runs", runs)
	}
}

func TestGate(t *testing.T) {
	g := NewGate()
	ctx := context.Background()
	total := 0
	for total < Window {
		n, err := g.Reserve(ctx, 100_000)
		if err != nil || n == 0 || n > MaxData {
			t.Fatalf("%d, %v", n, err)
		}
		total += n
	}
	if total != Window {
		t.Errorf("%d bytes in the window", total)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := g.Reserve(cancelled, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a full window: %v", err)
	}
	if err := g.Ack(Window + 1); !errors.Is(err, errFrame) {
		t.Errorf("more acknowledged than sent: %v", err)
	}
	if err := g.Ack(10); err != nil {
		t.Fatal(err)
	}
	if n, err := g.Reserve(ctx, 100); n != 10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	broken := errors.New("broken")
	g.Close(broken)
	if _, err := g.Reserve(ctx, 1); err != broken {
		t.Errorf("after Close: %v", err)
	}
}

// TestInboxHoldsLittleForSmallFrames alternates frames of one byte between the streams,
// which costs the receiver the most.
func TestInboxHoldsLittleForSmallFrames(t *testing.T) {
	in := NewInbox(StreamOut, StreamErr)
	var sent bufferTransport
	l := NewLink(&sent)
	for range 1000 {
		l.Send(TypeData, StreamOut, 1, []byte("o"), nil)
		l.Send(TypeData, StreamErr, 1, []byte("e"), nil)
	}
	l = NewLink(&bufferTransport{Reader: &sent.written})
	for {
		h, err := l.Receive()
		if err != nil {
			break
		}
		if err := in.Fill(l, h); err != nil {
			t.Fatal(err)
		}
	}
	if n := uintptr(len(in.runs)) * unsafe.Sizeof(in.runs[0]); n > 4*2000 {
		t.Errorf("%d bytes to tell the streams of 2000", n)
	}
	for i := range 2000 {
		c, err := in.Next(context.Background())
		if err != nil || string(c.Data) != "oe"[i%2:i%2+1] || c.Offset != int64(i/2) || c.Stream != StreamOut+uint8(i%2) {
			t.Fatalf("piece %d: %+v %v", i, c, err)
		}
	}
}

// FuzzLink receives any bytes as a connection.
func FuzzLink(f *testing.F) {
	var seed bufferTransport
	l := NewLink(&seed)
	l.SendJSON(TypeReply, 1, Reply{PID: 7})
	l.Send(TypeData, StreamOut, 1, []byte("output"), nil)
	l.SendOffset(TypeEOF, StreamOut, 1, 6)
	l.SendOffset(TypeAck, StreamIn, 1, 3)
	f.Add(seed.written.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		l := NewLink(&bufferTransport{Reader: bytes.NewReader(b)})
		in, gate := NewInbox(StreamOut, StreamErr), NewGate()
		for {
			h, err := l.Receive()
			if err != nil {
				return
			}
			switch h.Type {
			case TypeData:
				err = in.Fill(l, h)
			case TypeEOF:
				var n int64
				if n, err = l.ReadOffset(); err == nil {
					err = in.End(h.Stream, n)
				}
			case TypeAck:
				var n int64
				if n, err = l.ReadOffset(); err == nil {
					err = gate.Ack(n)
				}
			case TypeReply:
				err = l.ReadJSON(h, new(Reply))
			default:
				err = l.Discard(h.Length)
			}
			if err != nil {
				return
			}
			if s := in.stream[h.Stream]; s.received-s.acked > Window {
				t.Fatalf("%d bytes held", s.received-s.acked)
			}
		}
	})
}

// FuzzMessages decodes any bytes as the requests of a host.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"key":"cmd_1","name":"sh","args":["-c","true"],"env":{"A":"b"},"tty":{"cols":80,"rows":24}}`))
	f.Add([]byte(`{"version":1,"hostname":"h","user":{"name":"u","uid":1,"gid":1},"workDir":"/w"}`))
	f.Add([]byte(`{"path":"a","cwd":"/"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var start Start
		if json.Unmarshal(b, &start) == nil && start.Validate() == nil {
			for _, a := range append(start.Args, start.Name, start.Cwd) {
				if bytes.ContainsRune([]byte(a), 0) {
					t.Fatal("a NUL byte was let through")
				}
			}
		}
		var setup Setup
		if json.Unmarshal(b, &setup) == nil && setup.Validate() == nil && (setup.WorkDir == "" || setup.WorkDir[0] != '/' || setup.User.UID == 0) {
			t.Fatalf("let through: %+v", setup)
		}
		var path PathRequest
		if json.Unmarshal(b, &path) == nil && path.Validate() == nil && (path.Path == "" || len(path.Path) > 4095) {
			t.Fatalf("let through: %+v", path)
		}
	})
}
