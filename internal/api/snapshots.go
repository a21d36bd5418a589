package api

import (
	"strconv"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
)

func (s *Server) createSnapshot(c *call) error {
	var req snapshotRequest
	if err := c.body(&req); err != nil {
		return err
	}
	run, err := s.service.CreateSnapshot(c.r.Context(), c.scope, c.path("session"), skerry.SnapshotParams{
		Expiration: req.Expiration, Memory: req.Memory,
	})
	if err != nil {
		return err
	}
	return c.reply(createSnapshotResponse{Snapshot: *run.Snapshot, Session: c.session(&run.Session)})
}

func (s *Server) listSnapshots(c *call) error {
	var q listSnapshotsQuery
	if err := c.query(&q); err != nil {
		return err
	}
	page, next, err := s.service.ListSnapshots(c.r.Context(), c.scope, skerry.SnapshotFilter{
		Page:        skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder == "asc"},
		SandboxName: q.Name,
		Deleted:     q.Deleted == nil || *q.Deleted,
	})
	if err != nil {
		return err
	}
	return c.reply(snapshotsResponse{Snapshots: notNil(page), Pagination: pageOf(len(page), next)})
}

func (s *Server) getSnapshot(c *call) error {
	snap, err := s.service.GetSnapshot(c.r.Context(), c.scope, c.path("snapshot"))
	if err != nil {
		return err
	}
	return c.reply(snapshotResponse{Snapshot: *snap})
}

func (s *Server) deleteSnapshot(c *call) error {
	snap, err := s.service.DeleteSnapshot(c.r.Context(), c.scope, c.path("snapshot"))
	if err != nil {
		return err
	}
	return c.reply(snapshotResponse{Snapshot: *snap})
}

func (s *Server) snapshotTree(c *call) error {
	var q treeQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if q.SnapshotID == "" {
		return skerry.Invalid("snapshotId", "is required")
	}
	page := skerry.Page{Limit: q.Limit, Ascending: q.SortOrder == "asc"}
	anchor, nodes, next, err := s.service.SnapshotTree(c.r.Context(), c.scope, q.SnapshotID, page)
	if err != nil {
		return err
	}
	answer := treeResponse{Snapshots: make([]treeNode, len(nodes)), Pagination: pageOf(len(nodes), next)}
	for i := range nodes {
		answer.Snapshots[i] = nodeView(&nodes[i])
	}
	view := nodeView(anchor)
	answer.Anchor = &view
	return c.reply(answer)
}

func nodeView(n *skerry.SnapshotNode) treeNode {
	return treeNode{Snapshot: n.Snapshot, Siblings: notNil(n.Siblings), Count: strconv.Itoa(n.Count)}
}

func (s *Server) forkSandbox(c *call) error {
	if c.path("action") != "fork" {
		return s.noRoute(c)
	}
	var req forkRequest
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
	c.act.on(audit.TargetSandbox, "", p.Name)
	run, err := s.service.ForkSandbox(c.r.Context(), c.scope, c.path("name"), p)
	if err != nil {
		return err
	}
	return c.reply(c.run(run))
}

func (r *forkRequest) params() (p skerry.ForkParams, err error) {
	if err := r.unbuiltFields.check(); err != nil {
		return p, err
	}
	if err := given("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.ForkParams{
		Name: r.Name, Image: r.Image, Timeout: r.Timeout, Env: r.Env, Tags: r.Tags, Live: r.Live, Memory: r.Memory, Persistent: r.Persistent,
		SnapshotExpiration: r.SnapshotExpiration, Retention: r.KeepLastSnapshots.retention(), Mounts: mountsOf(r.Mounts),
		Ports: r.Ports, PrivatePorts: r.PrivatePorts, Policy: r.NetworkPolicy.policy(), Idle: r.Idle, OIDCAudience: r.OIDCAudience,
	}
	if r.Resources != nil {
		p.VCPUs, p.MemoryMB = r.Resources.VCPUs, r.Resources.MemoryMB
	}
	return p, nil
}
