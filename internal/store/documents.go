package store

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/skerry-dev/skerry"
)

// documentFormat is the version of the form of documents, which every document
// has. A field that is added needs no new version if its zero value means what
// documents without it meant. Any other change does: then decode reads the
// earlier form too, or a migration rewrites it.
//
// Documents without a version were written before there was one. They have
// the fields of version 1 and more, which are in columns too.
const documentFormat = 1

// The types in this file are the stored form. They are apart from the types
// of the root package, whose JSON is that of the API: what is stored must not
// change with the API. What a column has is not in the document. Times are
// milliseconds since the epoch, durations milliseconds; 0 is none.

// header begins every document.
type header struct {
	Format int `json:"format"`
}

func (h header) format() int { return h.Format }

// current is the header of what is written now.
var current = header{documentFormat}

// encode returns the stored form of a document.
func encode(document any) ([]byte, error) { return json.Marshal(document) }

// decode reads a document. One that a newer version of the program has written
// is an error: what it holds that this one does not know would be lost.
func decode(b []byte, document interface{ format() int }) error {
	err := json.Unmarshal(b, document)
	// The format is read also if something else could not be.
	if f := document.format(); f > documentFormat || f < 0 {
		return fmt.Errorf("it has format %d, and this version of Skerry reads formats up to %d", f, documentFormat)
	}
	return err
}

// damaged says which document could not be read.
func damaged(what, id string, err error) error {
	return fmt.Errorf("cannot read %s %s in the database: %w", what, id, err)
}

type sandboxDocument struct {
	header
	Persistent bool                     `json:"persistent"`
	Region     string                   `json:"region,omitempty"`
	VCPUs      int                      `json:"vcpus,omitempty"`
	MemoryMB   int                      `json:"memory,omitempty"`
	Runtime    string                   `json:"runtime,omitempty"`
	Timeout    int64                    `json:"timeout,omitempty"`
	Tags       map[string]string        `json:"tags,omitempty"`
	Network    *summaryDocument         `json:"networkPolicy,omitempty"`
	Expiration *int64                   `json:"snapshotExpiration,omitempty"`
	Retention  *retentionDocument       `json:"keepLastSnapshots,omitempty"`
	Mounts     map[string]mountDocument `json:"mounts,omitempty"`
	SessionID  string                   `json:"currentSessionId"`
	Status     string                   `json:"status"`
	Cwd        string                   `json:"cwd,omitempty"`
	UpdatedAt  int64                    `json:"updatedAt"`
	ExpiresAt  int64                    `json:"expiresAt,omitempty"`
	PausedAt   int64                    `json:"pausedAt,omitempty"`
	Idle       string                   `json:"idle,omitempty"`
	Audience   string                   `json:"audience,omitempty"`

	TotalDuration     int64 `json:"totalDurationMs,omitempty"`
	TotalActiveCPU    int64 `json:"totalActiveCpuDurationMs,omitempty"`
	TotalEgressBytes  int64 `json:"totalEgressBytes,omitempty"`
	TotalIngressBytes int64 `json:"totalIngressBytes,omitempty"`
	TotalResident     int64 `json:"totalResidentMemoryMBSeconds,omitempty"`
}

// secretsDocument is what of a sandbox is sealed.
type secretsDocument struct {
	header
	Env    map[string]string `json:"env,omitempty"`
	Source *sourceDocument   `json:"source,omitempty"`
	Policy *policyDocument   `json:"policy,omitempty"`
	// Ports have the keys of private routes.
	Ports []portDocument `json:"ports,omitempty"`
}

type (
	sourceDocument struct {
		Type       string `json:"type"`
		URL        string `json:"url,omitempty"`
		Depth      int    `json:"depth,omitempty"`
		Revision   string `json:"revision,omitempty"`
		Username   string `json:"username,omitempty"`
		Password   string `json:"password,omitempty"`
		SnapshotID string `json:"snapshotId,omitempty"`
	}
	portDocument struct {
		Port      int    `json:"port"`
		Subdomain string `json:"subdomain"`
		HostPort  int    `json:"hostPort,omitempty"`
		Key       []byte `json:"key,omitempty"`
	}
	mountDocument struct {
		Drive string           `json:"drive"`
		Mode  skerry.MountMode `json:"mode"`
	}
	retentionDocument struct {
		Count         int    `json:"count"`
		Expiration    *int64 `json:"expiration,omitempty"`
		DeleteEvicted *bool  `json:"deleteEvicted,omitempty"`
	}
)

type sessionDocument struct {
	header
	VCPUs            int               `json:"vcpus"`
	MemoryMB         int               `json:"memory"`
	Region           string            `json:"region"`
	Runtime          string            `json:"runtime,omitempty"`
	Image            string            `json:"image,omitempty"`
	Timeout          int64             `json:"timeout"`
	Cwd              string            `json:"cwd"`
	Persistent       bool              `json:"persistent"`
	PausedAt         int64             `json:"pausedAt,omitempty"`
	SourceSnapshotID string            `json:"sourceSnapshotId,omitempty"`
	Status           string            `json:"status"`
	Reason           string            `json:"reason,omitempty"`
	Saving           *savingDocument   `json:"saving,omitempty"`
	RequestedAt      int64             `json:"requestedAt"`
	StartedAt        int64             `json:"startedAt,omitempty"`
	RequestedStopAt  int64             `json:"requestedStopAt,omitempty"`
	StoppedAt        int64             `json:"stoppedAt,omitempty"`
	AbortedAt        int64             `json:"abortedAt,omitempty"`
	SnapshottedAt    int64             `json:"snapshottedAt,omitempty"`
	Duration         int64             `json:"duration,omitempty"`
	UpdatedAt        int64             `json:"updatedAt"`
	Network          *summaryDocument  `json:"networkPolicy,omitempty"`
	ActiveCPU        int64             `json:"activeCpuDurationMs,omitempty"`
	Transfer         *transferDocument `json:"networkTransfer,omitempty"`
	Resident         int64             `json:"residentMemoryMBSeconds,omitempty"`
}

type savingDocument struct {
	Method     string `json:"method"`
	Memory     bool   `json:"memory,omitempty"`
	Expiration *int64 `json:"expiration,omitempty"`
}

type transferDocument struct {
	Ingress int64 `json:"ingress"`
	Egress  int64 `json:"egress"`
}

type snapshotDocument struct {
	header
	SourceSessionID string `json:"sourceSessionId"`
	Region          string `json:"region"`
	SizeBytes       int64  `json:"sizeBytes"`
	CreationMethod  string `json:"creationMethod,omitempty"`
}

type driveDocument struct {
	header
	ProjectID     string `json:"projectId"`
	Region        string `json:"region"`
	MaxSizeBytes  int64  `json:"maxSizeBytes"`
	ParentDriveID string `json:"parentDriveId,omitempty"`
	RootDriveID   string `json:"rootDriveId,omitempty"`
}

// commandDocument is sealed.
type commandDocument struct {
	header
	Name          string   `json:"name"`
	Args          []string `json:"args"`
	ArgsTruncated bool     `json:"argsTruncated,omitempty"`
	Cwd           string   `json:"cwd"`
	ExitCode      *int     `json:"exitCode"`
	Duration      int64    `json:"durationMs,omitempty"`
}

// policyDocument is a network policy. It is sealed, alone or among the secrets
// of a sandbox.
type policyDocument struct {
	header
	Mode    skerry.NetworkMode `json:"mode"`
	Domains []domainDocument   `json:"domains,omitempty"`
	Allow   []netip.Prefix     `json:"allow,omitempty"`
	Deny    []netip.Prefix     `json:"deny,omitempty"`
}

type (
	domainDocument struct {
		Domain string         `json:"domain"`
		Rules  []ruleDocument `json:"rules,omitempty"`
	}
	ruleDocument struct {
		Match *matchDocument `json:"match,omitempty"`
		// Transform is empty for a rule that changes nothing, and absent for one
		// that forwards or answers.
		Transform  []transformDocument `json:"transform,omitzero"`
		ForwardURL string              `json:"forwardURL,omitempty"`
		Response   *responseDocument   `json:"response,omitempty"`
	}
	transformDocument struct {
		Headers map[string]string `json:"headers,omitempty"`
	}
	responseDocument struct {
		StatusCode  int               `json:"statusCode"`
		Headers     map[string]string `json:"headers,omitempty"`
		Body        *string           `json:"body,omitempty"`
		ContentType string            `json:"contentType,omitempty"`
	}
	matchDocument struct {
		Path        *matcherDocument `json:"path,omitempty"`
		Method      []string         `json:"method,omitempty"`
		QueryString []pairDocument   `json:"queryString,omitempty"`
		Headers     []pairDocument   `json:"headers,omitempty"`
	}
	pairDocument struct {
		Key   *matcherDocument `json:"key,omitempty"`
		Value *matcherDocument `json:"value,omitempty"`
	}
	matcherDocument struct {
		Exact      *string `json:"exact,omitempty"`
		StartsWith *string `json:"startsWith,omitempty"`
		Regex      *string `json:"regex,omitempty"`
	}
)

// summaryDocument is what of a network policy is shown. A session that has
// ended has nothing else of its policy.
type summaryDocument struct {
	Mode           skerry.NetworkMode  `json:"mode"`
	AllowedDomains []string            `json:"allowedDomains,omitzero"`
	AllowedCIDRs   []string            `json:"allowedCIDRs,omitempty"`
	DeniedCIDRs    []string            `json:"deniedCIDRs,omitempty"`
	InjectionRules []injectionDocument `json:"injectionRules,omitempty"`
	ForwardRules   []forwardDocument   `json:"forwardRules,omitempty"`
	ResponseRules  []responseSummary   `json:"responseRules,omitempty"`
}

type (
	injectionDocument struct {
		Domain      string         `json:"domain"`
		HeaderNames []string       `json:"headerNames"`
		Match       *matchDocument `json:"match,omitempty"`
	}
	forwardDocument struct {
		Domain     string         `json:"domain"`
		ForwardURL string         `json:"forwardURL"`
		Match      *matchDocument `json:"match,omitempty"`
	}
	responseSummary struct {
		Domain     string         `json:"domain"`
		StatusCode int            `json:"statusCode"`
		Match      *matchDocument `json:"match,omitempty"`
	}
)
