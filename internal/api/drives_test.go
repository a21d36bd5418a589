package api

import (
	"errors"
	"maps"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestDriveCallsReachTheService(t *testing.T) {
	svc := &stub{err: errors.New("not here")}
	h := serve(t, svc)
	refused := func(method, path, body string) {
		t.Helper()
		h.refused(method, path, body, 500, skerry.CodeInternal, "")
	}
	refused("POST", "/api/v2/sandboxes/drives/data", `{"projectId":"prj_1","maxSizeBytes":1073741824,"region":"local"}`)
	if svc.drive != (skerry.DriveParams{Name: "data", MaxSizeBytes: 1 << 30}) {
		t.Errorf("asked for %+v", svc.drive)
	}
	refused("POST", "/v2/sandboxes/drives/fork", "") // a name like any other
	if svc.drive != (skerry.DriveParams{Name: "fork"}) {
		t.Errorf("asked for %+v", svc.drive)
	}
	refused("POST", "/v2/sandboxes/drives/data/fork", `{"projectId":"prj_1","name":"copy"}`)
	if svc.forkedDrive != [2]string{"data", "copy"} {
		t.Errorf("asked for a fork %q", svc.forkedDrive)
	}
	refused("GET", "/v2/sandboxes/drives/data", "")
	refused("DELETE", "/v2/sandboxes/drives/data?projectId=prj_1", "")
	list := ok[drivesResponse](h, "GET", "/v2/sandboxes/drives?limit=1&cursor=c&sortBy=updatedAt&sortOrder=asc&namePrefix=d", "")
	want := skerry.DriveFilter{Page: skerry.Page{Limit: 1, Cursor: "c", Ascending: true}, SortBy: "updatedAt", NamePrefix: "d"}
	if svc.drives != want || len(list.Drives) != 1 || *list.Pagination.Next != "on" {
		t.Errorf("listed %+v, got %+v", svc.drives, list)
	}

	mounts := map[string]skerry.Mount{"/data": {Drive: "d"}, "/old": {Drive: "e", Mode: skerry.MountSnapshot}}
	const body = `{"mounts":{"/data":{"drive":"d"},"/old":{"drive":"e","mode":"snapshot"}}}`
	refused("POST", "/v3/sandboxes", body)
	refused("PATCH", "/v2/sandboxes/a", body)
	refused("POST", "/v2/sandboxes/a/fork", body)
	for _, got := range []map[string]skerry.Mount{svc.created.Mounts, svc.updated.Mounts, svc.forked.Mounts} {
		if !maps.Equal(got, mounts) {
			t.Errorf("mounts are %+v", got)
		}
	}
	refused("PATCH", "/v2/sandboxes/a", `{}`)
	if svc.updated.Mounts != nil {
		t.Errorf("mounts are %+v", svc.updated.Mounts)
	}
	refused("PATCH", "/v2/sandboxes/a", `{"mounts":{}}`)
	if svc.updated.Mounts == nil {
		t.Error("mounts that are to go stay")
	}

	for body, field := range map[string]string{
		`{"maxSizeBytes":0}`: "maxSizeBytes", `{"maxSizeBytes":-1}`: "maxSizeBytes",
		`{"maxSizeBytes":"1G"}`: "maxSizeBytes", `{"maxSizeBytes":1.5}`: "maxSizeBytes",
	} {
		h.refused("POST", "/v2/sandboxes/drives/d", body, 400, skerry.CodeBadRequest, field)
	}
	h.refused("POST", "/v2/sandboxes/drives/d", `{"region":"iad1"}`, 501, skerry.CodeNotImplemented, "region")
	h.refused("GET", "/v2/sandboxes/drives?sortBy=size", "", 400, skerry.CodeBadRequest, "sortBy")
	for body, field := range map[string]string{
		`{"mounts":[]}`: "mounts", `{"mounts":{"/d":"d"}}`: "mounts./d", `{"mounts":{"/d":{}}}`: "mounts./d.drive",
		`{"mounts":{"/d":{"drive":"d","mode":"write"}}}`: "mounts./d.mode",
	} {
		h.refused("POST", "/v3/sandboxes", body, 400, skerry.CodeBadRequest, field)
	}
}
