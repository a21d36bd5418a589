package federation

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
)

// compiled is an issuer whose configuration is right.
type compiled struct {
	Issuer
	algorithms []jose.SignatureAlgorithm
	keys       *keySet // of Issuer.Keys, or nil
	rules      []rule
}

// compile checks the configuration of an issuer. Errors name the field, as Validate's do.
func compile(i Issuer, loopbackHTTP bool) (*compiled, error) {
	if err := i.validate(loopbackHTTP); err != nil {
		return nil, err
	}
	c := &compiled{Issuer: i.clone()}
	names := i.Algorithms
	if len(names) == 0 {
		names = DefaultAlgorithms
	}
	for _, a := range names {
		c.algorithms = append(c.algorithms, jose.SignatureAlgorithm(a))
	}
	if i.Keys != "" {
		var err error
		if c.keys, err = parseKeys([]byte(i.Keys)); err != nil {
			return nil, skerry.Invalid("keys", "%v", err)
		}
		if len(c.keys.keys) == 0 {
			return nil, skerry.Invalid("keys", "has no public key that can verify tokens")
		}
	}
	ids := map[string]bool{}
	for n, r := range i.Rules {
		one, err := compileRule(fmt.Sprintf("rules[%d].", n), r)
		if err != nil {
			return nil, err
		}
		if ids[r.ID] {
			return nil, skerry.Invalid(fmt.Sprintf("rules[%d].id", n), "must be unique in the issuer, is %q again", r.ID)
		}
		ids[r.ID] = true
		c.rules = append(c.rules, *one)
	}
	return c, nil
}

// rule is a Rule that is ready to be evaluated.
type rule struct {
	Rule
	matches       []match
	when          *expression // nil if there is none
	team, project template
}

func compileRule(field string, r Rule) (*rule, error) {
	if !idPattern.MatchString(r.ID) {
		return nil, skerry.Invalid(field+"id", "must have from 1 to 64 letters, digits and the characters - _ . and begin with a letter or digit")
	}
	if len(r.Match) == 0 && r.When == "" {
		return nil, skerry.Invalid(field+"match", "must not be empty if when is empty too: the rule would match every token of the issuer")
	}
	if len(r.Match) > MaxMatches {
		return nil, skerry.Invalid(field+"match", "must have at most %d entries, has %d", MaxMatches, len(r.Match))
	}
	if err := skerry.ValidateRole(field+"role", r.Role); err != nil {
		return nil, err
	}
	c := &rule{Rule: r}
	for _, claim := range slices.Sorted(maps.Keys(r.Match)) {
		m, err := compileMatch(fmt.Sprintf("%smatch[%.64q]", field, claim), claim, r.Match[claim])
		if err != nil {
			return nil, err
		}
		c.matches = append(c.matches, *m)
	}
	var err error
	if r.When != "" {
		if c.when, err = compileExpression(field+"when", r.When, isBool); err != nil {
			return nil, err
		}
	}
	if r.Team == "" {
		return nil, skerry.Invalid(field+"team", "must not be empty")
	}
	if c.team, err = compileTemplate(field+"team", r.Team); err != nil {
		return nil, err
	}
	c.project, err = compileTemplate(field+"project", r.Project)
	return c, err
}

// match is a claim that is compared with a pattern.
type match struct {
	path    []string
	literal string
	pattern *regexp.Regexp // nil for a literal
}

func compileMatch(field, claim, pattern string) (*match, error) {
	if claim == "" || len(claim) > MaxText {
		return nil, skerry.Invalid(field, "the name of a claim must have from 1 to %d bytes", MaxText)
	}
	if len(pattern) > MaxText {
		return nil, skerry.Invalid(field, "must have at most %d bytes, has %d", MaxText, len(pattern))
	}
	m := &match{path: []string{claim}, literal: pattern}
	if pointer, is := strings.CutPrefix(claim, "/"); is {
		m.path = strings.Split(pointer, "/")
		if len(m.path) > MaxDepth {
			return nil, skerry.Invalid(field, "must have at most %d levels", MaxDepth)
		}
		for n, p := range m.path { // RFC 6901
			m.path[n] = strings.NewReplacer("~1", "/", "~0", "~").Replace(p)
		}
	}
	if !strings.Contains(pattern, "*") {
		return m, nil
	}
	var b strings.Builder
	wildcards := 0
	for rest := pattern; rest != ""; {
		if rest[0] == '*' {
			if wildcards++; wildcards > MaxWildcards {
				return nil, skerry.Invalid(field, "must have at most %d wildcards", MaxWildcards)
			}
		}
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString(`(?s:.*)`)
			rest = strings.TrimLeft(rest, "*")
		case rest[0] == '*':
			b.WriteString(`[^/:]*`)
			rest = rest[1:]
		default:
			literal, _, _ := strings.Cut(rest, "*")
			b.WriteString(regexp.QuoteMeta(literal))
			rest = rest[len(literal):]
		}
	}
	var err error
	if m.pattern, err = regexp.Compile(`\A` + b.String() + `\z`); err != nil {
		return nil, skerry.Invalid(field, "is not a pattern")
	}
	return m, nil
}

func (m *match) matches(e *evaluation) bool {
	var v any = e.claims
	for _, name := range m.path {
		object, _ := v.(map[string]any)
		var is bool
		if v, is = object[name]; !is {
			return false
		}
	}
	if list, is := v.([]any); is {
		return slices.ContainsFunc(list, func(v any) bool { return m.matchesOne(e, v) })
	}
	return m.matchesOne(e, v)
}

func (m *match) matchesOne(e *evaluation, v any) bool {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case bool:
		s = strconv.FormatBool(v)
	case int64:
		s = strconv.FormatInt(v, 10)
	default: // numbers with a fraction have no single form
		return false
	}
	if m.pattern != nil {
		e.cost += 1 + uint64(len(s)/4) // with few wildcards the time is that of the length
		return m.pattern.MatchString(s)
	}
	return s == m.literal
}

// template is text with expressions in it.
type template struct {
	// literals are the texts before, between and after expressions: there is one more of
	// them.
	literals    []string
	expressions []*expression
}

func compileTemplate(field, text string) (template, error) {
	var t template
	if len(text) > MaxExpression {
		return t, skerry.Invalid(field, "must have at most %d bytes, has %d", MaxExpression, len(text))
	}
	for rest := text; ; {
		literal, source, found := strings.Cut(rest, "${")
		t.literals = append(t.literals, literal)
		if !found {
			break
		}
		// The first brace ends the expression, so expressions have no braces. None is needed
		// for a string.
		if len(t.expressions) == MaxPlaces {
			return t, skerry.Invalid(field, "must have at most %d expressions", MaxPlaces)
		}
		source, after, closed := strings.Cut(source, "}")
		if !closed {
			return t, skerry.Invalid(field, "has ${ without }")
		}
		e, err := compileExpression(field, source, isString)
		if err != nil {
			return t, err
		}
		t.expressions, rest = append(t.expressions, e), after
	}
	// What is around an expression has the characters of a reference too.
	if probe := strings.Join(t.literals, "a"); text != "" && !referencePattern.MatchString(probe) {
		return t, skerry.Invalid(field, "must be an id, a slug or a name (letters, digits and - _ .), with ${…} for what comes from claims")
	}
	return t, nil
}

// value returns what the template is for the claims of a token.
func (t *template) value(e *evaluation) (string, error) {
	if len(t.expressions) == 0 {
		return t.literals[0], nil
	}
	var b strings.Builder
	for n, x := range t.expressions {
		b.WriteString(t.literals[n])
		s, err := x.text(e)
		if err != nil {
			return "", err
		}
		b.WriteString(s)
	}
	b.WriteString(t.literals[len(t.expressions)])
	if s := b.String(); referencePattern.MatchString(s) {
		return s, nil
	}
	return "", fmt.Errorf("%.64q cannot be an id, a slug or a name", b.String())
}

// apply returns what the first rule that matches makes of the claims, or CodeForbidden.
func (c *compiled) apply(claims map[string]any) (*Identity, error) {
	e := newEvaluation(claims)
	for n := range c.rules {
		r := &c.rules[n]
		is, err := r.holds(e)
		if err != nil {
			return nil, c.forbidden(r, "when", err)
		}
		if !is {
			continue
		}
		id := &Identity{RuleID: r.ID, Role: r.Role}
		if id.Team, err = r.team.value(e); err != nil {
			return nil, c.forbidden(r, "team", err)
		}
		if id.Project, err = r.project.value(e); err != nil {
			return nil, c.forbidden(r, "project", err)
		}
		return id, nil
	}
	return nil, skerry.Errorf(skerry.CodeForbidden, "no rule of the issuer %s admits the subject of this token", c.ID)
}

// forbidden is the error for a rule that cannot be evaluated. The rules after it are
// not tried: this one may be there so that they do not match.
func (c *compiled) forbidden(r *rule, field string, err error) error {
	return skerry.Errorf(skerry.CodeForbidden, "the rule %s of the issuer %s cannot be applied to this token: %s: %v", r.ID, c.ID, field, err)
}

func (r *rule) holds(e *evaluation) (bool, error) {
	for n := range r.matches {
		is := r.matches[n].matches(e)
		if e.cost > MaxCost {
			return false, errCost
		}
		if !is {
			return false, nil
		}
	}
	if r.when == nil {
		return true, nil
	}
	return r.when.truth(e)
}
