package policy

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/skerry-dev/skerry/internal/cgivar"
)

// siteOf compiles the rules of one domain.
func siteOf(t testing.TB, rules ...Rule) *Site {
	t.Helper()
	c, err := Compile(Policy{Mode: Custom, Domains: []Domain{{Pattern: "a.example.com", Rules: rules}}})
	if err != nil {
		t.Fatal(err)
	}
	return c.Site("a.example.com")
}

func text(s string) *Matcher { return &Matcher{Exact: &s} }

func begin(s string) *Matcher { return &Matcher{StartsWith: &s} }

// requestFor is a request as net/http's server makes it of a target.
func requestFor(t testing.TB, target string) *http.Request {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Request{Method: "GET", URL: u, Header: http.Header{}, Host: "a.example.com"}
}

// TestPathsThatServersReadDifferently has a rule close /admin, and another give a
// credential to /open.
func TestPathsThatServersReadDifferently(t *testing.T) {
	s := siteOf(t,
		Rule{Match: &Match{Path: begin("/admin")}, Response: &Response{StatusCode: 403}},
		Rule{Match: &Match{Path: text("/open/door")}, Transform: []Transform{{Headers: map[string]string{"X-Key": "k"}}}},
	)
	const refused, none, admin, open = "refused", "none", "admin", "open"
	for target, want := range map[string]string{
		"/": none, "": none, "/public": none, "/public/a%20b": none, "/.well-known/x": none, "/a..b/...": none, "/@scope%2fname": none, "//cdn//x": none,
		"/x;v=1/y": none, "/caf%C3%A9": none, "/100%25": none, "/admin": admin, "/admin/x": admin, "/%61dmin": admin, "/open/door": open, "/op%65n/door": open,
		"/admin//x": admin, "/admin;x": admin,

		"//admin": refused, "///admin": refused, "/;/admin": refused, "/;a=b/admin": refused, "/%2fadmin": refused, "/%2Fadmin": refused, "/%5cadmin": refused,
		`/\admin`: refused, "/./admin": refused, "/%2e/admin": refused, "/%2e%2e/admin": refused, "/x/../admin": refused, "/x/%2e%2e/admin": refused,
		"/x/..;/admin": refused, "/x/..%3b/admin": refused, "/%2561dmin": refused, "/%252e%252e/admin": refused, "/x%2f..%2fadmin": refused, "/x%5c..%5cadmin": refused,
		"/%00/admin": refused, "/%0aadmin": refused, "/%c0%ae%c0%ae/admin": refused, "/%ff": refused,
		"/open%2fdoor": refused, "/open//door": refused, "/open/door;x": refused, "/open;x/door": refused, "/open/./door": refused, "/open%252fdoor": refused,
		"http://a.example.com/;/admin": refused, "http://a.example.com//admin": refused, "http://a.example.com/admin": admin, "http://a.example.com": none,
	} {
		r := &http.Request{Method: "GET", URL: &url.URL{}, Header: http.Header{}, Host: "a.example.com"}
		if target != "" {
			r = requestFor(t, target)
		}
		a, ok := s.Choose(r)
		got := none
		switch {
		case !ok:
			got = refused
		case a != nil && a.Response != nil:
			got = admin
		case a != nil:
			got = open
		}
		if got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if _, ok := s.Choose(requestFor(t, `/a;1//b%5Cc%2Fd%2525e/;f`)); ok {
		t.Error("a path of many readings is judged")
	}
	long := make([]byte, maxOddPath)
	for i := range long {
		long[i] = 'a'
	}
	if _, ok := s.Choose(requestFor(t, "//"+string(long))); ok {
		t.Error("a long odd path is judged")
	}
	if _, ok := s.Choose(requestFor(t, "/"+string(long))); !ok {
		t.Error("a long path is refused")
	}
	// Without a rule that looks at it, a path is the site's alone.
	free := siteOf(t, Rule{Transform: []Transform{{Headers: map[string]string{"X-Key": "k"}}}})
	if a, ok := free.Choose(requestFor(t, "/x/../;%00//admin")); !ok || a == nil {
		t.Error("a path is refused that no rule looks at")
	}
	forwards := siteOf(t, Rule{ForwardURL: "https://b.example.com/api"})
	if _, ok := forwards.Choose(requestFor(t, "/x/%2e%2e/%2e%2e/secret")); ok {
		t.Error("a path leads out of where requests are forwarded to")
	}
}

// TestPathsThatServersTakeForTheSame has rules that differ by what some servers do not
// look at: letter case and a slash at the end.
func TestPathsThatServersTakeForTheSame(t *testing.T) {
	key := []Transform{{Headers: map[string]string{"Authorization": "k"}}}
	pattern := func(s string) *Matcher { return &Matcher{Regex: &s} }
	const refused, none, closed, given = "refused", "none", "closed", "given"
	for name, c := range map[string]struct {
		closed, given *Matcher
		want          map[string]string
	}{
		"prefix": {begin("/admin"), begin("/"), map[string]string{
			"/admin": closed, "/admin/": closed, "/admin/Users": closed, "/Users/Ann": given, "/": given, "/README.md": given, "/a/B/": given,
			"/Admin": refused, "/ADMIN/x": refused, "/%41dmin": refused, "/adm\u0131n": given, "/x;/ADMIN": given, "/;/Admin": refused,
		}},
		"exact": {text("/admin"), begin("/"), map[string]string{
			"/admin": closed, "/admin/x": given, "/admin/x/": given, "/Admins": given, "/admin/": refused, "/Admin": refused, "/Admin/": refused, "/admin//": refused,
		}},
		"exact with a slash": {text("/admin/"), begin("/"), map[string]string{
			"/admin/": closed, "/admin": refused, "/Admin": refused, "/administrator": given,
		}},
		"prefix with a slash": {begin("/admin/"), begin("/"), map[string]string{
			"/admin/": closed, "/admin/x": closed, "/admin": refused, "/Admin/x": refused, "/administrator": given, "/Administrator/": given,
		}},
		"pattern": {pattern("^/(admin|root)$"), begin("/"), map[string]string{
			"/admin": closed, "/root": closed, "/Root": refused, "/admin/": refused, "/admin/X": given, "/": given,
		}},
		"pattern of lower case": {pattern("^/[^A-Z]+$"), begin("/"), map[string]string{"/abc": closed, "/abc/": closed, "/": given}},
		"upper case": {begin("/Admin"), text("/Open/Door"), map[string]string{
			"/Admin": closed, "/Open/Door": given, "/Else": none, "/admin": refused, "/open/door": refused, "/Open/Door/": refused, "/Open/Door/X": none,
		}},
		"the root": {text("/"), begin("/"), map[string]string{"/": closed, "/x": given}},
	} {
		s := siteOf(t, Rule{Match: &Match{Path: c.closed}, Response: &Response{StatusCode: 403}}, Rule{Match: &Match{Path: c.given}, Transform: key})
		for target, want := range c.want {
			a, ok := s.Choose(requestFor(t, target))
			got := none
			switch {
			case !ok:
				got = refused
			case a != nil && a.Response != nil:
				got = closed
			case a != nil:
				got = given
			}
			if got != want {
				t.Errorf("%s: %s: %s, want %s", name, target, got, want)
			}
		}
	}
	// Rules that agree about a path do not care how it is written.
	s := siteOf(t, Rule{Match: &Match{Path: begin("/API"), Method: []string{"POST"}}, Response: &Response{StatusCode: 403}}, Rule{Transform: key})
	if a, ok := s.Choose(requestFor(t, "/api/")); !ok || a == nil {
		t.Error("a request is refused that no rule about its path is for")
	}
}

// TestQueriesThatServersReadDifferently has a rule about project=a b.
func TestQueriesThatServersReadDifferently(t *testing.T) {
	s := siteOf(t, Rule{Match: &Match{QueryString: []KeyValue{{Key: text("project"), Value: text("a b")}}}, Response: &Response{StatusCode: 403}})
	for query, want := range map[string]int{
		"": 0, "project=a%20b": 403, "project=other": 0, "Projects=a%20b": 0, "Project=other": 0, "X=1": 0, "project=a%20b&X=1": 403,
		"Project=a%20b": -1, "project=a%20b&Project=other": -1, "Project=a%20b&project=other": -1, "x=1&X=1": -1, "x=1&x=2": 0, "x=a+b": 0, "x=%2541": 0, "project=a%20b&project=a%20b": 403,
		"project=a+b": -1, "project=a%2520b": -1, "pro%256aect=a%20b": -1, "project=a%20b&project=other": -1, "project=other&project=a%20b": -1,
		"project=a%20b;x=1": -1, "project=%zz": -1,
	} {
		a, ok := s.Choose(requestFor(t, "/?"+query))
		got := 0
		switch {
		case !ok:
			got = -1
		case a != nil:
			got = a.Response.StatusCode
		}
		if got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
}

// TestHeadersThatServersTakeForOthers has a rule about a header.
func TestHeadersThatServersTakeForOthers(t *testing.T) {
	s := siteOf(t, Rule{Match: &Match{Headers: []KeyValue{{Key: text("x-role"), Value: text("admin")}}, Method: []string{"DELETE"}}, Response: &Response{StatusCode: 403}})
	r := requestFor(t, "/")
	r.Method, r.Header = "DELETE", http.Header{"X_role": {"admin"}}
	if a, ok := s.Choose(r); !ok || a == nil {
		t.Error("X_Role is not taken for X-Role")
	}
	if len(s.Overrides()) != 3 || !cgivar.Same("X_HTTP_Method-Override", s.Overrides()[1]) || cgivar.Same("X-Http-Methods", "X-Http-Method") {
		t.Errorf("headers that replace the method: %v", s.Overrides())
	}
}

func FuzzChoose(f *testing.F) {
	for _, target := range []string{"/admin", "//admin", "/;/admin?q=1;2", "/%2e%2e/%5c", "/a%2fb?x=%25&x"} {
		f.Add(target)
	}
	s := siteOf(f,
		Rule{Match: &Match{Path: begin("/admin"), QueryString: []KeyValue{{Key: text("q")}}}, Response: &Response{StatusCode: 403}},
		Rule{Match: &Match{Path: begin("/admin")}, Response: &Response{StatusCode: 404}},
	)
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: "GET", URL: u, Header: http.Header{}}
		a, ok := s.Choose(r)
		// What the strictest server makes of the path must not be closed to another.
		strict := joined(withoutParameters(slashed(decoded(pathOf(u)))))
		if ok && a == nil && len(strict) >= 6 && strict[:6] == "/admin" {
			t.Errorf("%q is let through as %q", target, strict)
		}
	})
}
