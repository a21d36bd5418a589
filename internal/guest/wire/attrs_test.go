package wire

import (
	"bufio"
	"bytes"
	"maps"
	"testing"
	"time"
)

var attrs = []Attrs{
	{Missing: true},
	{ModTime: time.Unix(1700000000, 123456789)},
	{ModTime: time.Unix(-5, 1)},
	{ModTime: time.Unix(1<<40, 999999999), Xattrs: map[string]string{"user.empty": "", "security.capability": "\x00\x01\xff"}},
}

func TestAttrs(t *testing.T) {
	var b []byte
	for _, a := range attrs {
		b = a.Append(b)
	}
	r := bufio.NewReader(bytes.NewReader(b))
	for i, want := range attrs {
		got, err := ReadAttrs(r)
		if err != nil {
			t.Fatal(err)
		}
		if got.Missing != want.Missing || !got.ModTime.Equal(want.ModTime) || !maps.Equal(got.Xattrs, want.Xattrs) {
			t.Errorf("%d: got %+v, want %+v", i, got, want)
		}
	}
	if _, err := ReadAttrs(r); err == nil {
		t.Error("no error at the end")
	}
}

func FuzzAttrs(f *testing.F) {
	for _, a := range attrs {
		f.Add(a.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ReadAttrs(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		// What was read must come back the same.
		again, err := ReadAttrs(bufio.NewReader(bytes.NewReader(a.Append(nil))))
		if err != nil || again.Missing != a.Missing || !again.ModTime.Equal(a.ModTime) || !maps.Equal(again.Xattrs, a.Xattrs) {
			t.Errorf("%+v came back as %+v, %v", a, again, err)
		}
	})
}
