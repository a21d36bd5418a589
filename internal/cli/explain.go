package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"

	"github.com/skerry-dev/skerry/client"
)

// explain says in a sentence what went wrong and, if there is something to
// do, what.
func (a *app) explain(err error) (message, hint string) {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "no server answers at " + a.serverURL() + ".",
			"is sandboxd running? Start it with 'sandboxd serve', or name another server with --url or SKERRY_URL."
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("the host %q was not found.", dns.Name), "check --url, SKERRY_URL or the configuration file."
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the certificate of " + a.serverURL() + " is not trusted: " + innermost(err).Error(), ""
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the server at " + a.serverURL() + " did not answer in time.", ""
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return a.explainRefusal(e)
	}
	if u, ok := errors.AsType[*url.Error](err); ok { // its text repeats the whole URL
		return "the connection to " + a.serverURL() + " failed: " + u.Err.Error(), ""
	}
	return err.Error(), ""
}

func (a *app) explainRefusal(e *client.Error) (message, hint string) {
	message = clean(e.Message)
	if e.Field != "" {
		message = clean(e.Field) + ": " + message
	}
	if e.Status >= 500 && !client.IsNotImplemented(e) && e.RequestID != "" {
		message += " (request " + clean(e.RequestID) + ")"
	}
	switch {
	case client.IsUnauthorized(e):
		hint = "log in with 'sandbox login', or give a token with --token or SKERRY_TOKEN."
	case client.IsNotFound(e):
		hint = "'sandbox list --all' shows the sandboxes of this project."
	case client.IsConflict(e):
		hint = "choose another --name, or use the existing sandbox with 'sandbox exec'."
	}
	return message, hint
}

func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
