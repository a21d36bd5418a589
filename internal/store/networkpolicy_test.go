package store

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestNetworkPolicyIsSealed looks for a policy's secret in the files.
func TestNetworkPolicyIsSealed(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "Bearer 5ec7e7-0f-a-p011cy"
	policy := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: "api.example.com", Rules: []skerry.NetworkRule{
		{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"authorization": secret}}}},
		{Transform: []skerry.HeaderTransform{}},
	}}}}
	scope := skerry.Scope{TeamID: "team_1", ProjectID: "prj_1"}
	box := &skerry.Sandbox{ID: "box_1", Scope: scope, Name: "box", CurrentSessionID: "sbx_1"}
	box.SetPolicy(policy)
	run := &skerry.Session{ID: "sbx_1", SandboxID: box.ID, Scope: scope, Status: skerry.StatusRunning}
	run.SetPolicy(policy)
	if err := s.CreateSandbox(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	gotBox, err := s.Sandbox(t.Context(), box.ID)
	if err != nil || !reflect.DeepEqual(gotBox.Policy, policy) || !reflect.DeepEqual(gotBox.NetworkPolicy, policy.Summary()) {
		t.Errorf("the sandbox has %+v, %v", gotBox, err)
	}
	live, err := s.LiveSessions(t.Context())
	if err != nil || len(live) != 1 || !reflect.DeepEqual(live[0].Policy, policy) {
		t.Errorf("the session has %+v, %v", live, err)
	}
	run.Status = skerry.StatusStopped
	if err := s.SaveSession(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	ended, err := s.Session(t.Context(), scope, run.ID)
	if err != nil || ended.Policy != nil || !reflect.DeepEqual(ended.NetworkPolicy, policy.Summary()) {
		t.Errorf("the ended session has %+v, %v", ended, err)
	}
	// One of an earlier version could reach all; one that was written without a
	// policy, nothing.
	if _, err := s.write.Exec("UPDATE sessions SET ended = 0, policy = NULL, document = replace(document, 'stopped', 'running')"); err != nil {
		t.Fatal(err)
	}
	if live, err = s.LiveSessions(t.Context()); err != nil || len(live) != 1 || live[0].Policy.Mode != skerry.NetworkAllowAll {
		t.Errorf("the earlier version's session has %+v, %v", live, err)
	}
	run.Status, run.Policy = skerry.StatusRunning, nil
	if err := s.SaveSession(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	if live, err = s.LiveSessions(t.Context()); err != nil || len(live) != 1 || live[0].Policy.Mode != skerry.NetworkDenyAll {
		t.Errorf("the session without a policy has %+v, %v", live, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(filepath.Join(dir, f.Name())); err != nil || bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s tells the secret, %v", f.Name(), err)
		}
	}
}
