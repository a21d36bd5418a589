package client

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEventLines(t *testing.T) {
	long := strings.Repeat("x", streamBuffer*3)
	stream := "\n" + `{"stream":"stdout","data":"a\n\"b\\\u001b\u00e9😀"}` + "\n" +
		`{"data":"\ud83d\ude00","stream":"stderr"}` + "\r\n" +
		`{"stream":"stderr","data":"` + long + `"}` + "\n" +
		`{"command":{"id":"cmd_1","exitCode":0}}` + "\n"
	d := newEventReader(strings.NewReader(stream))
	for _, want := range []string{"stdout:a\n\"b\\\x1bé😀", "stderr:😀", "stderr:" + long} {
		ev, err := d.next()
		if got := string(ev.stream) + ":" + string(ev.data); err != nil || got != want {
			t.Fatalf("got %.80q, %v; want %.80q", got, err, want)
		}
	}
	if ev, err := d.next(); err != nil || ev.command == nil || ev.command.ID != "cmd_1" {
		t.Fatalf("got %+v, %v", ev, err)
	}
	if _, err := d.next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestEventLineBound(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(`{"stream":"stdout","data":"`), zeros{})
	if _, err := newEventReader(endless).next(); err == nil || !strings.Contains(err.Error(), "line of more than") {
		t.Errorf("error %v", err)
	}
}

// zeros never ends and never breaks a line.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// FuzzEvents checks that no stream breaks the decoder, and that its fast path
// and the general one agree.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"stream":"stdout","data":"a\n\u001b\\"}` + "\n"))
	f.Add([]byte(`{"stream":"stderr","data":"a"b"}` + "\n" + `{"stream":"stdout","data":"\ud800"}` + "\n"))
	f.Add([]byte(`{"stream":"error","data":{"code":"x","message":"y"}}` + "\n"))
	f.Add([]byte(`{"command":{"id":"c","exitCode":-1}}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		d := newEventReader(bytes.NewReader(stream))
		for {
			if _, err := d.next(); err != nil {
				break
			}
		}
		for line := range bytes.Lines(stream) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			fast, ok := d.decodeOutput(line)
			var slow struct{ Stream, Data string }
			if !ok || !utf8.Valid(line) || json.Unmarshal(line, &slow) != nil {
				continue
			}
			if string(fast.stream) != slow.Stream || string(fast.data) != slow.Data {
				t.Errorf("line %q: fast %q, general %q", line, fast.data, slow.Data)
			}
		}
	})
}

func BenchmarkEvents(b *testing.B) {
	text := strings.Repeat("a usual line of the output of a program, with \x1b[1mcolours\x1b[0m\n", 500)
	data, _ := json.Marshal(text)
	line := append(append([]byte(`{"stream":"stdout","data":`), data...), "}\n"...)
	stream := bytes.Repeat(line, 32)
	b.SetBytes(int64(len(text) * 32))
	for b.Loop() {
		d := newEventReader(bytes.NewReader(stream))
		for {
			if _, err := d.next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}
