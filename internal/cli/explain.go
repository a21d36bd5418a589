package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// explain says in a sentence what went wrong and, if there is something to
// do, what.
func (a *app) explain(err error) (message, hint string) { return a.explainTo(nil, err) }

// explainTo does so in the terms of cmd, the command that was called.
func (a *app) explainTo(cmd *cobra.Command, err error) (message, hint string) {
	if lost, ok := errors.AsType[*lostCommand](err); ok {
		why, _ := a.explainTo(cmd, lost.Err)
		return "the connection to command " + clean(lost.Command.ID) + " was lost: " + why, lost.hint()
	}
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
		if errors.Is(u.Err, io.EOF) {
			return "the server at " + a.serverURL() + " ended the connection before it answered; it may have done what it was asked all the same.", ""
		}
		return "the connection to " + a.serverURL() + " failed: " + u.Err.Error(), ""
	}
	return err.Error(), ""
}

func (a *app) explainRefusal(cmd *cobra.Command, e *client.Error) (message, hint string) {
	message = readable(e.Field, clean(e.Message))
	taken := client.IsConflict(e) && e.Field == "name"
	if e.Field != "" && !(taken && cmd != nil && cmd.Flag("name") == nil) { // or the name is an argument
		name := spelled(cmd, e.Field)
		if e.Field == "resources.memory" && strings.HasSuffix(name, "vcpus") {
			message = "their memory " + message
		}
		message = clean(name) + ": " + message
	}
	if e.Status >= 500 && !client.IsNotImplemented(e) && e.RequestID != "" {
		message += " (request " + clean(e.RequestID) + ")"
	}
	switch {
	case e.Code == skerry.CodeSandboxUnsavable && cmd != nil && cmd.Name() == "stop":
		hint = "it keeps running; 'sandbox stop --force' stops it without saving its files."
	case e.Status == http.StatusForbidden && strings.HasPrefix(e.Field, "resources."):
		hint = "ask who runs the server for a larger quota, or make the sandbox smaller."
	case e.Status == http.StatusForbidden && e.Field != "":
		hint = "leave --scope and --project out to use those of the token, or log in with another token."
	case e.Status == http.StatusForbidden:
		hint = "an owner of the team, or who runs the server, can give a token or a member another role."
	case client.IsUnauthorized(e):
		if opts, err := a.options(); err == nil && opts.Token == "" {
			message = "you are not logged in: there is no access token"
		}
		hint = "log in with 'sandbox login', or give a token with --token or SKERRY_TOKEN."
	case client.IsSnapshotNotFound(e) && e.Field == "":
		hint = "'sandbox snapshots list' shows the snapshots; 'sandbox config current-snapshot' gives a sandbox another one."
	case (client.IsNotFound(e) || client.IsSnapshotNotFound(e)) && aboutSnapshots(cmd, e):
		hint = "'sandbox snapshots list' shows the snapshots."
	case client.IsNotFound(e) && (e.Resource == skerry.ResourceDrive || e.Resource == "" && under(cmd, "drives")):
		hint = "'sandbox drives list' shows the drives."
	case e.Field == "mounts" && e.Resource == skerry.ResourceDrive:
		hint = "'sandbox drives create' creates it; "
		if cmd != nil && cmd.Flag("mount") == nil {
			hint += "'sandbox config mounts NAME --mount DRIVE:/PATH', or --none, changes what the sandbox mounts."
		} else {
			hint += "'sandbox drives list' shows the drives that there are."
		}
	case client.IsConflict(e) && e.Resource == skerry.ResourceDrive && under(cmd, "drives"):
		hint = "stop that sandbox first: 'sandbox stop NAME'."
	case client.IsConflict(e) && e.Resource == skerry.ResourceDrive:
		hint = "stop that sandbox, or mount a snapshot of the drive: --mount drive:/path:snapshot."
	case client.IsNotFound(e) && e.Field == "" && (e.Resource == "" || e.Resource == skerry.ResourceSandbox || e.Resource == skerry.ResourceSession):
		hint = "'sandbox list --all' shows the sandboxes of this project."
	case taken && !under(cmd, "drives"): // there, the message says it all
		hint = "choose another --name, or use the existing sandbox with 'sandbox exec'."
	}
	return message, hint
}

// under reports whether cmd is a subcommand of the command with that name.
func under(cmd *cobra.Command, parent string) bool {
	return cmd != nil && cmd.HasParent() && cmd.Parent().Name() == parent
}

// aboutSnapshots reports whether what was not found is a snapshot.
func aboutSnapshots(cmd *cobra.Command, e *client.Error) bool {
	if e.Resource != "" {
		return e.Resource == skerry.ResourceSnapshot
	}
	if e.Field == "currentSnapshotId" || e.Field == "source.snapshotId" {
		return true
	}
	return under(cmd, "snapshots") && cmd.Name() != "tree"
}

// flagOf names the flag, or the argument of config, for a field of a request.
// A field that is not here goes by its own name.
var flagOf = map[string]string{
	"resources.vcpus": "vcpus", "resources.memory": "memory",
	"source.type": "snapshot", "source.snapshotId": "snapshot",
	"ports": "publish-port", "privatePorts": "private-port", "mounts": "mount", "env": "env", "tags": "tag",
	"maxSizeBytes": "max-size", "networkPolicy": "network-policy", "networkId": "network-id",
	"failoverRegions": "failover-regions", "cwd": "workdir",
	"snapshotExpiration": "snapshot-expiration", "keepLastSnapshots": "keep-last-snapshots",
	"networkPolicy.allow": "allowed-domain", "networkPolicy.subnets.allow": "allowed-cidr", "networkPolicy.subnets.deny": "denied-cidr",
	"keepLastSnapshots.count": "keep-last-snapshots", "keepLastSnapshots.expiration": "keep-last-snapshots-for",
	"currentSnapshotId": "current-snapshot", "snapshotId": "snapshot",
	"teamId": "scope", "slug": "scope", "projectId": "project", "project": "project",
}

// spelled returns what the user of cmd knows a field of a request by.
func spelled(cmd *cobra.Command, field string) string {
	name := field
	list, _, _ := strings.Cut(field, "[") // an entry of it goes by the flag that gives one
	for _, of := range []string{"networkPolicy.allow", "mounts"} {
		if strings.HasPrefix(field, of+".") { // what follows is an entry's key, in which there may be anything
			list = of
		}
	}
	if flag, ok := flagOf[list]; ok {
		name = flag
	}
	switch {
	case cmd == nil:
	case name == "publish-port" && !cmd.Flags().Changed(name) && cmd.Flags().Changed("private-port"):
		name = "private-port"
	case field == "resources.memory" && (cmd.Flag("vcpus") != nil || cmd.Name() == "vcpus"):
		name = "vcpus"
	}
	if cmd != nil && cmd.Flag(name) != nil {
		return "--" + name
	}
	return name
}

// units write the numbers of a field's bounds in the units that its flag takes.
// The server gives them in those of the API.
var units = map[string]func(int64) string{
	"maxSizeBytes": exactSize,
	"timeout":      milliseconds, "expiration": milliseconds, "snapshotExpiration": milliseconds, "keepLastSnapshots.expiration": milliseconds,
}

func milliseconds(n int64) string { return days(time.Duration(n) * time.Millisecond) }

var (
	// repeated is a number of milliseconds after the same in words.
	repeated = regexp.MustCompile(` \(\d+ ms\)`)
	quantity = regexp.MustCompile(`\b(\d+)\b( ms| bytes)?`)
)

// readable writes what the server says of a field for a person.
func readable(field, message string) string {
	unit := units[field]
	if unit == nil {
		return message
	}
	return quantity.ReplaceAllStringFunc(repeated.ReplaceAllString(message, ""), func(s string) string {
		digits, _, _ := strings.Cut(s, " ")
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n > 0 {
			return unit(n)
		}
		return digits
	})
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
