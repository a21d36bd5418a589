// Command issuer is the server's signer by itself: it makes one token and serves
// the keys, so that the public SDK's proxy library can be given both. It ends
// with its standard input.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry/internal/egress/oidc"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "issuer:", err)
		os.Exit(1)
	}
}

func run(issuer, forwardURL string) error {
	dir, err := os.MkdirTemp("", "issuer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	signer, err := oidc.Open(filepath.Join(dir, "key"), issuer)
	if err != nil {
		return err
	}
	to, err := url.Parse(forwardURL)
	if err != nil {
		return err
	}
	token, err := signer.Token(oidc.Claims{TeamID: "team_1", ProjectID: "prj_1", SandboxID: "sbx_1", SandboxName: "demo"}, oidc.Audience(to))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	go http.Serve(ln, signer.Handler())
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": "http://" + ln.Addr().String(), "token": token}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
