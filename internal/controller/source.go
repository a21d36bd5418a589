package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry"
)

// A source is fetched inside the sandbox, by its own git or curl, over its own
// network. Fetching it on the host would let a client reach what the host
// reaches, and would unpack a stranger's archive as root.

const gitScript = `set -e
command -v git >/dev/null || { echo "the image has no git" >&2; exit 1; }
git init -q .
git remote add origin "$SKERRY_URL"
rev=$SKERRY_REVISION
if [ -z "$rev" ]; then
	rev=$(git ls-remote --symref origin HEAD | sed -n 's#^ref: refs/heads/\(.*\)	HEAD$#\1#p')
fi
if [ -z "$SKERRY_DEPTH" ]; then
	git fetch -q --tags origin '+refs/heads/*:refs/remotes/origin/*'
	git checkout -q "${rev:-FETCH_HEAD}" 2>/dev/null || { git fetch -q origin "${rev:-HEAD}"; git checkout -q FETCH_HEAD; }
elif [ -n "$rev" ] && git fetch -q --depth="$SKERRY_DEPTH" origin "+refs/heads/$rev:refs/remotes/origin/$rev" 2>/dev/null; then
	git checkout -q -B "$rev" --track "origin/$rev"
else
	git fetch -q --depth="$SKERRY_DEPTH" origin "${rev:-HEAD}"
	git checkout -q FETCH_HEAD
fi`

const tarballScript = `set -e
command -v curl >/dev/null || { echo "the image has no curl" >&2; exit 1; }
file=$(mktemp)
trap 'rm -f "$file"' EXIT
curl -fsSL --proto '=http,https' --max-redirs 5 -o "$file" --url "$SKERRY_URL"
tar -xf "$file" --no-same-owner`

// maxDepth is more commits than any repository has.
const maxDepth = 1 << 30

// maxURL bounds a source's URL, in bytes.
const maxURL = 4096

// validateSource checks a source and moves credentials out of its URL.
func validateSource(s *skerry.Source) error {
	if s == nil {
		return nil
	}
	if s.Type == "snapshot" {
		if !skerry.ValidID(skerry.PrefixSnapshot, s.SnapshotID) {
			return skerry.Invalid("source.snapshotId", "%.64q is not the id of a snapshot", s.SnapshotID)
		}
		return nil
	}
	if len(s.URL) > maxURL {
		return skerry.Invalid("source.url", "is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		strings.ContainsFunc(s.URL, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		// The URL is not repeated: it may hold a password.
		return skerry.Invalid("source.url", "must be an http or https URL")
	}
	if u.User != nil {
		if password, ok := u.User.Password(); ok && s.Password == "" {
			s.Username, s.Password = u.User.Username(), password
		}
		u.User = nil
		s.URL = u.String()
	}
	if strings.ContainsAny(s.Username+s.Password, "\x00\r\n") {
		return skerry.Invalid("source.password", "or source.username holds a line break or NUL byte")
	}
	if s.Depth < 0 || s.Depth > maxDepth {
		return skerry.Invalid("source.depth", "must be a positive number")
	}
	if strings.HasPrefix(s.Revision, "-") || strings.HasPrefix(s.Revision, "+") || len(s.Revision) > maxTag ||
		strings.ContainsFunc(s.Revision, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("~^:?*[\\", r) }) {
		return skerry.Invalid("source.revision", "is not the name of a branch, a tag or a commit")
	}
	switch s.Type {
	case "git":
		return nil
	case "tarball":
		if s.Depth != 0 || s.Revision != "" || s.Password != "" {
			return skerry.Invalid("source", "of type tarball takes a url and nothing else")
		}
		return nil
	}
	return skerry.Invalid("source.type", "is %.32q, want git or tarball", s.Type)
}

// sourceCommand is the command that fetches a source. What varies is in its
// environment, where no shell or git takes it for something else and no other
// user of the sandbox sees it; no other code runs yet.
func sourceCommand(s *skerry.Source) skerry.CommandParams {
	env := map[string]string{"SKERRY_URL": s.URL}
	script := tarballScript
	if s.Type == "git" {
		script = gitScript
		env["SKERRY_REVISION"] = s.Revision
		if s.Depth > 0 {
			env["SKERRY_DEPTH"] = strconv.Itoa(s.Depth)
		} else {
			env["SKERRY_DEPTH"] = ""
		}
		env["GIT_TERMINAL_PROMPT"] = "0"
		env["GIT_CONFIG_NOSYSTEM"] = "1"
		if s.Password != "" {
			// A helper that answers for this host alone, so that a redirection
			// elsewhere does not carry the password along. It is configured by
			// the environment, so nothing of it is left in the repository.
			env["GIT_CONFIG_COUNT"] = "1"
			env["GIT_CONFIG_KEY_0"] = "credential." + origin(s.URL) + ".helper"
			env["GIT_CONFIG_VALUE_0"] = `!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$SKERRY_USERNAME" "$SKERRY_PASSWORD"; }; f`
			env["SKERRY_USERNAME"] = s.Username
			if s.Username == "" {
				// What hosting services take with an access token.
				env["SKERRY_USERNAME"] = "x-access-token"
			}
			env["SKERRY_PASSWORD"] = s.Password
		}
	}
	return skerry.CommandParams{Name: "sh", Args: []string{"-c", script}, Env: env}
}

func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw // it was parsed before
	}
	return u.Scheme + "://" + u.Host
}

// sourceErrorBytes is how much of what git or curl said goes into an error.
const sourceErrorBytes = 1024

// fetchSource fills the working directory of a fresh session.
func (c *Controller) fetchSource(ctx context.Context, sessionID string, s *skerry.Source) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SourceTimeout)
	defer cancel()
	p := sourceCommand(s)
	p.Timeout = skerry.Duration(c.cfg.SourceTimeout)
	id := skerry.NewID(skerry.PrefixCommand)
	out, err := c.cfg.Node.Exec(ctx, sessionID, CommandSpec{ID: id, CommandParams: p}, true)
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	said, err := tail(out, sourceErrorBytes)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	exit, err := c.cfg.Node.Wait(ctx, sessionID, id)
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	if err := c.cfg.Node.Drop(ctx, sessionID, id); err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	if exit.Code != 0 {
		if s.Password != "" {
			said = strings.ReplaceAll(said, s.Password, "***")
		}
		return &skerry.Error{Code: skerry.CodeSourceFailed, Field: "source",
			Message: fmt.Sprintf("fetching %s failed (exit code %d): %s", s.URL, exit.Code, strings.TrimSpace(said))}
	}
	return nil
}

// tail reads all of a command's output and returns the end of it.
func tail(out skerry.OutputReader, limit int) (string, error) {
	var kept []byte
	for {
		_, b, err := out.Next()
		if errors.Is(err, io.EOF) {
			return strings.ToValidUTF8(string(kept), "�"), nil
		}
		if err != nil {
			return "", err
		}
		kept = append(kept, b...)
		if len(kept) > limit {
			kept = kept[len(kept)-limit:]
		}
	}
}
