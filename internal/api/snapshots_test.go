package api

import (
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

func TestStateFieldsReachTheService(t *testing.T) {
	svc := &stub{err: skerry.Errorf(skerry.CodeNotImplemented, "not here")}
	h := serve(t, svc)
	refused := func(method, path, body string) {
		t.Helper()
		h.refused(method, path, body, 501, skerry.CodeNotImplemented, "")
	}
	refused("POST", "/v3/sandboxes", `{"persistent":false,"snapshotExpiration":0,
		"keepLastSnapshots":{"count":3,"expiration":60000,"deleteEvicted":false},"source":{"type":"snapshot","snapshotId":"snap_000000000000000000000001"}}`)
	c := svc.created
	if *c.Persistent || *c.SnapshotExpiration != 0 || c.Retention.Count != 3 || c.Retention.Expiration.Std() != time.Minute || *c.Retention.DeleteEvicted || c.Source.SnapshotID != "snap_000000000000000000000001" {
		t.Errorf("created with %+v", c)
	}
	refused("POST", "/v3/sandboxes", `{}`)
	if c := svc.created; c.Persistent != nil || c.SnapshotExpiration != nil || c.Retention != nil {
		t.Errorf("created with %+v", c)
	}
	refused("PATCH", "/v2/sandboxes/a", `{"keepLastSnapshots":null,"currentSnapshotId":"snap_2","persistent":true}`)
	if u := svc.updated; !u.ClearRetention || u.Retention != nil || *u.CurrentSnapshotID != "snap_2" || !*u.Persistent {
		t.Errorf("updated with %+v", u)
	}
	refused("PATCH", "/v2/sandboxes/a", `{}`)
	if u := svc.updated; u.ClearRetention || u.CurrentSnapshotID != nil {
		t.Errorf("updated with %+v", u)
	}
	refused("POST", "/v2/sandboxes/a/fork?projectId=prj_1", `{"name":"b","live":true,"resources":{"vcpus":4},"tags":{}}`)
	if f := svc.forked; f.Name != "b" || !f.Live || *f.VCPUs != 4 || f.Tags == nil || f.Env != nil {
		t.Errorf("forked with %+v", f)
	}
	// The public clients send no body when there is nothing to say.
	refused("POST", "/v2/sandboxes/sessions/s/snapshot", "")
	if svc.taken.Expiration != nil {
		t.Errorf("taken with %+v", svc.taken)
	}
	refused("POST", "/v2/sandboxes/sessions/s/snapshot", `{"expiration":0}`)
	if e := svc.taken.Expiration; e == nil || *e != 0 {
		t.Errorf("taken with %+v", svc.taken)
	}
	for body, field := range map[string]string{
		`{"keepLastSnapshots":{}}`:                            "keepLastSnapshots.count",
		`{"keepLastSnapshots":{"count":11}}`:                  "keepLastSnapshots.count",
		`{"keepLastSnapshots":{"count":1,"expiration":"1d"}}`: "keepLastSnapshots.expiration",
		`{"snapshotExpiration":"never"}`:                      "snapshotExpiration",
		`{"persistent":1}`:                                    "persistent",
		`{"source":{"type":"snapshot"}}`:                      "source.snapshotId",
		`{"image":"a","source":{"type":"snapshot","snapshotId":"snap_000000000000000000000001"}}`: "image",
	} {
		h.refused("POST", "/v3/sandboxes", body, 400, skerry.CodeBadRequest, field)
	}
	h.refused("GET", "/v2/sandboxes/snapshots/tree", "", 400, skerry.CodeBadRequest, "snapshotId")
	h.refused("POST", "/v2/sandboxes/a/fork", `{"name":"snapshots"}`, 400, skerry.CodeBadRequest, "name")
}
