package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// testAuthority makes a certificate authority and its key, in PEM.
func testAuthority(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestSandboxCAFile(t *testing.T) {
	one, key := testAuthority(t, "one")
	two, _ := testAuthority(t, "two")
	many := ""
	for i := range 65 {
		c, _ := testAuthority(t, fmt.Sprint(i))
		many += c
	}
	for name, c := range map[string]struct {
		file string
		want int
		err  string
	}{
		"two and one again": {"a comment\n" + one + "secret text\n" + two + one, 2, ""},
		"a private key":     {one + key, 0, "only certificates"},
		"a broken key":      {one + "-----BEGIN RSA PRIVATE KEY-----\n", 0, "private key"},
		"nothing":           {"", 0, "no certificate"},
		"no certificate":    {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0, "its certificate 1"},
		"too many":          {many, 0, "65 certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			o := insideOptions{ca: filepath.Join(writeTree(t, map[string]string{"ca.pem": c.file}), "ca.pem")}
			list, _, err := o.load(slog.New(slog.NewTextHandler(io.Discard, nil)))
			if len(list) != c.want || (err == nil) != (c.err == "") {
				t.Fatalf("%d authorities, %v", len(list), err)
			}
			if err != nil && (!strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "--sandbox-ca")) {
				t.Errorf("the error is %q", err)
			}
			for _, a := range list {
				if strings.Contains(a.PEM, "secret") || len(a.Hash) != 8 || !strings.HasSuffix(a.PEM, "-----END CERTIFICATE-----\n") {
					t.Errorf("authority %+v", a)
				}
			}
		})
	}
	o := insideOptions{ca: "/nowhere"}
	if _, _, err := o.load(slog.Default()); err == nil || !strings.Contains(err.Error(), "--sandbox-ca") {
		t.Errorf("a file that is missing: %v", err)
	}
}

func TestMachineAuthorities(t *testing.T) {
	mozilla, _ := testAuthority(t, "mozilla")
	proxy, _ := testAuthority(t, "proxy")
	local, _ := testAuthority(t, "local")
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"Debian, added as it should be": {map[string]string{
			"usr/share/ca-certificates/mozilla/m.crt": mozilla, "usr/local/share/ca-certificates/company/l.crt": local,
			"etc/ssl/certs/ca-certificates.crt": mozilla + local,
		}, []string{local}},
		"Debian, in the bundle alone": {map[string]string{
			"usr/share/ca-certificates/mozilla/m.crt": mozilla, "etc/ssl/certs/ca-certificates.crt": mozilla + proxy,
		}, []string{proxy}},
		"without a list to compare with": {map[string]string{
			"etc/ssl/certs/ca-certificates.crt": mozilla + proxy, "etc/pki/ca-trust/source/anchors/l.pem": local,
		}, []string{local}},
		"nothing added": {map[string]string{
			"usr/share/ca-certificates/mozilla/m.crt": mozilla, "etc/ssl/certs/ca-certificates.crt": mozilla,
		}, nil},
		"nothing at all": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := machineAuthorities(writeTree(t, c.files))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range list {
				got = append(got, a.PEM)
			}
			if strings.Join(got, "") != strings.Join(c.want, "") {
				t.Errorf("%d authorities, want %d", len(got), len(c.want))
			}
		})
	}
}

func TestParseEnvironment(t *testing.T) {
	env, err := parseEnvironment([]byte("# proxies\n\nHTTPS_PROXY=http://user:pw@proxy:3128\r\nEMPTY=\nEQUALS=a=b\nnpm_config_registry=https://npm.example\n"))
	want := map[string]string{
		"HTTPS_PROXY": "http://user:pw@proxy:3128", "EMPTY": "", "EQUALS": "a=b", "npm_config_registry": "https://npm.example",
	}
	if err != nil || !maps.Equal(env, want) {
		t.Errorf("%v, %v", env, err)
	}
	for what, most := range map[string]func(more int) string{
		"variables": func(more int) string {
			var b strings.Builder
			for i := range skerry.MaxEnv + more {
				fmt.Fprintf(&b, "A%d=\n", i)
			}
			return b.String()
		},
		"bytes": func(more int) string { return "A=" + strings.Repeat("x", skerry.MaxEnvBytes-1+more) },
	} {
		if _, err := parseEnvironment([]byte(most(0))); err != nil {
			t.Errorf("as many %s as there may be: %v", what, err)
		}
		if _, err := parseEnvironment([]byte(most(1))); err == nil {
			t.Errorf("one more than the %s that there may be was accepted", what)
		}
	}
	for file, line := range map[string]string{"A=1\nsecret": "line 2", "2B=secret": "line 1", "A=sec\x00ret": "line 1", "=secret": "line 1"} {
		_, err := parseEnvironment([]byte(file))
		if err == nil || !strings.Contains(err.Error(), line) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", file, err)
		}
	}
}
