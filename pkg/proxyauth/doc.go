// Package proxyauth keeps the HTTP proxy of one process from being everybody's:
// a listener on loopback is open to every user of the machine, so its clients
// prove with a secret (RFC 9110, section 11.7.1; Basic) that they are meant.
//
//	secret, listener := proxyauth.NewSecret(), proxyauth.Listen(inner, secret)
//	HTTP_PROXY = secret.URL(inner.Addr())
//
// A connection is let through when its first request carries the secret: what
// follows on it comes from the same client. Any other is answered 407 and
// closed, and the server behind never sees it. HTTP clients take the secret from
// the userinfo of the proxy's URL.
//
// What may enter: the secret and the check of it. What the proxy lets its client
// reach is the proxy's business.
package proxyauth
