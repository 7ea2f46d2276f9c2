// Package authority keeps the mesh's CA as its Secret says, in every replica of
// the control plane, and has the leader replace its root without an outage:
//
//   - all learn to trust the next root, while the last one signs;
//   - the next one signs, and what the last one has signed is made anew;
//   - the last one is forgotten.
//
// Each step lasts long enough for everybody to have learned of it (package ca says
// what the roots are in each). It begins when the Secret has the annotation
// lambdamesh.dev/rotate, when it holds a next root that somebody has put there, or
// by itself when a fifth of the life of a root is left that was made here.
//
// What may enter: the Secret of the CA. What is signed by it is the business of
// those who sign.
package authority
