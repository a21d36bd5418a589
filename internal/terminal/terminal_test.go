package terminal

import "testing"

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain-Name_1.": "plain-Name_1.", "ä 世": "ä 世",
		"a\x1b[2Jb": "a\ufffd[2Jb", "a\r\n\tb\x00\x7f": "a\ufffd\ufffd\ufffdb\ufffd\ufffd", "a\u009bb": "a\ufffdb", "a\u202eb\u2066c": "a\ufffdb\ufffdc",
		"bad\xff": "bad\ufffd",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
