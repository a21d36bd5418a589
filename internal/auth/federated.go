package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/store"
)

// issuerFormat is the format of the documents of issuers that this version writes.
const issuerFormat = 1

// issuerDocument is the stored form of an issuer.
type issuerDocument struct {
	Format int `json:"format"`
	federation.Issuer
}

// federated authenticates a token of another issuer.
func (a *Auth) federated(ctx context.Context, token string) (*skerry.Identity, error) {
	for {
		generation := a.generation()
		who, err := a.verifier.Verify(ctx, token)
		if err != nil {
			return nil, err
		}
		id, err := a.granted(ctx, who, token)
		if generation == a.generation() { // else the rule may be another one by now
			return id, err
		}
	}
}

// granted returns what a rule grants.
func (a *Auth) granted(ctx context.Context, who *federation.Identity, token string) (*skerry.Identity, error) {
	team, err := a.team(ctx, who.Team)
	if err != nil {
		return nil, unresolved("team", who, err)
	}
	grant := skerry.Grant{Team: *team, Role: who.Role, TeamAlias: who.OwnerID, ProjectAlias: who.ProjectID}
	if who.Project != "" {
		if grant.Project, err = a.Project(ctx, team.ID, who.Project); err != nil {
			return nil, unresolved("project", who, err)
		}
	}
	sum := sha256.Sum256([]byte(token))
	return &skerry.Identity{
		TokenID: "jwt_" + hex.EncodeToString(sum[:12]), TokenName: who.Principal, ExpiresAt: skerry.At(who.ExpiresAt),
		Rule: a.ruleDigest(who.IssuerID, who.RuleID), Grants: []skerry.Grant{grant},
	}, nil
}

// unresolved is the error of a rule that leads to a team or a project that does not exist.
func unresolved(what string, who *federation.Identity, err error) error {
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return err
	}
	ref := map[string]string{"team": who.Team, "project": who.Project}[what]
	return skerry.Errorf(skerry.CodeForbidden, "the rule %s of the issuer %s leads to the %s %q, which does not exist", who.RuleID, who.IssuerID, what, ref)
}

// ruleDigest is of a rule that is in force, "" if there is none.
func (a *Auth) ruleDigest(issuer, rule string) string {
	a.issuersMu.Lock()
	defer a.issuersMu.Unlock()
	return a.rules[issuer+"/"+rule]
}

// generation counts the changes of the issuers.
func (a *Auth) generation() int {
	a.issuersMu.Lock()
	defer a.issuersMu.Unlock()
	return a.changes
}

// inForce reports whether the rule with a digest is in force.
func (a *Auth) inForce(digest string) bool {
	a.issuersMu.Lock()
	defer a.issuersMu.Unlock()
	for _, d := range a.rules {
		if d == digest {
			return true
		}
	}
	return false
}

// LoadIssuers puts the stored issuers in force. One that cannot be used is logged.
func (a *Auth) LoadIssuers(ctx context.Context, log *slog.Logger) error {
	all, err := a.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := a.verifier.Validate(i); err != nil {
			log.Error("an issuer of tokens is not used", "issuer", i.ID, "error", err)
		}
	}
	return a.use(all)
}

// usable returns the issuers that this version can use. One that it cannot, as another version
// has stored it, must not keep the others from being used, changed or removed.
func (a *Auth) usable(all []federation.Issuer) []federation.Issuer {
	return slices.DeleteFunc(slices.Clone(all), func(i federation.Issuer) bool { return a.verifier.Validate(i) != nil })
}

// use puts issuers in force.
func (a *Auth) use(all []federation.Issuer) error {
	all = a.usable(all)
	rules := map[string]string{}
	for _, i := range all {
		without := i
		without.Rules = nil
		for _, r := range i.Rules {
			b, err := json.Marshal([]any{without, r})
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			rules[i.ID+"/"+r.ID] = hex.EncodeToString(sum[:])
		}
	}
	a.issuersMu.Lock()
	defer a.issuersMu.Unlock()
	if err := a.verifier.Set(all); err != nil {
		return err
	}
	a.rules = rules
	a.changes++
	return nil
}

// Issuers returns the issuers whose tokens are accepted, by id.
func (a *Auth) Issuers(ctx context.Context) ([]federation.Issuer, error) {
	stored, err := a.store.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]federation.Issuer, 0, len(stored))
	for _, s := range stored {
		var d issuerDocument
		if err := json.Unmarshal([]byte(s.Document), &d); err != nil || d.Format < 1 || d.Format > issuerFormat {
			return nil, errors.Join(fmt.Errorf("cannot read issuer %s in the database (format %d)", s.ID, d.Format), err)
		}
		all = append(all, d.Issuer)
	}
	return all, nil
}

// Probe returns how many keys an issuer has now.
func (a *Auth) Probe(ctx context.Context, i federation.Issuer) (keys int, err error) {
	return a.verifier.Probe(ctx, i)
}

// ChangeIssuer reads an issuer, has it changed, writes it and puts it in force. If there is
// none with that id, it is new. Nothing changes if the result is not valid.
func (a *Auth) ChangeIssuer(ctx context.Context, id string, change func(i *federation.Issuer, isNew bool) error) (*federation.Issuer, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	all, err := a.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(all, func(i federation.Issuer) bool { return i.ID == id })
	isNew := n < 0
	if isNew {
		n, all = len(all), append(all, federation.Issuer{ID: id})
	}
	one := &all[n]
	if err := change(one, isNew); err != nil {
		return nil, err
	}
	if err := a.verifier.Validate(*one); err != nil {
		return nil, err
	}
	// What all of them together may be is known only when they are set.
	scratch := federation.New(federation.Options{})
	defer scratch.Close()
	if err := scratch.Set(a.usable(all)); err != nil {
		return nil, err
	}
	document, err := json.Marshal(issuerDocument{issuerFormat, *one})
	if err != nil {
		return nil, err
	}
	if err := a.store.SetIssuer(ctx, store.Issuer{ID: id, Document: string(document)}); err != nil {
		return nil, err
	}
	return one, a.use(all)
}

// RemoveIssuer ends the acceptance of an issuer's tokens, also of those that are in use.
func (a *Auth) RemoveIssuer(ctx context.Context, id string) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	all, err := a.Issuers(ctx) // before: once it is removed, nothing may keep it in force
	if err != nil {
		return err
	}
	if err := a.store.DeleteIssuer(ctx, id); err != nil {
		return err
	}
	return a.use(slices.DeleteFunc(all, func(i federation.Issuer) bool { return i.ID == id }))
}

// team is Team for every request with a token of another issuer.
func (a *Auth) team(ctx context.Context, ref string) (*skerry.Team, error) {
	now := time.Now()
	if t, ok := a.teams.get(ref, now); ok {
		return &t, nil
	}
	t, err := a.store.Team(ctx, ref)
	if err != nil {
		a.teams.remove(ref)
		return nil, err
	}
	a.teams.put(ref, *t, now)
	return t, nil
}
