// Package source turns what a Lambda says of its source into one thing: a tree
// of files. Whoever builds does not see where it came from.
//
//	inline | git | directory ──> Tree ──> lambdas/build
//
// A tree is bounded, its paths stay inside it, and it is the same wherever the
// lambda runs: the control plane of a cluster and `lambdamesh dev` read sources
// with this code alone.
//
// What may enter: another place where source can be, and what is wrong with a
// source as an [Error] that tells the user what to write instead. What the
// files mean to a language is lambdas/build.
package source
