package federation

import (
	"fmt"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// BenchmarkVerify measures a token that was verified within the last minute, and one
// that was not, for each algorithm.
func BenchmarkVerify(b *testing.B) {
	rule := Rule{ID: "ci", Match: map[string]string{"repository": "acme/*", "environment": "production"}, When: `claims.ref == "refs/heads/main"`,
		Team: "acme", Project: `${claims.repository.split("/")[1]}`, Role: skerry.RoleDeveloper}
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA} {
		i, v, _ := start(b, issuertest.Options{Algorithm: alg}, func(i *Issuer) { i.Algorithms = []string{string(alg)} }, rules(rule))
		token := i.Token(i.GitHub("acme/web", "refs/heads/main", "production"))
		accept(b, v, token)
		b.Run(fmt.Sprintf("uncached/%s", alg), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s := v.state.Load()
				if _, err := v.verify(b.Context(), s, token, v.o.Clock()); err != nil {
					b.Fatal(err)
				}
			}
		})
		if alg == jose.RS256 {
			b.Run(fmt.Sprintf("cached/%d bytes", len(token)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					accept(b, v, token)
				}
			})
			b.Run("cached/parallel", func(b *testing.B) {
				b.RunParallel(func(p *testing.PB) {
					for p.Next() {
						accept(b, v, token)
					}
				})
			})
		}
	}
}

// BenchmarkRules measures how many rules an issuer can have: the last one matches.
func BenchmarkRules(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, kind := range []string{"match", "when"} {
			var many []Rule
			for k := range n {
				r := Rule{ID: fmt.Sprint("r", k), Team: "t", Role: skerry.RoleViewer}
				if kind == "match" {
					r.Match = map[string]string{"repository": fmt.Sprintf("acme/web-%d-*", k)}
				} else {
					r.When = fmt.Sprintf(`claims.repository == "acme/web-%d-x"`, k)
				}
				many = append(many, r)
			}
			i := issuertest.Claims{"repository": fmt.Sprintf("acme/web-%d-x", n-1)}
			c, err := compile(Issuer{ID: "x", URL: "https://x.example.com", Audiences: []string{"a"}, Rules: many}, false)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				for b.Loop() {
					if _, err := c.apply(i); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkSlowRules measures the most that the rules can cost for a token: MaxCost.
func BenchmarkSlowRules(b *testing.B) {
	list := make([]any, 1000)
	for n := range list {
		list[n] = "aaaa"
	}
	var many []Rule
	for n := range 100 {
		many = append(many, Rule{ID: fmt.Sprint("r", n), When: `claims.list.exists(x, x == "b")`, Team: "t", Role: skerry.RoleViewer})
	}
	c, err := compile(Issuer{ID: "x", URL: "https://x.example.com", Audiences: []string{"a"}, Rules: many}, false)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.apply(map[string]any{"list": list}); err == nil {
			b.Fatal("it was not too slow")
		}
	}
}

// BenchmarkCompile measures a rule of a configuration.
func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := compileRule("", Rule{ID: "r", When: `claims.ref == "refs/heads/main" && claims.environment in ["a", "b"]`, Team: "${claims.owner_id}", Role: skerry.RoleViewer}); err != nil {
			b.Fatal(err)
		}
	}
}
