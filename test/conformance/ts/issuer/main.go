// Command issuer is the server's signer by itself: it makes one token and serves
// the keys, so that the public SDK's proxy library can be given both. It ends
// with its standard input.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/skerry-dev/skerry/internal/issuer"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "issuer:", err)
		os.Exit(1)
	}
}

func run(issuerURL, forwardURL string) error {
	dir, err := os.MkdirTemp("", "issuer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	signer, err := issuer.Open(context.Background(), issuer.Folder(dir), issuerURL, slog.Default())
	if err != nil {
		return err
	}
	to, err := url.Parse(forwardURL)
	if err != nil {
		return err
	}
	token, err := signer.Forwarded(context.Background(), issuer.Sandbox{TeamID: "team_1", ProjectID: "prj_1", SessionID: "sbx_1", SandboxName: "demo"}, issuer.ForwardedAudience(to))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	handler, err := issuer.Handler(issuerURL, slog.Default(), signer.PublicKeys)
	if err != nil {
		return err
	}
	go http.Serve(ln, handler)
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": "http://" + ln.Addr().String(), "token": token}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
