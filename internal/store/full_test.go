package store

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// Values with every field set that is stored. The frozen documents and
// databases in testdata were made of them.

func ptr[T any](v T) *T { return &v }

func at(ms int64) skerry.Time { return skerry.FromMillis(1790000000000 + ms) }

const second = skerry.Duration(time.Second)

var fullScope = skerry.Scope{TeamID: "team_full", ProjectID: "prj_full"}

func fullPolicy() *skerry.NetworkPolicy {
	match := &skerry.RequestMatch{
		Path: &skerry.Matcher{StartsWith: ptr("/v1")}, Method: []string{"GET", "POST"},
		QueryString: []skerry.PairMatcher{{Key: &skerry.Matcher{Exact: ptr("q")}, Value: &skerry.Matcher{Regex: ptr("^a+$")}}},
		Headers:     []skerry.PairMatcher{{Key: &skerry.Matcher{Exact: ptr("x-key")}, Value: &skerry.Matcher{Exact: ptr("matched-secret")}}},
	}
	return &skerry.NetworkPolicy{
		Mode: skerry.NetworkCustom,
		Domains: []skerry.DomainRules{
			{Domain: "plain.example.com"},
			{Domain: "api.example.com", Rules: []skerry.NetworkRule{
				{Match: match, Transform: []skerry.HeaderTransform{{Headers: map[string]string{"authorization": "Bearer header-secret"}}}},
				{Transform: []skerry.HeaderTransform{}},
				{Match: match, ForwardURL: "https://proxy.example.com/in"},
				{Match: match, Response: &skerry.RuleResponse{
					StatusCode: 403, Headers: map[string]string{"x-why": "policy"}, Body: ptr("no"), ContentType: "text/plain"}},
			}},
		},
		Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}
}

func fullSandbox() *skerry.Sandbox {
	s := &skerry.Sandbox{
		ID: "sb_full", Scope: fullScope, Name: "full", Persistent: true, Region: "local", VCPUs: 4, MemoryMB: 8192,
		Runtime: "node24", Image: "registry.example.com/app:1", Timeout: 300 * second,
		Env: map[string]string{"API_KEY": "env-secret"}, Tags: map[string]string{"kind": "test", "for": "storage"},
		Source: &skerry.Source{Type: "git", URL: "https://example.com/r.git", Depth: 1, Revision: "main",
			Username: "user", Password: "source-secret", SnapshotID: "snap_source"},
		Ports: []skerry.PublishedPort{
			{Port: 3000, Subdomain: "abcdefghijklmnopqrstuvwxyz", HostPort: 31000},
			{Port: 8080, Subdomain: "zyxwvutsrqponmlkjihgfedcba", Key: []byte("port-secret")},
		},
		SnapshotExpiration: ptr(86400 * second),
		Retention:          &skerry.Retention{Count: 3, Expiration: ptr(3600 * second), DeleteEvicted: ptr(false)},
		Mounts: map[string]skerry.Mount{
			"/data": {Drive: "data", Mode: skerry.MountReadWrite}, "/ref": {Drive: "ref", Mode: skerry.MountSnapshot}},
		CurrentSnapshotID: "snap_full", CurrentSessionID: "sbx_full", Status: skerry.StatusRunning, StatusUpdatedAt: at(1),
		Cwd: "/vercel/sandbox", CreatedAt: at(2), UpdatedAt: at(3), ExpiresAt: at(4), PausedAt: at(5), Idle: skerry.IdlePause, OIDCAudience: "sts.amazonaws.com",
		TotalDuration: 7 * second, TotalActiveCPU: 5 * second, TotalEgressBytes: 11, TotalIngressBytes: 13, TotalResidentMBSeconds: 29,
	}
	s.SetPolicy(fullPolicy())
	return s
}

// sandboxBeforeAudience and the other ones are what earlier versions have stored of it.
func sandboxBeforeAudience() *skerry.Sandbox {
	s := fullSandbox()
	s.OIDCAudience = ""
	return s
}

func sandboxBeforeResident() *skerry.Sandbox {
	s := sandboxBeforeAudience()
	s.TotalResidentMBSeconds = 0
	return s
}

func sandboxBeforeIdle() *skerry.Sandbox {
	s := sandboxBeforeResident()
	s.Idle = ""
	return s
}

func sessionBeforeResident() *skerry.Session {
	s := fullSession()
	s.ResidentMBSeconds, s.Saving = 0, nil
	return s
}

func fullSession() *skerry.Session {
	s := &skerry.Session{
		ID: "sbx_full", SandboxID: "sb_full", Scope: fullScope, SandboxName: "full", VCPUs: 4, MemoryMB: 8192, Region: "local",
		Runtime: "node24", Image: "registry.example.com/app:1", Timeout: 600 * second, Cwd: "/vercel/sandbox", Persistent: true,
		PausedAt: at(5), ImageDigest: "sha256:0123", SourceSnapshotID: "snap_source", Status: skerry.StatusRunning, Reason: "it was asked for",
		RequestedAt: at(20), StartedAt: at(21), RequestedStopAt: at(22), StoppedAt: at(23), AbortedAt: at(24), SnapshottedAt: at(25),
		Duration: 8 * second, CreatedAt: at(26), UpdatedAt: at(27), ActiveCPU: 3 * second, ResidentMBSeconds: 23,
		Network: &skerry.NetworkTransfer{Ingress: 17, Egress: 19},
		Saving:  &skerry.SessionSaving{Method: skerry.CreatedManually, Memory: true, Expiration: ptr(60 * second)},
	}
	s.SetPolicy(fullPolicy())
	return s
}

func fullCommand() *skerry.Command {
	return &skerry.Command{ID: "cmd_full", SessionID: "sbx_full", Name: "psql", Args: []string{"--password=arg-secret", ""}, ArgsTruncated: true,
		Cwd: "/tmp", ExitCode: ptr(3), Duration: 2 * second, StartedAt: at(30)}
}

func fullSnapshot() *skerry.Snapshot {
	return &skerry.Snapshot{
		ID: "snap_full", Scope: fullScope, SandboxID: "sb_full", SourceSessionID: "sbx_full", SandboxName: "full", ParentID: "snap_source",
		Region: "local", Status: skerry.SnapshotCreated, SizeBytes: 4096, CreationMethod: skerry.CreatedAtStop, Memory: true,
		ExpiresAt: at(40), CreatedAt: at(41), UpdatedAt: at(42), LastUsedAt: at(43),
		Base:     skerry.Base{Image: "registry.example.com/app:1", Digest: "sha256:0123", Runtime: "node24", VCPUs: 4, MemoryMB: 8192},
		Manifest: "manifests/0123",
	}
}

// fullDrive is not attached: that is not in the drive.
func fullDrive() *skerry.Drive {
	return &skerry.Drive{ID: "drv_full", Scope: fullScope, Name: "data", ProjectID: "prj_full", Region: "local", MaxSizeBytes: 1 << 30,
		ParentDriveID: "drv_parent", RootDriveID: "drv_root", CreatedAt: at(50), UpdatedAt: at(51)}
}

// TestFullValuesAreFull: a field that is added to a type of the root package has
// to be set above, which then shows whether it is stored, or to be listed here.
func TestFullValuesAreFull(t *testing.T) {
	for _, test := range []struct {
		value     any
		notStored string
	}{
		{*fullSandbox(), "Routes IdleState"},
		{*fullSession(), "DriveIDs IdleState"}, // the drives have the ids, the node has the state
		{*fullCommand(), ""},
		{*fullSnapshot(), ""},
		{*fullDrive(), "CurrentSessionID CurrentSandboxName"}, // the other way round
		{*fullPolicy(), ""},
	} {
		v := reflect.ValueOf(test.value)
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			listed := strings.Contains(" "+test.notStored+" ", " "+name+" ")
			if v.Field(i).IsZero() != listed {
				t.Errorf("%s.%s: set %v, listed as not stored %v", v.Type(), name, !v.Field(i).IsZero(), listed)
			}
		}
	}
	// Of the smaller types one value need not have all, but together they do.
	seen := map[string]bool{}
	for _, v := range []any{fullSandbox(), fullSession(), fullSnapshot(), fullPolicy()} {
		fieldsSet(reflect.ValueOf(v), seen)
	}
	for _, v := range []any{
		skerry.Source{}, skerry.PublishedPort{}, skerry.Retention{}, skerry.Mount{}, skerry.Base{}, skerry.NetworkTransfer{},
		skerry.DomainRules{}, skerry.NetworkRule{}, skerry.HeaderTransform{}, skerry.RuleResponse{}, skerry.RequestMatch{}, skerry.PairMatcher{},
		skerry.Matcher{}, skerry.NetworkPolicySummary{}, skerry.InjectionRule{}, skerry.ForwardRule{}, skerry.ResponseRule{},
	} {
		for i := range reflect.TypeOf(v).NumField() {
			if name := fmt.Sprintf("%T.%s", v, reflect.TypeOf(v).Field(i).Name); !seen[name] {
				t.Errorf("no full value has %s", name)
			}
		}
	}
}

// fieldsSet adds the fields that are set in a value, and in what it holds.
func fieldsSet(v reflect.Value, seen map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fieldsSet(v.Elem(), seen)
		}
	case reflect.Slice:
		for i := range v.Len() {
			fieldsSet(v.Index(i), seen)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			fieldsSet(v.MapIndex(k), seen)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && !v.Field(i).IsZero() {
				seen[fmt.Sprintf("%s.%s", v.Type(), f.Name)] = true
				fieldsSet(v.Field(i), seen)
			}
		}
	}
}
