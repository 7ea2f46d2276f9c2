// Package cli is the command line of lambdamesh: it reads flags and arguments,
// calls the domains, and prints tables for people or JSON and YAML for programs.
//
// What may enter: one file a command, and what commands share to find the
// system (local data directory or kubeconfig) and to print. Work that another
// program could want belongs to the domain that does it.
package cli
