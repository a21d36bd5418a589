package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// answer is what the server says to a request that the SDK would not make.
type answer struct {
	status int
	body   string
	skerry.Error
}

func (s *server) request(method, path, token string, body io.Reader, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL()+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{status: resp.StatusCode, body: string(b)}
	var e struct{ Error *skerry.Error }
	if json.Unmarshal(b, &e) == nil && e.Error != nil {
		a.Error = *e.Error
	}
	return a
}

func (s *server) assertRefused(what string, a answer, status int, code skerry.Code, field string) {
	s.t.Helper()
	if a.status != status || a.Code != code || a.Field != field || a.Message == "" {
		s.t.Errorf("%.120s: %d %.300s, want %d %s of %q", what, a.status, a.body, status, code, field)
	}
}

// TestHostileRequests: nonsense is refused in words that name it, and makes
// and breaks nothing.
func TestHostileRequests(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	sb := s.create(client.CreateOptions{Name: "target"})
	token, long := s.config().Token, strings.Repeat("n", 10<<10)
	const create = "POST /v3/sandboxes"
	session := "POST /v2/sandboxes/sessions/" + sb.Session().ID
	bad, none := skerry.CodeBadRequest, skerry.CodeNotFound
	for _, c := range []struct {
		call, body string
		status     int
		code       skerry.Code
		field      string
	}{
		{create, `{"name":`, 400, bad, ""},
		{create, "\x00\xff", 400, bad, ""},
		{create, strings.Repeat("[", 100000), 400, bad, ""},
		{create, `{"name":7}`, 400, bad, "name"},
		{create, `{"name":"` + long + `"}`, 400, bad, "name"},
		{create, `{"name":"../../etc"}`, 400, bad, "name"},
		{create, `{"name":"sessions"}`, 400, bad, "name"},
		{create, `{"name":"target"}`, 409, skerry.CodeConflict, "name"},
		{"POST /v2/sandboxes", `{"runtime":"cobol60"}`, 400, bad, "runtime"},
		{create, `{"resources":{"vcpus":1000000}}`, 400, bad, "resources.vcpus"},
		{create, `{"resources":{"vcpus":3}}`, 400, bad, "resources.vcpus"},
		{create, `{"resources":{"vcpus":1,"memory":1099511627776}}`, 400, bad, "resources.memory"},
		{create, `{"timeout":9007199254740991}`, 400, bad, "timeout"},
		{create, `{"timeout":1}`, 400, bad, "timeout"},
		{create, `{"timeout":864000000}`, 400, skerry.CodeTimeoutInvalid, "timeout"},
		{create, `{"env":{"LD_PRELOAD=x":"y"}}`, 400, bad, "env"},
		{create, `{"image":"../../../etc/passwd"}`, 404, none, "image"},
		{create, `{"x":"` + strings.Repeat("x", 2<<20) + `"}`, 413, skerry.CodeTooLarge, ""},
		{session + "/cmd", `{"command":"a\u0000b"}`, 400, bad, "command"},
		{session + "/cmd", `{"command":"true","args":["\u0000"]}`, 400, bad, "args[0]"},
		{session + "/cmd", `{"command":"true","cwd":"/\u0000"}`, 400, bad, "cwd"},
		{session + "/cmd/cmd_00000000000000000000000000/kill", `{"signal":9}`, 404, none, ""},
		{session + "/cmd/..%2f..%2fdb/kill", `{"signal":9}`, 404, none, ""},
		{session + "/fs/read", `{"path":"/proc/../nothing"}`, 404, none, ""},
		{session + "/fs/read", `{"path":"/etc"}`, 400, bad, ""},
		{session + "/fs/read", `{"path":"/etc/shadow"}`, 400, bad, ""},
		{session + "/fs/mkdir", `{"path":"/etc/mine"}`, 400, bad, ""},
		{"POST /v2/sandboxes/sessions/sbx_00000000000000000000000000/cmd", `{"command":"true"}`, 404, none, ""},
		{"POST /v2/sandboxes/sessions/..%2f..%2fetc/cmd", `{"command":"true"}`, 404, none, ""},
		{"POST /v2/sandboxes/sessions/sbx_00000000000000000000000000/stop", ``, 404, none, ""},
		{"GET /v2/sandboxes/nobody", ``, 404, none, ""},
		{"DELETE /v2/sandboxes/nobody", ``, 404, none, ""},
	} {
		method, path, _ := strings.Cut(c.call, " ")
		s.assertRefused(c.call+" "+c.body, s.request(method, path, token, strings.NewReader(c.body)), c.status, c.code, c.field)
	}
	for what, credentials := range map[string]string{
		"no token": "", "a wrong one": "sk_wrong", "half of it": token[:len(token)/2], "more than it": token + "x",
	} {
		for _, path := range []string{"/v2/sandboxes", "/v2/sandboxes/target", "/v2/sandboxes/sessions/" + sb.Session().ID} {
			s.assertRefused(what, s.request("GET", path, credentials, nil), 401, skerry.CodeUnauthorized, "")
		}
	}
	foreign := s.request("GET", "/v2/sandboxes?teamId=team_other", token, nil)
	s.assertRefused("another team", foreign, 403, skerry.CodeForbidden, "teamId")
	s.assertAlive(sb)
	s.assertOwned(0)
	if n := len(s.running()); n != 1 {
		t.Errorf("%d sandboxes run", n)
	}
}

// archive makes a tar archive, gzipped.
func archive(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, h := range headers {
		body := "written"
		if h.Typeflag != tar.TypeReg {
			body = ""
		}
		h.Mode, h.Size = 0o644, int64(len(body))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// TestHostileArchives: an archive writes below the folder that it is for, or
// not at all.
func TestHostileArchives(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	path, token := "/v2/sandboxes/sessions/"+sb.Session().ID+"/fs/write", s.config().Token
	post := func(body io.Reader) answer {
		return s.request("POST", path, token, body, "Content-Type", "application/gzip", "X-Cwd", "/vercel/sandbox/in")
	}
	s.output(sb, "sh", "-c", "mkdir in out; echo untouched >out/file; ln -s ../out in/away; ln -s ../out/file in/file")
	file := tar.Header{Name: "escaped", Typeflag: tar.TypeReg}
	named := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	for name, headers := range map[string][]tar.Header{
		"a way up":                {named("../out/escaped")},
		"a way up inside":         {named("a/../../out/escaped")},
		"a folder's link":         {named("away/escaped")},
		"a file's link":           {named("file")},
		"a link of its own":       {{Name: "l", Linkname: "/vercel/sandbox/out", Typeflag: tar.TypeSymlink}, named("l/escaped")},
		"a hard link to outside":  {{Name: "hard", Linkname: "../out/file", Typeflag: tar.TypeLink}},
		"a hard link to absolute": {{Name: "hard", Linkname: "/vercel/sandbox/out/file", Typeflag: tar.TypeLink}},
		"a device":                {{Name: "device", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"a block device":          {{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8}},
		"a name too long":         {named(strings.Repeat("x", 300))},
	} {
		a := post(archive(t, headers...))
		if a.status != 400 || a.Code != skerry.CodeBadRequest || a.Message == "" {
			t.Errorf("%s: %d %.300s", name, a.status, a.body)
		}
	}
	if got := s.output(sb, "sh", "-c", "ls out; ls /escaped 2>/dev/null; cat out/file; find in -type c -o -type b; cat in/hard 2>/dev/null || true"); got != "file\nuntouched" {
		t.Errorf("outside of the folder there is now: %s", got)
	}
	for name, body := range map[string]io.Reader{
		"nothing":    strings.NewReader(""),
		"text":       strings.NewReader(strings.Repeat("no archive, ", 100)),
		"bad gzip":   strings.NewReader("\x1f\x8b\x08\x00garbage that is no deflate stream"),
		"half of it": bytes.NewReader(archive(t, file).Bytes()[:60]),
	} {
		if a := post(body); a.status != 400 || a.Code != skerry.CodeBadRequest {
			t.Errorf("%s: %d %.300s", name, a.status, a.body)
		}
	}
	s.assertAlive(sb)
	if a := post(archive(t, named("fine"))); a.status != 200 {
		t.Errorf("a good archive: %d %s", a.status, a.body)
	}
}

// TestGzipBomb: a small upload of endless zeros is given up.
func TestGzipBomb(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	before := rss(t, s.pid())
	var header bytes.Buffer
	const size = 64 << 30
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	pack := func(b []byte) []byte {
		var buf bytes.Buffer
		zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		if err == nil {
			_, err = zw.Write(b)
		}
		if err == nil {
			err = zw.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	// A gzip file may be several in a row: one piece serves for all.
	const piece = 16 << 20
	zeros := bytes.Repeat(pack(make([]byte, piece)), size/piece)
	a := s.request("POST", "/v2/sandboxes/sessions/"+sb.Session().ID+"/fs/write", s.config().Token,
		io.MultiReader(bytes.NewReader(pack(header.Bytes())), bytes.NewReader(zeros)), "Content-Type", "application/gzip", "X-Cwd", "/vercel/sandbox")
	if a.status != 413 || a.Code != skerry.CodeTooLarge {
		t.Errorf("the bomb: %d %s", a.status, a.body)
	}
	if grown := rss(t, s.pid()) - before; grown > 128<<20 {
		t.Errorf("the server grew by %d MiB", grown>>20)
	}
	s.assertAlive(sb)
	var got int64
	if _, err := fmt.Sscan(s.output(sb, "sh", "-c", "stat -c %s zeros 2>/dev/null || echo 0"), &got); err != nil || got > 2<<30 {
		t.Errorf("%d bytes of it are in the sandbox, %v", got, err)
	}
}
