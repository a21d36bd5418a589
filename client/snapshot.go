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

// Snapshot is a saved filesystem as its server last described it. Its files
// do not change.
type Snapshot struct {
	c  *Client
	id string

	mu   sync.Mutex // guards what follows
	info skerry.Snapshot
}

func newSnapshot(c *Client, info skerry.Snapshot) *Snapshot {
	return &Snapshot{c: c, id: info.ID, info: info}
}

// ID returns the identifier, "snap_…".
func (s *Snapshot) ID() string { return s.id }

// Info returns the snapshot as of the last answer about it.
func (s *Snapshot) Info() skerry.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Source returns what [CreateOptions] take to start from the snapshot.
func (s *Snapshot) Source() *skerry.Source { return FromSnapshot(s.id) }

// FromSnapshot returns the source of a sandbox that starts with the files of a
// snapshot.
func FromSnapshot(id string) *skerry.Source {
	return &skerry.Source{Type: "snapshot", SnapshotID: id}
}

// snapshotBody is the answer to calls on one snapshot.
type snapshotBody struct {
	Snapshot skerry.Snapshot `json:"snapshot"`
}

// GetSnapshot returns a snapshot by its id. One that was deleted or has
// expired is still known, with the status "deleted"; see [IsNotFound] for one
// that never was.
func (c *Client) GetSnapshot(ctx context.Context, id string) (*Snapshot, error) {
	var body snapshotBody
	if err := c.callSnapshot(ctx, http.MethodGet, id, &body); err != nil {
		return nil, err
	}
	return newSnapshot(c, body.Snapshot), nil
}

// DeleteSnapshot deletes a snapshot and returns what is left of it. Deleting
// one that is deleted already is no error. A sandbox that would start from it
// cannot be resumed any more, see [IsSnapshotNotFound].
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

// callSnapshot makes a call on the path of a snapshot.
func (c *Client) callSnapshot(ctx context.Context, method, id string, out any) error {
	if !strings.HasPrefix(id, "snap_") { // "tree" would be the path of something else
		return &Error{Status: http.StatusBadRequest, Code: skerry.CodeBadRequest, Field: "snapshotId",
			Message: strconv.Quote(id) + " is not the id of a snapshot, which begins with snap_"}
	}
	return c.call(ctx, request{method: method, path: snapshotsPath + "/" + url.PathEscape(id), query: c.scope("")}, out)
}

// SnapshotOptions narrow and order a listing of snapshots, by their creation.
// Deleted and expired ones are not listed.
type SnapshotOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Cursor is where to start: the Next of a page.
	Cursor string
	// Ascending puts the oldest first.
	Ascending bool
}

// ListSnapshotsPage returns one page of the snapshots of a sandbox, of all
// snapshots of the project when the name is "". The sandbox may be gone.
func (c *Client) ListSnapshotsPage(ctx context.Context, sandbox string, opts SnapshotOptions) (Page[skerry.Snapshot], error) {
	q := c.scope("project")
	pageQuery(q, opts.Limit, opts.Cursor, opts.Ascending)
	if sandbox != "" {
		q.Set("name", sandbox)
	}
	var body struct {
		Snapshots  []skerry.Snapshot `json:"snapshots"`
		Pagination pagination        `json:"pagination"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: snapshotsPath, query: q}, &body)
	return Page[skerry.Snapshot]{body.Snapshots, body.Pagination.cursor()}, err
}

// ListSnapshots goes through the project's snapshots, the latest first unless
// opts say otherwise. An error ends the sequence.
func (c *Client) ListSnapshots(ctx context.Context, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return c.snapshotsOf(ctx, "", opts)
}

// Snapshots goes through the sandbox's snapshots, the latest first unless opts
// say otherwise. An error ends the sequence.
func (sb *Sandbox) Snapshots(ctx context.Context, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return sb.c.snapshotsOf(ctx, sb.name, opts)
}

func (c *Client) snapshotsOf(ctx context.Context, sandbox string, opts SnapshotOptions) iter.Seq2[skerry.Snapshot, error] {
	return pages(opts.Cursor, func(cursor string) (Page[skerry.Snapshot], error) {
		opts.Cursor = cursor
		return c.ListSnapshotsPage(ctx, sandbox, opts)
	})
}

// TreeOptions say which way to walk from a snapshot.
type TreeOptions struct {
	// Limit is the size of a page: 50 by default, 100 at most.
	Limit int
	// Descendants walks to what was made from the snapshot, along the newest
	// child of each; otherwise the walk is to what it was made from.
	Descendants bool
}

// TreePage is one page of a walk.
type TreePage struct {
	Page[skerry.SnapshotNode]
	// Anchor is the snapshot that the walk began at.
	Anchor skerry.SnapshotNode
}

// treeNode counts in a string: "12", or "100+" for at least so many.
type treeNode struct {
	Snapshot skerry.Snapshot   `json:"snapshot"`
	Siblings []skerry.Snapshot `json:"siblings"`
	Count    string            `json:"count"`
}

func (n treeNode) node() (skerry.SnapshotNode, error) {
	count, err := strconv.Atoi(strings.TrimSuffix(n.Count, "+"))
	if err != nil {
		return skerry.SnapshotNode{}, fmt.Errorf("the server counts the siblings of %s as %q", n.Snapshot.ID, n.Count)
	}
	return skerry.SnapshotNode{Snapshot: n.Snapshot, Siblings: n.Siblings, Count: count}, nil
}

// SnapshotTreePage returns one page of a walk that begins at the snapshot of
// that id, which is not in it. The Next of a page is the id that the next one
// begins at.
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

// Ancestors goes from the snapshot's parent to the oldest snapshot that it
// stands on. Deleted ones are among them. An error ends the sequence.
func (s *Snapshot) Ancestors(ctx context.Context) iter.Seq2[skerry.SnapshotNode, error] {
	return s.c.walk(ctx, s.id, TreeOptions{})
}

// Descendants goes from the snapshot's newest child to the youngest, along the
// newest child of each. An error ends the sequence.
func (s *Snapshot) Descendants(ctx context.Context) iter.Seq2[skerry.SnapshotNode, error] {
	return s.c.walk(ctx, s.id, TreeOptions{Descendants: true})
}

func (c *Client) walk(ctx context.Context, id string, opts TreeOptions) iter.Seq2[skerry.SnapshotNode, error] {
	return pages(id, func(cursor string) (Page[skerry.SnapshotNode], error) {
		page, err := c.SnapshotTreePage(ctx, cursor, opts)
		return page.Page, err
	})
}

// TakeOptions change what Snapshot does.
type TakeOptions struct {
	// Expiration is how long the snapshot is kept, 0 for ever; nil is as the
	// sandbox's SnapshotExpiration says. A minute at least.
	Expiration *time.Duration
	// Memory keeps the running programs too. Our own addition to the public
	// API; see [IsNotImplemented] for a server that cannot.
	Memory bool
}

// Snapshot saves the files of the current session and stops it. The sandbox's
// next session starts from the snapshot, if it is persistent. A sandbox that
// has stopped is resumed first; what its last stop has saved is its
// CurrentSnapshotID.
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
