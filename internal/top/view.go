package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// View is how a table is looked at.
type View struct {
	Width, Height int
	By            Column
	Reverse       bool
	// First is the row that is shown first. Lines corrects it.
	First int
	// Trouble is why the table is not of this moment, "" if it is.
	Trouble string
	// Plain leaves out colours and the line of keys.
	Plain bool
}

// What a terminal is told to write in another way.
const (
	inverse = "\x1b[7m"
	bold    = "\x1b[1m"
	red     = "\x1b[31m"
	normal  = "\x1b[0m"
)

const keys = "q quit   left/right sort   r reverse   up/down scroll"

// leastName is the width that names are given at least.
const leastName = 12

// Lines draws a sorted table, at most Height lines of at most Width characters. A Height
// of 0 is as many as there are.
func (v *View) Lines(t *Table) []string {
	head := []string{v.painted(bold, cut(t.summary(), v.Width))}
	// Where there is little room, it is for rows.
	if v.Height == 0 || v.Height >= 6 {
		head = append(head, cut(t.totals(), v.Width))
	}
	if v.Trouble != "" || v.Height == 0 || v.Height >= 8 {
		head = append(head, v.painted(red, cut(v.Trouble, v.Width)))
	}
	shown := v.shown()
	head = append(head, v.titles(shown))
	var foot []string
	if !v.Plain {
		foot = []string{cut(keys, v.Width)}
	}
	room := len(t.Rows)
	if v.Height > 0 {
		if v.Height < 7 {
			foot = nil
		}
		room = max(v.Height-len(head)-len(foot), 0)
	}
	v.First = max(0, min(v.First, len(t.Rows)-room))
	lines := head
	for i := range t.Rows[v.First:min(v.First+room, len(t.Rows))] {
		lines = append(lines, v.row(shown, &t.Rows[v.First+i]))
	}
	if len(foot) > 0 {
		for len(lines) < v.Height-1 {
			lines = append(lines, "")
		}
		lines = append(lines, foot...)
	}
	if v.Height > 0 && len(lines) > v.Height {
		lines = lines[len(lines)-v.Height:]
	}
	return lines
}

// Wide is the width in which nothing of a table is cut.
func Wide(t *Table) int {
	width, name := 0, leastName
	for _, c := range columns {
		width += 1 + c.width
	}
	for i := range t.Rows {
		name = max(name, utf8.RuneCountInString(columns[ByName].text(&t.Rows[i])))
	}
	return max(width-1+name, utf8.RuneCountInString(t.summary()), utf8.RuneCountInString(t.totals()))
}

func (v *View) painted(with, s string) string {
	if v.Plain || s == "" {
		return s
	}
	return with + s + normal
}

// shown are the columns for which there is room: that of the sorting always.
func (v *View) shown() []Column {
	all := make([]Column, len(columns))
	for i := range all {
		all[i] = Column(i)
	}
	needed := func() int {
		width := leastName
		for _, c := range all {
			if c != ByName {
				width += 1 + columns[c].width
			}
		}
		return width
	}
	for needed() > v.Width && len(all) > 2 {
		goes := slices.MaxFunc(all, func(a, b Column) int { return cmp.Compare(v.rank(a), v.rank(b)) })
		if v.rank(goes) <= 0 {
			break
		}
		all = slices.DeleteFunc(all, func(c Column) bool { return c == goes })
	}
	return all
}

func (v *View) rank(c Column) int {
	if c == v.By {
		return 0
	}
	return columns[c].rank
}

// nameWidth is what the other columns leave.
func (v *View) nameWidth(shown []Column) int {
	width := v.Width
	for _, c := range shown {
		if c != ByName {
			width -= 1 + columns[c].width
		}
	}
	return max(width, 1)
}

func (v *View) titles(shown []Column) string {
	return v.line(shown, func(c Column, width int) string {
		title := fit(columns[c].title, width, columns[c].left)
		if c == v.By {
			return v.painted(inverse, title)
		}
		return title
	})
}

func (v *View) row(shown []Column, r *Row) string {
	return v.line(shown, func(c Column, width int) string { return fit(columns[c].text(r), width, columns[c].left) })
}

// line writes the cells of a line.
func (v *View) line(shown []Column, cell func(c Column, width int) string) string {
	var b strings.Builder
	left := v.Width
	for i, c := range shown {
		width := columns[c].width
		if c == ByName {
			width = v.nameWidth(shown)
		}
		if i > 0 {
			b.WriteByte(' ')
			left--
		}
		if width = min(width, left); width <= 0 {
			break
		}
		b.WriteString(cell(c, width))
		left -= width
	}
	return strings.TrimRight(b.String(), " ")
}

// cut shortens a text to a width in characters.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	runes := []rune(s)
	if width <= 1 {
		return string(runes[:max(width, 0)])
	}
	return string(runes[:width-1]) + "…"
}

// fit makes a text exactly as wide as a column.
func fit(s string, width int, left bool) string {
	s = cut(s, width)
	space := strings.Repeat(" ", width-utf8.RuneCountInString(s))
	if left {
		return s + space
	}
	return space + s
}

// summary counts the sandboxes by state.
func (t *Table) summary() string {
	counts := map[string]int{}
	for i := range t.Rows {
		counts[t.Rows[i].State]++
	}
	text := fmt.Sprintf("%d sandboxes", len(t.Rows))
	if len(t.Rows) == 1 {
		text = "1 sandbox"
	}
	var parts []string
	for _, state := range []string{"running", "idle", "hibernated", "paused", "pending", "snapshotting", "stopping"} {
		if n := counts[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text
}

// totals adds up what they use.
func (t *Table) totals() string {
	var cpu, in, out float64
	var memory int64
	commands := 0
	for i := range t.Rows {
		r := &t.Rows[i]
		cpu, in, out = cpu+r.CPUPercent, in+r.ReceivedPerSec, out+r.SentPerSec
		memory += r.MemoryBytes
		commands += r.Commands
	}
	return fmt.Sprintf("CPU %.1f%% of %d%%   memory %s of %s   net in %s/s, out %s/s   commands %d",
		cpu, 100*t.CPUs, size(float64(memory)), size(float64(t.MemoryBytes)), size(in), size(out), commands)
}
