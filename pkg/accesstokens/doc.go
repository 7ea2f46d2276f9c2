// Package accesstokens gets access tokens by OAuth2 client credentials (RFC 6749,
// section 4.4) and keeps them as long as they are good. Whoever needs the same one
// at the same time shares one request, and one is renewed before it ends.
//
// What may enter: asking an authorization server. What the token is for, where the
// secret comes from and which servers may be asked is decided by those who ask.
package accesstokens
