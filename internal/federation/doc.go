// Package federation authenticates callers by tokens (JWTs) of issuers that the
// operator configured: GitHub Actions, GitLab, Kubernetes, Google, Vercel, or any
// other OpenID provider. A rule of the issuer maps the claims of a token to a team, a
// project and a role. The package knows neither which teams exist nor the store: an
// Identity has references, which the caller resolves.
//
// # What is verified
//
// A token is checked in this order, and each step bounds the next:
//
//   - the size (MaxToken), and the form: exactly the compact serialization;
//   - the header: no "crit", and no key or place of a key in the token itself ("jwk",
//     "jku", "x5u", "x5c"); the type is that of an access or ID token;
//   - the claims: JSON without duplicate names, of limited depth and number;
//   - "iss", which must be, byte for byte, the URL of an issuer;
//   - "alg", which the issuer must allow; "none" and HMAC cannot be allowed;
//   - "aud", "exp", "nbf", "iat", "sub", and how long the token lives in all;
//   - the signature, by a key of the issuer that is of the right type for the algorithm;
//   - the rules, in their order. The first that matches decides.
//
// So no connection is made for a token of an unknown issuer, or one that has expired.
//
// A token can be used any number of times until it expires: it is what a CI job has for
// all of its calls.
//
// # Errors
//
// Errors of Verify are *skerry.Error: CodeUnauthorized (401) if the token is not valid,
// CodeForbidden (403) if it is valid and no rule admits it, and CodeUnavailable (503) if
// the keys of the issuer are not known at present. If the context ends while keys are
// fetched, its error is returned. Messages say what is wrong with the caller's own token.
// Of its content they show at most the issuer, and what a rule made of claims.
//
// # Keys of issuers
//
// Keys come from a document in the configuration (Issuer.Keys), from a URL in it
// (Issuer.JWKSURL), or by OpenID Connect Discovery. There is no goroutine for an
// issuer that nobody uses: the first token makes the first request, and tokens that
// come in the last quarter of the keys' life have them fetched in the background.
//
//   - Keys live as long as Cache-Control says, at least MinKeyLife and at most
//     MaxKeyLife, or DefaultKeyLife if it says nothing. So a key that an issuer
//     removes stops working after that time, and VerifiedFor.
//   - A token that no key verifies has the keys fetched again, at most once per
//     refetchEvery and issuer. Those tokens wait for it, tokens with known keys do not.
//   - If an issuer does not answer, its keys are used until MaxKeyLife after the last
//     answer; from then on its tokens get CodeUnavailable. So do, at once, tokens with an
//     unknown key.
//
// # What the server connects to
//
// Only operators configure issuers, and the URL of an issuer may reach all that the
// server reaches: a Kubernetes cluster is usually in a private network. So the URLs
// are the operator's responsibility; whoever may configure issuers may also make the
// server send GET requests to internal addresses. An issuer itself cannot: the address
// of its keys must be of the issuer's own origin, unless the operator configured another
// one, redirects must stay in that origin, and nothing of an answer is shown to callers.
// Connections use TLS with the system's authorities and those of the issuer
// (Issuer.CA), and the proxy of the environment (HTTPS_PROXY). Plain HTTP is for loopback addresses only, if Options allow it at all.
//
// # Libraries
//
// go-jose parses and verifies JWS and JWK. cel-go evaluates expressions, with limits of
// cost. coreos/go-oidc and zitadel/oidc are not used: their key sets refetch for every
// unknown key id without a limit of rate, keep keys without an end, and bound neither
// documents nor the number of keys. What would remain of them is one GET request and the
// comparison of two strings.
package federation
