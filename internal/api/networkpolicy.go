package api

import (
	"net/netip"
	"reflect"

	"github.com/skerry-dev/skerry"
)

// policyRequest is a network policy in a request. Unlike in other requests, an unknown
// field is refused: a policy must not be weaker than its author believes.
type policyRequest struct {
	Mode    skerry.NetworkMode `json:"mode,omitempty" enum:"allow-all|deny-all|custom" doc:"allow-all or deny-all, without any other field. For a policy with other fields: custom, or absent."`
	Allow   *allowRequest      `json:"allow,omitempty" doc:"Domains that may be reached over HTTPS on port 443 and HTTP on port 80: a list, or an object with rules for each domain. A label * matches one label; as the first label it matches one or more; the pattern * alone matches every domain. If several patterns match a request, the most specific one is used."`
	Subnets *subnetsRequest    `json:"subnets,omitempty" doc:"Allowed and denied networks."`

	// parsed is the policy of the request. The service validates it.
	parsed *skerry.NetworkPolicy `json:"-"`
}

type subnetsRequest struct {
	Allow []string `json:"allow,omitempty" doc:"Networks in CIDR notation that may be reached over any protocol, for any domain."`
	Deny  []string `json:"deny,omitempty" doc:"Networks in CIDR notation that may never be reached, even if they or a domain are allowed."`
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
	r.parsed, err = r.parse(path)
	return err
}

// bindTree implements treeBinder. The order of the domains has no meaning, but responses
// have the same.
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
	o, ok := v.(*jsonObject)
	if !ok {
		return wrongType(path, "an array or an object", v)
	}
	rules := map[string][]skerry.NetworkRule{}
	if err := refuseUnknown(path, o, reflect.TypeOf(rules)); err != nil {
		return err
	}
	if err := bindValue(path, o, reflect.ValueOf(&rules).Elem()); err != nil {
		return err
	}
	for _, name := range o.names {
		r.domains = append(r.domains, skerry.DomainRules{Domain: name, Rules: rules[name]})
	}
	return nil
}

// policy returns the policy of a request, nil if it has none.
func (r *policyRequest) policy() *skerry.NetworkPolicy {
	if r == nil {
		return nil
	}
	return r.parsed
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
	for i, s := range list {
		p, err := skerry.ParseCIDR(index(path, i), s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// refuseUnknown refuses members of v that the type t does not have.
func refuseUnknown(path string, v any, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case []any:
		if t.Kind() != reflect.Slice {
			return nil // a wrong type, which binding refuses
		}
		for i, item := range v {
			if err := refuseUnknown(index(path, i), item, t.Elem()); err != nil {
				return err
			}
		}
	case *jsonObject:
		return refuseUnknownMembers(path, v, t)
	}
	return nil
}

func refuseUnknownMembers(path string, o *jsonObject, t reflect.Type) error {
	types := map[string]reflect.Type{}
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if name := fieldName(t.Field(i)); name != "-" {
				types[name] = t.Field(i).Type
			}
		}
	}
	for _, name := range o.names {
		switch inner, known := types[name]; {
		case t.Kind() == reflect.Map:
			inner = t.Elem()
			fallthrough
		case known:
			if inner == reflect.TypeFor[*allowRequest]() {
				continue // its bindTree does that
			}
			if err := refuseUnknown(member(path, name), o.members[name], inner); err != nil {
				return err
			}
		case t.Kind() == reflect.Struct && !(path == "" && (name == "projectId" || name == "teamId")):
			return skerry.Invalid(member(path, name), "is not a field of a network policy")
		}
	}
	return nil
}

// setNetworkPolicy changes the network policy of a running session.
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

// maxEvents limits the events of one answer. A session keeps two MiB of them, some
// ten times as many.
const maxEvents = 1000

type networkEventsQuery struct {
	Limit int `json:"limit" min:"1" max:"1000" doc:"Number of newest events to return; 100 by default."`
}

type networkEventsResponse struct {
	Events []skerry.NetworkEvent `json:"events"`
}

// listNetworkEvents lists the network events of a session.
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
