package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// TestValidate: every mistake has an error that names the field.
func TestValidate(t *testing.T) {
	keys := func(raw string) func(*Issuer) { return func(i *Issuer) { i.Keys = raw } }
	rule := func(f func(*Rule)) func(*Issuer) {
		return func(i *Issuer) {
			r := Rule{ID: "one", Match: map[string]string{"sub": "x"}, Team: "team_1", Role: skerry.RoleViewer}
			f(&r)
			i.Rules = []Rule{all, r}
		}
	}
	when := func(s string) func(*Issuer) { return rule(func(r *Rule) { r.When = s }) }
	team := func(s string) func(*Issuer) { return rule(func(r *Rule) { r.Team = s }) }
	for _, c := range []struct {
		field, reason string
		change        func(*Issuer)
	}{
		{"id", "begin with", func(i *Issuer) { i.ID = "" }}, {"id", "", func(i *Issuer) { i.ID = "a:b" }}, {"id", "", func(i *Issuer) { i.ID = "a~b" }},
		{"id", "", func(i *Issuer) { i.ID = strings.Repeat("x", 65) }}, {"id", "", func(i *Issuer) { i.ID = "a\n" }},
		{"url", "from 1 to 512 bytes", func(i *Issuer) { i.URL = "" }}, {"url", "", func(i *Issuer) { i.URL = "https://x/" + strings.Repeat("x", MaxText) }},
		{"url", "must begin with https://", func(i *Issuer) { i.URL = "http://x.example.com" }}, {"url", "", func(i *Issuer) { i.URL = "x.example.com" }},
		{"url", "white space", func(i *Issuer) { i.URL = "https://x.example.com/ " }}, {"url", "ASCII", func(i *Issuer) { i.URL = "https://ex\u0430mple.com" }},
		{"url", "no user name", func(i *Issuer) { i.URL = "https://a:b@x.example.com" }}, {"url", "fragment", func(i *Issuer) { i.URL = "https://x.example.com#" }},
		{"url", "no query", func(i *Issuer) { i.URL = "https://x.example.com?a=b" }}, {"url", "no query", func(i *Issuer) { i.URL = "https://x.example.com?" }},
		{"url", "with a host", func(i *Issuer) { i.URL = "https:x.example.com" }}, {"url", "with a host", func(i *Issuer) { i.URL = "https:///x" }}, {"url", "is not a URL", func(i *Issuer) { i.URL = "https://x%zz" }},
		{"jwksUrl", "must begin with https://", func(i *Issuer) { i.JWKSURL = "http://10.0.0.1/keys" }}, {"jwksUrl", "", func(i *Issuer) { i.JWKSURL = "file:///keys" }},
		{"keys", "together", func(i *Issuer) { i.JWKSURL, i.Keys = "https://x.example.com/keys", `{"keys":[]}` }},
		{"keys", "not a JSON object", keys("x")}, {"keys", "no public key", keys(`{"keys":[]}`)}, {"keys", "no public key", keys(`{"keys":[{"kty":"oct","k":"AAAA"}]}`)},
		{"keys", "at most 1048576 bytes", keys(strings.Repeat(" ", MaxDocument+1))},
		{"ca", "no certificate", func(i *Issuer) { i.CA = "x" }}, {"ca", "at most", func(i *Issuer) { i.CA = strings.Repeat(" ", MaxDocument+1) }},
		{"audiences", "from 1 to 32", func(i *Issuer) { i.Audiences = nil }}, {"audiences", "has 33", func(i *Issuer) { i.Audiences = slices.Repeat([]string{"a"}, 33) }},
		{"audiences[1]", "", func(i *Issuer) { i.Audiences = []string{"a", ""} }}, {"audiences[0]", "", func(i *Issuer) { i.Audiences = []string{"a b"} }},
		{"algorithms", "at most", func(i *Issuer) { i.Algorithms = slices.Repeat([]string{"RS256"}, 11) }}, {"algorithms[0]", "must be one of", func(i *Issuer) { i.Algorithms = []string{"HS256"} }},

		{"rules", "at most 4096", func(i *Issuer) { i.Rules = make([]Rule, MaxRules+1) }},
		{"rules[1].id", "begin with", rule(func(r *Rule) { r.ID = "" })}, {"rules[1].id", "unique", rule(func(r *Rule) { r.ID = all.ID })},
		{"rules[1].match", "every token of the issuer", rule(func(r *Rule) { r.Match = nil })}, {"rules[1].role", "is \"admin\", want viewer, developer or owner", rule(func(r *Rule) { r.Role = "admin" })},
		{"rules[1].role", "", rule(func(r *Rule) { r.Role = "" })}, {`rules[1].match[""]`, "name of a claim", rule(func(r *Rule) { r.Match = map[string]string{"": "x"} })},
		{`rules[1].match["sub"]`, "at most 512 bytes", rule(func(r *Rule) { r.Match["sub"] = strings.Repeat("x", MaxText+1) })},
		{`rules[1].match["sub"]`, "at most 8 wildcards", rule(func(r *Rule) { r.Match["sub"] = strings.Repeat("*x", 9) })},
		{`rules[1].match["/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a"]`, "16 levels", rule(func(r *Rule) { r.Match = map[string]string{strings.Repeat("/a", 17): "x"} })},
		{"rules[1].match", "at most 32", rule(func(r *Rule) {
			for n := range 33 {
				r.Match[fmt.Sprint(n)] = "x"
			}
		})},

		{"rules[1].when", "does not compile: 1:1: undeclared reference to 'claim'", when("claim.x == 1")}, {"rules[1].when", "Syntax error", when("claims.x = 1")},
		{"rules[1].when", "undeclared reference to 'exec'", when(`exec("id")`)}, {"rules[1].when", "must return bool, returns string", when(`"x" + claims.x`)},
		{"rules[1].when", "at most 2048 bytes", when(strings.Repeat(" ", MaxExpression) + "true")}, {"rules[1].when", "does not compile", when(strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500))},
		{"rules[1].when", `"format" is not available`, when(`"%s".format([claims.x]) == "x"`)},
		{"rules[1].when", "undeclared reference", when(`claims.x.map(i, i) == []`)}, {"rules[1].when", "undeclared reference", when(`claims.x.filter(i, true) == []`)},
		{"rules[1].when", "comprehension exceeds nesting limit", when(`claims.x.all(i, claims.x.all(j, i == j))`)}, {"rules[1].when", "not available", when(`timestamp(claims.x) > timestamp("2026-01-01T00:00:00Z")`)},
		{"rules[1].when", "pattern of matches must be a literal", when(`claims.x.matches(claims.y)`)}, {"rules[1].when", "invalid matches argument", when(`claims.x.matches("(")`)},
		{"rules[1].when", "program size", when(`claims.x.matches("(a{30}){30}")`)}, {"rules[1].when", "does not compile", when(`claims.x.matches("(a{999}){999}")`)},

		{"rules[1].team", "must not be empty", team("")}, {"rules[1].team", "an id, a slug or a name", team("a b")}, {"rules[1].team", "an id, a slug or a name", team("../x")},
		{"rules[1].team", "${ without }", team("${claims.x")}, {"rules[1].team", "does not compile", team("${}")}, {"rules[1].team", "does not compile", team("${x}")},
		{"rules[1].team", "must return string, returns int", team("${1 + 1}")}, {"rules[1].team", "an id, a slug or a name", team("a b${claims.x}")}, {"rules[1].team", "at most 2048", team(strings.Repeat("x", MaxExpression+1))},
		{"rules[1].team", "at most 4 expressions", team(strings.Repeat("${claims.x}", 5))}, {"rules[1].team", "an id", team(strings.Repeat("x", 129))},
		{"rules[1].project", "does not compile", rule(func(r *Rule) { r.Project = "${x}" })}, {"rules[1].project", "an id", rule(func(r *Rule) { r.Project = "a/b" })},
	} {
		i := Issuer{ID: "x", URL: "https://x.example.com", Audiences: []string{"a"}, Rules: []Rule{all}}
		if err := i.Validate(); err != nil {
			t.Fatal(err)
		}
		c.change(&i)
		err := i.Validate()
		e, is := errors.AsType[*skerry.Error](err)
		if !is || e.Code != skerry.CodeBadRequest || e.Field != c.field || !strings.Contains(e.Message, c.reason) || len(e.Message) > 1200 || strings.Contains(e.Message, "\n") {
			t.Errorf("%s, %q: error %v", c.field, c.reason, err)
		}
	}
}

// TestLoopbackHTTP: plain HTTP is for loopback addresses, and only if the options say so.
func TestLoopbackHTTP(t *testing.T) {
	strict := New(Options{})
	defer strict.Close()
	for u, loopback := range map[string]bool{
		"http://127.0.0.1:8080": true, "http://localhost": true, "http://[::1]:80/x": true, "http://127.9.9.9": true,
		"http://127.0.0.1.example.com": false, "http://10.0.0.1": false, "http://localhost.example.com": false, "http://0.0.0.0": false,
	} {
		i := Issuer{ID: "x", URL: u, Audiences: []string{"a"}}
		if err := i.Validate(); (err == nil) != loopback {
			t.Errorf("%s: %v", u, err)
		}
		if err := strict.Validate(i); skerry.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern string
		claim   any
		want    bool
	}{
		{"main", "main", true}, {"main", "Main", false}, {"main", "main ", false}, {"main", "xmain", false}, {"", "", true}, {"", "x", false},
		{"*", "main", true}, {"*", "", true}, {"*", "a/b", false}, {"*", "a:b", false}, {"**", "a/b:c\n", true}, {"**", "", true}, {"***", "a/b", true},
		{"acme/*", "acme/web", true}, {"acme/*", "acme/web/x", false}, {"acme/*", "acme-evil/web", false}, {"acme/**", "acme/web/x", true},
		{"refs/heads/release-*", "refs/heads/release-1.2", true}, {"refs/heads/release-*", "refs/heads/release-1/x", false},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/web:ref:refs/heads/main", true}, {"repo:acme/*:ref:refs/heads/main", "repo:acme/x:environment:a:ref:refs/heads/main", false},
		{"a.c", "abc", false}, {"a+", "aa", false}, {"[a-z]", "b", false}, {"(a|b)", "a", false}, {"a?", "ab", false}, {`\d`, "1", false}, {"main*", "main\n", true}, {"main", "main\n", false},
		{"true", true, true}, {"true", false, false}, {"true", "true", true}, {"7", int64(7), true}, {"7", "7", true}, {"7", 7.5, false}, {"*", nil, false}, {"**", map[string]any{}, false},
		{"b*", []any{"a", "bc"}, true}, {"b", []any{"a"}, false}, {"**", []any{}, false}, {"**", []any{[]any{"x"}}, false}, {"7", []any{int64(7)}, true},
	} {
		m, err := compileMatch("f", "claim", c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.matches(newEvaluation(map[string]any{"claim": c.claim})); got != c.want {
			t.Errorf("%q and %#v: %v", c.pattern, c.claim, got)
		}
	}
	claims := newEvaluation(map[string]any{"/a": "1", "a/b": "2", "a": map[string]any{"b~c": "3", "": "4"}, "https://example.com/x": "5"})
	for name, want := range map[string]string{"/~1a": "1", "a/b": "2", "/a~1b": "2", "/a/b~0c": "3", "/a/": "4", "https://example.com/x": "5"} {
		m, err := compileMatch("f", name, want)
		if err != nil || !m.matches(claims) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"/a", "b", "/a/x", "/a/b/c", "/", "//"} {
		if m, err := compileMatch("f", name, "**"); err != nil || m.matches(claims) && name != "/a" {
			t.Errorf("%s matches, %v", name, err)
		}
	}
}

// TestRulesInOrder: the first rule that matches decides, also if it then fails: the
// next could give more.
func TestRulesInOrder(t *testing.T) {
	owner := Rule{ID: "owner", When: "true", Team: "t", Project: "p", Role: skerry.RoleOwner}
	for _, c := range []struct {
		name  string
		first Rule
		extra map[string]any
		rule  string
		text  string
	}{
		{"matches", Rule{When: `claims.kind == "a"`}, map[string]any{"kind": "a"}, "first", ""},
		{"does not match", Rule{When: `claims.kind == "a"`}, map[string]any{"kind": "b"}, "owner", ""},
		{"both conditions", Rule{When: `claims.kind == "a"`, Match: map[string]string{"kind": "b"}}, map[string]any{"kind": "a"}, "owner", ""},
		{"a claim is missing", Rule{When: `claims.kind == "a"`}, nil, "owner", ""},
		{"a nested claim is missing", Rule{When: `claims.a.b == "a"`}, map[string]any{"a": map[string]any{}}, "owner", ""},
		{"a missing claim is asked for", Rule{When: `!has(claims.kind)`}, nil, "first", ""},
		{"a claim has another type", Rule{When: `claims.kind.startsWith("a")`}, map[string]any{"kind": 7}, "", "first of the issuer test cannot be applied to this token: when: the expression does not fit"},
		{"a claim is no object", Rule{When: `claims.kind.x == "a"`}, map[string]any{"kind": 7}, "owner", ""},
		{"no boolean", Rule{When: `claims.kind`}, map[string]any{"kind": "true"}, "", "does not return a boolean"},
		{"an index out of range", Rule{When: `claims.kind[3] == "a"`}, map[string]any{"kind": []string{"a"}}, "", "when: the expression does not fit"},
		{"division by zero", Rule{When: `1 / claims.kind == 1`}, map[string]any{"kind": 0}, "", "when: the expression does not fit"},
		{"an overflow", Rule{When: `claims.kind + 9223372036854775807 > 0`}, map[string]any{"kind": 1}, "", "when: the expression does not fit"},
		{"too slow", Rule{When: `claims.list.all(x, x.contains("b") || x.contains("c") || x.contains("d") || x.contains("e") || claims.long.contains("y") || x == "a")`},
			map[string]any{"list": slices.Repeat([]string{"a"}, 1000), "long": strings.Repeat("x", 4000)}, "", "take too much time"},
		{"no team", Rule{When: "true", Team: "${claims.kind}"}, nil, "", "team: a claim is missing"},
		{"a team that is no name", Rule{When: "true", Team: "${claims.kind}"}, map[string]any{"kind": "../x"}, "", `team: "../x" cannot be an id`},
		{"an empty team", Rule{When: "true", Team: "${claims.kind}"}, map[string]any{"kind": ""}, "", "cannot be an id"},
		{"a team that is no text", Rule{When: "true", Team: "${claims.kind}"}, map[string]any{"kind": 7}, "", "does not return a string"},
		{"an empty project", Rule{When: "true", Project: "${claims.kind}"}, map[string]any{"kind": ""}, "", "project: "},
		{"a project with a line end", Rule{When: "true", Project: "${claims.kind}"}, map[string]any{"kind": "a\n"}, "", `project: "a\n" cannot`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.first
			r.ID, r.Role = "first", skerry.RoleViewer
			if r.Team == "" {
				r.Team = "t"
			}
			i, v, _ := start(t, issuertest.Options{Algorithm: jose.EdDSA}, rules(r, owner))
			claims := i.Plain("x")
			for name, value := range c.extra {
				claims = claims.With(name, value)
			}
			if c.rule == "" {
				refuse(t, v, i.Token(claims), skerry.CodeForbidden, c.text)
			} else if id := accept(t, v, i.Token(claims)); id.RuleID != c.rule {
				t.Errorf("rule %s", id.RuleID)
			}
		})
	}
}

// TestCostOfAllRules: many rules together cost no more than MaxCost.
func TestCostOfAllRules(t *testing.T) {
	var many []Rule
	for n := range 500 {
		many = append(many, Rule{ID: fmt.Sprint("r", n), When: fmt.Sprintf(`claims.list.exists(x, x == "none-%d")`, n), Team: "t", Role: skerry.RoleViewer})
	}
	i, v, _ := start(t, issuertest.Options{Algorithm: jose.EdDSA}, rules(append(many, all)...))
	refuse(t, v, i.Token(i.Plain("x").With("list", slices.Repeat([]string{"a"}, 1000))), skerry.CodeForbidden, "take too much time")
	if id := accept(t, v, i.Token(i.Plain("x").With("list", []string{"a"}))); id.RuleID != "all" {
		t.Errorf("rule %s", id.RuleID)
	}
	many = nil
	for n := range 500 {
		many = append(many, Rule{ID: fmt.Sprint("r", n), Match: map[string]string{"long": "**x**x**x**y"}, Team: "t", Role: skerry.RoleViewer})
	}
	set(t, v, configured(i, rules(append(many, all)...)))
	refuse(t, v, i.Token(i.Plain("x").With("long", strings.Repeat("x", 10_000))), skerry.CodeForbidden, "take too much time")
	if id := accept(t, v, i.Token(i.Plain("x").With("long", "x"))); id.RuleID != "all" {
		t.Errorf("rule %s", id.RuleID)
	}
}

// TestStoredForm: configuration survives being stored as JSON.
func TestStoredForm(t *testing.T) {
	i := Issuer{ID: "x", URL: "https://x.example.com", Audiences: []string{"a"}, Algorithms: []string{"ES256"}, JWKSURL: "https://y.example.com/keys", Rules: []Rule{
		{ID: "r", Match: map[string]string{"sub": "x"}, When: "true", Team: "${claims.sub}", Project: "p", Role: skerry.RoleOwner},
	}}
	var read Issuer
	if err := json.Unmarshal(marshal(t, i), &read); err != nil || !reflect.DeepEqual(i, read) {
		t.Errorf("%+v, %v", read, err)
	}
}
