package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// docs/limits.md names, in a comment in the row, where a limit comes from: a flag
// of serve, or a constant by its package's folder and its name, and then the
// tests that reach it. A limit that is neither names its tests alone:
//
//	| … | 64 MiB<!-- internal/driver/gvisor.maxDebugLog TestDebugLog --> | … |
//	| … | half of the memory<!-- TestTmpfs --> | … |
const limitsPage = "../../docs/limits.md"

var limitMark = regexp.MustCompile(`<!-- (\S+)((?: \w+)*) -->`)

// TestLimitsPage: the page has the values that the code has, names tests that
// exist, and leaves out no flag that is a limit.
func TestLimitsPage(t *testing.T) {
	page, err := os.ReadFile(limitsPage)
	if err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(serveOptions).flags(flags)
	source := &source{fset: token.NewFileSet(), packages: map[string]*types.Package{}}
	if build.Default.GOROOT == "" { // -trimpath takes it out of the program
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			t.Fatal(err)
		}
		build.Default.GOROOT = strings.TrimSpace(string(out))
	}
	source.std = importer.ForCompiler(source.fset, "source", nil)
	tests := testNames(t)
	marks := 0
	for row := range strings.Lines(string(page)) {
		shown := limitMark.ReplaceAllString(row, "")
		for _, mark := range limitMark.FindAllStringSubmatch(row, -1) {
			marks++
			named := mark[2]
			if strings.HasPrefix(mark[1], "Test") {
				named = mark[1] + named
			} else if forms, err := limitForms(mark[1], flags, source); err != nil {
				t.Errorf("%s: %v", mark[1], err)
			} else if !containsForm(shown, forms) {
				t.Errorf("%s is one of %q, which is not in the row %s", mark[1], forms, shown)
			}
			for test := range strings.FieldsSeq(named) {
				if !tests[test] {
					t.Errorf("%s: there is no test %s", strings.TrimSpace(shown), test)
				}
			}
		}
	}
	if marks < 100 {
		t.Errorf("%d limits have their source beside them", marks)
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "ingress-port" { // no limit
			return
		}
		switch f.Value.Type() {
		case "int", "int64", "duration", "float64":
			if !strings.Contains(string(page), "--"+f.Name) {
				t.Errorf("--%s is not on the page", f.Name)
			}
		}
	})
}

// testNames returns the names of all tests.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && (e.Name() == "build" || e.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// limitForms returns how a limit may be written.
func limitForms(name string, flags *pflag.FlagSet, s *source) ([]string, error) {
	if flag, is := strings.CutPrefix(name, "--"); is {
		f := flags.Lookup(flag)
		if f == nil {
			return nil, fmt.Errorf("there is no flag --%s", flag)
		}
		if d, err := time.ParseDuration(f.DefValue); err == nil && f.Value.Type() == "duration" {
			return durationForms(d), nil
		}
		n, err := strconv.ParseInt(f.DefValue, 10, 64)
		if err != nil {
			return []string{f.DefValue}, nil
		}
		return numberForms(n), nil
	}
	c, err := s.constant(name)
	if err != nil {
		return nil, err
	}
	n, exact := constant.Int64Val(constant.ToInt(c.Val()))
	if !exact {
		return []string{c.Val().String()}, nil
	}
	if strings.HasSuffix(c.Type().String(), "time.Duration") {
		return durationForms(time.Duration(n)), nil
	}
	return numberForms(n), nil
}

func durationForms(d time.Duration) (forms []string) {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "days"}, {24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if d >= unit.d && d%unit.d == 0 {
			forms = append(forms, fmt.Sprintf("%s %s", thousands(int64(d/unit.d)), unit.name))
		}
	}
	return forms
}

func numberForms(n int64) []string {
	forms := []string{thousands(n)}
	for shift, unit := range map[int]string{10: "KiB", 20: "MiB", 30: "GiB", 40: "TiB"} {
		size := int64(1) << shift
		if n >= size && n%size == 0 {
			forms = append(forms, fmt.Sprintf("%s %s", thousands(n/size), unit))
		}
	}
	// What is counted in MiB or GiB.
	if n >= 1<<10 && n%(1<<10) == 0 {
		forms = append(forms, thousands(n>>10)+" GiB", thousands(n>>10)+" TiB")
	}
	return forms
}

// thousands writes a number as the page does.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// containsForm reports whether a row has one of the forms, not as a part of
// another number.
func containsForm(row string, forms []string) bool {
	for _, form := range forms {
		if regexp.MustCompile(`(^|[^\d,.])` + regexp.QuoteMeta(form) + `($|[^\d,\pL]|,\D)`).MatchString(row) {
			return true
		}
	}
	return false
}

// source finds constants in the code.
type source struct {
	fset     *token.FileSet
	std      types.Importer
	packages map[string]*types.Package
}

const modulePath = "github.com/skerry-dev/skerry"

// constant returns one by its package's folder and its name.
func (s *source) constant(name string) (*types.Const, error) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return nil, fmt.Errorf("want FOLDER.CONSTANT")
	}
	folder, name := name[:dot], name[dot+1:]
	pkg, err := s.Import(filepath.Join(modulePath, folder))
	if err != nil {
		return nil, err
	}
	c, is := pkg.Scope().Lookup(name).(*types.Const)
	if !is {
		return nil, fmt.Errorf("package %s has no constant %s", folder, name)
	}
	return c, nil
}

// Import implements types.Importer. Of our own packages no more is understood
// than their constants take: what else they import is left out.
func (s *source) Import(path string) (*types.Package, error) {
	if pkg := s.packages[path]; pkg != nil {
		return pkg, nil
	}
	if path == "time" || path == "math" {
		return s.std.Import(path)
	}
	own, is := strings.CutPrefix(path, modulePath)
	if !is {
		pkg := types.NewPackage(path, filepath.Base(path))
		pkg.MarkComplete()
		s.packages[path] = pkg
		return pkg, nil
	}
	files, err := filepath.Glob(filepath.Join("../..", own, "*.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("there is no package %s: %v", path, err)
	}
	var parsed []*ast.File
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, "_windows.go") || filepath.Base(file) == "unpatched.go" {
			continue
		}
		f, err := parser.ParseFile(s.fset, file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, f)
	}
	conf := types.Config{Importer: s, Error: func(error) {}, IgnoreFuncBodies: true, FakeImportC: true}
	pkg, _ := conf.Check(path, s.fset, parsed, nil)
	s.packages[path] = pkg
	return pkg, nil
}
