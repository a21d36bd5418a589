package ca

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestOpenTwiceIsTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	all := make([]*Authority, 8)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			a, err := Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = a
		})
	}
	wg.Wait()
	for _, a := range all {
		if a == nil || !bytes.Equal(a.CertificatePEM(), all[0].CertificatePEM()) {
			t.Fatal("two authorities for one file")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if bytes.Contains(all[0].CertificatePEM(), []byte("PRIVATE")) {
		t.Error("the key is in what sandboxes get")
	}
}

func TestCertificateVerifies(t *testing.T) {
	a, err := Open(filepath.Join(t.TempDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CertificatePEM())
	long := "a123456789a123456789a123456789a123456789.a123456789a123456789a123456789.example.com"
	for _, name := range []string{"api.example.com", long} {
		c, err := a.Certificate(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Error(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: "other.example.com", Roots: roots}); err == nil {
			t.Error("good for another name")
		}
		if left := time.Until(c.Leaf.NotAfter); left < leafValidity-time.Hour || left > leafValidity {
			t.Errorf("good for %v", left)
		}
		if again, _ := a.Certificate(name); again != c {
			t.Error("not cached")
		}
	}
	for i := range maxCached + 10 {
		a.leaves[string(rune(i+0x4e00))] = nil
	}
	a.Certificate("one.more.example.com")
	if len(a.leaves) > maxCached {
		t.Errorf("%d are cached", len(a.leaves))
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"readable": 0o644, "broken": 0o600} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("no PEM"), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	a, err := Open(filepath.Join(b.TempDir(), "ca.pem"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.sign("api.example.com"); err != nil {
			b.Fatal(err)
		}
	}
}
