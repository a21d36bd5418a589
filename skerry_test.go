package skerry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTimesAreMilliseconds(t *testing.T) {
	at := At(time.UnixMilli(1790000000123).Add(456 * time.Microsecond))
	b, err := json.Marshal(struct {
		At   Time     `json:"at"`
		Zero Time     `json:"zero,omitzero"`
		For  Duration `json:"for"`
	}{At: at, For: Duration(90 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"at":1790000000123,"for":90000}`; string(b) != want {
		t.Errorf("encoded as %s, want %s", b, want)
	}
	var back struct {
		At  Time     `json:"at"`
		For Duration `json:"for"`
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !back.At.Equal(at.Time) || back.For.Std() != 90*time.Second {
		t.Errorf("read back as %v", back)
	}
}

func TestDurationRefusesWhatItCannotHold(t *testing.T) {
	for _, in := range []string{`"5"`, `1.5`, `9223372036854775807`, `-9223372036854775807`, `1e30`, `{}`} {
		var d Duration
		if err := json.Unmarshal([]byte(in), &d); err == nil {
			t.Errorf("%s was read as %v", in, d)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID(PrefixSession)
		if !ValidID(PrefixSession, id) || seen[id] {
			t.Fatalf("NewID made %q", id)
		}
		seen[id] = true
	}
	for _, id := range []string{"", "sbx_", "sbx_../../../../../../../x", "cmd_000000000000000000000000", "sbx_00000000000000000000000", "sbx_00000000000000000000000I"} {
		if ValidID(PrefixSession, id) {
			t.Errorf("ValidID(%q)", id)
		}
	}
}

func TestTransitions(t *testing.T) {
	all := []SessionStatus{StatusPending, StatusRunning, StatusSnapshotting, StatusStopping, StatusStopped, StatusFailed, StatusAborted}
	allowed := map[SessionStatus][]SessionStatus{
		StatusPending:      {StatusRunning, StatusStopping, StatusFailed, StatusAborted},
		StatusRunning:      {StatusSnapshotting, StatusStopping, StatusAborted},
		StatusSnapshotting: {StatusRunning, StatusStopping, StatusAborted},
		StatusStopping:     {StatusStopped, StatusAborted},
	}
	for _, from := range all {
		for _, to := range all {
			if got, want := from.CanBecome(to), slices.Contains(allowed[from], to); got != want {
				t.Errorf("%s.CanBecome(%s) = %v, want %v", from, to, got, want)
			}
		}
		if got, want := from.Ended(), len(allowed[from]) == 0; got != want {
			t.Errorf("%s.Ended() = %v, want %v", from, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("doing: %w", Errorf(CodeDiskFull, "no room: %w", io.ErrShortWrite))
	if CodeOf(err) != CodeDiskFull || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("CodeOf(%v) = %s", err, CodeOf(err))
	}
	if CodeOf(io.EOF) != CodeInternal || CodeOf(nil) != "" {
		t.Error("CodeOf of a foreign error or of nil")
	}
	b, jerr := json.Marshal(Invalid("a.b", "is %d", 3))
	if jerr != nil || string(b) != `{"code":"bad_request","message":"is 3","field":"a.b"}` {
		t.Errorf("encoded as %s, %v", b, jerr)
	}
}

func TestKeptArguments(t *testing.T) {
	small := Command{Name: "sh", Args: []string{"-c", "exit 3"}}
	if kept := small.Kept(); kept.ArgsTruncated || kept.Name != "sh" || len(kept.Args) != 2 || kept.Args[1] != "exit 3" {
		t.Errorf("a small command is kept as %+v", kept)
	}
	for what, c := range map[string]Command{
		"a long name":     {Name: strings.Repeat("n", 1<<20), Args: []string{"a"}},
		"a long argument": {Name: "sh", Args: []string{"-c", strings.Repeat("ü", 1<<19), "z"}},
		"many arguments":  {Name: "sh", Args: make([]string, 1<<16)},
	} {
		kept := c.Kept()
		size := len(kept.Name)
		for _, arg := range kept.Args {
			size += 16 + len(arg)
		}
		if !kept.ArgsTruncated || size > MaxKeptArgs+16 || size < MaxKeptArgs-64 {
			t.Errorf("of %s %d bytes are kept, truncated %v", what, size, kept.ArgsTruncated)
		}
		if again := kept.Kept(); !again.ArgsTruncated {
			t.Errorf("what was truncated counts as whole")
		}
	}
}
