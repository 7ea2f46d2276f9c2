package ir

// Feature is something that an output may be unable to carry. A rule that uses
// one that no output carries is refused; an output closes the rules that it
// cannot carry itself.
type Feature string

// The features that some output lacks.
const (
	// ClientIPsAtGateway: the gateway judges addresses, so that backends without a
	// sidecar are protected, too.
	ClientIPsAtGateway Feature = "clientIPs of a backend without a sidecar"
	// RedirectWithAccess: a redirect that is not for everybody.
	RedirectWithAccess Feature = "redirect of a rule with jwt or clientIPs"
	// UseAPIKey is a rule's apiKey.
	UseAPIKey Feature = "apiKey"
	// UseRateLimit is a rule's rateLimit.
	UseRateLimit Feature = "rateLimit"
	// UseMaxBodyBytes is a rule's maxBodyBytes.
	UseMaxBodyBytes Feature = "maxBodyBytes"
	// TokenPlaces are others than Authorization: Bearer.
	TokenPlaces Feature = "fromHeaders and fromParams"
	// ClaimToHeaders is that of jwt.
	ClaimToHeaders Feature = "claimToHeaders"
	// ClientIPsBehindProxies: addresses that proxies before the gateway tell.
	ClientIPsBehindProxies Feature = "clientIPs at a Gateway with trusted proxies or PROXY protocol"
)
