package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/image"
	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/usage"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build, pull, import, list and remove images",
		Long: "Build, pull, import, list and remove images. A running server sees a new\n" +
			"image at once; images are shared by all sandboxes and read-only.",
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageBuild(), newImagePull(), newImageImport(), newImageList(), newImageRemove(), newImageGC(), newImagePath())
	return cmd
}

func openImages(cmd *cobra.Command) (*image.Store, error) {
	mirror, err := cmd.Flags().GetString("mirror")
	if err != nil {
		mirror = "" // only build has the flag
	}
	return image.Open(image.Options{Dir: imagesDir(cmd), Mirror: mirror})
}

// withProgress runs f with a display of how far it is and prints the image.
func withProgress(cmd *cobra.Command, title string, f func(*image.Store, image.Progress) (image.Meta, error)) error {
	images, err := openImages(cmd)
	if err != nil {
		return err
	}
	show, done := progress(title)
	meta, err := f(images, show)
	done()
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d MiB\n", title, shortDigest(meta.Digest), meta.Size>>20)
	return nil
}

// shortDigest is enough of a digest to tell images apart.
func shortDigest(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// progress shows how far a long operation is: on a terminal in one line that
// changes, elsewhere a line per stage.
func progress(title string) (image.Progress, func()) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		last := ""
		return func(stage string, _ int) {
			if stage != last {
				fmt.Fprintf(os.Stderr, "%s: %s\n", title, stage)
				last = stage
			}
		}, func() {}
	}
	shown := false
	return func(stage string, percent int) {
			shown = true
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %3d%% %s", title, percent, stage)
		}, func() {
			if shown {
				fmt.Fprint(os.Stderr, "\r\x1b[K")
			}
		}
}

func newImageBuild() *cobra.Command {
	var refresh bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the default image, unless it exists",
		Long: `Build the default image, unless it exists.

With --refresh it is rebuilt from Debian's current packages, with their security updates; do so once a week. New sandboxes start from the new image.
Existing sandboxes and snapshots keep the old one, until they no longer need it and "sandboxd image gc" removes it. The versions of Node.js, npm, pnpm
and uv are fixed in this version of sandboxd.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withProgress(cmd, "default image", func(images *image.Store, p image.Progress) (image.Meta, error) {
				if refresh {
					return images.RefreshDefault(cmd.Context(), p)
				}
				return images.BuildDefault(cmd.Context(), p)
			})
		},
	}
	cmd.Flags().BoolVar(&refresh, "refresh", false, "rebuild it from the current packages")
	cmd.Flags().String("mirror", "", "URL of the Debian archive to build from (default: the archive that this machine uses, or Debian's)")
	return cmd
}

func newImagePull() *cobra.Command {
	var insecure bool
	cmd := &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Fetch an image from a registry",
		Long: "Fetch an image from a registry, if the image policy allows it. The policy is policy.json in the\n" +
			"images' folder, which can require signatures. See the README.",
		Args: usage.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withProgress(cmd, args[0], func(images *image.Store, p image.Progress) (image.Meta, error) {
				return images.Pull(cmd.Context(), args[0], image.PullOptions{Insecure: insecure}, p)
			})
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "use plain HTTP for a registry on this machine")
	return cmd
}

func newImageImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE [REFERENCE]",
		Short: "Import an image from a docker save tarball or an OCI layout",
		Long: "Import an image from a docker save tarball or an OCI image layout (a folder or\n" +
			"a tar of one). REFERENCE is its name; a docker save tarball may contain a name.",
		Args: usage.Args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := ""
			if len(args) == 2 {
				ref = args[1]
			}
			return withProgress(cmd, filepath.Base(args[0]), func(images *image.Store, p image.Progress) (image.Meta, error) {
				return images.Import(cmd.Context(), args[0], ref, p)
			})
		},
	}
}

func newImageGC() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove unused images without a name, and leftovers of builds",
		Args:  usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			names, err := imagesInUse(cmd)
			if err != nil {
				return err
			}
			inUse := map[string]bool{}
			for _, name := range names {
				img, err := images.Resolve(cmd.Context(), name)
				if skerry.CodeOf(err) == skerry.CodeNotFound {
					continue
				}
				if err != nil {
					return err
				}
				inUse[img.Digest] = true
			}
			freed, err := images.GC(cmd.Context(), inUse)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "freed %d MiB\n", freed>>20)
			return nil
		},
	}
}

func newImageList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the images",
		Args:  usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			list, err := images.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "DIGEST\tSIZE\tCREATED\tNAMES")
			for _, l := range list {
				fmt.Fprintf(w, "%s\t%d MiB\t%s\t%v\n", shortDigest(l.Digest), l.Size>>20, day(l.CreatedAt), l.Names)
			}
			return w.Flush()
		},
	}
}

func newImageRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm REFERENCE",
		Short: "Remove the name of an image; gc frees its space",
		Args:  usage.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			return images.Remove(cmd.Context(), args[0])
		},
	}
}

func newImagePath() *cobra.Command {
	return &cobra.Command{
		Use:   "path [REFERENCE]",
		Short: "Print the path of an image's file (default: the default image)",
		Args:  usage.Args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			ref := ""
			if len(args) == 1 {
				ref = args[0]
			}
			img, err := images.Resolve(cmd.Context(), ref)
			if err != nil {
				return err
			}
			path, err := images.Path(img.Digest)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), path)
			return nil
		},
	}
}

// imagesInUse asks the server that runs, or its database if none does.
func imagesInUse(cmd *cobra.Command) (names []string, err error) {
	err = withStore(cmd, func(db *store.Store) error {
		names, err = db.Images(cmd.Context())
		return err
	})
	if errors.Is(err, errRunning) {
		err = ask(cmd.Context(), stateDir(cmd), "GET", "/images", nil, &names)
	}
	return names, err
}
