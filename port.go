package skerry

import "time"

// Bounds of published ports.
const (
	// MaxPort is the largest TCP port.
	MaxPort = 65535
	// DefaultMaxPorts is how many ports a sandbox publishes at the most, unless
	// the installation says otherwise.
	DefaultMaxPorts = 4
	// DefaultRouteToken is how long a token for a private route is good when its
	// creator does not say, MaxRouteToken the longest.
	DefaultRouteToken = 24 * time.Hour
	MaxRouteToken     = 365 * 24 * time.Hour
)

// PublishedPort is a port of a sandbox that is reached from outside. It has
// its place for as long as it is published, across sessions.
type PublishedPort struct {
	Port int `json:"port"`
	// Subdomain is the first label of its host name where routes have names:
	// 26 random characters, so that nobody finds it by guessing.
	Subdomain string `json:"subdomain"`
	// HostPort is its port on the machine where routes have ports; 0 if it has
	// not been given one.
	HostPort int `json:"hostPort,omitempty"`
	// Key signs the tokens that a private route asks for; nil for a public one.
	Key []byte `json:"key,omitempty"`
}

// Private says that only who has a token gets through.
func (p PublishedPort) Private() bool { return p.Key != nil }

// RouteToken opens a private route to who has it.
type RouteToken struct {
	Token string `json:"token"`
	// URL is the route's, with the token.
	URL       string `json:"url"`
	ExpiresAt Time   `json:"expiresAt"`
}
