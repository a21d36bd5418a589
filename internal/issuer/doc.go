// Package issuer makes this installation an issuer of OpenID Connect tokens: it signs them
// with keys that rotate, and publishes what verifies them.
//
// There are three kinds of tokens. A forwarded request has one that tells the service
// outside from which sandbox it comes. A workload token is a file in a sandbox whose
// programs show it to a service outside. A development token is a developer's
// VERCEL_OIDC_TOKEN for the API of this server.
//
// Nodes sign the first two and the server the third, each with a ring of its own, so that
// no key of a node is good for the API. All of them have one issuer, and Handler publishes
// the keys of all.
package issuer
