package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/terminal"
)

// painter colours text, or leaves it alone if it is false.
type painter bool

func (p painter) paint(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) bold(s string) string   { return p.paint("1", s) }
func (p painter) dim(s string) string    { return p.paint("2", s) }
func (p painter) red(s string) string    { return p.paint("31", s) }
func (p painter) green(s string) string  { return p.paint("32", s) }
func (p painter) yellow(s string) string { return p.paint("33", s) }
func (p painter) cyan(s string) string   { return p.paint("36", s) }

// status colours the state of a session.
func (p painter) status(s skerry.SessionStatus) string {
	text := clean(string(s))
	switch s {
	case skerry.StatusRunning:
		return p.green(text)
	case skerry.StatusPending, skerry.StatusSnapshotting, skerry.StatusStopping:
		return p.yellow(text)
	case skerry.StatusFailed, skerry.StatusAborted:
		return p.red(text)
	}
	return p.dim(text)
}

// clean makes text from outside safe for a terminal.
func clean(s string) string { return terminal.Clean(s) }

// cell is a piece of a table: its text and how it is painted.
type cell struct {
	text  string
	paint func(string) string
}

func plain(s string) cell { return cell{text: clean(s)} }

// or returns s, or a dash for nothing.
func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// table writes rows in aligned columns on a terminal, and as lines with tabs
// between their fields when piped. The columns in spare, the least important
// first, are left out on a terminal that is too narrow for them.
func (a *app) table(title []string, rows [][]cell, spare ...string) {
	if !a.OutTTY {
		fmt.Fprintln(a.Out, strings.Join(title, "\t"))
		for _, row := range rows {
			fields := make([]string, len(row))
			for i, c := range row {
				fields[i] = c.text
			}
			fmt.Fprintln(a.Out, strings.Join(fields, "\t"))
		}
		return
	}
	head := make([]cell, len(title))
	for i, t := range title {
		head[i] = cell{t, a.out.bold}
	}
	all := append([][]cell{head}, rows...)
	widths := make([]int, len(title))
	for _, row := range all {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	shown := fit(title, widths, a.OutWidth, spare)
	for _, row := range all {
		var line strings.Builder
		gap := 0
		for i, c := range row {
			if !shown[i] {
				continue
			}
			line.WriteString(strings.Repeat(" ", gap))
			text := c.text
			if c.paint != nil {
				text = c.paint(text)
			}
			line.WriteString(text)
			gap = widths[i] - utf8.RuneCountInString(c.text) + columnGap
		}
		fmt.Fprintln(a.Out, strings.TrimRight(line.String(), " "))
	}
}

// columnGap is the blanks between two columns.
const columnGap = 3

// fit says which columns are shown in a terminal of this width: all of them if it
// is 0. It leaves out those in spare, from the first on, until the others fit,
// and takes back what one wide column has made room for.
func fit(title []string, widths []int, width int, spare []string) []bool {
	shown := make([]bool, len(title))
	need := -columnGap
	for i, w := range widths {
		shown[i] = true
		need += w + columnGap
	}
	if width == 0 {
		return shown
	}
	var out []int
	for _, name := range spare {
		if i := slices.Index(title, name); i >= 0 && need > width {
			shown[i] = false
			need -= widths[i] + columnGap
			out = append(out, i)
		}
	}
	for _, i := range slices.Backward(out) {
		if more := widths[i] + columnGap; need+more <= width {
			shown[i] = true
			need += more
		}
	}
	return shown
}

// json writes v for programs.
func (a *app) json(v any) error { return writeJSON(a.Out, v) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// ago says how far a moment is from now: "3 minutes ago", "in 2 hours".
func (a *app) ago(t skerry.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := t.Sub(a.Now())
	if d.Abs() < time.Second/2 {
		return "just now"
	}
	if d < 0 {
		return about(-d) + " ago"
	}
	return "in " + about(d)
}

// about rounds a span to its largest unit.
func about(d time.Duration) string {
	const day = 24 * time.Hour
	units := []struct {
		size time.Duration
		name string
		// below is where the next larger unit begins, after rounding.
		below time.Duration
	}{
		{time.Second, "second", 60 * time.Second},
		{time.Minute, "minute", 60 * time.Minute},
		{time.Hour, "hour", day},
		{day, "day", 30 * day},
		{30 * day, "month", 365 * day},
		{365 * day, "year", 1<<63 - 1},
	}
	for _, u := range units {
		if rounded := d.Round(u.size); rounded < u.below {
			n := int64(rounded / u.size)
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "a long time"
}

// span writes a duration to be read: 350ms, 4.2s, 5m, 1h30m.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	s := d.Round(time.Second).String()
	s = strings.TrimSuffix(s, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(s, "m0s")]
	if h, ok := strings.CutSuffix(s, "h0m"); ok {
		return h + "h"
	}
	return s
}

// size writes a size in binary units.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/1024, []string{"KiB", "MiB", "GiB", "TiB"}
	for value >= 1024 && len(units) > 1 {
		value, units = value/1024, units[1:]
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, units[0])
	}
	return fmt.Sprintf("%.0f %s", value, units[0])
}

// exactSize writes a size without rounding it.
func exactSize(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	for n > 0 && n%1024 == 0 && len(units) > 1 {
		n, units = n/1024, units[1:]
	}
	if n == 1 && units[0] == "bytes" {
		return "1 byte"
	}
	return fmt.Sprintf("%d %s", n, units[0])
}

// tagList writes tags as k=v, sorted.
func tagList(tags map[string]string) string {
	list := make([]string, 0, len(tags))
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, k+"="+tags[k])
	}
	return strings.Join(list, ", ")
}

// image shortens an image's digest to what a person compares.
func image(ref, runtime string) string {
	if ref == "" {
		return or(runtime)
	}
	if name, hex, ok := strings.Cut(ref, "@sha256:"); ok && len(hex) > 12 {
		return name + "@sha256:" + hex[:12] + "…"
	}
	return ref
}
