package store

import (
	"reflect"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestNetworkPolicyIsSealed looks for a policy's secret in the files.
func TestNetworkPolicyIsSealed(t *testing.T) { onEach(t, testNetworkPolicyIsSealed) }

func testNetworkPolicyIsSealed(t *testing.T, openIn opener) {
	dir := t.TempDir()
	s := openIn(t, dir)
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
	if _, _, err := s.UpdateSession(t.Context(), run.ID, func(_ *skerry.Sandbox, r *skerry.Session) error {
		r.Status = skerry.StatusStopped
		return nil
	}); err != nil {
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
	if _, _, err := s.UpdateSession(t.Context(), run.ID, func(_ *skerry.Sandbox, r *skerry.Session) error {
		r.Status, r.Policy = skerry.StatusRunning, nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if live, err = s.LiveSessions(t.Context()); err != nil || len(live) != 1 || live[0].Policy.Mode != skerry.NetworkDenyAll {
		t.Errorf("the session without a policy has %+v, %v", live, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotHold(t, dir, secret)
}
