package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// query is what an expression of a dashboard or a rule asks of Prometheus; see
// test/monitoring/promql.
type query struct {
	Where, Text string
	Alert       *struct {
		Name                string
		Labels, Annotations map[string]string
	}
	Selectors []struct {
		Metric   string
		Labels   []struct{ Name, Op, Value string }
		Function string
	}
	Groupings []string
}

// readExpressions has Prometheus's own parser read expressions and files of rules.
func readExpressions(t *testing.T, rules []string, expressions map[string]string) (read []query) {
	t.Helper()
	in, err := json.Marshal(map[string]any{"Rules": rules, "Expressions": expressions})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = "../monitoring/promql"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	if err := json.Unmarshal(out, &read); err != nil {
		t.Fatal(err)
	}
	return read
}

// dashboardExpressions returns those of a Grafana dashboard, with values for its
// variables, by their panels.
func dashboardExpressions(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type panel struct {
		ID          int
		Title, Type string
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ Expr, RefID string }
	}
	var dashboard struct {
		UID, Title string
		Templating struct{ List []struct{ Name string } }
		Panels     []panel
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	variables := map[string]bool{"__rate_interval": true}
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = true
	}
	for _, name := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(string(b), -1) {
		if !variables[name[1]] && name[1] != "__all" {
			t.Errorf("%s has no variable %s", path, name[1])
		}
	}
	ids, expressions := map[int]bool{}, map[string]string{}
	for i, p := range dashboard.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" || p.GridPos.W < 1 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: the panel %d %q is at %+v", path, p.ID, p.Title, p.GridPos)
		}
		ids[p.ID] = true
		for _, q := range dashboard.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s: %q lies on %q", path, p.Title, q.Title)
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("%s: %q, a %s, asks for %d things", path, p.Title, p.Type, len(p.Targets))
		}
		for _, target := range p.Targets {
			text := strings.NewReplacer("$__rate_interval", "5m", "$instance", "a|b").Replace(target.Expr)
			expressions[filepath.Base(path)+": "+p.Title+" "+target.RefID] = text
		}
	}
	if dashboard.UID == "" || dashboard.Title == "" || len(expressions) < 10 {
		t.Errorf("%s is %q, %q, with %d expressions", path, dashboard.UID, dashboard.Title, len(expressions))
	}
	return expressions
}

// served is a metric of a server: its type, and the values of its labels.
type served struct {
	kind   string
	labels map[string]map[string]bool
}

// servedMetrics reads what Prometheus would scrape. A histogram is there by the names of
// its series.
func servedMetrics(body string) map[string]served {
	kinds := map[string]string{}
	metrics := map[string]served{}
	pair := regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	for line := range strings.Lines(body) {
		if rest, is := strings.CutPrefix(line, "# TYPE "); is {
			name, kind, _ := strings.Cut(strings.TrimSpace(rest), " ")
			kinds[name] = kind
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		m, ok := metrics[name]
		if !ok {
			m = served{kind: kinds[name], labels: map[string]map[string]bool{}}
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if base, is := strings.CutSuffix(name, suffix); is && kinds[base] == "histogram" {
					m.kind = "counter" // what each of its series is
				}
			}
			metrics[name] = m
		}
		for _, l := range pair.FindAllStringSubmatch(line, -1) {
			if m.labels[l[1]] == nil {
				m.labels[l[1]] = map[string]bool{}
			}
			m.labels[l[1]][l[2]] = true
		}
	}
	return metrics
}

// series is the pattern of a metric's own name: of a histogram's without what its series
// add.
var histogramSeries = regexp.MustCompile(`_(bucket|sum|count)$`)

// TestDashboardsAndAlerts compares deploy/grafana, deploy/prometheus and
// docs/monitoring.md with what a server serves: they ask for nothing that is not there,
// by labels and values that are, and leave out no metric of Skerry's.
func TestDashboardsAndAlerts(t *testing.T) {
	expressions := map[string]string{}
	dashboards, _ := filepath.Glob("../../deploy/grafana/*.json")
	for _, path := range dashboards {
		for where, text := range dashboardExpressions(t, path) {
			expressions[where] = text
		}
	}
	rules, _ := filepath.Glob("../../deploy/prometheus/*.yml")
	for i := range rules {
		rules[i], _ = filepath.Abs(rules[i])
	}
	if len(dashboards) == 0 || len(rules) == 0 {
		t.Fatal("there are no dashboards or no rules")
	}
	read := readExpressions(t, rules, expressions)

	s := prepareServer(t)
	s.split = false // all phases are in one process
	addr := freeAddress(t)
	// Nobody listens there, so that spans are lost.
	s.flags = []string{"--warm", "0", "--metrics-listen", addr, "--otlp-endpoint", "http://" + freeAddress(t)}
	s.env = append(s.env, "OTEL_BSP_SCHEDULE_DELAY=50")
	s.start()
	sb := s.create(client.CreateOptions{Name: "measured"})
	if code, _ := s.shell(sb, "true"); code != 0 {
		t.Fatal(code)
	}
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.get("measured")
	s.deleteAll()
	var metrics map[string]served
	s.waitFor("spans to be lost", func() bool {
		status, body := get(t, "http://"+addr+"/metrics")
		metrics = servedMetrics(body)
		return status == http.StatusOK && strings.Contains(body, `skerry_trace_spans_total{result="lost"}`) && !strings.Contains(body, `skerry_trace_spans_total{result="lost"} 0`)
	})

	used := map[string]map[bool]bool{} // by metric: in an alert or not
	for _, e := range read {
		var known []string // labels of what it asks for
		for _, sel := range e.Selectors {
			m, there := metrics[sel.Metric]
			if sel.Metric == "up" { // Prometheus's own
				m, there = served{kind: "gauge"}, true
			}
			if !there {
				t.Errorf("%s: there is no metric %s", e.Where, sel.Metric)
				continue
			}
			name := histogramSeries.ReplaceAllString(sel.Metric, "")
			if used[name] == nil {
				used[name] = map[bool]bool{}
			}
			used[name][e.Alert != nil] = true
			if growth := sel.Function == "rate" || sel.Function == "increase"; growth != (m.kind == "counter") && sel.Function != "histogram_quantile" {
				t.Errorf("%s: %q of %s, which is a %s", e.Where, sel.Function, sel.Metric, m.kind)
			}
			for _, l := range sel.Labels {
				checkLabel(t, e.Where, sel.Metric, m, l.Name, l.Op, l.Value)
			}
			for name := range m.labels {
				known = append(known, name)
			}
		}
		for _, name := range e.Groupings {
			if !slices.Contains(known, name) && name != "instance" {
				t.Errorf("%s: grouped by %s, which is no label of what it asks for", e.Where, name)
			}
		}
		if a := e.Alert; a != nil && (!strings.HasPrefix(a.Name, "Skerry") || a.Annotations["summary"] == "" || a.Annotations["description"] == "" || a.Labels["severity"] != "page" && a.Labels["severity"] != "ticket") {
			t.Errorf("%s: %+v", e.Where, a)
		}
	}

	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range metrics {
		name = histogramSeries.ReplaceAllString(name, "")
		if !strings.HasPrefix(name, "skerry_") {
			continue
		}
		if !used[name][false] {
			t.Errorf("no dashboard shows %s", name)
		}
		if !bytes.Contains(page, []byte("`"+name+"`")) {
			t.Errorf("docs/monitoring.md does not have %s", name)
		}
		for _, label := range []string{"phase", "step", "state"} {
			for value := range m.labels[label] {
				if !bytes.Contains(page, []byte("`"+value+"`")) {
					t.Errorf("docs/monitoring.md does not have the %s %s", label, value)
				}
			}
		}
	}
	for _, name := range regexp.MustCompile("`(skerry_\\w+)`").FindAllStringSubmatch(string(page), -1) {
		_, plain := metrics[name[1]]
		_, histogram := metrics[name[1]+"_count"]
		if !plain && !histogram {
			t.Errorf("docs/monitoring.md has %s, which is not served", name[1])
		}
	}
}

// checkLabel checks what an expression wants of a label.
func checkLabel(t *testing.T, where, metric string, m served, name, op, value string) {
	t.Helper()
	if name == "instance" || name == "job" {
		return // Prometheus adds them
	}
	values := m.labels[name]
	if values == nil {
		t.Errorf("%s: %s has no label %s", where, metric, name)
		return
	}
	wanted := regexp.MustCompile("^(?:" + value + ")$")
	if op == "=" || op == "!=" {
		wanted = regexp.MustCompile("^" + regexp.QuoteMeta(value) + "$")
	}
	found := false
	for v := range values {
		found = found || wanted.MatchString(v)
	}
	if !found {
		t.Errorf("%s: %s has no %s%s%q, only %v", where, metric, name, op, value, values)
	}
	if !strings.HasPrefix(op, "=~") || strings.ContainsAny(value, ".+*") {
		return
	}
	for one := range strings.SplitSeq(value, "|") {
		if !values[one] {
			t.Errorf("%s: %s has no %s %q", where, metric, name, one)
		}
	}
}
