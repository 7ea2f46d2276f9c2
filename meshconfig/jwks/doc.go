// Package jwks keeps the key sets of token issuers: it fetches the URIs that
// APIRules name, over the network policy of pkg/targets, and fetches them again
// before they are old.
//
//	controller --Keep(uris)--> Fetcher --GET--> issuers
//	           <--OnChange, Results--
//
// What it promises: a set that was fetched once is kept until a newer one is
// there, whatever happens to its issuer; one request per URI at a time and not
// more often than the minimum interval; answers are bounded in size and time,
// and a redirect never leaves the host; a set without a usable public key is an
// error, not a set. URIs that nobody names any more are forgotten.
//
// What may enter: fetching and checking key sets. What an unusable one means
// for a rule is decided by meshconfig/translate.
package jwks
