package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
)

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "copy SOURCE DESTINATION", Aliases: []string{"cp"}, Short: "Copy files into, out of and between sandboxes",
		Long: `Copy a file, or a directory with everything in it, into or out of a sandbox, or
from one sandbox to another. A path in a sandbox is written NAME:PATH; one that is
not absolute starts at /vercel/sandbox. A local path with a colon is written with
./ or a drive letter before it.

As with cp, a DESTINATION that is a directory or ends with a slash gets the copy
put into it, else the copy gets that name. Of a directory that comes out of a
sandbox, device files and links that lead out of it are left out and named.`,
		Example: `  sandbox cp ./app demo:app
  sandbox cp demo:/var/log/app.log .
  sandbox cp demo:dist ./dist
  sandbox cp one:data.json two:data.json`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			src, err := parsePlace(given[0])
			if err != nil {
				return err
			}
			dst, err := parsePlace(given[1])
			if err != nil {
				return err
			}
			stop := a.spin("Copying…", false)
			done, err := a.copy(cmd.Context(), src, dst)
			stop()
			for _, name := range done.Skipped {
				fmt.Fprintf(a.Err, "%s left out, for safety: %s\n", a.err.yellow("Warning:"), clean(name))
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Err, "%s Copied %s to %s (%s).\n", a.err.green("✔"), clean(given[0]), clean(dst.prefix()+done.Path), size(done.Bytes))
			return nil
		},
	}
}

// place is a path here, or in a sandbox if that has a name.
type place struct{ sandbox, path string }

func (p place) prefix() string {
	if p.sandbox == "" {
		return ""
	}
	return p.sandbox + ":"
}

// parsePlace tells NAME:PATH from a local path: one that begins with a dot, a
// separator or a Windows drive.
func parsePlace(s string) (place, error) {
	if s == "" {
		return place{}, usagef("a path is empty")
	}
	if filepath.IsAbs(s) || filepath.VolumeName(s) != "" || s[0] == '.' {
		return place{path: s}, nil
	}
	name, path, remote := strings.Cut(s, ":")
	if !remote || strings.ContainsAny(name, `/\`) {
		return place{path: s}, nil
	}
	if name == "" || path == "" {
		return place{}, usagef("%q is not of the form NAME:PATH; write a local path with a colon as ./%s", s, s)
	}
	return place{name, path}, nil
}

func (a *app) copy(ctx context.Context, src, dst place) (client.Copied, error) {
	switch {
	case src.sandbox == "" && dst.sandbox == "":
		return client.Copied{}, usagef("neither path is in a sandbox; write one as NAME:PATH")
	case src.sandbox == "":
		if _, err := os.Stat(src.path); err != nil { // before a session is started for it
			return client.Copied{}, err
		}
		sb, err := a.sandbox(ctx, dst.sandbox, true)
		if err != nil {
			return client.Copied{}, err
		}
		return sb.CopyTo(ctx, src.path, dst.path)
	case dst.sandbox == "":
		return a.copyFrom(ctx, src, dst.path)
	}
	return a.copyAcross(ctx, src, dst)
}

func (a *app) copyFrom(ctx context.Context, src place, local string) (client.Copied, error) {
	sb, err := a.sandbox(ctx, src.sandbox, true)
	if err != nil {
		return client.Copied{}, err
	}
	done, err := sb.CopyFrom(ctx, src.path, local)
	if client.IsNotFound(err) {
		err = fmt.Errorf("there is no file %s in the sandbox %s", clean(src.path), clean(src.sandbox))
	}
	return done, err
}

// copyAcross goes through a directory of this machine: what one sandbox hands
// out is checked before another takes it in.
func (a *app) copyAcross(ctx context.Context, src, dst place) (done client.Copied, err error) {
	dir, err := os.MkdirTemp("", "sandbox-cp-")
	if err != nil {
		return done, err
	}
	defer os.RemoveAll(dir)
	from, err := a.copyFrom(ctx, src, dir)
	if err != nil {
		return from, err
	}
	sb, err := a.sandbox(ctx, dst.sandbox, true)
	if err != nil {
		return from, err
	}
	done, err = sb.CopyTo(ctx, from.Path, dst.path)
	done.Skipped = from.Skipped
	return done, err
}
