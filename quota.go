package skerry

// Quota limits what a team, or one of its projects, may use. A nil field is not set.
type Quota struct {
	// Sandboxes, VCPUs and MemoryMB are of the sandboxes that run at a time.
	Sandboxes *int `json:"sandboxes,omitempty"`
	VCPUs     *int `json:"vcpus,omitempty"`
	MemoryMB  *int `json:"memoryMB,omitempty"`
	// StartsPerMinute counts sandboxes that are created, forked or resumed, and
	// RequestsPerMinute the requests of the API. As many as in a minute may come at once.
	StartsPerMinute   *int `json:"startsPerMinute,omitempty"`
	RequestsPerMinute *int `json:"requestsPerMinute,omitempty"`
}

const (
	// Unlimited means no limit, also where a default would apply.
	Unlimited = -1
	// MaxQuota is the largest limit.
	MaxQuota = 1_000_000_000
)

// QuotaLimit is one limit of a Quota.
type QuotaLimit struct {
	// Name is that of the field in JSON, What the limit in words.
	Name, What string
	Value      **int
}

// Limits returns the limits of q, whose values can be changed through them.
func (q *Quota) Limits() []QuotaLimit {
	return []QuotaLimit{
		{"sandboxes", "running sandboxes", &q.Sandboxes},
		{"vcpus", "vCPUs of running sandboxes", &q.VCPUs},
		{"memoryMB", "MB of memory of running sandboxes", &q.MemoryMB},
		{"startsPerMinute", "starts of sandboxes in a minute", &q.StartsPerMinute},
		{"requestsPerMinute", "requests in a minute", &q.RequestsPerMinute},
	}
}

// Validate checks the limits.
func (q Quota) Validate() error {
	for _, l := range q.Limits() {
		if v := *l.Value; v != nil && (*v < Unlimited || *v > MaxQuota) {
			return Invalid(l.Name, "must be from 0 to %d, or %d for no limit, is %d", MaxQuota, Unlimited, *v)
		}
	}
	return nil
}

// Or returns q with what it does not set from other.
func (q Quota) Or(other Quota) Quota {
	theirs := other.Limits()
	for n, l := range q.Limits() {
		if *l.Value == nil {
			*l.Value = *theirs[n].Value
		}
	}
	return q
}

// Shown returns q without what is no limit.
func (q Quota) Shown() Quota {
	for _, l := range q.Limits() {
		if _, limited := LimitOf(*l.Value); !limited {
			*l.Value = nil
		}
	}
	return q
}

// LimitOf returns a limit, and whether there is one.
func LimitOf(limit *int) (int, bool) {
	if limit == nil || *limit < 0 {
		return 0, false
	}
	return *limit, true
}

// Quotas are those of a project, and of its team.
type Quotas struct{ Team, Project Quota }

// OwnedQuota is a quota and whose it is: "team" or "project", and its id.
type OwnedQuota struct {
	Whose, ID string
	Quota     Quota
}

// In returns the quotas that hold in a scope: the team's, and the project's if it has one.
func (q Quotas) In(s Scope) []OwnedQuota {
	all := []OwnedQuota{{"team", s.TeamID, q.Team}}
	if s.ProjectID != "" {
		all = append(all, OwnedQuota{"project", s.ProjectID, q.Project})
	}
	return all
}

// Use is what running sandboxes use.
type Use struct {
	Sandboxes int `json:"sandboxes"`
	VCPUs     int `json:"vcpus"`
	MemoryMB  int `json:"memoryMB"`
}
