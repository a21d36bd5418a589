package api

import (
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

func (s *Server) driveRoutes() []route {
	one := drivesPath + "/{drive}"
	return []route{
		{
			method: http.MethodGet, path: drivesPath, id: "listDrives", summary: "List drives",
			query: listDrivesQuery{}, response: drivesResponse{}, handle: s.listDrives,
		},
		{
			method: http.MethodPost, path: one, id: "getOrCreateDrive", summary: "Get a drive by name, or create it",
			request: driveRequest{}, response: driveResponse{}, creates: true, handle: s.getOrCreateDrive,
			errors: []skerry.Code{skerry.CodeNotImplemented, skerry.CodeDiskFull},
		},
		{
			method: http.MethodPost, path: one + "/fork", id: "forkDrive", summary: "Create a drive with the content of another one",
			detail:  "The new drive has the same size. A session that writes to the source drive waits while it is copied.",
			request: forkDriveRequest{}, response: driveResponse{}, creates: true, handle: s.forkDrive,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeConflict, skerry.CodeDiskFull},
		},
		{
			method: http.MethodGet, path: one, id: "getDrive", summary: "Get a drive",
			response: driveResponse{}, handle: s.getDrive, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodDelete, path: one, id: "deleteDrive", summary: "Delete a drive with all its files",
			detail:   "If a session has mounted the drive read-write, the call fails with 409 conflict. Snapshots of it that sessions have mounted stay until these sessions end.",
			response: driveResponse{}, handle: s.deleteDrive, errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeConflict},
		},
	}
}

func (s *Server) listDrives(c *call) error {
	var q listDrivesQuery
	if err := c.query(&q); err != nil {
		return err
	}
	page, next, err := s.service.ListDrives(c.r.Context(), c.scope, skerry.DriveFilter{
		Page:   skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder == "asc"},
		SortBy: q.SortBy, NamePrefix: q.NamePrefix,
	})
	if err != nil {
		return err
	}
	return c.reply(drivesResponse{Drives: notNil(page), Pagination: pageOf(len(page), next)})
}

func (s *Server) getOrCreateDrive(c *call) error {
	var req driveRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if req.Region != "" && req.Region != skerry.Region {
		return skerry.NotImplemented("region", "a region other than "+strconv.Quote(skerry.Region))
	}
	d, created, err := s.service.GetOrCreateDrive(c.r.Context(), c.scope, skerry.DriveParams{
		Name: c.path("drive"), MaxSizeBytes: req.MaxSizeBytes,
	})
	if err != nil {
		return err
	}
	if created {
		return c.replyCreated(driveResponse{Drive: *d})
	}
	return c.reply(driveResponse{Drive: *d})
}

func (s *Server) forkDrive(c *call) error {
	var req forkDriveRequest
	if err := c.body(&req); err != nil {
		return err
	}
	d, err := s.service.ForkDrive(c.r.Context(), c.scope, c.path("drive"), req.Name)
	if err != nil {
		return err
	}
	return c.replyCreated(driveResponse{Drive: *d})
}

func (s *Server) getDrive(c *call) error {
	d, err := s.service.GetDrive(c.r.Context(), c.scope, c.path("drive"))
	if err != nil {
		return err
	}
	return c.reply(driveResponse{Drive: *d})
}

func (s *Server) deleteDrive(c *call) error {
	d, err := s.service.DeleteDrive(c.r.Context(), c.scope, c.path("drive"))
	if err != nil {
		return err
	}
	return c.reply(driveResponse{Drive: *d})
}
