package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/skerry-dev/skerry"
)

const drivesPath = "/v2/sandboxes/drives"

// DriveOptions describe a new drive. For a zero field the server chooses a default.
type DriveOptions struct {
	// MaxSizeBytes is the maximum size, 10 GiB by default. It includes the
	// filesystem's own data, some 3 %.
	MaxSizeBytes int64
	Region       string
}

// driveBody is the response of calls on one drive.
type driveBody struct {
	Drive skerry.Drive `json:"drive"`
}

// GetOrCreateDrive returns the drive with this name, and creates it if there is
// none. An existing drive is returned unchanged, whatever its size.
func (c *Client) GetOrCreateDrive(ctx context.Context, name string, opts DriveOptions) (skerry.Drive, error) {
	body := map[string]any{}
	setIf(body, "projectId", c.project != "", c.project)
	setIf(body, "maxSizeBytes", opts.MaxSizeBytes != 0, opts.MaxSizeBytes)
	setIf(body, "region", opts.Region != "", opts.Region)
	var got driveBody
	err := c.call(ctx, request{method: http.MethodPost, path: drivePath(name), query: c.scope(""), json: body}, &got)
	return got.Drive, err
}

// ForkDrive creates a drive with the present content and the size of another. It
// fails if the source does not exist (see [IsNotFound]) or a drive with the new
// name exists (see [IsConflict]).
func (c *Client) ForkDrive(ctx context.Context, source, name string) (skerry.Drive, error) {
	var got driveBody
	body := map[string]any{"name": name}
	err := c.call(ctx, request{method: http.MethodPost, path: drivePath(source) + "/fork", query: c.scope("projectId"), json: body}, &got)
	return got.Drive, err
}

// GetDrive returns a drive by its name; see [IsNotFound].
func (c *Client) GetDrive(ctx context.Context, name string) (skerry.Drive, error) {
	var got driveBody
	err := c.call(ctx, request{method: http.MethodGet, path: drivePath(name), query: c.scope("projectId")}, &got)
	return got.Drive, err
}

// DeleteDrive deletes a drive with all its files, and returns its last description.
// It fails if a running sandbox has mounted the drive read-write, see [IsConflict].
// Sandboxes that have mounted a snapshot of it keep the snapshot until they stop.
func (c *Client) DeleteDrive(ctx context.Context, name string) (skerry.Drive, error) {
	var got driveBody
	err := c.call(ctx, request{method: http.MethodDelete, path: drivePath(name), query: c.scope("projectId")}, &got)
	return got.Drive, err
}

func drivePath(name string) string { return drivesPath + "/" + url.PathEscape(name) }

// DriveListOptions filter and order a listing of drives.
type DriveListOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is the Next of the previous page.
	Cursor string
	// SortBy is "createdAt" (default), "updatedAt" or "name".
	SortBy string
	// Ascending sorts the oldest, or the alphabetically first, to the top.
	Ascending  bool
	NamePrefix string
}

// ListDrivesPage returns one page of the project's drives.
func (c *Client) ListDrivesPage(ctx context.Context, opts DriveListOptions) (Page[skerry.Drive], error) {
	q := c.scope("projectId")
	pageQuery(q, opts.Limit, opts.Cursor, opts.Ascending)
	if opts.SortBy != "" {
		q.Set("sortBy", opts.SortBy)
	}
	if opts.NamePrefix != "" {
		q.Set("namePrefix", opts.NamePrefix)
	}
	var body struct {
		Drives     []skerry.Drive `json:"drives"`
		Pagination pagination     `json:"pagination"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: drivesPath, query: q}, &body)
	return Page[skerry.Drive]{body.Drives, body.Pagination.cursor()}, err
}

// ListDrives iterates over the project's drives, and fetches pages as needed. An
// error ends the sequence.
func (c *Client) ListDrives(ctx context.Context, opts DriveListOptions) iter.Seq2[skerry.Drive, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Drive], error) {
		opts.Cursor = cursor
		return c.ListDrivesPage(ctx, opts)
	})
}
