// Package authority is the certificate authority of applications: its key signs
// the client certificates of paired systems and nothing else, and no other part
// of the system trusts it.
//
// It lives in one Secret ([v1alpha1.SecretConnectorCA]), which [Renew] makes and
// renews: a new key signs while what the one before it signed is good until it
// expires. An installation may put an intermediate of its own authority there: it
// is the intermediate that is trusted, and not who signed it.
//
// A client certificate says who its application is by its subject ([Subject]) and
// holds nothing that the request for it asked for besides the public key.
//
// What may enter: keys, certificates, requests for them. Which certificates are
// good at the moment is connector/public's; who gets one is connector/pairing's.
package authority
