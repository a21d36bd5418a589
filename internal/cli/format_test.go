package cli

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// wide returns a server whose listings have values of the usual length.
func wide(t *testing.T) *servertest.Server {
	s := servertest.New(t, func(c *controller.Config) { c.Ingress = servertest.Ports{} })
	for _, name := range []string{"checkout-service-preview", "docs"} {
		run := s.Create(t, skerry.CreateParams{
			Name: name, Tags: map[string]string{"team": "web"}, Ports: []int{3000, 8080}, Timeout: skerry.Duration(2 * later),
		})
		s.Stop(t, run.Session.ID)
		s.Edit(t, name, func(sb *skerry.Sandbox, session *skerry.Session) {
			sb.TotalActiveCPU, sb.TotalEgressBytes, sb.TotalIngressBytes = skerry.Duration(12*time.Second), 12<<20, 420<<20
			sb.TotalResidentMBSeconds = 90 << 10 * 60
			session.Duration = skerry.Duration(90 * time.Second)
		})
		if _, err := s.GetSandbox(t.Context(), controllertest.Scope, name, true); err != nil {
			t.Fatal(err)
		}
	}
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/network-events") {
			return false
		}
		fmt.Fprint(w, `{"events":[{"time":1767322985000,"allowed":true,"protocol":"tls","domain":"registry.npmjs.org","destination":"104.16.3.35:443","reason":"allowed domain"},`+
			`{"time":1767322986000,"allowed":false,"protocol":"dns","domain":"telemetry.example.com","reason":"domain not allowed"}]}`)
		return true
	}
	if got := (invocation{server: s}).run(t, "drives", "create", "checkout-service-cache"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	return s
}

// A listing fits the terminal; what names a row is never left out.
func TestTablesFitTheTerminal(t *testing.T) {
	home(t)
	s := wide(t)
	shown := map[int]string{}
	for _, test := range []struct{ argv, keeps string }{
		{"ls", "NAME STATUS"}, {"ls -a", "NAME STATUS"}, {"sessions ls docs", "ID STATUS"}, {"sessions ls docs -a", "ID STATUS"},
		{"snapshots ls", "ID SANDBOX"}, {"drives ls", "NAME ATTACHED"}, {"logs --network docs", "VERDICT DOMAIN"},
	} {
		for _, width := range []int{60, 80, 120} {
			got := invocation{server: s, tty: true, width: width, env: map[string]string{"NO_COLOR": "1"}}.run(t, strings.Fields(test.argv)...)
			for line := range strings.Lines(got.out) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%s: a line of %d columns in a terminal of %d", test.argv, n, width)
				}
			}
			for _, column := range strings.Fields(test.keeps) {
				if !strings.Contains(got.out, column) {
					t.Errorf("%s: %d columns do not show %s", test.argv, width, column)
				}
			}
			shown[width] += "$ sandbox " + test.argv + "\n" + got.out
		}
		all := invocation{server: s, tty: true}.run(t, strings.Fields(test.argv)...).out
		piped := invocation{server: s, width: 20}.run(t, strings.Fields(test.argv)...).out
		if head, _, _ := strings.Cut(piped, "\n"); strings.Count(head, "\t") < 6 || strings.Count(all, "\n") != strings.Count(piped, "\n") {
			t.Errorf("%s: piped %q, of no known width %q", test.argv, piped, all)
		}
	}
	golden(t, "width-80", s.Mask(t, shown[80]))
	golden(t, "width-120", s.Mask(t, shown[120]))
}

// A column that is much too wide takes no others along.
func TestFit(t *testing.T) {
	title := []string{"A", "B", "C", "D"}
	for _, test := range []struct {
		widths [4]int
		width  int
		want   string
	}{
		{[4]int{5, 5, 5, 5}, 0, "[true true true true]"},
		{[4]int{5, 5, 5, 5}, 29, "[true true true true]"},
		{[4]int{5, 5, 5, 5}, 28, "[true false true true]"},
		{[4]int{5, 5, 100, 5}, 29, "[true true false true]"},
		{[4]int{5, 5, 5, 100}, 29, "[true false false true]"},
	} {
		if got := fmt.Sprint(fit(title, test.widths[:], test.width, []string{"B", "C"})); got != test.want {
			t.Errorf("%v in %d: %s, want %s", test.widths, test.width, got, test.want)
		}
	}
}
