package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
)

// explain says in a sentence what went wrong and, if there is something to
// do, what.
func (a *app) explain(err error) (message, hint string) { return a.explainTo(nil, err) }

// explainTo does so in the terms of cmd, the command that was called.
func (a *app) explainTo(cmd *cobra.Command, err error) (message, hint string) {
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
		return a.explainRefusal(cmd, e)
	}
	if u, ok := errors.AsType[*url.Error](err); ok { // its text repeats the whole URL
		return "the connection to " + a.serverURL() + " failed: " + u.Err.Error(), ""
	}
	return err.Error(), ""
}

func (a *app) explainRefusal(cmd *cobra.Command, e *client.Error) (message, hint string) {
	message = clean(e.Message)
	if e.Field != "" {
		message = clean(spelled(cmd, e.Field)) + ": " + message
	}
	if e.Status >= 500 && !client.IsNotImplemented(e) && e.RequestID != "" {
		message += " (request " + clean(e.RequestID) + ")"
	}
	switch {
	case e.Status == http.StatusForbidden && e.Field != "":
		hint = "leave --scope and --project out to use those of the token, or log in with another token."
	case client.IsUnauthorized(e):
		if opts, err := a.options(); err == nil && opts.Token == "" {
			message = "you are not logged in: there is no access token"
		}
		hint = "log in with 'sandbox login', or give a token with --token or SKERRY_TOKEN."
	case client.IsSnapshotNotFound(e) && e.Field == "":
		hint = "'sandbox snapshots list' shows those that there are; 'sandbox config current-snapshot' gives a sandbox another one."
	case (client.IsNotFound(e) || client.IsSnapshotNotFound(e)) && aboutSnapshots(cmd, e):
		hint = "'sandbox snapshots list' shows those that there are."
	case client.IsNotFound(e) && strings.HasPrefix(message, aboutDrive):
		hint = "'sandbox drives list' shows those that there are."
	case client.IsConflict(e) && strings.HasPrefix(message, "drive "):
		hint = "stop that sandbox, or mount a snapshot of the drive: --mount drive:/path:snapshot."
	case client.IsConflict(e) && cmd.HasParent() && cmd.Parent().Name() == "drives":
		// The name is taken, which the message says.
	case client.IsNotFound(e) && e.Field == "":
		hint = "'sandbox list --all' shows the sandboxes of this project."
	case client.IsConflict(e):
		hint = "choose another --name, or use the existing sandbox with 'sandbox exec'."
	}
	return message, hint
}

// aboutDrive begins what the server says of a drive that is not there.
const aboutDrive = "there is no drive"

// aboutSnapshots reports whether what was not found is a snapshot.
func aboutSnapshots(cmd *cobra.Command, e *client.Error) bool {
	if e.Field == "currentSnapshotId" || e.Field == "source.snapshotId" {
		return true
	}
	return cmd != nil && cmd.HasParent() && cmd.Parent().Name() == "snapshots" && cmd.Name() != "tree"
}

// flagOf names the flag, or the argument of config, for a field of a request.
// A field that is not here goes by its own name.
var flagOf = map[string]string{
	"resources.vcpus": "vcpus", "resources.memory": "memory",
	"source.type": "snapshot", "source.snapshotId": "snapshot",
	"ports": "publish-port", "privatePorts": "private-port", "mounts": "mount", "env": "env", "tags": "tag",
	"networkPolicy": "network-policy", "networkId": "network-id",
	"failoverRegions": "failover-regions", "cwd": "workdir",
	"snapshotExpiration": "snapshot-expiration", "keepLastSnapshots": "keep-last-snapshots",
	"keepLastSnapshots.count": "keep-last-snapshots", "keepLastSnapshots.expiration": "keep-last-snapshots-for",
	"currentSnapshotId": "current-snapshot", "snapshotId": "snapshot",
	"teamId": "scope", "slug": "scope", "projectId": "project", "project": "project",
}

// spelled returns what the user of cmd knows a field of a request by.
func spelled(cmd *cobra.Command, field string) string {
	name := field
	if flag, ok := flagOf[field]; ok {
		name = flag
	}
	if cmd != nil && cmd.Flag(name) != nil {
		return "--" + name
	}
	return name
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
