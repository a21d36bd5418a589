package servertest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// Epoch is what Mask makes of the time when the server started.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// maskStep is how exact times are in what Mask returns.
const maskStep = 5 * time.Minute

var (
	ids      = regexp.MustCompile(`(sbx|snap|drv|cmd|req)_[0-9a-z]{24}\b`)
	cursors  = regexp.MustCompile(`\beyJ[0-9A-Za-z_-]{20,}`)
	madeUp   = regexp.MustCompile(`^[a-z]+-[a-z]+-[a-z2-9]{6}$`) // names that the server makes up
	times    = regexp.MustCompile(`("\w+At": ?)(\d{13})\b`)
	spans    = regexp.MustCompile(`("duration": ?)\d+\b`)
	ports    = regexp.MustCompile(`("interactivePort": ?)\d+\b`) // the server's
	lifetime = regexp.MustCompile(`\bit ran [0-9.]+m?s\b`)
)

// Mask returns a text of JSON or for people with what differs from run to run made the
// same: ids and made-up names are numbered in the order in which they appear first,
// times are counted from Epoch, and cursors, the server's port and how long something
// took are left out.
// The lengths of ids stay.
func (s *Server) Mask(t testing.TB, text string) string {
	t.Helper()
	sandboxes, _, err := s.Store.ListSandboxes(t.Context(), controllertest.Scope, skerry.SandboxFilter{Page: skerry.Page{Limit: 50, Ascending: true}})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sb := range sandboxes {
		if madeUp.MatchString(sb.Name) {
			text = strings.ReplaceAll(text, sb.Name, s.alias("made-up-%d", sb.Name))
		}
	}
	text = cursors.ReplaceAllString(text, "CURSOR")
	text = ids.ReplaceAllStringFunc(text, func(id string) string { return s.alias(ids.FindStringSubmatch(id)[1]+"_%024d", id) })
	text = times.ReplaceAllStringFunc(text, func(field string) string {
		m := times.FindStringSubmatch(field)
		ms, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return field
		}
		since := time.UnixMilli(ms).Sub(s.Started).Round(maskStep)
		return m[1] + strconv.FormatInt(Epoch.Add(since).UnixMilli(), 10)
	})
	text = ports.ReplaceAllString(text, "${1}7700")
	text = spans.ReplaceAllString(text, "${1}90000")
	return lifetime.ReplaceAllString(text, "it ran 1m30s")
}

// alias returns what an id is called in masked texts. s.mu is held.
func (s *Server) alias(format, id string) string {
	if s.aliases == nil {
		s.aliases, s.counts = map[string]string{}, map[string]int{}
	}
	if s.aliases[id] == "" {
		s.counts[format]++
		s.aliases[id] = fmt.Sprintf(format, s.counts[format])
	}
	return s.aliases[id]
}

// Edit changes what the database has of a sandbox and its current session, for values
// that no call sets. What runs is not told.
func (s *Server) Edit(t testing.TB, name string, change func(*skerry.Sandbox, *skerry.Session)) {
	t.Helper()
	sandbox, err := s.Store.SandboxByName(t.Context(), controllertest.Scope, name)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Store.UpdateSession(t.Context(), sandbox.CurrentSessionID, func(sandbox *skerry.Sandbox, session *skerry.Session) error {
		change(sandbox, session)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Ports is an ingress that leads nowhere: published ports have URLs and nothing else.
type Ports struct{}

func (Ports) Publish(string, []skerry.PublishedPort) error { return nil }
func (Ports) Restore(string, []skerry.PublishedPort) error { return nil }
func (Ports) Withdraw(string)                              {}

func (Ports) URL(p skerry.PublishedPort) string { return fmt.Sprintf("https://%d.example", p.Port) }

func (Ports) Token(p skerry.PublishedPort, _ time.Time) string {
	return fmt.Sprintf("token-for-%d", p.Port)
}
