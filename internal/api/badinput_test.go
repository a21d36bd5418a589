package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestBadBodies(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	const (
		create = "POST /v3/sandboxes"
		update = "PATCH /v2/sandboxes/a"
		cmd    = "POST /v2/sandboxes/sessions/s/cmd"
		kill   = "POST /v2/sandboxes/sessions/s/cmd/c/kill"
		extend = "POST /v2/sandboxes/sessions/s/extend-timeout"
		read   = "POST /v2/sandboxes/sessions/s/fs/read"
		mkdir  = "POST /v2/sandboxes/sessions/s/fs/mkdir"
	)
	long := strings.Repeat("x", 10<<10)
	manyEnv := `{"env":{"A0":""`
	for i := range skerry.MaxEnv {
		manyEnv += fmt.Sprintf(`,"B%d":""`, i)
	}
	for _, c := range []struct{ call, body, field string }{
		{create, `{`, ""},
		{create, `{"name":}`, ""},
		{create, `{"name":"a",}`, ""},
		{create, `[]`, ""},
		{create, `null`, ""},
		{create, `"x"`, ""},
		{create, `{} {}`, ""},
		{create, `{}x`, ""},
		{create, "{\"name\":\"\xff\"}", ""},
		{create, `{"name":"a","name":"b"}`, "name"},
		{create, `{"unknown":{"a":1,"a":1}}`, "unknown.a"},
		{create, `{"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "x" + strings.Repeat("[0]", 31)},
		{create, strings.Repeat("[", 20000), ""},
		{create, `{"name":5}`, "name"},
		{create, `{"name":"a\u0000b"}`, "name"},
		{create, `{"name":"` + long + `"}`, "name"},
		{create, `{"name":"sessions"}`, "name"},
		{create, `{"runtime":"node18"}`, "runtime"},
		{create, `{"runtime":"` + long + `"}`, "runtime"},
		{create, `{"runtime":"node24","image":"debian"}`, "runtime"},
		{create, `{"timeout":"5m"}`, "timeout"},
		{create, `{"timeout":1.5}`, "timeout"},
		{create, `{"timeout":1e300}`, "timeout"},
		{create, `{"timeout":9223372036854775807}`, "timeout"},
		{create, `{"resources":[]}`, "resources"},
		{create, `{"resources":{"vcpus":"two"}}`, "resources.vcpus"},
		{create, `{"resources":{"vcpus":0}}`, "resources.vcpus"},
		{create, `{"resources":{"vcpus":-1}}`, "resources.vcpus"},
		{create, `{"resources":{"vcpus":1000000}}`, "resources.vcpus"},
		{create, `{"resources":{"memory":0}}`, "resources.memory"},
		{create, `{"env":[]}`, "env"},
		{create, `{"env":{"A":1}}`, "env.A"},
		{create, `{"env":{"A":null}}`, "env.A"},
		{create, `{"env":{"":"x"}}`, "env"},
		{create, `{"env":{"A=B":"x"}}`, "env"},
		{create, `{"env":{"A\u0000":"x"}}`, "env"},
		{create, `{"env":{"A":"` + strings.Repeat("x", skerry.MaxEnvBytes) + `"}}`, "env"},
		{create, manyEnv + "}}", "env"},
		{create, `{"tags":{"a":true}}`, "tags.a"},
		{create, `{"ports":["80"]}`, "ports[0]"},
		{create, `{"ports":{}}`, "ports"},
		{create, `{"persistent":"no"}`, "persistent"},
		{create, `{"networkPolicy":"allow-all"}`, "networkPolicy"},
		{create, `{"failoverRegions":[null]}`, "failoverRegions[0]"},
		{create, `{"source":{}}`, "source.type"},
		{create, `{"source":{"type":"zip","url":"x"}}`, "source.type"},
		{create, `{"source":{"type":"git"}}`, "source.url"},
		{create, `{"source":{"type":"git","url":"x","depth":0}}`, "source.depth"},
		{create, `{"source":{"type":"git","url":"` + long + `"}}`, "source.url"},
		{update, `{"tags":null}`, "tags"},
		{update, `{"timeout":null}`, "timeout"},
		{update, `{"resources":{"vcpus":0}}`, "resources.vcpus"},
		{cmd, `{}`, "command"},
		{cmd, ``, "command"},
		{cmd, `{"command":""}`, "command"},
		{cmd, `{"command":null}`, "command"},
		{cmd, `{"command":"a\u0000"}`, "command"},
		{cmd, `{"command":"a","args":"b"}`, "args"},
		{cmd, `{"command":"a","args":["b",3]}`, "args[1]"},
		{cmd, `{"command":"a","args":["b\u0000"]}`, "args[0]"},
		{cmd, `{"command":"a","args":[null]}`, "args[0]"},
		{cmd, `{"command":"a","cwd":"` + long + `"}`, "cwd"},
		{cmd, `{"command":"a","env":{"=":""}}`, "env"},
		{cmd, `{"command":"a","sudo":1}`, "sudo"},
		{cmd, `{"command":"a","wait":"true"}`, "wait"},
		{kill, `{"signal":0}`, "signal"},
		{kill, `{"signal":65}`, "signal"},
		{kill, `{"signal":"SIGNOPE"}`, "signal"},
		{kill, `{"signal":true}`, "signal"},
		{extend, `{}`, "duration"},
		{extend, `{"duration":"1"}`, "duration"},
		{read, `{}`, "path"},
		{read, `{"path":""}`, "path"},
		{read, `{"path":"` + long + `"}`, "path"},
		{read, `{"path":"a","cwd":7}`, "cwd"},
		{mkdir, `{"path":"a","recursive":"yes"}`, "recursive"},
	} {
		method, path, _ := strings.Cut(c.call, " ")
		h.refused(method, path, c.body, 400, skerry.CodeBadRequest, c.field)
	}
	for _, c := range []struct{ call, body, field string }{
		{create, `{"timeout":0}`, "timeout"},
		{create, `{"timeout":-1}`, "timeout"},
		{update, `{"timeout":0}`, "timeout"},
		{cmd, `{"command":"a","timeout":0}`, "timeout"},
		{extend, `{"duration":0}`, "duration"},
		{extend, `{"duration":-5}`, "duration"},
	} {
		method, path, _ := strings.Cut(c.call, " ")
		h.refused(method, path, c.body, 400, skerry.CodeTimeoutInvalid, c.field)
	}
	h.refused("POST", "/v3/sandboxes", `{"x":"`+strings.Repeat("x", maxBody)+`"}`, 413, skerry.CodeTooLarge, "")
}

func TestBadQueries(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=101": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=": "limit", "limit=1&limit=2": "limit",
		"sortBy=size": "sortBy", "sortOrder=up": "sortOrder", "tags=novalue": "tags", "tags=:v": "tags",
		"tags=a:b&tags=a:c": "tags", "cursor=%00": "cursor", "namePrefix=%ff": "namePrefix", "a=%zz": "",
	} {
		h.refused("GET", "/v2/sandboxes?"+query, "", 400, skerry.CodeBadRequest, field)
	}
	h.refused("GET", "/v2/sandboxes/a?resume=yes", "", 400, skerry.CodeBadRequest, "resume")
	h.refused("GET", "/v2/sandboxes/sessions?limit=1000", "", 400, skerry.CodeBadRequest, "limit")
	h.refused("GET", "/v2/sandboxes/sessions/s/cmd/c?wait=1", "", 400, skerry.CodeBadRequest, "wait")
	h.refused("DELETE", "/v2/sandboxes/a?deleteOrphanSnapshots=1", "", 400, skerry.CodeBadRequest, "deleteOrphanSnapshots")
	h.refused("GET", "/v2/sandboxes/"+strings.Repeat("x", 10<<10), "", 400, skerry.CodeBadRequest, "name")
	h.refused("GET", "/v2/sandboxes/a%00b", "", 400, skerry.CodeBadRequest, "name")
	h.refused("GET", "/v2/sandboxes/%ff", "", 400, skerry.CodeBadRequest, "name")
}

func TestUnbuiltIsSaidSo(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	for body, field := range map[string]string{
		`{"networkId":"n"}`: "networkId",
		`{"region":"iad1"}`: "region", `{"failoverRegions":["local","sfo1"]}`: "failoverRegions",
	} {
		h.refused("POST", "/v3/sandboxes", body, 501, skerry.CodeNotImplemented, field)
		h.refused("PATCH", "/v2/sandboxes/a", body, 501, skerry.CodeNotImplemented, field)
	}
	const stdin = "/v2/sandboxes/sessions/s/cmd/c/stdin"
	h.refused("POST", stdin, `{"data":"not base64!"}`, 400, skerry.CodeBadRequest, "data")
	h.refused("POST", stdin, `{"data":"YQ==","offset":-1}`, 400, skerry.CodeBadRequest, "offset")
	h.refused("POST", stdin, `{"close":"yes"}`, 400, skerry.CodeBadRequest, "close")
	for _, call := range []string{
		"POST /v1/sandboxes", "GET /api/v1/sandboxes/sbx_1/cmd/c", "GET /.well-known/openid-configuration",
	} {
		method, path, _ := strings.Cut(call, " ")
		h.refused(method, path, "", 501, skerry.CodeNotImplemented, "")
	}
}

// FuzzBodies sends any body to every route that takes one: whatever it is, the
// answer is a proper one and never a server error.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"name":"a","ports":[1],"env":{"A":"b"},"source":{"type":"git","url":"u"}}`, `{"command":"a","args":["b"],"wait":true}`,
		`{"signal":"SIGKILL"}`, `{"duration":1}`, `{"path":"/a","cwd":null}`, "[[[", "{\"a\":\"\\ud800\"}", "\x1f\x8b",
	} {
		f.Add([]byte(seed))
	}
	svc := &stub{err: skerry.Errorf(skerry.CodeConflict, "accepted")}
	srv := quietServer(f, svc)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, rt := range srv.routes() {
			if rt.request == nil && rt.requestType == "" {
				continue
			}
			status, answer := answerTo(srv, rt.method, pathName.ReplaceAllString(rt.path, "x"), body)
			if status >= 500 && status != 501 || status < 400 && rt.id != "createProject" {
				t.Errorf("%s %q: %d %s", rt.id, body, status, answer)
			}
		}
	})
}
