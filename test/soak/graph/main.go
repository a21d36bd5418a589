// Command graph draws the curves of a soak:
//
//	graph curves.csv curves.png
//
// It is a module of its own so that nothing of a plotting library is in Skerry's.
package main

import (
	"encoding/csv"
	"fmt"
	"image/color"
	"math"
	"os"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// panel is one graph, with the columns that it shows.
type panel struct {
	title   string
	columns []string
	// scale is what a value is multiplied by.
	scale float64
}

const mib = 1.0 / (1 << 20)

var panels = []panel{
	{"operations per second", []string{"operations_per_second"}, 1},
	{"sandboxes", []string{"sandboxes", "processes", "netns", "cgroups"}, 1},
	{"server: memory (MiB)", []string{"server_rss", "server_heap"}, mib},
	{"server: files and goroutines", []string{"server_fds", "server_goroutines"}, 1},
	{"host: mounts and interfaces", []string{"mounts", "interfaces"}, 1},
	{"disk (MiB)", []string{"disk_used", "records"}, mib},
	{"memory (MiB)", []string{"sandboxes_memory", "host_used"}, mib},
	{"exec (ms)", []string{"exec p50 ms", "exec p95 ms", "exec p99 ms"}, 1},
	{"create (ms)", []string{"create p50 ms", "create p95 ms", "create p99 ms"}, 1},
	{"stop and resume, p95 (ms)", []string{"stop p95 ms", "resume p95 ms"}, 1},
	{"write and read, p95 (ms)", []string{"write p95 ms", "read p95 ms"}, 1},
	{"wake and port, p95 (ms)", []string{"wake by a command p95 ms", "request to a port p95 ms"}, 1},
}

// perRow is the number of panels side by side.
const perRow = 3

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: graph CURVES.csv CURVES.png")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "graph:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	rows, err := read(from)
	if err != nil {
		return err
	}
	rowCount := (len(panels) + perRow - 1) / perRow
	plots := make([][]*plot.Plot, rowCount)
	for i, p := range panels {
		drawn, err := p.draw(rows)
		if err != nil {
			return fmt.Errorf("%s: %w", p.title, err)
		}
		plots[i/perRow] = append(plots[i/perRow], drawn)
	}
	img := vgimg.New(vg.Points(1500), vg.Points(float64(rowCount)*260))
	canvas := draw.New(img)
	tiles := draw.Tiles{Rows: rowCount, Cols: perRow, PadX: 12, PadY: 12, PadTop: 6, PadBottom: 6, PadLeft: 6, PadRight: 6}
	for i, row := range plot.Align(plots, tiles, canvas) {
		for j, c := range row {
			plots[i][j].Draw(c)
		}
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		return err
	}
	return f.Close()
}

// read returns the columns of a CSV file, by their names.
func read(file string) (map[string][]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(lines) < 2 {
		return nil, fmt.Errorf("%s has no samples", file)
	}
	columns := map[string][]string{}
	for i, name := range lines[0] {
		for _, line := range lines[1:] {
			columns[name] = append(columns[name], line[i])
		}
	}
	return columns, nil
}

func (p panel) draw(columns map[string][]string) (*plot.Plot, error) {
	drawn := plot.New()
	drawn.Title.Text, drawn.X.Label.Text, drawn.Y.Min = p.title, "minutes", 0
	if all := columns["seconds"]; len(all) > 0 {
		last, err := strconv.ParseFloat(all[len(all)-1], 64)
		if err != nil {
			return nil, err
		}
		drawn.X.Min, drawn.X.Max = 0, last/60
	}
	drawn.Legend.Top, drawn.Legend.Left = true, true
	for i, name := range p.columns {
		values, exists := columns[name]
		if !exists {
			return nil, fmt.Errorf("there is no column %q", name)
		}
		var points plotter.XYs
		for at, value := range values {
			y, err := strconv.ParseFloat(value, 64)
			if err != nil {
				continue // nothing was measured then
			}
			x, err := strconv.ParseFloat(columns["seconds"][at], 64)
			if err != nil {
				return nil, err
			}
			points = append(points, plotter.XY{X: x / 60, Y: y * p.scale})
		}
		if len(points) == 0 {
			continue
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		line.Color = plotutil.Color(i)
		drawn.Add(line)
		drawn.Legend.Add(strings.ReplaceAll(strings.TrimSuffix(name, " ms"), "_", " "), line)
	}
	// A thin line where a fault was injected.
	for at, faults := range columns["faults"] {
		x, err := strconv.ParseFloat(columns["seconds"][at], 64)
		if faults == "" || err != nil || math.IsInf(drawn.Y.Max, 0) {
			continue
		}
		mark, err := plotter.NewLine(plotter.XYs{{X: x / 60, Y: 0}, {X: x / 60, Y: drawn.Y.Max}})
		if err != nil {
			return nil, err
		}
		mark.Color, mark.Width = color.Gray{Y: 210}, vg.Points(0.5)
		drawn.Add(mark)
	}
	return drawn, nil
}
