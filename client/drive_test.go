package client_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// resource returns what an error of the server is about.
func resource(err error) skerry.Resource {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Resource
	}
	return ""
}

func TestDrives(t *testing.T) {
	s := servertest.New(t)
	c := connect(t, s, client.Options{})
	ctx := t.Context()
	d, err := c.GetOrCreateDrive(ctx, "data", client.DriveOptions{MaxSizeBytes: 1 << 30, Region: "local"})
	if err != nil || d.Name != "data" || d.MaxSizeBytes != 1<<30 {
		t.Fatalf("create: %+v, %v", d, err)
	}
	if body := s.LastBody("POST /v2/sandboxes/drives/"); !strings.Contains(body, `"maxSizeBytes":1073741824`) || !strings.Contains(body, `"region":"local"`) {
		t.Errorf("body %s", body)
	}
	again, err := c.GetOrCreateDrive(ctx, "data", client.DriveOptions{})
	if err != nil || again != d {
		t.Errorf("again: %+v, %v", again, err)
	}
	if got, err := c.GetDrive(ctx, "data"); err != nil || got != d {
		t.Errorf("get: %+v, %v", got, err)
	}
	fork, err := c.ForkDrive(ctx, "data", "another")
	if err != nil || fork.Name != "another" || fork.ParentDriveID != d.ID || fork.MaxSizeBytes != d.MaxSizeBytes {
		t.Errorf("fork: %+v, %v", fork, err)
	}
	if _, err := c.ForkDrive(ctx, "data", "another"); !client.IsConflict(err) {
		t.Errorf("fork to a name that is taken: %v", err)
	}
	if _, err := c.ForkDrive(ctx, "none", "more"); !client.IsNotFound(err) || resource(err) != skerry.ResourceDrive {
		t.Errorf("fork of nothing: %v", err)
	}
	if _, err := c.DeleteDrive(ctx, "another"); err != nil {
		t.Error(err)
	}
	s.Create(t, skerry.CreateParams{Name: "box", Mounts: map[string]skerry.Mount{"/data": {Drive: "data"}}})
	if _, err := c.DeleteDrive(ctx, "data"); !client.IsConflict(err) || !strings.Contains(err.Error(), "box") || resource(err) != skerry.ResourceDrive {
		t.Errorf("delete while attached: %v", err)
	}
	for i := range 4 {
		if _, err := c.GetOrCreateDrive(ctx, fmt.Sprintf("d-%d", i), client.DriveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for d, err := range c.ListDrives(ctx, client.DriveListOptions{Limit: 3, SortBy: "name", Ascending: true, NamePrefix: "d-"}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, d.Name)
	}
	if got := strings.Join(names, " "); got != "d-0 d-1 d-2 d-3" {
		t.Errorf("listed %s", got)
	}
	if _, err := c.DeleteDrive(ctx, "d-0"); err != nil {
		t.Error(err)
	}
	if _, err := c.GetDrive(ctx, "d-0"); !client.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
}
