// Command promql reads what deploy/prometheus and deploy/grafana ask of Prometheus, with
// Prometheus's own parser. Its standard input is a JSON document with files of rules and
// with expressions, its standard output what they select. It ends with 1 if Prometheus
// would refuse one of them.
package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// input is what is to be read.
type input struct {
	// Rules are paths of files.
	Rules []string
	// Expressions are by where they are from.
	Expressions map[string]string
}

// expression is one that was read.
type expression struct {
	Where, Text string
	// Alert has what the rule says beside the expression, if it is one.
	Alert     *alert `json:",omitempty"`
	Selectors []selector
	// Groupings are the labels that results are grouped by.
	Groupings []string
}

type alert struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// selector selects series.
type selector struct {
	Metric string
	Labels []label
	// Function is the innermost function that gets the series, "" for none.
	Function string
}

type label struct{ Name, Op, Value string }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	p := parser.NewParser(parser.Options{})
	var out []expression
	for _, file := range in.Rules {
		groups, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, p, slog.Default())
		if len(errs) > 0 {
			return errs[0]
		}
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				e, err := read(p, file+": "+r.Alert+r.Record, r.Expr)
				if err != nil {
					return err
				}
				e.Alert = &alert{r.Alert, r.Labels, r.Annotations}
				out = append(out, e)
			}
		}
	}
	for where, text := range in.Expressions {
		e, err := read(p, where, text)
		if err != nil {
			return err
		}
		out = append(out, e)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func read(p parser.Parser, where, text string) (expression, error) {
	e := expression{Where: where, Text: text}
	parsed, err := p.ParseExpr(text)
	if err != nil {
		return e, fmt.Errorf("%s: %w", where, err)
	}
	parser.Inspect(parsed, func(n parser.Node, path []parser.Node) error {
		switch n := n.(type) {
		case *parser.AggregateExpr:
			e.Groupings = append(e.Groupings, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				e.Groupings = append(e.Groupings, n.VectorMatching.MatchingLabels...)
			}
		case *parser.VectorSelector:
			s := selector{Metric: n.Name}
			for _, m := range n.LabelMatchers {
				if m.Name != model.MetricNameLabel {
					s.Labels = append(s.Labels, label{m.Name, m.Type.String(), m.Value})
				}
			}
			for _, above := range path {
				if call, is := above.(*parser.Call); is {
					s.Function = call.Func.Name
				}
			}
			e.Selectors = append(e.Selectors, s)
		}
		return nil
	})
	return e, nil
}
