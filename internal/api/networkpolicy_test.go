package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestNetworkPolicyIsRead(t *testing.T) {
	svc := &stub{}
	h := serve(t, svc)
	const body = `{"allow":{"*.B.example":[],"api.example.com.":[
		{"match":{"method":["post"],"path":{"startsWith":"/v1/"},"headers":[{"key":{"exact":"x-key"},"value":{"exact":"placeholder"}}]},
		 "transform":[{"headers":{"Authorization":"Bearer secret"}}]},
		{"match":{"queryString":[{"key":{"regex":"^a+$"}}]},"forwardURL":"https://proxy.example/in"},
		{"response":{"statusCode":403,"body":"secret page","contentType":"text/plain"}}]},
		"subnets":{"allow":["198.51.100.0/24","2001:db8::/32"],"deny":["198.51.100.7/32"]}}`
	a := h.call("POST", "/v2/sandboxes/sessions/s/network-policy", body)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if strings.Contains(string(a.body), "secret") || strings.Contains(string(a.body), "placeholder") {
		t.Errorf("the answer tells a secret: %s", a.body)
	}
	var got struct {
		Session struct{ NetworkPolicy json.RawMessage }
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatal(err)
	}
	const want = `{"mode":"custom","allowedDomains":["*.b.example","api.example.com"],"allowedCIDRs":["198.51.100.0/24","2001:db8::/32"],` +
		`"deniedCIDRs":["198.51.100.7/32"],"injectionRules":[{"domain":"api.example.com","headerNames":["Authorization"],"match":{"path":{"startsWith":"/v1/"},` +
		`"method":["POST"],"headers":[{"key":{"exact":"x-key"}}]}}],"forwardRules":[{"domain":"api.example.com","forwardURL":"https://proxy.example/in",` +
		`"match":{"queryString":[{"key":{"regex":"^a+$"}}]}}],"responseRules":[{"domain":"api.example.com","statusCode":403}]}`
	if string(got.Session.NetworkPolicy) != want {
		t.Errorf("shown as %s\nwant %s", got.Session.NetworkPolicy, want)
	}
	rules := svc.policy.Domains[1].Rules
	if len(rules) != 3 || rules[0].Transform[0].Headers["Authorization"] != "Bearer secret" || *rules[2].Response.Body != "secret page" {
		t.Errorf("read as %+v", svc.policy)
	}
	for body, mode := range map[string]skerry.NetworkMode{
		`{"mode":"allow-all"}`: skerry.NetworkAllowAll, `{"mode":"deny-all"}`: skerry.NetworkDenyAll, `{}`: skerry.NetworkCustom,
		`{"allow":[]}`: skerry.NetworkCustom, `{"mode":"custom","subnets":{}}`: skerry.NetworkCustom,
	} {
		h.call("POST", "/v2/sandboxes/sessions/s/network-policy", body)
		if svc.policy.Mode != mode {
			t.Errorf("%s is %s", body, svc.policy.Mode)
		}
	}
}

func TestBadNetworkPolicies(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	var domains, networks []string
	for i := range 10000 {
		domains = append(domains, fmt.Sprintf("%q", fmt.Sprintf("d%d.example", i)))
		networks = append(networks, fmt.Sprintf("%q", fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)))
	}
	rule := func(r string) string { return `{"allow":{"a.example":[` + r + `]}}` }
	match := func(m string) string { return rule(`{"match":` + m + `,"response":{"statusCode":200}}`) }
	long := strings.Repeat("x", 300<<10)
	for _, c := range []struct{ policy, field string }{
		{`{"mode":"open"}`, "mode"},
		{`{"mode":"allow-all","allow":[]}`, "mode"},
		{`{"mode":"deny-all","subnets":{}}`, "mode"},
		{`{"mode":7}`, "mode"},
		{`{"mode":"custom","allowedDomains":["a.example"]}`, "allowedDomains"},
		{`{"-":1}`, "-"}, {`{"parsed":1}`, "parsed"},
		{`{"allow":"a.example"}`, "allow"},
		{`{"allow":[1]}`, "allow[0]"},
		{`{"allow":[""]}`, "allow."},
		{`{"allow":["a.example","A.example."]}`, "allow.A.example."},
		{`{"allow":["https://a.example"]}`, "allow.https://a.example"},
		{`{"allow":["a.example:443"]}`, "allow.a.example:443"},
		{`{"allow":["192.0.2.1"]}`, "allow.192.0.2.1"},
		{`{"allow":["a*.example"]}`, "allow.a*.example"},
		{`{"allow":["bücher.example"]}`, "allow.bücher.example"},
		{`{"allow":["a..example"]}`, "allow.a..example"},
		{`{"allow":["-a.example"]}`, "allow.-a.example"},
		{`{"allow":["a.example","` + strings.Repeat("y.", 200) + `"]}`, "allow." + strings.Repeat("y.", 32) + "…"},
		{`{"allow":[` + strings.Join(domains, ",") + `]}`, "allow"},
		{`{"subnets":{"allow":[` + strings.Join(networks, ",") + `]}}`, "subnets.allow"},
		{`{"subnets":{"allow":["10.0.0.0"]}}`, "subnets.allow[0]"},
		{`{"subnets":{"allow":["10.0.0.0/33"]}}`, "subnets.allow[0]"},
		{`{"subnets":{"deny":["10.0.0.1/8"]}}`, "subnets.deny[0]"},
		{`{"subnets":{"deny":["::ffff:10.0.0.0/104"]}}`, "subnets.deny[0]"},
		{`{"subnets":{"deny":["10.0.0.0/8","10.1.0.0/16"]}}`, "subnets.deny[1]"},
		{`{"subnets":{"allow":["10.0.0.0/8","10.0.0.0/8"]}}`, "subnets.allow[1]"},
		{`{"subnets":{"allow":["192.0.2.0/24","10.1.0.0/16"],"deny":["10.0.0.0/8"]}}`, "subnets.allow[1]"},
		{`{"subnets":{"permit":[]}}`, "subnets.permit"},
		{`{"subnets":[]}`, "subnets"},
		{`{"allow":{"a.example":{}}}`, "allow.a.example"},
		{`{"allow":{"a.example":null}}`, "allow.a.example"},
		{rule(`{}`), "allow.a.example[0]"},
		{rule(`{"transform":[],"forwardURL":"https://p.example"}`), "allow.a.example[0]"},
		{rule(`{"transform":[]},{"response":{"statusCode":200}}`), "allow.a.example[1]"},
		{rule(`{"match":{"method":["GET"]},"transform":[]},{"match":{"method":["get"]},"response":{"statusCode":200}}`), "allow.a.example[1]"},
		{rule(`{"redirect":"https://p.example"}`), "allow.a.example[0].redirect"},
		{rule(`{"forwardURL":"http://p.example"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"forwardURL":"https://p.example/?q"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"forwardURL":"https://p.example/#"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"forwardURL":"https://u:p@p.example/"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"forwardURL":"https://"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"forwardURL":"https://p.example:0"}`), "allow.a.example[0].forwardURL"},
		{rule(`{"transform":[{"headers":{"Host":"b.example"}}]}`), "allow.a.example[0].transform[0].headers.Host"},
		{rule(`{"transform":[{"headers":{"a b":""}}]}`), "allow.a.example[0].transform[0].headers.a b"},
		{rule(`{"transform":[{"headers":{"a":"b\r\nc: d"}}]}`), "allow.a.example[0].transform[0].headers.a"},
		{rule(`{"transform":[{"headers":{"a":1}}]}`), "allow.a.example[0].transform[0].headers.a"},
		{rule(`{"response":{"statusCode":199}}`), "allow.a.example[0].response.statusCode"},
		{rule(`{"response":{}}`), "allow.a.example[0].response.statusCode"},
		{rule(`{"response":{"statusCode":200,"body":"x"}}`), "allow.a.example[0].response.contentType"},
		{rule(`{"response":{"statusCode":204,"body":"x","contentType":"a/b"}}`), "allow.a.example[0].response.body"},
		{rule(`{"response":{"statusCode":200,"headers":{"Content-Length":"1"}}}`), "allow.a.example[0].response.headers.Content-Length"},
		{rule(`{"response":{"statusCode":200,"body":"` + long + `","contentType":"a/b"}}`), "allow.a.example[0].response.body"},
		{match(`{"host":"b"}`), "allow.a.example[0].match.host"},
		{match(`{"path":{}}`), "allow.a.example[0].match.path"},
		{match(`{"path":{"exact":"/","startsWith":"/"}}`), "allow.a.example[0].match.path"},
		{match(`{"path":{"regex":"("}}`), "allow.a.example[0].match.path.regex"},
		{match(`{"path":{"regex":"(?!a)"}}`), "allow.a.example[0].match.path.regex"},
		{match(`{"path":{"regex":"((a{100}){100}){100}"}}`), "allow.a.example[0].match.path.regex"},
		{match(`{"path":{"exact":"` + long + `"}}`), "allow.a.example[0].match.path"},
		{match(`{"method":["G T"]}`), "allow.a.example[0].match.method[0]"},
		{match(`{"headers":[{}]}`), "allow.a.example[0].match.headers[0]"},
		{match(`{"queryString":[{"name":{"exact":"a"}}]}`), "allow.a.example[0].match.queryString[0].name"},
	} {
		h.refused("POST", "/v2/sandboxes/sessions/s/network-policy", c.policy, 400, skerry.CodeBadRequest, c.field)
		field := "networkPolicy"
		if c.field != "" {
			field += "." + c.field
		}
		for _, call := range []string{"POST /v3/sandboxes", "PATCH /v2/sandboxes/a", "POST /v2/sandboxes/a/fork"} {
			method, path, _ := strings.Cut(call, " ")
			h.refused(method, path, `{"networkPolicy":`+c.policy+`}`, 400, skerry.CodeBadRequest, field)
		}
	}
	h.refused("POST", "/v3/sandboxes", `{"networkPolicy":"deny-all"}`, 400, skerry.CodeBadRequest, "networkPolicy")
	h.refused("POST", "/v2/sandboxes/sessions/s/network-policy", `"deny-all"`, 400, skerry.CodeBadRequest, "")
}
