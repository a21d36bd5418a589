package api

import (
	"slices"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry"
)

// reservedNames are what the API itself puts where a sandbox's name goes in a
// path; a sandbox of such a name could not be reached.
var reservedNames = []string{"sessions", "snapshots", "drives"}

func (s *Server) createSandbox(c *call) error {
	var req createRequest
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
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
	if len(r.Name) > skerry.MaxNameLength {
		return p, skerry.Invalid("name", "is longer than %d bytes", skerry.MaxNameLength)
	}
	if slices.Contains(reservedNames, r.Name) {
		return p, skerry.Invalid("name", "%q is reserved", r.Name)
	}
	if r.Runtime != "" && r.Image != "" {
		return p, skerry.Invalid("runtime", "cannot be given together with image")
	}
	if err := checkEnv("env", r.Env); err != nil {
		return p, err
	}
	if err := checkTimeout("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.CreateParams{
		Name: r.Name, Runtime: r.Runtime, Image: r.Image, Env: r.Env, Tags: r.Tags,
		Persistent: r.Persistent, SnapshotExpiration: r.SnapshotExpiration, Retention: r.KeepLastSnapshots.retention(),
		Mounts: mountsOf(r.Mounts), Ports: r.Ports, PrivatePorts: r.PrivatePorts, Policy: r.NetworkPolicy.policy(),
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
	if r.Image != "" && r.Source != nil && r.Source.Type == "snapshot" {
		return p, skerry.Invalid("image", "cannot be given together with a snapshot, which has its own")
	}
	p.Source, err = r.Source.source()
	return p, err
}

func (r *sourceRequest) source() (*skerry.Source, error) {
	switch {
	case r == nil:
		return nil, nil
	case r.Type == "snapshot":
		if r.SnapshotID == "" {
			return nil, skerry.Invalid("source.snapshotId", "is required")
		}
		return &skerry.Source{Type: r.Type, SnapshotID: r.SnapshotID}, nil
	case r.URL == "":
		return nil, skerry.Invalid("source.url", "is required")
	case len(r.URL) > skerry.MaxPathLength:
		return nil, skerry.Invalid("source.url", "is longer than %d bytes", skerry.MaxPathLength)
	}
	return &skerry.Source{
		Type: r.Type, URL: r.URL, Depth: r.Depth, Revision: r.Revision,
		Username: r.Username, Password: r.Password,
	}, nil
}

func (r *updateRequest) params() (p skerry.UpdateParams, err error) {
	if err := r.unbuiltFields.check(); err != nil {
		return p, err
	}
	if err := checkEnv("env", r.Env); err != nil {
		return p, err
	}
	if err := checkTimeout("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.UpdateParams{
		Timeout: r.Timeout, Env: r.Env, Tags: r.Tags, Persistent: r.Persistent,
		SnapshotExpiration: r.SnapshotExpiration, Retention: r.KeepLastSnapshots.retention(), ClearRetention: r.ClearRetention,
		CurrentSnapshotID: r.CurrentSnapshotID, Mounts: mountsOf(r.Mounts),
		Ports: r.Ports, PrivatePorts: r.PrivatePorts, Policy: r.NetworkPolicy.policy(),
	}
	if r.Resources != nil {
		p.VCPUs, p.MemoryMB = r.Resources.VCPUs, r.Resources.MemoryMB
	}
	return p, nil
}

// check refuses what this version cannot do, rather than let a client believe
// that it did.
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

// checkEnv bounds an environment and refuses what the kernel could not carry.
func checkEnv(field string, env map[string]string) error {
	if len(env) > skerry.MaxEnv {
		return skerry.Invalid(field, "has more than %d variables", skerry.MaxEnv)
	}
	size := 0
	for name, value := range env {
		if name == "" || strings.Contains(name, "=") {
			return skerry.Invalid(field, "%q is no name of a variable", shorten(name))
		}
		size += len(name) + len(value)
	}
	if size > skerry.MaxEnvBytes {
		return skerry.Invalid(field, "is larger than %d bytes", skerry.MaxEnvBytes)
	}
	return nil
}

// checkTimeout refuses the timeouts that no installation accepts; the service
// knows the largest.
func checkTimeout(field string, d *skerry.Duration) error {
	if d == nil || *d > 0 {
		return nil
	}
	return &skerry.Error{
		Code: skerry.CodeTimeoutInvalid, Field: field,
		Message: "must be a positive number of milliseconds",
	}
}

// parseTags reads "key:value" filters; a value may hold colons.
func parseTags(filters []string) (map[string]string, error) {
	if len(filters) == 0 {
		return nil, nil
	}
	if len(filters) > skerry.MaxTags {
		return nil, skerry.Invalid("tags", "given more than %d times", skerry.MaxTags)
	}
	tags := make(map[string]string, len(filters))
	for _, f := range filters {
		key, value, ok := strings.Cut(f, ":")
		if !ok || key == "" {
			return nil, skerry.Invalid("tags", "must be key:value, not %q", shorten(f))
		}
		if old, twice := tags[key]; twice && old != value {
			return nil, skerry.Invalid("tags", "asks for two values of %q", shorten(key))
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

// notNil keeps an empty list from being written as null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
