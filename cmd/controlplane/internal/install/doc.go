// Package install makes and renews what an installation can make itself, so that
// installing is one command and nothing of it is a secret that somebody had to
// invent:
//
//   - Secrets of certificates, signed by the mesh's authority, for the servers of
//     the system (NATS, the public ports of event bus and connector) and for the
//     default Gateway; a new one at half of their life;
//   - the Secret of the authority that signs paired systems' certificates, whose
//     successor trusts what it signed; earlier when [v1alpha1.AnnotationRotate] asks for it;
//   - the Secret with the credentials of NATS;
//   - the default Gateway, for the domain that is given.
//
// It is one controller, which works where the leader is; two at once do no harm,
// since what exists is only replaced in the version that was looked at.
//
// What it made it knows again by two annotations: who made it and a digest of
// what was made. Once somebody has changed the object, or it was there before, it
// is theirs and is left alone for good; removing it has it made anew. The expiry of
// every certificate, whoever made it, is a metric, and one that nobody renews is
// told by Events on its Secret.
//
// What may enter: objects of the system namespace that nobody but an installation
// needs. It imports no domain; cmd/controlplane says which certificates are needed
// and who signs them.
package install
