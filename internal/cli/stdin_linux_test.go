package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// TestGivenInput: input that a command would not get is refused, and what
// others hand on without meaning it is not.
func TestGivenInput(t *testing.T) {
	s := servertest.New(t)
	if got := (invocation{server: s}).run(t, "create", "--name", "n"); got.code != 0 {
		t.Fatal(got)
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/list", []byte("a\nb\nc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for script, want := range map[string]struct {
		code int
		out  string
	}{
		`"$T" exec n cat < list`: {125, ""},
		`mkfifo fifo; exec 3<>fifo; printf x >&3; "$T" exec n cat <&3`: {125, ""},
		`"$T" exec n echo ok < /dev/null`:                              {0, "ok\n"},
		`: | "$T" exec n echo ok`:                                      {0, "ok\n"},
		`"$T" exec n echo ok <&-`:                                      {0, "ok\n"},
		`while read x; do "$T" exec n echo "$x"; done < list`:          {0, "a\nb\nc\n"},
		`cat list | while read x; do "$T" exec n echo "$x"; done`:      {0, "a\nb\nc\n"},
		`exec < list; "$T" exec n echo ok; true`:                       {0, "ok\n"},
	} {
		cmd := tool(t, s)
		cmd = &exec.Cmd{Path: "/bin/bash", Args: []string{"bash", "-c", script}, Dir: dir, Env: append(cmd.Env, "T="+os.Args[0])}
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		if code(err) != want.code || out.String() != want.out {
			t.Errorf("%s: %d, %q, %q; want %d, %q", script, code(err), &out, &errs, want.code, want.out)
		}
		if want.code != 0 && !strings.Contains(errs.String(), "standard input is not passed on") {
			t.Errorf("%s says %q", script, &errs)
		}
	}
}

// TestFillPage: pages are filled however many items are not to be shown, and
// a cursor is given exactly if there is more.
func TestFillPage(t *testing.T) {
	const all = 250
	for _, every := range []int{1, 2, 7, 60, 1000} {
		for _, limit := range []int{1, 3, 50, 100} {
			get := func(cursor string, n int) (client.Page[int], error) {
				from := 0
				fmt.Sscan(cursor, &from)
				page := client.Page[int]{}
				for i := from; i < min(from+n, all); i++ {
					page.Items = append(page.Items, i)
				}
				if from+n < all {
					page.Next = fmt.Sprint(from + n)
				}
				return page, nil
			}
			var got []int
			cursor := ""
			for {
				page, err := fillPage(cursor, limit, get, func(i int) bool { return i%every == every/2 })
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page.Items...)
				if page.Next == "" {
					break
				}
				if len(page.Items) != limit {
					t.Errorf("every %dth by %d: a page has %d and is not the last", every, limit, len(page.Items))
				}
				cursor = page.Next
			}
			for i, n := range got {
				if n != i*every+every/2 {
					t.Fatalf("every %dth by %d: %v", every, limit, got)
				}
			}
			if want := (all - every/2 + every - 1) / every; len(got) != max(want, 0) {
				t.Errorf("every %dth by %d: %d items, want %d", every, limit, len(got), want)
			}
		}
	}
}
