package skerry

import "time"

// Limits and defaults of published ports.
const (
	// MaxPort is the highest TCP port.
	MaxPort = 65535
	// DefaultMaxPorts is the maximum number of published ports of a sandbox, unless
	// the installation sets another. The public service has the same.
	DefaultMaxPorts = 4
	// DefaultRouteToken is how long a token for a private route is valid if its
	// creator does not say, MinRouteToken and MaxRouteToken the shortest and the
	// longest. A token has its expiration in whole seconds.
	DefaultRouteToken = 24 * time.Hour
	MinRouteToken     = time.Second
	MaxRouteToken     = 365 * 24 * time.Hour
)

// PublishedPort is a port of a sandbox that can be reached from outside. It keeps its
// address across sessions, as long as it is published.
type PublishedPort struct {
	Port int `json:"port"`
	// Subdomain is the first label of its host name, if routes have host names. It has
	// 26 random characters, so it cannot be guessed.
	Subdomain string `json:"subdomain"`
	// HostPort is its port on the machine, if routes have ports; 0 if none is assigned
	// yet.
	HostPort int `json:"hostPort,omitempty"`
	// Key signs the tokens for a private port; nil for a public one.
	Key []byte `json:"key,omitempty"`
}

// Private reports whether requests need a token.
func (p PublishedPort) Private() bool { return p.Key != nil }

// RouteToken gives access to a private port.
type RouteToken struct {
	Token string `json:"token"`
	// URL is the route's, with the token.
	URL       string `json:"url"`
	ExpiresAt Time   `json:"expiresAt"`
}
