// Package config fills a program's flags from its environment, so that every
// setting has one name in a manifest, a shell and the help.
//
// What may enter: how settings reach a program. What they mean, their defaults
// and their validation are in the Config of whoever they are for.
package config
