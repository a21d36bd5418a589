package store

import (
	"time"

	"github.com/skerry-dev/skerry"
)

// Every conversion is written out, or is one of Go's that does not compile when
// a field of either type changes.

// each converts a list, and keeps nil and empty apart.
func each[A, B any](list []A, convert func(A) B) []B {
	if list == nil {
		return nil
	}
	out := make([]B, 0, len(list))
	for _, a := range list {
		out = append(out, convert(a))
	}
	return out
}

// maybe converts what may be absent.
func maybe[A, B any](p *A, convert func(A) B) *B {
	if p == nil {
		return nil
	}
	b := convert(*p)
	return &b
}

func millis(d skerry.Duration) int64 { return d.Millis() }

func duration(ms int64) skerry.Duration {
	return skerry.Duration(time.Duration(ms) * time.Millisecond)
}

func documentOfSandbox(s *skerry.Sandbox) sandboxDocument {
	d := sandboxDocument{
		header: current, Persistent: s.Persistent, Region: s.Region, VCPUs: s.VCPUs, MemoryMB: s.MemoryMB, Runtime: s.Runtime,
		Timeout: millis(s.Timeout), Tags: s.Tags, Network: maybe(s.NetworkPolicy, documentOfSummary),
		Expiration: maybe(s.SnapshotExpiration, millis), Retention: maybe(s.Retention, documentOfRetention),
		SessionID: s.CurrentSessionID, Status: string(s.Status), Cwd: s.Cwd,
		UpdatedAt: s.UpdatedAt.Millis(), ExpiresAt: s.ExpiresAt.Millis(), PausedAt: s.PausedAt.Millis(), Idle: string(s.Idle), Audience: s.OIDCAudience,
		TotalDuration: millis(s.TotalDuration), TotalActiveCPU: millis(s.TotalActiveCPU),
		TotalEgressBytes: s.TotalEgressBytes, TotalIngressBytes: s.TotalIngressBytes, TotalResident: s.TotalResidentMBSeconds,
	}
	for at, m := range s.Mounts {
		if d.Mounts == nil {
			d.Mounts = map[string]mountDocument{}
		}
		d.Mounts[at] = mountDocument(m)
	}
	return d
}

// into sets what of a sandbox is in its document.
func (d *sandboxDocument) into(s *skerry.Sandbox) {
	s.Persistent, s.Region, s.VCPUs, s.MemoryMB, s.Runtime = d.Persistent, d.Region, d.VCPUs, d.MemoryMB, d.Runtime
	s.Timeout, s.Tags, s.NetworkPolicy = duration(d.Timeout), d.Tags, maybe(d.Network, summaryDocument.summary)
	s.SnapshotExpiration, s.Retention = maybe(d.Expiration, duration), maybe(d.Retention, retentionDocument.retention)
	s.CurrentSessionID, s.Status, s.Cwd = d.SessionID, skerry.SessionStatus(d.Status), d.Cwd
	s.UpdatedAt, s.ExpiresAt, s.PausedAt = skerry.FromMillis(d.UpdatedAt), skerry.FromMillis(d.ExpiresAt), skerry.FromMillis(d.PausedAt)
	s.Idle, s.OIDCAudience = skerry.IdleMode(d.Idle), d.Audience
	s.TotalDuration, s.TotalActiveCPU = duration(d.TotalDuration), duration(d.TotalActiveCPU)
	s.TotalEgressBytes, s.TotalIngressBytes, s.TotalResidentMBSeconds = d.TotalEgressBytes, d.TotalIngressBytes, d.TotalResident
	for at, m := range d.Mounts {
		if s.Mounts == nil {
			s.Mounts = map[string]skerry.Mount{}
		}
		s.Mounts[at] = skerry.Mount(m)
	}
}

func documentOfSecrets(s *skerry.Sandbox) secretsDocument {
	return secretsDocument{
		header: current, Env: s.Env,
		Source: maybe(s.Source, func(f skerry.Source) sourceDocument { return sourceDocument(f) }),
		Policy: maybe(s.Policy, documentOfPolicy),
		Ports:  each(s.Ports, func(p skerry.PublishedPort) portDocument { return portDocument(p) }),
	}
}

// into sets what of a sandbox is secret.
func (d *secretsDocument) into(s *skerry.Sandbox) {
	s.Env = d.Env
	s.Source = maybe(d.Source, func(f sourceDocument) skerry.Source { return skerry.Source(f) })
	s.Ports = each(d.Ports, func(p portDocument) skerry.PublishedPort { return skerry.PublishedPort(p) })
	s.Policy = maybe(d.Policy, policyDocument.policy)
	if s.Policy == nil { // of a version that knew no other
		s.Policy = skerry.AllowAll()
	}
}

func documentOfRetention(r skerry.Retention) retentionDocument {
	return retentionDocument{Count: r.Count, Expiration: maybe(r.Expiration, millis), DeleteEvicted: r.DeleteEvicted}
}

func (d retentionDocument) retention() skerry.Retention {
	return skerry.Retention{Count: d.Count, Expiration: maybe(d.Expiration, duration), DeleteEvicted: d.DeleteEvicted}
}

func documentOfSession(s *skerry.Session) sessionDocument {
	return sessionDocument{
		header: current, VCPUs: s.VCPUs, MemoryMB: s.MemoryMB, Region: s.Region, Runtime: s.Runtime, Image: s.Image,
		Timeout: millis(s.Timeout), Cwd: s.Cwd, Persistent: s.Persistent, PausedAt: s.PausedAt.Millis(),
		SourceSnapshotID: s.SourceSnapshotID, Status: string(s.Status), Reason: s.Reason, Saving: maybe(s.Saving, documentOfSaving),
		RequestedAt: s.RequestedAt.Millis(), StartedAt: s.StartedAt.Millis(), RequestedStopAt: s.RequestedStopAt.Millis(),
		StoppedAt: s.StoppedAt.Millis(), AbortedAt: s.AbortedAt.Millis(), SnapshottedAt: s.SnapshottedAt.Millis(),
		Duration: millis(s.Duration), UpdatedAt: s.UpdatedAt.Millis(),
		Network: maybe(s.NetworkPolicy, documentOfSummary), ActiveCPU: millis(s.ActiveCPU), Resident: s.ResidentMBSeconds,
		Transfer: maybe(s.Network, func(n skerry.NetworkTransfer) transferDocument { return transferDocument(n) }),
	}
}

// into sets what of a session is in its document.
func (d *sessionDocument) into(s *skerry.Session) {
	s.VCPUs, s.MemoryMB, s.Region, s.Runtime, s.Image = d.VCPUs, d.MemoryMB, d.Region, d.Runtime, d.Image
	s.Timeout, s.Cwd, s.Persistent, s.PausedAt = duration(d.Timeout), d.Cwd, d.Persistent, skerry.FromMillis(d.PausedAt)
	s.SourceSnapshotID, s.Status, s.Reason = d.SourceSnapshotID, skerry.SessionStatus(d.Status), d.Reason
	s.Saving = maybe(d.Saving, savingDocument.saving)
	s.RequestedAt, s.StartedAt, s.RequestedStopAt = skerry.FromMillis(d.RequestedAt), skerry.FromMillis(d.StartedAt), skerry.FromMillis(d.RequestedStopAt)
	s.StoppedAt, s.AbortedAt, s.SnapshottedAt = skerry.FromMillis(d.StoppedAt), skerry.FromMillis(d.AbortedAt), skerry.FromMillis(d.SnapshottedAt)
	s.Duration, s.UpdatedAt = duration(d.Duration), skerry.FromMillis(d.UpdatedAt)
	s.NetworkPolicy, s.ActiveCPU, s.ResidentMBSeconds = maybe(d.Network, summaryDocument.summary), duration(d.ActiveCPU), d.Resident
	s.Network = maybe(d.Transfer, func(n transferDocument) skerry.NetworkTransfer { return skerry.NetworkTransfer(n) })
}

func documentOfSaving(s skerry.SessionSaving) savingDocument {
	return savingDocument{Method: string(s.Method), Memory: s.Memory, Expiration: maybe(s.Expiration, millis)}
}

func (d savingDocument) saving() skerry.SessionSaving {
	return skerry.SessionSaving{Method: skerry.CreationMethod(d.Method), Memory: d.Memory, Expiration: maybe(d.Expiration, duration)}
}

func documentOfSnapshot(s *skerry.Snapshot) snapshotDocument {
	return snapshotDocument{
		header: current, SourceSessionID: s.SourceSessionID, Region: s.Region, SizeBytes: s.SizeBytes, CreationMethod: string(s.CreationMethod),
	}
}

// into sets what of a snapshot is in its document.
func (d *snapshotDocument) into(s *skerry.Snapshot) {
	s.SourceSessionID, s.Region, s.SizeBytes = d.SourceSessionID, d.Region, d.SizeBytes
	s.CreationMethod = skerry.CreationMethod(d.CreationMethod)
}

func documentOfDrive(d *skerry.Drive) driveDocument {
	return driveDocument{
		header: current, ProjectID: d.ProjectID, Region: d.Region, MaxSizeBytes: d.MaxSizeBytes,
		ParentDriveID: d.ParentDriveID, RootDriveID: d.RootDriveID,
	}
}

// into sets what of a drive is in its document.
func (d *driveDocument) into(to *skerry.Drive) {
	to.ProjectID, to.Region, to.MaxSizeBytes = d.ProjectID, d.Region, d.MaxSizeBytes
	to.ParentDriveID, to.RootDriveID = d.ParentDriveID, d.RootDriveID
}

func documentOfCommand(c *skerry.Command) commandDocument {
	return commandDocument{
		header: current, Name: c.Name, Args: c.Args, ArgsTruncated: c.ArgsTruncated, Cwd: c.Cwd, ExitCode: c.ExitCode, Duration: millis(c.Duration),
	}
}

// into sets what of a command is in its document.
func (d *commandDocument) into(c *skerry.Command) {
	c.Name, c.Args, c.ArgsTruncated, c.Cwd, c.ExitCode, c.Duration = d.Name, d.Args, d.ArgsTruncated, d.Cwd, d.ExitCode, duration(d.Duration)
}

func documentOfPolicy(p skerry.NetworkPolicy) policyDocument {
	return policyDocument{
		header: current, Mode: p.Mode, Allow: p.Allow, Deny: p.Deny,
		Domains: each(p.Domains, func(d skerry.DomainRules) domainDocument {
			return domainDocument{Domain: d.Domain, Rules: each(d.Rules, documentOfRule)}
		}),
	}
}

func (d policyDocument) policy() skerry.NetworkPolicy {
	return skerry.NetworkPolicy{
		Mode: d.Mode, Allow: d.Allow, Deny: d.Deny,
		Domains: each(d.Domains, func(d domainDocument) skerry.DomainRules {
			return skerry.DomainRules{Domain: d.Domain, Rules: each(d.Rules, ruleDocument.rule)}
		}),
	}
}

func documentOfRule(r skerry.NetworkRule) ruleDocument {
	return ruleDocument{
		Match: maybe(r.Match, documentOfMatch), ForwardURL: r.ForwardURL,
		Transform: each(r.Transform, func(t skerry.HeaderTransform) transformDocument { return transformDocument(t) }),
		Response:  maybe(r.Response, func(a skerry.RuleResponse) responseDocument { return responseDocument(a) }),
	}
}

func (d ruleDocument) rule() skerry.NetworkRule {
	return skerry.NetworkRule{
		Match: maybe(d.Match, matchDocument.match), ForwardURL: d.ForwardURL,
		Transform: each(d.Transform, func(t transformDocument) skerry.HeaderTransform { return skerry.HeaderTransform(t) }),
		Response:  maybe(d.Response, func(a responseDocument) skerry.RuleResponse { return skerry.RuleResponse(a) }),
	}
}

func documentOfMatch(m skerry.RequestMatch) matchDocument {
	return matchDocument{
		Path: maybe(m.Path, documentOfMatcher), Method: m.Method,
		QueryString: each(m.QueryString, documentOfPair), Headers: each(m.Headers, documentOfPair),
	}
}

func (d matchDocument) match() skerry.RequestMatch {
	return skerry.RequestMatch{
		Path: maybe(d.Path, matcherDocument.matcher), Method: d.Method,
		QueryString: each(d.QueryString, pairDocument.pair), Headers: each(d.Headers, pairDocument.pair),
	}
}

func documentOfPair(p skerry.PairMatcher) pairDocument {
	return pairDocument{Key: maybe(p.Key, documentOfMatcher), Value: maybe(p.Value, documentOfMatcher)}
}

func (d pairDocument) pair() skerry.PairMatcher {
	return skerry.PairMatcher{Key: maybe(d.Key, matcherDocument.matcher), Value: maybe(d.Value, matcherDocument.matcher)}
}

func documentOfMatcher(m skerry.Matcher) matcherDocument { return matcherDocument(m) }

func (d matcherDocument) matcher() skerry.Matcher { return skerry.Matcher(d) }

func documentOfSummary(s skerry.NetworkPolicySummary) summaryDocument {
	return summaryDocument{
		Mode: s.Mode, AllowedDomains: s.AllowedDomains, AllowedCIDRs: s.AllowedCIDRs, DeniedCIDRs: s.DeniedCIDRs,
		InjectionRules: each(s.InjectionRules, func(r skerry.InjectionRule) injectionDocument {
			return injectionDocument{Domain: r.Domain, HeaderNames: r.HeaderNames, Match: maybe(r.Match, documentOfMatch)}
		}),
		ForwardRules: each(s.ForwardRules, func(r skerry.ForwardRule) forwardDocument {
			return forwardDocument{Domain: r.Domain, ForwardURL: r.ForwardURL, Match: maybe(r.Match, documentOfMatch)}
		}),
		ResponseRules: each(s.ResponseRules, func(r skerry.ResponseRule) responseSummary {
			return responseSummary{Domain: r.Domain, StatusCode: r.StatusCode, Match: maybe(r.Match, documentOfMatch)}
		}),
	}
}

func (d summaryDocument) summary() skerry.NetworkPolicySummary {
	return skerry.NetworkPolicySummary{
		Mode: d.Mode, AllowedDomains: d.AllowedDomains, AllowedCIDRs: d.AllowedCIDRs, DeniedCIDRs: d.DeniedCIDRs,
		InjectionRules: each(d.InjectionRules, func(r injectionDocument) skerry.InjectionRule {
			return skerry.InjectionRule{Domain: r.Domain, HeaderNames: r.HeaderNames, Match: maybe(r.Match, matchDocument.match)}
		}),
		ForwardRules: each(d.ForwardRules, func(r forwardDocument) skerry.ForwardRule {
			return skerry.ForwardRule{Domain: r.Domain, ForwardURL: r.ForwardURL, Match: maybe(r.Match, matchDocument.match)}
		}),
		ResponseRules: each(d.ResponseRules, func(r responseSummary) skerry.ResponseRule {
			return skerry.ResponseRule{Domain: r.Domain, StatusCode: r.StatusCode, Match: maybe(r.Match, matchDocument.match)}
		}),
	}
}
