// Package docs holds the tests of the documentation: what it names is there.
//
// What may enter: checks of pages against the repository.
package docs
