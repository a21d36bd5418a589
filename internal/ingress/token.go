package ingress

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
)

// A token is tokenPrefix and, in unpadded base64url, the second until which it
// is good and a signature of that with its route's key. The prefix is what it
// is found by: nothing that begins so ever gets to a sandbox, whoever's it is.
const tokenPrefix = "skr_"

// Where a token may be.
const (
	tokenParameter = "token"
	// TokenHeader is for clients that keep no cookies.
	TokenHeader = "X-Skerry-Token"
	// cookiePrefix and the first characters of the subdomain are the cookie's
	// name: in port mode all routes are one host to a browser, which sends the
	// cookies of all of them to each.
	cookiePrefix = "skerry_route_"
)

func signToken(key []byte, expires time.Time) string {
	until := binary.BigEndian.AppendUint64(nil, uint64(expires.Unix()))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(until, signature(key, until)...))
}

func signature(key, until []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("skerry route token\x00"))
	mac.Write(until)
	return mac.Sum(nil)
}

// verifyToken returns until when a token is good, and whether it is.
func verifyToken(key []byte, token string, now time.Time) (expires time.Time, ok bool) {
	text, ok := strings.CutPrefix(token, tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if !ok || err != nil || len(b) != 8+sha256.Size {
		return expires, false
	}
	expires = time.Unix(int64(binary.BigEndian.Uint64(b)), 0)
	return expires, hmac.Equal(b[8:], signature(key, b[:8])) && now.Before(expires)
}

// offered are the tokens of a request, and the one among them that came in the
// query.
func offered(r *http.Request, cookie string) (tokens []string, inQuery string) {
	if strings.Contains(r.URL.RawQuery, tokenPrefix) {
		for _, pair := range strings.Split(r.URL.RawQuery, "&") {
			if v, ok := tokenOfPair(pair); ok {
				tokens, inQuery = append(tokens, v), v
			}
		}
	}
	if v := r.Header.Get(TokenHeader); v != "" {
		tokens = append(tokens, v)
	}
	for _, c := range r.CookiesNamed(cookie) {
		tokens = append(tokens, c.Value)
	}
	return tokens, inQuery
}

// tokenOfPair returns the token that a part of a query is.
func tokenOfPair(pair string) (string, bool) {
	name, value, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(name)
	if err != nil || name != tokenParameter {
		return "", false
	}
	value, err = url.QueryUnescape(value)
	return value, err == nil && strings.HasPrefix(value, tokenPrefix)
}

// stripTokens takes every token of any route out of what goes to a sandbox,
// and leaves the rest byte for byte.
func stripTokens(h http.Header, u *url.URL) {
	u.RawQuery = withoutTokens(u.RawQuery)
	h.Del(TokenHeader)
	if referer := h.Get("Referer"); strings.Contains(referer, tokenPrefix) {
		h.Del("Referer")
		if page, query, ok := strings.Cut(referer, "?"); ok && !strings.Contains(page, tokenPrefix) {
			h.Set("Referer", strings.TrimSuffix(page+"?"+withoutTokens(query), "?"))
		}
	}
	lines, ours := h["Cookie"], false
	for _, line := range lines {
		ours = ours || strings.Contains(line, cookiePrefix)
	}
	if !ours {
		return
	}
	var kept []string
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ";") {
			if part = strings.TrimSpace(part); part != "" && !isOurCookie(part) {
				kept = append(kept, part)
			}
		}
	}
	h.Del("Cookie")
	if len(kept) > 0 {
		h.Set("Cookie", strings.Join(kept, "; "))
	}
}

func withoutTokens(query string) string {
	if !strings.Contains(query, tokenPrefix) {
		return query
	}
	return strings.Join(slices.DeleteFunc(strings.Split(query, "&"), func(pair string) bool {
		_, ok := tokenOfPair(pair)
		return ok
	}), "&")
}

// isOurCookie looks at the start of "name=value". Browsers know the name with
// the prefix that binds a cookie to its host as another one.
func isOurCookie(s string) bool {
	return strings.HasPrefix(strings.TrimPrefix(s, hostPrefix), cookiePrefix)
}

// hostPrefix has browsers take a cookie over TLS alone, and from no other host.
const hostPrefix = "__Host-"

// cookieName is that of the cookie that opens a route.
func (i *Ingress) cookieName(p skerry.PublishedPort) string {
	name := cookiePrefix + p.Subdomain[:min(10, len(p.Subdomain))]
	if i.cfg.Domain != "" {
		return hostPrefix + name
	}
	return name
}

// cookie has a browser show the token with its next requests.
func (i *Ingress) cookie(p skerry.PublishedPort, token string, expires time.Time) *http.Cookie {
	return &http.Cookie{
		Name: i.cookieName(p), Value: token, Path: "/", Expires: expires, HttpOnly: true,
		Secure: i.cfg.Domain != "", SameSite: http.SameSiteLaxMode,
	}
}

// withoutOurCookies keeps a sandbox from setting a cookie that opens a route
// or takes the place of one that does.
func withoutOurCookies(h http.Header) {
	lines := h["Set-Cookie"]
	if !slices.ContainsFunc(lines, func(s string) bool { return strings.Contains(s, cookiePrefix) }) {
		return
	}
	lines = slices.DeleteFunc(slices.Clone(lines), func(s string) bool { return isOurCookie(strings.TrimSpace(s)) })
	h["Set-Cookie"] = lines
}
