package e2e

import (
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
	const reached = `reached api.rules.test auth="Bearer brokered"`
	const site = "https://api.rules.test/"
	for _, c := range []struct{ what, script, want string }{
		// The image's store, with nothing in the environment that points to it.
		{"openssl", "env -i /usr/bin/openssl s_client -connect api.rules.test:443 -servername api.rules.test -verify_return_error -verify_hostname api.rules.test </dev/null 2>&1 | grep -c 'Verify return code: 0 (ok)'", "1"},
		{"openssl, the folder", "env -i /usr/bin/openssl s_client -CApath /etc/ssl/certs -no-CAfile -no-CAstore -connect api.rules.test:443 -servername api.rules.test -verify_return_error </dev/null 2>&1 | grep -c 'Verify return code: 0 (ok)'", "1"},
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
		{"its own variable", "echo $NODE_EXTRA_CA_CERTS; NODE_EXTRA_CA_CERTS=/mine sh -c 'echo $NODE_EXTRA_CA_CERTS'", "/usr/local/share/ca-certificates/skerry.crt\n/mine"},
		// A certificate that is not valid upstream is not made valid on the way.
		{"an invalid certificate", "curl -sS https://invalid.rules.test/ 2>&1 | grep -c -i 'certificate'", "1"},
	} {
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
