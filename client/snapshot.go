package client

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

const snapshotsPath = "/v2/sandboxes/snapshots"

// Snapshot is a saved filesystem, with the last description that the server sent.
// Its files never change.
type Snapshot struct {
	c  *Client
	id string

	mu   sync.Mutex // guards the fields below
	info skerry.Snapshot
}

func newSnapshot(c *Client, info skerry.Snapshot) *Snapshot {
	return &Snapshot{c: c, id: info.ID, info: info}
}

// ID returns the identifier, "snap_…".
func (s *Snapshot) ID() string { return s.id }

// Info returns the snapshot as in the last response about it.
func (s *Snapshot) Info() skerry.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Source returns the source for [CreateOptions] of a sandbox that starts from the
// snapshot.
func (s *Snapshot) Source() *skerry.Source { return FromSnapshot(s.id) }

// FromSnapshot returns the source of a sandbox that starts with the files of a
// snapshot.
func FromSnapshot(id string) *skerry.Source {
	return &skerry.Source{Type: "snapshot", SnapshotID: id}
}

// snapshotBody is the response of calls on one snapshot.
type snapshotBody struct {
	Snapshot skerry.Snapshot `json:"snapshot"`
}

// GetSnapshot returns a snapshot by its id. Deleted and expired snapshots are
// returned too, with the status "deleted". [IsNotFound] reports true for the error
// if the snapshot never existed.
func (c *Client) GetSnapshot(ctx context.Context, id string) (*Snapshot, error) {
	var body snapshotBody
	if err := c.callSnapshot(ctx, http.MethodGet, id, &body); err != nil {
		return nil, err
	}
	return newSnapshot(c, body.Snapshot), nil
}

// DeleteSnapshot deletes a snapshot and returns its remaining description. Deleting
// a deleted snapshot is not an error. A sandbox that would start from it cannot be
// resumed any more, see [IsSnapshotNotFound].
func (c *Client) DeleteSnapshot(ctx context.Context, id string) (skerry.Snapshot, error) {
	var body snapshotBody
	err := c.callSnapshot(ctx, http.MethodDelete, id, &body)
	return body.Snapshot, err
}

// Delete deletes the snapshot, as [Client.DeleteSnapshot] does.
func (s *Snapshot) Delete(ctx context.Context) error {
	info, err := s.c.DeleteSnapshot(ctx, s.id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = info
	return nil
}

// callSnapshot sends a request to the path of a snapshot.
func (c *Client) callSnapshot(ctx context.Context, method, id string, out any) error {
	if !strings.HasPrefix(id, "snap_") { // "tree" is the path of another endpoint
		return &Error{Status: http.StatusBadRequest, Code: skerry.CodeBadRequest, Field: "snapshotId",
			Message: strconv.Quote(id) + " is not the id of a snapshot, which begins with snap_"}
	}
	return c.call(ctx, request{method: method, path: snapshotsPath + "/" + url.PathEscape(id), query: c.scope("")}, out)
}

// SnapshotOptions filter and order a listing of snapshots, by creation time.
type SnapshotOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is the Next of the previous page.
	Cursor string
	// Ascending sorts the oldest to the top.
	Ascending bool
	// Deleted also lists snapshots that were deleted or have expired in the last 30
	// days.
	Deleted bool
}

// ListSnapshotsPage returns one page of the snapshots of a sandbox, or of all
// snapshots of the project if the name is "". The sandbox may have been deleted.
func (c *Client) ListSnapshotsPage(ctx context.Context, sandbox string, opts SnapshotOptions) (Page[skerry.Snapshot], error) {
	q := c.scope("project")
	pageQuery(q, opts.Limit, opts.Cursor, opts.Ascending)
	if sandbox != "" {
		q.Set("name", sandbox)
	}
	q.Set("deleted", strconv.FormatBool(opts.Deleted))
	var body struct {
		Snapshots  []skerry.Snapshot `json:"snapshots"`
		Pagination pagination        `json:"pagination"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: snapshotsPath, query: q}, &body)
	return Page[skerry.Snapshot]{body.Snapshots, body.Pagination.cursor()}, err
}

// ListSnapshots iterates over the project's snapshots, newest first unless opts
// change it. An error ends the sequence.
func (c *Client) ListSnapshots(ctx context.Context, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return c.snapshotsOf(ctx, "", opts)
}

// Snapshots iterates over the sandbox's snapshots, newest first unless opts change
// it. An error ends the sequence.
func (sb *Sandbox) Snapshots(ctx context.Context, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return sb.c.snapshotsOf(ctx, sb.name, opts)
}

func (c *Client) snapshotsOf(ctx context.Context, sandbox string, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Snapshot], error) {
		opts.Cursor = cursor
		return c.ListSnapshotsPage(ctx, sandbox, opts)
	})
}

// TreeOptions are options of SnapshotTreePage.
type TreeOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Descendants lists the descendants of the snapshot, along the newest child of
	// each. Otherwise its ancestors are listed.
	Descendants bool
}

// TreePage is one page of ancestors or descendants.
type TreePage struct {
	Page[skerry.SnapshotNode]
	// Anchor is the snapshot at which the list starts.
	Anchor skerry.SnapshotNode
}

// treeNode has its count in a string: "12", or "100+" for at least 100.
type treeNode struct {
	Snapshot skerry.Snapshot   `json:"snapshot"`
	Siblings []skerry.Snapshot `json:"siblings"`
	Count    string            `json:"count"`
}

func (n treeNode) node() (skerry.SnapshotNode, error) {
	count, err := strconv.Atoi(strings.TrimSuffix(n.Count, "+"))
	if err != nil {
		return skerry.SnapshotNode{}, fmt.Errorf("the server sent the invalid count %[2]q for %[1]s", n.Snapshot.ID, n.Count)
	}
	return skerry.SnapshotNode{Snapshot: n.Snapshot, Siblings: n.Siblings, Count: count}, nil
}

// SnapshotTreePage returns one page of the ancestors or descendants of the snapshot
// with this id. The snapshot itself is not among them. The Next of a page is the id
// for the next page.
func (c *Client) SnapshotTreePage(ctx context.Context, id string, opts TreeOptions) (page TreePage, err error) {
	q := c.scope("project")
	q.Set("snapshotId", id)
	pageQuery(q, opts.Limit, "", opts.Descendants)
	var body struct {
		Snapshots  []treeNode `json:"snapshots"`
		Anchor     *treeNode  `json:"anchor"`
		Pagination pagination `json:"pagination"`
	}
	if err := c.call(ctx, request{method: http.MethodGet, path: snapshotsPath + "/tree", query: q}, &body); err != nil {
		return page, err
	}
	page.Next = body.Pagination.cursor()
	page.Items = make([]skerry.SnapshotNode, len(body.Snapshots))
	for i, n := range body.Snapshots {
		if page.Items[i], err = n.node(); err != nil {
			return page, err
		}
	}
	if body.Anchor != nil {
		page.Anchor, err = body.Anchor.node()
	}
	return page, err
}

// Ancestors iterates from the snapshot's parent to its oldest ancestor, including
// deleted ones. An error ends the sequence.
func (s *Snapshot) Ancestors(ctx context.Context) iter.Seq2[skerry.SnapshotNode, error] {
	return s.c.walk(ctx, s.id, TreeOptions{})
}

// Descendants iterates from the snapshot's newest child to the youngest descendant,
// along the newest child of each. An error ends the sequence.
func (s *Snapshot) Descendants(ctx context.Context) iter.Seq2[skerry.SnapshotNode, error] {
	return s.c.walk(ctx, s.id, TreeOptions{Descendants: true})
}

func (c *Client) walk(ctx context.Context, id string, opts TreeOptions) iter.Seq2[skerry.SnapshotNode, error] {
	return pages(id, func(cursor string) (Page[skerry.SnapshotNode], error) {
		page, err := c.SnapshotTreePage(ctx, cursor, opts)
		return page.Page, err
	})
}

// TakeOptions are options of [Sandbox.Snapshot].
type TakeOptions struct {
	// Expiration is how long the snapshot is kept, at least a minute; 0 is for
	// ever. If nil, the sandbox's SnapshotExpiration is used.
	Expiration *time.Duration
	// Memory saves the running programs too. Sandboxes that start from the snapshot
	// continue them, in a network of their own, where the programs' connections are
	// closed. Such a sandbox has the size of this session. Our own addition to the
	// public API.
	Memory bool
}

// Snapshot saves the files of the current session and stops it. If the sandbox is
// persistent, its next session starts from the snapshot. A stopped sandbox is
// resumed first; its CurrentSnapshotID is the snapshot of its last stop.
func (sb *Sandbox) Snapshot(ctx context.Context, opts TakeOptions) (*Snapshot, error) {
	var answer struct {
		Snapshot skerry.Snapshot `json:"snapshot"`
		Session  skerry.Session  `json:"session"`
	}
	body := map[string]any{}
	setIf(body, "expiration", opts.Expiration != nil, (*skerry.Duration)(opts.Expiration))
	setIf(body, "memory", opts.Memory, true)
	err := sb.withSession(ctx, func(id string) error {
		return sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/snapshot", query: sb.c.scope(""), json: body,
		}, &answer)
	})
	if err != nil {
		return nil, err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.session = answer.Session
	sb.info.Status = answer.Session.Status
	if answer.Session.Persistent {
		sb.info.CurrentSnapshotID = answer.Snapshot.ID
	}
	return newSnapshot(sb.c, answer.Snapshot), nil
}
