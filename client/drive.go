package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/skerry-dev/skerry"
)

const drivesPath = "/v2/sandboxes/drives"

// DriveOptions describe a drive that has to be made. A zero field is left to
// the server.
type DriveOptions struct {
	// MaxSizeBytes is how large it can become, 10 GiB by default. It includes
	// what the drive's filesystem needs for itself, some 3 %.
	MaxSizeBytes int64
	Region       string
}

// driveBody is the answer to calls on one drive.
type driveBody struct {
	Drive skerry.Drive `json:"drive"`
}

// GetOrCreateDrive returns the drive of that name, a new one if there is none.
// One that exists is returned as it is, whatever its size.
func (c *Client) GetOrCreateDrive(ctx context.Context, name string, opts DriveOptions) (skerry.Drive, error) {
	body := map[string]any{}
	setIf(body, "projectId", c.project != "", c.project)
	setIf(body, "maxSizeBytes", opts.MaxSizeBytes != 0, opts.MaxSizeBytes)
	setIf(body, "region", opts.Region != "", opts.Region)
	var got driveBody
	err := c.call(ctx, request{method: http.MethodPost, path: drivePath(name), query: c.scope(""), json: body}, &got)
	return got.Drive, err
}

// ForkDrive creates a drive with what another has at this moment, as large as
// that. It fails if there is no source (see [IsNotFound]) and if there is a drive
// of the new name (see [IsConflict]).
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

// DeleteDrive removes a drive with all that is in it, and returns what it was.
// One that a running sandbox has mounted read-write is refused, see
// [IsConflict]. Sandboxes that have a snapshot of it keep that until they stop.
func (c *Client) DeleteDrive(ctx context.Context, name string) (skerry.Drive, error) {
	var got driveBody
	err := c.call(ctx, request{method: http.MethodDelete, path: drivePath(name), query: c.scope("projectId")}, &got)
	return got.Drive, err
}

func drivePath(name string) string { return drivesPath + "/" + url.PathEscape(name) }

// DriveListOptions narrow and order a listing of drives.
type DriveListOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is where to start: the Next of a page.
	Cursor string
	// SortBy is "createdAt" (default), "updatedAt" or "name".
	SortBy string
	// Ascending puts the oldest, or the first in the alphabet, first.
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

// ListDrives goes through the project's drives, fetching pages as they are
// needed. An error ends the sequence.
func (c *Client) ListDrives(ctx context.Context, opts DriveListOptions) iter.Seq2[skerry.Drive, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Drive], error) {
		opts.Cursor = cursor
		return c.ListDrivesPage(ctx, opts)
	})
}
