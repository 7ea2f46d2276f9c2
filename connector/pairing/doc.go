// Package pairing gives third-party systems their client certificates, as
// clients of Kyma's connector service expect it: a one-time token leads to what a
// certificate signing request must say, the request to a certificate, and a
// certificate to the next one, or to its end.
//
// A token is random, is good for five minutes and for one certificate. Of the
// token the API server keeps a hash, in the status of its TokenRequest; marking
// that as used, in the version that was read, is what decides when several
// replicas are shown one token at once.
//
// A certificate that was signed is listed in its Application's status before
// anybody gets it: what is not listed there is not taken (connector/public).
//
// What may enter: the HTTP contract of pairing, tokens, the list of certificates.
// Keys and requests are connector/authority's, conditions the controller's.
package pairing
