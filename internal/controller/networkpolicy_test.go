package controller

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
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
	got := l.node.network(run.Session.ID)
	if !reflect.DeepEqual(got.Policy, want) {
		l.t.Errorf("%s: the node enforces %+v, want %+v", what, got.Policy, want)
	}
	if got.Claims["sandbox_id"] != run.Session.ID || got.Claims["sandbox_name"] != name || got.Claims["team_id"] != scope.TeamID || got.Claims["project_id"] != scope.ProjectID {
		l.t.Errorf("%s: claims %v", what, got.Claims)
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
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID); err != nil {
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
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID); err != nil {
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
	l.node.netErr = errors.New("no rules today")
	if _, err := l.SetNetworkPolicy(t.Context(), scope, run.Session.ID, skerry.AllowAll()); err == nil || !strings.Contains(err.Error(), "no rules today") {
		t.Errorf("set: %v", err)
	}
	l.enforced("refused", "box", first)
	l.node.netErr = nil
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
