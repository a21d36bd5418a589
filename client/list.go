package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// Page is one page of a listing.
type Page[T any] struct {
	Items []T
	// Next is the cursor of the next page; "" on the last page.
	Next string
}

// ListOptions filter and order a listing of sandboxes.
type ListOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is the Next of the previous page.
	Cursor string
	// SortBy is "createdAt" (default), "name", "statusUpdatedAt" or
	// "currentSnapshotId".
	SortBy string
	// Ascending sorts the oldest, or the alphabetically first, to the top.
	Ascending bool
	// NamePrefix lists only names with this prefix. It needs a listing sorted by
	// name.
	NamePrefix string
	// Tags lists only sandboxes that have all of these tags.
	Tags map[string]string
}

// pageQuery adds the parameters that all listings have.
func pageQuery(q url.Values, limit int, cursor string, ascending bool) {
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	if ascending {
		q.Set("sortOrder", "asc")
	}
}

type pagination struct {
	Next *string `json:"next"`
}

func (p pagination) cursor() string {
	if p.Next == nil {
		return ""
	}
	return *p.Next
}

// ListSandboxesPage returns one page of the project's sandboxes.
func (c *Client) ListSandboxesPage(ctx context.Context, opts ListOptions) (Page[skerry.Sandbox], error) {
	q := c.scope("project")
	pageQuery(q, opts.Limit, opts.Cursor, opts.Ascending)
	if opts.SortBy != "" {
		q.Set("sortBy", opts.SortBy)
	}
	if opts.NamePrefix != "" {
		q.Set("namePrefix", opts.NamePrefix)
	}
	for k, v := range opts.Tags {
		q.Add("tags", k+":"+v)
	}
	var body struct {
		Sandboxes  []skerry.Sandbox `json:"sandboxes"`
		Pagination pagination       `json:"pagination"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: "/v2/sandboxes", query: q}, &body)
	return Page[skerry.Sandbox]{body.Sandboxes, body.Pagination.cursor()}, err
}

// ListSandboxes iterates over the project's sandboxes, and fetches pages as needed.
// An error ends the sequence.
func (c *Client) ListSandboxes(ctx context.Context, opts ListOptions) iter.Seq2[skerry.Sandbox, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Sandbox], error) {
		opts.Cursor = cursor
		return c.ListSandboxesPage(ctx, opts)
	})
}

// SessionOptions filter and order a listing of sessions, by creation time.
type SessionOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is the Next of the previous page.
	Cursor string
	// Ascending sorts the oldest to the top.
	Ascending bool
}

// ListSessionsPage returns one page of the sessions of a sandbox, or of all
// sandboxes of the project if the name is "".
func (c *Client) ListSessionsPage(ctx context.Context, sandbox string, opts SessionOptions) (Page[skerry.Session], error) {
	q := c.scope("project")
	pageQuery(q, opts.Limit, opts.Cursor, opts.Ascending)
	if sandbox != "" {
		q.Set("name", sandbox)
	}
	var body struct {
		Sessions   []skerry.Session `json:"sessions"`
		Pagination pagination       `json:"pagination"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: "/v2/sandboxes/sessions", query: q}, &body)
	return Page[skerry.Session]{body.Sessions, body.Pagination.cursor()}, err
}

// Sessions iterates over the sandbox's sessions, newest first unless opts change
// it. An error ends the sequence.
func (sb *Sandbox) Sessions(ctx context.Context, opts SessionOptions) iter.Seq2[skerry.Session, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Session], error) {
		opts.Cursor = cursor
		return sb.c.ListSessionsPage(ctx, sb.name, opts)
	})
}

// pages returns the sequence of the items of all pages that get returns.
func pages[T any](cursor string, get func(cursor string) (Page[T], error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			page, err := get(cursor)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			// A server that repeats a cursor would cause an endless loop.
			if page.Next == "" || page.Next == cursor {
				return
			}
			cursor = page.Next
		}
	}
}
