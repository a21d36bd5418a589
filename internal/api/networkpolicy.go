package api

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/skerry-dev/skerry"
)

// policyRequest is a network policy as a client writes it. Unlike elsewhere, a
// field that is not known is refused: a policy must not mean less than whoever
// wrote it believes.
type policyRequest struct {
	Mode    skerry.NetworkMode `json:"mode,omitempty" enum:"allow-all|deny-all|custom" doc:"allow-all or deny-all, without other fields; custom, or nothing, with them."`
	Allow   *allowRequest      `json:"allow,omitempty" doc:"Domains that may be reached by HTTPS on port 443 and HTTP on port 80: a list, or an object with rules for each. A label * stands for one label, as the first for one or more, alone for every domain. Of several that match a request, the most specific decides."`
	Subnets *subnetsRequest    `json:"subnets,omitempty" doc:"Networks."`

	// checked is the policy that this says.
	checked *skerry.NetworkPolicy `json:"-"`
}

type subnetsRequest struct {
	Allow []string `json:"allow,omitempty" doc:"Networks in CIDR notation that may be reached by every protocol, whatever the domain."`
	Deny  []string `json:"deny,omitempty" doc:"Networks in CIDR notation that may not be reached, whatever is allowed."`
}

// allowRequest is a list of domains, or an object with the rules of each.
type allowRequest struct {
	domains []skerry.DomainRules
}

// bindTree implements treeBinder.
func (r *policyRequest) bindTree(path string, v any) error {
	if err := refuseUnknown(path, v, reflect.TypeFor[policyRequest]()); err != nil {
		return err
	}
	if err := bindStruct(path, v, reflect.ValueOf(r).Elem()); err != nil {
		return err
	}
	var err error
	if r.checked, err = r.parse(path); err != nil {
		return err
	}
	return r.checked.Check(path)
}

// bindTree implements treeBinder. An object has no order: that of the domains
// is without meaning.
func (r *allowRequest) bindTree(path string, v any) error {
	if list, ok := v.([]any); ok {
		var names []string
		if err := bindValue(path, list, reflect.ValueOf(&names).Elem()); err != nil {
			return err
		}
		for _, name := range names {
			r.domains = append(r.domains, skerry.DomainRules{Domain: name})
		}
		return nil
	}
	members, ok := v.(map[string]any)
	if !ok {
		return wrongType(path, "an array or an object", v)
	}
	rules := map[string][]skerry.NetworkRule{}
	if err := refuseUnknown(path, members, reflect.TypeOf(rules)); err != nil {
		return err
	}
	if err := bindValue(path, members, reflect.ValueOf(&rules).Elem()); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		r.domains = append(r.domains, skerry.DomainRules{Domain: name, Rules: rules[name]})
	}
	return nil
}

// policy returns the policy of a request that was bound; nil for none.
func (r *policyRequest) policy() *skerry.NetworkPolicy {
	if r == nil {
		return nil
	}
	return r.checked
}

func (r *policyRequest) parse(path string) (*skerry.NetworkPolicy, error) {
	p := &skerry.NetworkPolicy{Mode: r.Mode}
	if p.Mode == "" {
		p.Mode = skerry.NetworkCustom
	}
	if p.Mode != skerry.NetworkCustom && (r.Allow != nil || r.Subnets != nil) {
		return nil, skerry.Invalid(member(path, "mode"), "%q cannot be combined with allow or subnets", p.Mode)
	}
	if r.Allow != nil {
		p.Domains = r.Allow.domains
	}
	if r.Subnets == nil {
		return p, nil
	}
	path = member(path, "subnets")
	var err error
	if p.Allow, err = parseCIDRs(member(path, "allow"), r.Subnets.Allow); err != nil {
		return nil, err
	}
	p.Deny, err = parseCIDRs(member(path, "deny"), r.Subnets.Deny)
	return p, err
}

func parseCIDRs(path string, list []string) (out []netip.Prefix, err error) {
	if len(list) > skerry.MaxPolicyCIDRs {
		return nil, skerry.Invalid(path, "has %d networks, more than %d", len(list), skerry.MaxPolicyCIDRs)
	}
	for i, s := range list {
		p, err := skerry.ParseCIDR(index(path, i), s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// refuseUnknown refuses members that the structs of t do not have.
func refuseUnknown(path string, v any, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case []any:
		if t.Kind() != reflect.Slice {
			return nil // the wrong type, which binding says
		}
		for i, item := range v {
			if err := refuseUnknown(index(path, i), item, t.Elem()); err != nil {
				return err
			}
		}
	case map[string]any:
		return refuseUnknownMembers(path, v, t)
	}
	return nil
}

func refuseUnknownMembers(path string, members map[string]any, t reflect.Type) error {
	types := map[string]reflect.Type{}
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if name := fieldName(t.Field(i)); name != "-" {
				types[name] = t.Field(i).Type
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		switch inner, known := types[name]; {
		case t.Kind() == reflect.Map:
			inner = t.Elem()
			fallthrough
		case known:
			if inner == reflect.TypeFor[*allowRequest]() {
				continue // binds its own
			}
			if err := refuseUnknown(member(path, name), members[name], inner); err != nil {
				return err
			}
		case t.Kind() == reflect.Struct && !(path == "" && (name == "projectId" || name == "teamId")):
			return skerry.Invalid(member(path, name), "is not a field of a network policy")
		}
	}
	return nil
}

// setNetworkPolicy changes what a running session may reach.
func (s *Server) setNetworkPolicy(c *call) error {
	var req policyRequest
	if err := c.body(&req); err != nil {
		return err
	}
	session, err := s.service.SetNetworkPolicy(c.r.Context(), c.scope, c.path("session"), req.policy())
	if err != nil {
		return err
	}
	return c.reply(pauseResponse{Session: c.session(session)})
}

type networkEventsQuery struct {
	Limit int `json:"limit" min:"1" max:"1000" doc:"How many of the newest, 100 by default."`
}

type networkEventsResponse struct {
	Events []skerry.NetworkEvent `json:"events"`
}

// listNetworkEvents tells what the proxy has decided about a session.
func (s *Server) listNetworkEvents(c *call) error {
	q := networkEventsQuery{Limit: 100}
	if err := c.query(&q); err != nil {
		return err
	}
	list, err := s.service.NetworkEvents(c.r.Context(), c.scope, c.path("session"), q.Limit)
	if err != nil {
		return err
	}
	return c.reply(networkEventsResponse{Events: notNil(list)})
}
