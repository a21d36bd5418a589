package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "copy SOURCE DESTINATION", Aliases: []string{"cp"}, Short: "Copy files into, out of and between sandboxes",
		Long: `Copy a file, or a directory with everything in it, into or out of a sandbox, or
from one sandbox to another. A path in a sandbox is written NAME:PATH; a relative
PATH starts at /vercel/sandbox, and an empty one is that directory. Write a local
path with a colon with ./ or a drive letter before it.

As with cp, if DESTINATION is a directory or ends with a slash, the copy is put into
it; otherwise the copy gets that name. Hard links and pipes (FIFOs) are kept on the
way into a sandbox, also from another one. Files that cannot be copied are left out
and listed with the reason: sockets and devices, and on the way to this machine also
pipes, and symbolic links that lead out of the directory.`,
		Example: `  sandbox cp ./app demo:app
  sandbox cp demo:/var/log/app.log .
  sandbox cp demo:dist ./dist
  sandbox cp one:data.json two:data.json`,
		Args: usage.Args(cobra.ExactArgs(2)),
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
				fmt.Fprintf(a.Err, "%s left out: %s\n", a.err.yellow("Warning:"), clean(name))
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
		return place{}, usage.Errorf("a path is empty")
	}
	if filepath.IsAbs(s) || filepath.VolumeName(s) != "" || s[0] == '.' {
		return place{path: s}, nil
	}
	name, path, remote := strings.Cut(s, ":")
	if !remote || strings.ContainsAny(name, `/\`) {
		return place{path: s}, nil
	}
	if name == "" {
		return place{}, usage.Errorf("%q is not of the form NAME:PATH; write a local path with a colon as ./%s", s, s)
	}
	return place{name, path}, nil
}

func (a *app) copy(ctx context.Context, src, dst place) (client.Copied, error) {
	switch {
	case src.sandbox == "" && dst.sandbox == "":
		return client.Copied{}, usage.Errorf("neither path is in a sandbox; write one as NAME:PATH")
	case src.sandbox == "":
		if _, err := os.Stat(src.path); err != nil { // before a session is started for it
			if errors.Is(err, os.ErrNotExist) {
				err = fmt.Errorf("there is no file %s on this machine", clean(src.path))
			}
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
	return a.copyBetween(ctx, src, dst)
}

func (a *app) copyFrom(ctx context.Context, src place, local string) (client.Copied, error) {
	sb, err := a.sandbox(ctx, src.sandbox, true)
	if err != nil {
		return client.Copied{}, err
	}
	done, err := sb.CopyFrom(ctx, src.path, local)
	return done, src.explain(err)
}

// explain says what is not there, if that is the error.
func (p place) explain(err error) error {
	if client.IsNotFound(err) {
		return fmt.Errorf("there is no file %s in the sandbox %s", clean(p.path), clean(p.sandbox))
	}
	return err
}

func (a *app) copyBetween(ctx context.Context, src, dst place) (client.Copied, error) {
	from, err := a.sandbox(ctx, src.sandbox, true)
	if err != nil {
		return client.Copied{}, err
	}
	to, err := a.sandbox(ctx, dst.sandbox, true)
	if err != nil {
		return client.Copied{}, err
	}
	done, err := from.CopyBetween(ctx, src.path, to, dst.path)
	return done, src.explain(err)
}
