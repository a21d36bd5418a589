package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
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
func (c *sessions) fetchSource(ctx context.Context, sessionID string, s *skerry.Source) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SourceTimeout)
	defer cancel()
	err := c.runSource(ctx, sessionID, s)
	// The command ends when its time is up, as ctx does, and either is seen first.
	if err != nil && time.Since(began) >= c.cfg.SourceTimeout {
		return &skerry.Error{Code: skerry.CodeSourceFailed, Field: "source",
			Message: fmt.Sprintf("fetching %s took longer than %s", s.URL, c.cfg.SourceTimeout), Err: err}
	}
	return err
}

func (c *sessions) runSource(ctx context.Context, sessionID string, s *skerry.Source) error {
	p := sourceCommand(s)
	p.Timeout = skerry.Duration(c.cfg.SourceTimeout)
	id := skerry.NewID(skerry.PrefixCommand)
	ended := make(chan *nodeapi.Exit, 1)
	c.expected.command(sessionID, id, func(exit *nodeapi.Exit) { ended <- exit })
	defer c.expected.forgetCommand(id)
	out, err := c.node.Exec(ctx, sessionID, nodeapi.CommandSpec{ID: id, CommandParams: p}, true)
	if skerry.CodeOf(err) == skerry.CodeExecutableNotFound {
		return &skerry.Error{Code: skerry.CodeSourceFailed, Field: "source",
			Message: fmt.Sprintf("the image lacks a program that is needed to fetch %s", s.URL), Err: err}
	}
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	c.expected.confirmCommand(id)
	said, err := tail(out, sourceErrorBytes)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	var exit *nodeapi.Exit
	select {
	case exit = <-ended:
	case <-ctx.Done():
		return fmt.Errorf("fetch source: %w", ctx.Err())
	}
	if exit == nil {
		return skerry.Errorf(skerry.CodeSandboxStopped, "the session ended while %s was fetched", s.URL)
	}
	if err := c.node.Drop(ctx, sessionID, id); err != nil {
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
		piece, err := out.Next()
		if errors.Is(err, io.EOF) {
			return strings.ToValidUTF8(string(kept), "�"), nil
		}
		if err != nil {
			return "", err
		}
		kept = append(kept, piece.Data...)
		if len(kept) > limit {
			kept = kept[len(kept)-limit:]
		}
	}
}
