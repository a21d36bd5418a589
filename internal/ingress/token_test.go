package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// private is the ports of a sandbox with a private one.
func private(subdomain string, key byte) []skerry.PublishedPort {
	return []skerry.PublishedPort{{Port: 3000, Subdomain: subdomain, Key: []byte(strings.Repeat(string(key), 32))}}
}

const secretSub = "zzzzzzzzzzbbbbbbbbbbcccccc"

func TestPrivateRoute(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "uri=%s header=%q cookie=%q referer=%q", r.RequestURI, r.Header[TokenHeader], r.Header["Cookie"], r.Header["Referer"])
	})
	i, _, _ := start(t, s, nil)
	ports := private(secretSub, 'k')
	if err := i.Publish(boxID, ports); err != nil {
		t.Fatal(err)
	}
	base := i.URL(ports[0])
	good := i.Token(ports[0], time.Now().Add(time.Hour))
	cookie := i.cookieName(ports[0])
	other := private("yyyyyyyyyybbbbbbbbbbcccccc", 'o')[0]

	for name, r := range map[string]*http.Request{
		"no token":                 request(t, "GET", base+"/", nil),
		"an expired one":           request(t, "GET", base+"/?token="+i.Token(ports[0], time.Now().Add(-time.Second)), nil),
		"another route's":          request(t, "GET", base+"/?token="+i.Token(other, time.Now().Add(time.Hour)), nil),
		"a forged one":             request(t, "GET", base+"/", nil, TokenHeader, good[:len(good)-2]+"AA"),
		"a longer life":            request(t, "GET", base+"/", nil, TokenHeader, tokenPrefix+"AAAAAP"+good[len(tokenPrefix)+6:]),
		"another route's cookie":   request(t, "GET", base+"/", nil, "Cookie", i.cookieName(other)+"="+good),
		"as if it were of the app": request(t, "GET", base+"/", nil, "Authorization", "Bearer "+good),
	} {
		if res, text := ask(t, r); res.StatusCode != 401 || strings.Contains(text, "uri=") {
			t.Errorf("%s: %d %s", name, res.StatusCode, text)
		}
	}
	if n := s.dials.Load(); n != 0 {
		t.Fatalf("%d requests without a token got to the sandbox", n)
	}

	clean := `uri=/a?x=1&token=own header=[] cookie=["own=1"] referer=["http://page/?y=2"]`
	headers := []string{"Cookie", "own=1; " + i.cookieName(other) + "=x", "Referer", "http://page/?y=2&token=" + good}
	for name, r := range map[string]*http.Request{
		"query":  request(t, "GET", base+"/a?token="+good+"&x=1&token=own", nil, headers...),
		"header": request(t, "GET", base+"/a?x=1&token=own", nil, append(headers, TokenHeader, good)...),
		"cookie": request(t, "GET", base+"/a?x=1&token=own", nil, append(headers[2:], "Cookie", "own=1; "+cookie+"="+good)...),
		"escaped": request(t, "GET", base+"/a?x=1&%74oken="+url.QueryEscape(good[:4])+"%"+fmt.Sprintf("%x", good[4])+good[5:]+"&token=own", nil,
			append(headers, TokenHeader, good)...),
	} {
		if res, text := ask(t, r); res.StatusCode != 200 || text != clean {
			t.Errorf("%s: %d %s, want %s", name, res.StatusCode, text, clean)
		}
	}

	// A browser gets a cookie and is sent to the same page without the token.
	res, _ := ask(t, request(t, "GET", base+"//evil.example/?token="+good+"&x=1", nil, "Accept", "text/html"))
	if got, want := res.Header.Get("Location"), base+"//evil.example/?x=1"; res.StatusCode != 303 || got != want {
		t.Errorf("%d to %q, want %q", res.StatusCode, got, want)
	}
	set := res.Cookies()
	if len(set) != 1 || set[0].Name != cookie || !set[0].HttpOnly || set[0].SameSite != http.SameSiteLaxMode || time.Until(set[0].Expires) > time.Hour {
		t.Fatalf("cookies: %v", set)
	}
	if res, _ := ask(t, request(t, "GET", base+"/", nil, "Cookie", set[0].Name+"="+set[0].Value)); res.StatusCode != 200 {
		t.Errorf("with the cookie: %d", res.StatusCode)
	}

	// Another key cuts off who came by the one before.
	ports[0].Key = []byte(strings.Repeat("n", 32))
	if err := i.Publish(boxID, ports); err != nil || i.URL(ports[0]) != base {
		t.Fatal(i.URL(ports[0]), err)
	}
	if res, _ := ask(t, request(t, "GET", base+"/", nil, TokenHeader, good)); res.StatusCode != 401 {
		t.Errorf("with a token of an earlier key: %d", res.StatusCode)
	}
}

// TestPublicRouteStripsTokens: one that was meant for another route stays out.
func TestPublicRouteStripsTokens(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RequestURI+r.Header.Get(TokenHeader))
	})
	i, _, base := start(t, s, nil)
	token := i.Token(private(secretSub, 'k')[0], time.Now().Add(time.Hour))
	if _, text := ask(t, request(t, "GET", base+"/?token="+token+"&token=own", nil, TokenHeader, token)); text != "/?token=own" {
		t.Errorf("the sandbox saw %s", text)
	}
}

func FuzzStripTokens(f *testing.F) {
	f.Add("token=skr_x&a=b", "a=b; skerry_route_x=y", "http://x/?token=skr_a")
	f.Add("&&token=skr_&%74oken=skr_", "__Host-skerry_route_=;;", "skr_")
	f.Fuzz(func(t *testing.T, query, cookie, referer string) {
		h := http.Header{"Cookie": {cookie}, "Referer": {referer}}
		u := &url.URL{RawQuery: query}
		stripTokens(h, u)
		for _, v := range (&url.URL{RawQuery: strings.ReplaceAll(u.RawQuery, ";", "")}).Query()[tokenParameter] {
			if strings.HasPrefix(v, tokenPrefix) && !strings.Contains(query, ";") {
				t.Errorf("%q leaves %q", query, u.RawQuery)
			}
		}
		r := &http.Request{Header: h}
		for _, c := range r.Cookies() {
			if isOurCookie(c.Name) {
				t.Errorf("%q leaves %q", cookie, c.Name)
			}
		}
	})
}
