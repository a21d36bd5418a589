package main

import (
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry/internal/image"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build, pull, list and remove images"}
	cmd.AddCommand(newImageBuild(), newImageList(), newImageRemove())
	return cmd
}

func openImages(cmd *cobra.Command) (*image.Store, error) {
	return image.Open(image.Options{Dir: filepath.Join(stateDir(cmd), "images")})
}

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
	return &cobra.Command{
		Use:   "build",
		Short: "Build the default image, unless it is there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			show, done := progress("default image")
			meta, err := images.BuildDefault(cmd.Context(), show)
			done()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "default image: %s, %d MiB\n", meta.Digest[:19], meta.Size>>20)
			return nil
		},
	}
}

func newImageList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the images",
		Args:  cobra.NoArgs,
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
				fmt.Fprintf(w, "%s\t%d MiB\t%s\t%v\n", l.Digest[:19], l.Size>>20, day(l.CreatedAt), l.Names)
			}
			return w.Flush()
		},
	}
}

func newImageRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm REFERENCE",
		Short: "Remove an image's name; gc frees the space",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := openImages(cmd)
			if err != nil {
				return err
			}
			return images.Remove(cmd.Context(), args[0])
		},
	}
}
