//go:build !linux

package process

import "syscall"

// childAttributes put the child in a group of its own.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// adoptOrphans does nothing: process 1 gets them.
func adoptOrphans() {}

// killAdopted does nothing: see adoptOrphans.
func killAdopted() {}
