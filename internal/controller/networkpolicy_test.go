package controller

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

func customPolicy(secret string) *skerry.NetworkPolicy {
	return &skerry.NetworkPolicy{
		Mode: skerry.NetworkCustom,
		Domains: []skerry.DomainRules{{Domain: "api.example.com", Rules: []skerry.NetworkRule{
			{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"authorization": secret}}}},
		}}},
		Deny: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
}

// enforced checks what the session of a sandbox may reach, by every account.
func (l *lab) enforced(what, name string, want *skerry.NetworkPolicy) *skerry.Run {
	l.t.Helper()
	run, err := l.GetSandbox(l.t.Context(), scope, name, false)
	if err != nil {
		l.t.Fatal(err)
	}
	got := l.node.Network(run.Session.ID)
	if !reflect.DeepEqual(got.Policy, want) {
		l.t.Errorf("%s: the node enforces %+v, want %+v", what, got.Policy, want)
	}
	if want := (nodeapi.Owner{TeamID: scope.TeamID, ProjectID: scope.ProjectID, SandboxID: got.Owner.SandboxID, SandboxName: name}); got.Owner != want || want.SandboxID == "" {
		l.t.Errorf("%s: the owner is %+v", what, got.Owner)
	}
	if !reflect.DeepEqual(run.Session.NetworkPolicy, want.Summary()) {
		l.t.Errorf("%s: the session shows %+v", what, run.Session.NetworkPolicy)
	}
	return run
}

func TestNetworkPolicy(t *testing.T) {
	l := newLab(t)
	first, deny := customPolicy("one"), &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	if _, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "box", Policy: first}); err != nil {
		t.Fatal(err)
	}
	run := l.enforced("created", "box", first)
	// A session's own policy is not the sandbox's.
	session, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, deny)
	if err != nil || session.NetworkPolicy.Mode != skerry.NetworkDenyAll {
		t.Fatalf("%+v, %v", session, err)
	}
	run = l.enforced("set", "box", deny)
	if run.Sandbox.NetworkPolicy.Mode != skerry.NetworkCustom {
		t.Errorf("the sandbox shows %+v", run.Sandbox.NetworkPolicy)
	}
	l.restart()
	l.enforced("after a restart of the service", "box", deny)
	fork, err := l.ForkSandbox(t.Context(), scope, "box", skerry.ForkParams{Name: "fork"})
	if err != nil {
		t.Fatal(err)
	}
	l.enforced("forked", "fork", first)
	if _, err := l.ForkSandbox(t.Context(), scope, "box", skerry.ForkParams{Name: "closed", Policy: deny}); err != nil {
		t.Fatal(err)
	}
	l.enforced("forked with another", "closed", deny)
	// The next session has the sandbox's.
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, deny); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("set on a stopped session: %v", err)
	}
	if _, err := l.GetSandbox(t.Context(), scope, "box", true); err != nil {
		t.Fatal(err)
	}
	l.enforced("resumed", "box", first)
	// An update is for the session that runs and for later ones.
	second := customPolicy("two")
	if _, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: second}); err != nil {
		t.Fatal(err)
	}
	run = l.enforced("updated", "box", second)
	l.enforced("its fork", "fork", first)
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: deny}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.GetSandbox(t.Context(), scope, "box", true); err != nil {
		t.Fatal(err)
	}
	l.enforced("updated while it was stopped", "box", deny)
	if _, err := l.SetNetworkPolicy(t.Context(), skerry.Scope{TeamID: "team_2", ProjectID: "prj_2"}, fork.Session.ID, deny); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("set by a stranger: %v", err)
	}
}

// TestNetworkPolicyNotEnforced has the node refuse: then the old one counts.
func TestNetworkPolicyNotEnforced(t *testing.T) {
	l := newLab(t)
	first := customPolicy("one")
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "box", Policy: first})
	if err != nil {
		t.Fatal(err)
	}
	l.node.OnSetNetwork(func(nodeapi.NetworkSpec) error { return errors.New("no rules today") })
	if _, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, skerry.AllowAll()); err == nil || !strings.Contains(err.Error(), "no rules today") {
		t.Errorf("set: %v", err)
	}
	l.enforced("refused", "box", first)
	l.node.OnSetNetwork(nil)
	bad := customPolicy("a\nb")
	for what, err := range map[string]error{
		"networkPolicy.allow.api.example.com[0].transform[0].headers.authorization": func() error {
			_, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: bad})
			return err
		}(),
		"allow.api.example.com[0].transform[0].headers.authorization": func() error {
			_, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, bad)
			return err
		}(),
	} {
		if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Field != what || strings.Contains(e.Error(), "a\nb") {
			t.Errorf("bad policy: %v, want one about %s", err, what)
		}
	}
}

// TestStoredPolicyComesToBeEnforced has the node refuse a policy that the store has
// already.
func TestStoredPolicyComesToBeEnforced(t *testing.T) {
	l := newLab(t)
	// Each request has a policy of its own, as each is checked in place.
	first := func() *skerry.NetworkPolicy { return customPolicy("one") }
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "box", Policy: first()})
	if err != nil {
		t.Fatal(err)
	}
	noLists := func(n nodeapi.NetworkSpec) error {
		if n.Policy.Mode == skerry.NetworkCustom {
			return errors.New("no rules today")
		}
		return nil
	}
	enforces := func(want *skerry.NetworkPolicy) func() bool {
		return func() bool { return reflect.DeepEqual(l.node.Network(run.Session.ID).Policy, want) }
	}
	second := customPolicy("two")
	second.Domains = nil // stricter
	l.node.OnSetNetwork(noLists)
	if _, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: second}); skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), "is closed until") {
		t.Errorf("an update that cannot be enforced: %v", err)
	}
	if got := l.node.Network(run.Session.ID).Policy.Mode; got != skerry.NetworkDenyAll {
		t.Errorf("meanwhile the node enforces %s", got)
	}
	l.node.OnSetNetwork(nil)
	l.eventually("the policy to be enforced", enforces(second))
	l.eventually("the session to show it", func() bool {
		run, err := l.GetSandbox(t.Context(), scope, "box", false)
		return err == nil && reflect.DeepEqual(run.Session.NetworkPolicy, second.Summary())
	})
	// Nobody is told that a network is closed that is not.
	l.node.OnSetNetwork(func(nodeapi.NetworkSpec) error { return errors.New("no rules at all") })
	if _, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: first()}); skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), "previous policy") {
		t.Errorf("an update of a network that cannot be closed: %v", err)
	}
	// One that is set meanwhile counts instead.
	l.node.OnSetNetwork(noLists)
	if _, err := l.UpdateSandbox(t.Context(), scope, "box", skerry.UpdateParams{Policy: first()}); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("an update that cannot be enforced: %v", err)
	}
	if _, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, skerry.AllowAll()); err != nil {
		t.Fatal(err)
	}
	l.node.OnSetNetwork(nil)
	live := l.sessionOf(run.Sandbox.ID)
	owed := live.unenforced.Load()
	if owed != nil || !enforces(skerry.AllowAll())() {
		t.Errorf("%+v is owed, and the node enforces %+v", owed, l.node.Network(run.Session.ID).Policy)
	}
}
