package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestTrust has real programs fetch from domains whose TLS is ended by the proxy:
// they trust it, each in the way it does, and the secret goes along without being
// in the sandbox.
func TestTrust(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "trusting", NetworkPolicy: customPolicy})
	for _, c := range trustCases(`reached api.rules.test auth="Bearer brokered"`) {
		if code, out := w.shell(sb, c.script); code != 0 || strings.TrimSpace(out) != c.want {
			t.Errorf("%s: %d %s", c.what, code, out)
		}
	}
	w.quiet("what trusts")
	// Without rules there is nothing to trust, and nobody does.
	if code, out := w.shell(w.neighbour, "ls /usr/local/share/ca-certificates; env | grep -c -e CA_CERTS -e JAVA_TOOL"); code == 0 || strings.TrimSpace(out) != "0" {
		t.Errorf("the neighbour: %d %s", code, out)
	}
}

// trustCase is a program that fetches from a site of the lab over TLS.
type trustCase struct{ what, script, want string }

// trustCases has each program trust in the way it does; reached is what the site
// api.rules.test answers.
func trustCases(reached string) []trustCase {
	const site = "https://api.rules.test/"
	return []trustCase{
		// The image's store, with nothing in the environment that points to it.
		{"openssl", "env -i /usr/bin/openssl s_client -connect api.rules.test:443 -servername api.rules.test -verify_return_error -verify_hostname api.rules.test </dev/null 2>&1 | grep -m1 -c 'Verify return code: 0 (ok)'", "1"},
		{"openssl, the folder", "env -i /usr/bin/openssl s_client -CApath /etc/ssl/certs -no-CAfile -no-CAstore -connect api.rules.test:443 -servername api.rules.test -verify_return_error </dev/null 2>&1 | grep -m1 -c 'Verify return code: 0 (ok)'", "1"},
		{"curl, the store", "env -i /usr/bin/curl -sS " + site, reached},
		{"wget, the store", "env -i /usr/bin/wget -qO- " + site, reached},
		{"Python, the store", `env -i $(command -v python3) -c 'import urllib.request as u; print(u.urlopen("` + site + `").read().decode())'`, reached},
		// As the programs are run usually.
		{"curl", "curl -sS " + site, reached},
		{"curl, HTTP/1.1", "curl -sS --http1.1 " + site, reached},
		{"wget", "wget -qO- " + site, reached},
		{"Python", `python3 -c 'import urllib.request as u; print(u.urlopen("` + site + `").read().decode())'`, reached},
		{"Python, ssl", `python3 -c 'import socket, ssl; s = ssl.create_default_context().wrap_socket(socket.create_connection(("api.rules.test", 443)), server_hostname="api.rules.test"); s.sendall(b"GET / HTTP/1.1\r\nHost: api.rules.test\r\nConnection: close\r\n\r\n"); print(s.makefile("rb").read().decode().split("\r\n\r\n")[1])'`, reached},
		{"Node.js, fetch", `node -e 'fetch("` + site + `").then(r => r.text()).then(console.log)'`, reached},
		{"Node.js, https", `node -e 'require("https").get("` + site + `", r => r.pipe(process.stdout))'`, reached},
		{"Node.js 22", `/vercel/runtimes/node22/bin/node -e 'fetch("` + site + `").then(r => r.text()).then(console.log)'`, reached},
		{"git", "git clone -q https://git.rules.test/repo.git /tmp/cloned && cat /tmp/cloned/file", "cloned"},
		{"pip", "pip install -q --disable-pip-version-check --target /tmp/pip --index-url https://pypi.rules.test/simple/ lab-package && PYTHONPATH=/tmp/pip python3 -m lab_package", "from the index"},
		{"uv", "uv pip install -q --target /tmp/uv --index-url https://pypi.rules.test/simple/ lab-package && PYTHONPATH=/tmp/uv python3 -m lab_package", "from the index"},
		{"npm", "mkdir /tmp/npm && cd /tmp/npm && npm install --silent --no-audit --no-fund --registry https://npm.rules.test/ lab-package >/dev/null && node -e 'require(\"lab-package\")'", "from the registry"},
		{"pnpm", "mkdir /tmp/pnpm && cd /tmp/pnpm && pnpm add --silent --registry https://npm.rules.test/ lab-package >/dev/null && node -e 'require(\"lab-package\")'", "from the registry"},
		{"root", "sudo curl -sS " + site, reached},
		// A variable that a command sets itself is its own.
		{"its own variable", "echo $NODE_EXTRA_CA_CERTS; NODE_EXTRA_CA_CERTS=/mine sh -c 'echo $NODE_EXTRA_CA_CERTS'", "/usr/local/share/skerry/authorities.crt\n/mine"},
		// A certificate that is not valid upstream is not made valid on the way.
		{"an invalid certificate", "curl -sS https://invalid.rules.test/ 2>&1 | grep -c -i 'certificate'", "1"},
	}
}

// TestSandboxCA: with the authority of a proxy that inspects TLS, or of a
// company's own sites, programs work without a word, also as root; the
// operator's environment is below the sandbox's.
func TestSandboxCA(t *testing.T) {
	if !inLab(t) {
		return
	}
	l := newLab(t)
	l.open = true
	t.Setenv("SSL_CERT_FILE", l.roots)
	env := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(env, []byte("# mirrors\nPIP_INDEX_URL=https://pypi.rules.test/simple/\nLAB_BELOW=operator\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "--resolver", labGateway, "--allow-private", labNets, "--sandbox-ca", l.roots, "--sandbox-env", env)
	sb := s.create(client.CreateOptions{VCPUs: 1, Env: map[string]string{"LAB_BELOW": "sandbox"}})
	const reached = `reached api.rules.test auth=""`
	cases := append(trustCases(reached),
		trustCase{"plain sudo", `sudo node -e 'fetch("https://api.rules.test/").then(r => r.text()).then(console.log)'`, reached},
		trustCase{"the operator's environment", "pip install -q --disable-pip-version-check --target /tmp/env lab-package && echo $LAB_BELOW; sudo printenv PIP_INDEX_URL", "sandbox\nhttps://pypi.rules.test/simple/"},
	)
	check := func(when string, cases []trustCase) {
		t.Helper()
		for _, c := range cases {
			if code, out := s.shell(sb, c.script); code != 0 || strings.TrimSpace(out) != c.want {
				t.Errorf("%s, %s: %d %s", when, c.what, code, out)
			}
		}
	}
	check("at first", cases)
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("resumed", []trustCase{
		{"curl", "curl -sS https://api.rules.test/", reached},
		{"the bundle has it once", `grep -c -F "$(sed -n 3p /usr/local/share/skerry/authorities.crt)" /etc/ssl/certs/ca-certificates.crt`, "1"},
	})
	if err := sb.SetNetworkPolicy(t.Context(), *customPolicy); err != nil {
		t.Fatal(err)
	}
	check("beside the proxy's own authority", []trustCase{
		{"Node.js", `node -e 'fetch("https://api.rules.test/").then(r => r.text()).then(console.log)'`, `reached api.rules.test auth="Bearer brokered"`},
		{"authorities", "grep -c BEGIN /usr/local/share/skerry/authorities.crt", "2"},
	})
}
