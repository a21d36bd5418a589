package clienttest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/skerry-dev/skerry"
)

// A snapshot of this server is a copy of a sandbox's working directory.

func (s *Server) copyOf(id string) string { return filepath.Join(s.dir, "snapshots", id) }

// AddSnapshot puts a snapshot of a sandbox's files there, a minute younger than
// the one before.
func (s *Server) AddSnapshot(sandbox string) *skerry.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.sandboxes[sandbox]
	return s.take(sb, s.session(sb.CurrentSessionID), skerry.CreatedManually, nil)
}

// take copies a sandbox's files; s.mu is held.
func (s *Server) take(sb *skerry.Sandbox, session *skerry.Session, how skerry.CreationMethod, expiration *skerry.Duration) *skerry.Snapshot {
	created := skerry.At(Epoch.Add(time.Duration(len(s.snapshots)) * time.Minute))
	snap := &skerry.Snapshot{
		ID: fmt.Sprintf("snap_%024d", len(s.snapshots)+1), SandboxName: sb.Name, SourceSessionID: session.ID,
		ParentID: session.SourceSnapshotID, Region: skerry.Region, Status: skerry.SnapshotCreated, CreationMethod: how,
		SizeBytes: treeSize(s.dirs[sb.Name]), CreatedAt: created, UpdatedAt: created,
	}
	span := skerry.Duration(skerry.DefaultSnapshotExpiration)
	for _, d := range []*skerry.Duration{sb.SnapshotExpiration, expiration} {
		if d != nil {
			span = *d
		}
	}
	if span > 0 {
		snap.ExpiresAt = skerry.At(created.Add(span.Std()))
	}
	must(os.CopyFS(s.copyOf(snap.ID), os.DirFS(s.dirs[sb.Name])))
	s.snapshots = append(s.snapshots, snap)
	if how != skerry.CreatedForFork && session.Persistent {
		sb.CurrentSnapshotID = snap.ID
		s.evict(sb)
	}
	return snap
}

func treeSize(dir string) (size int64) {
	must(filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			info, err := d.Info()
			must(err)
			size += info.Size()
		}
		return err
	}))
	return size
}

// evict applies a sandbox's retention; s.mu is held.
func (s *Server) evict(sb *skerry.Sandbox) {
	if sb.Retention == nil {
		return
	}
	kept := 0
	for _, snap := range slices.Backward(s.snapshots) {
		if snap.SandboxName != sb.Name || snap.Status != skerry.SnapshotCreated {
			continue
		}
		if kept++; kept > sb.Retention.Count {
			s.drop(snap)
		}
	}
}

func (s *Server) drop(snap *skerry.Snapshot) {
	snap.Status = skerry.SnapshotDeleted
	must(os.RemoveAll(s.copyOf(snap.ID)))
}

// deleteOrphans deletes the snapshots of a sandbox that no other needs; s.mu
// is held.
func (s *Server) deleteOrphans(sandbox string) {
	for _, snap := range s.snapshots {
		if snap.SandboxName != sandbox {
			continue
		}
		used := false
		for _, sb := range s.sandboxes {
			used = used || s.startsFrom(sb) == snap.ID
		}
		if !used {
			s.drop(snap)
		}
	}
}

// startsFrom returns the snapshot of a sandbox's next session; s.mu is held.
func (s *Server) startsFrom(sb *skerry.Sandbox) string {
	if sb.CurrentSnapshotID != "" {
		return sb.CurrentSnapshotID
	}
	return s.sources[sb.Name]
}

// usable answers 410 and returns false if what a sandbox starts from is gone;
// s.mu is held.
func (s *Server) usable(w http.ResponseWriter, sb *skerry.Sandbox) bool {
	id := s.startsFrom(sb)
	if snap := s.snapshotByID(id); id != "" && (snap == nil || snap.Status != skerry.SnapshotCreated) {
		Refuse(w, http.StatusGone, skerry.CodeSnapshotNotFound, "snapshot "+id+" was deleted")
		return false
	}
	return true
}

// restore makes a sandbox's files those of the snapshot that it starts from;
// s.mu is held.
func (s *Server) restore(sb *skerry.Sandbox) {
	dir := s.dirs[sb.Name]
	must(os.RemoveAll(dir))
	must(os.MkdirAll(dir, 0o755))
	if id := s.startsFrom(sb); id != "" {
		must(os.CopyFS(dir, os.DirFS(s.copyOf(id))))
	}
}

func (s *Server) snapshotByID(id string) *skerry.Snapshot {
	for _, snap := range s.snapshots {
		if snap.ID == id {
			return snap
		}
	}
	return nil
}

// findSnapshot answers 404 and returns nil if there is none; s.mu is held.
func (s *Server) findSnapshot(w http.ResponseWriter, id string) *skerry.Snapshot {
	snap := s.snapshotByID(id)
	if snap == nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no snapshot "+strconv.Quote(id))
	}
	return snap
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Expiration *skerry.Duration `json:"expiration"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	sb := s.sandboxes[session.SandboxName]
	snap := s.take(sb, session, skerry.CreatedManually, body.Expiration)
	s.end(sb, session)
	answer(w, map[string]any{"snapshot": snap, "session": session})
}

func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*skerry.Snapshot{}
	for _, snap := range s.snapshots {
		name := r.URL.Query().Get("name")
		if snap.Status == skerry.SnapshotCreated && (name == "" || name == snap.SandboxName) {
			all = append(all, snap)
		}
	}
	if r.URL.Query().Get("sortOrder") != "asc" {
		slices.Reverse(all)
	}
	items, pagination := page(r, all)
	answer(w, map[string]any{"snapshots": items, "pagination": pagination})
}

func (s *Server) getSnapshot(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if snap := s.findSnapshot(w, r.PathValue("id")); snap != nil {
		answer(w, map[string]any{"snapshot": snap})
	}
}

func (s *Server) deleteSnapshot(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if snap := s.findSnapshot(w, r.PathValue("id")); snap != nil {
		s.drop(snap)
		answer(w, map[string]any{"snapshot": snap})
	}
}

type treeNode struct {
	Snapshot *skerry.Snapshot   `json:"snapshot"`
	Siblings []*skerry.Snapshot `json:"siblings"`
	Count    string             `json:"count"`
}

// children returns the snapshots with a parent, the newest first.
func (s *Server) children(parent string) (list []*skerry.Snapshot) {
	for _, snap := range slices.Backward(s.snapshots) {
		if snap.ParentID == parent && snap.Status == skerry.SnapshotCreated {
			list = append(list, snap)
		}
	}
	return list
}

func (s *Server) node(snap *skerry.Snapshot) treeNode {
	n := treeNode{Snapshot: snap, Siblings: []*skerry.Snapshot{}, Count: "1"}
	if snap.ParentID == "" {
		return n
	}
	all := s.children(snap.ParentID)
	n.Count = strconv.Itoa(len(all))
	for _, sibling := range all {
		if sibling != snap {
			n.Siblings = append(n.Siblings, sibling)
		}
	}
	return n
}

func (s *Server) snapshotTree(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	anchor := s.findSnapshot(w, q.Get("snapshotId"))
	if anchor == nil {
		return
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	nodes := []treeNode{}
	var next *string
	for at := s.step(anchor, q.Get("sortOrder") == "asc"); at != nil; at = s.step(at, q.Get("sortOrder") == "asc") {
		if len(nodes) == (skerry.Page{Limit: limit}).Size() {
			next = &nodes[len(nodes)-1].Snapshot.ID
			break
		}
		nodes = append(nodes, s.node(at))
	}
	answer(w, map[string]any{
		"anchor": s.node(anchor), "snapshots": nodes, "pagination": map[string]any{"count": len(nodes), "next": next},
	})
}

// step returns the parent or the newest child, nil if there is none.
func (s *Server) step(at *skerry.Snapshot, down bool) *skerry.Snapshot {
	if !down {
		return s.snapshotByID(at.ParentID)
	}
	if list := s.children(at.ID); len(list) > 0 {
		return list[0]
	}
	return nil
}

func (s *Server) fork(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name       string            `json:"name"`
		Tags       map[string]string `json:"tags"`
		Persistent *bool             `json:"persistent"`
		Timeout    skerry.Duration   `json:"timeout"`
		Live       bool              `json:"live"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	source := s.find(w, r)
	if source == nil {
		return
	}
	from := s.startsFrom(source)
	if body.Live && source.Status == skerry.StatusRunning {
		from = s.take(source, s.session(source.CurrentSessionID), skerry.CreatedForFork, nil).ID
	}
	sb := *source
	sb.Name, sb.CurrentSnapshotID = body.Name, ""
	if body.Tags != nil {
		sb.Tags = body.Tags
	}
	if body.Persistent != nil {
		sb.Persistent = *body.Persistent
	}
	if body.Timeout > 0 {
		sb.Timeout = body.Timeout
	}
	s.begin(w, &sb, from)
}
