package api

import (
	"slices"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
)

func (s *Server) createSandbox(c *call) error {
	var req createRequest
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
	c.act.on(audit.TargetSandbox, "", p.Name)
	run, err := s.service.CreateSandbox(c.r.Context(), c.scope, p)
	if err != nil {
		return err
	}
	return c.reply(c.run(run))
}

func (s *Server) getSandbox(c *call) error {
	var q getSandboxQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if q.Resume {
		if err := c.take(skerry.RoleDeveloper); err != nil {
			return err
		}
	}
	run, err := s.service.GetSandbox(c.r.Context(), c.scope, c.path("name"), q.Resume)
	if err != nil {
		return err
	}
	return c.reply(c.run(run))
}

func (s *Server) listSandboxes(c *call) error {
	var q listSandboxesQuery
	if err := c.query(&q); err != nil {
		return err
	}
	tags, err := parseTags(q.Tags)
	if err != nil {
		return err
	}
	page, next, err := s.service.ListSandboxes(c.r.Context(), c.scope, skerry.SandboxFilter{
		Page:       skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder == "asc"},
		SortBy:     q.SortBy,
		NamePrefix: q.NamePrefix,
		Tags:       tags,
	})
	if err != nil {
		return err
	}
	return c.reply(sandboxesResponse{Sandboxes: notNil(page), Pagination: pageOf(len(page), next)})
}

func (s *Server) updateSandbox(c *call) error {
	var req updateRequest
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
	run, err := s.service.UpdateSandbox(c.r.Context(), c.scope, c.path("name"), p)
	if err != nil {
		return err
	}
	return c.reply(sandboxResponse{Sandbox: run.Sandbox, Routes: notNil(run.Routes)})
}

func (s *Server) deleteSandbox(c *call) error {
	var q deleteSandboxQuery
	if err := c.query(&q); err != nil {
		return err
	}
	sandbox, err := s.service.DeleteSandbox(c.r.Context(), c.scope, c.path("name"), q.DeleteOrphanSnapshots)
	if err != nil {
		return err
	}
	return c.reply(sandboxResponse{Sandbox: *sandbox, Routes: []skerry.Route{}})
}

func (r *createRequest) params() (p skerry.CreateParams, err error) {
	if err := r.unbuiltFields.check(); err != nil {
		return p, err
	}
	if err := given("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.CreateParams{
		Name: r.Name, Runtime: r.Runtime, Image: r.Image, Env: r.Env, Tags: r.Tags,
		Persistent: r.Persistent, SnapshotExpiration: r.SnapshotExpiration, Retention: r.KeepLastSnapshots.retention(),
		Mounts: mountsOf(r.Mounts), Ports: r.Ports, PrivatePorts: r.PrivatePorts, Policy: r.NetworkPolicy.policy(), Idle: r.Idle, OIDCAudience: r.OIDCAudience,
	}
	if r.Timeout != nil {
		p.Timeout = *r.Timeout
	}
	if res := r.Resources; res != nil {
		if res.VCPUs != nil {
			p.VCPUs = *res.VCPUs
		}
		if res.MemoryMB != nil {
			p.MemoryMB = *res.MemoryMB
		}
	}
	p.Source = r.Source.source()
	return p, nil
}

// source returns the source with the fields of its type. Other fields of a snapshot are
// ignored.
func (r *sourceRequest) source() *skerry.Source {
	switch {
	case r == nil:
		return nil
	case r.Type == skerry.SourceSnapshot:
		return &skerry.Source{Type: r.Type, SnapshotID: r.SnapshotID}
	}
	return &skerry.Source{
		Type: r.Type, URL: r.URL, Depth: r.Depth, Revision: r.Revision,
		Username: r.Username, Password: r.Password,
	}
}

func (r *updateRequest) params() (p skerry.UpdateParams, err error) {
	if err := r.unbuiltFields.check(); err != nil {
		return p, err
	}
	p = skerry.UpdateParams{
		Timeout: r.Timeout, Env: r.Env, Tags: r.Tags, Persistent: r.Persistent,
		SnapshotExpiration: r.SnapshotExpiration, Retention: r.KeepLastSnapshots.retention(), ClearRetention: r.ClearRetention,
		CurrentSnapshotID: r.CurrentSnapshotID, Mounts: mountsOf(r.Mounts),
		Ports: r.Ports, PrivatePorts: r.PrivatePorts, Policy: r.NetworkPolicy.policy(), Idle: r.Idle,
	}
	if r.Resources != nil {
		p.VCPUs, p.MemoryMB = r.Resources.VCPUs, r.Resources.MemoryMB
	}
	return p, nil
}

// check refuses fields that this version does not support, so that no client believes
// that they had an effect.
func (u *unbuiltFields) check() error {
	foreignRegion := func(r string) bool { return r != skerry.Region }
	for _, f := range []struct {
		asked       bool
		field, what string
	}{
		{u.NetworkID != nil, "networkId", "a private network"},
		{u.Region != "" && foreignRegion(u.Region), "region", "a region other than " + strconv.Quote(skerry.Region)},
		{slices.ContainsFunc(u.FailoverRegions, foreignRegion), "failoverRegions", "a region other than " + strconv.Quote(skerry.Region)},
	} {
		if f.asked {
			return skerry.NotImplemented(f.field, f.what)
		}
	}
	return nil
}

// given refuses an explicit timeout of 0, because in the parameters of a call 0 means
// that no timeout was given.
func given(field string, d *skerry.Duration) error {
	if d == nil {
		return nil
	}
	return skerry.ValidatePositive(field, *d)
}

// parseTags parses filters of the form key:value. A value may contain colons.
func parseTags(filters []string) (map[string]string, error) {
	if len(filters) == 0 {
		return nil, nil
	}
	if len(filters) > skerry.MaxTags {
		return nil, skerry.Invalid("tags", "must be given at most %d times", skerry.MaxTags)
	}
	tags := make(map[string]string, len(filters))
	for _, f := range filters {
		key, value, ok := strings.Cut(f, ":")
		if !ok || key == "" {
			return nil, skerry.Invalid("tags", "must have the form key:value, is %q", shorten(f))
		}
		if old, twice := tags[key]; twice && old != value {
			return nil, skerry.Invalid("tags", "must not have two values for %q", shorten(key))
		}
		tags[key] = value
	}
	return tags, nil
}

func (c *call) run(run *skerry.Run) runResponse {
	return runResponse{
		Sandbox: run.Sandbox, Session: c.session(&run.Session),
		Routes: notNil(run.Routes), Resumed: run.Resumed,
	}
}

func (c *call) session(s *skerry.Session) sessionView {
	return sessionView{
		Session: *s, ProjectID: c.scope.ProjectID,
		SourceSandboxName: s.SandboxName, InteractivePort: c.port(),
	}
}

func pageOf(count int, next string) pagination {
	if next == "" {
		return pagination{Count: count}
	}
	return pagination{Count: count, Next: &next}
}

// notNil returns an empty list for nil, so that it is not encoded as null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
