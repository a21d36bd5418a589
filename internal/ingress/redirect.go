package ingress

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// newPlainServer returns what sends requests without TLS to the URL with it.
func (i *Ingress) newPlainServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(i.redirect),
		ReadHeaderTimeout: i.cfg.readHeaderTimeout,
		ReadTimeout:       i.cfg.readHeaderTimeout,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return i.ctx },
		ErrorLog:          slog.NewLogLogger(i.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// redirect sends a request to the same place by HTTPS. Only names below the
// domain are led anywhere, and only to themselves.
func (i *Ingress) redirect(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	name, ok := subdomainOf(r.Host, i.cfg.Domain)
	target := r.URL.RequestURI()
	if !ok || !isTarget(target, r.Method) || target == "*" {
		i.refuse(w, r, nil, noRoute)
		return
	}
	w.Header().Set("Location", "https://"+name+"."+i.cfg.Domain+i.urlPort+target)
	w.WriteHeader(http.StatusPermanentRedirect)
}
