// Command pause is the first container of every pod: it holds the pod's
// namespaces and does nothing. It is a program of its own because there is one
// for each pod, and a small one costs a megabyte.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	// With shareProcessNamespace it is the pod's first process: it inherits the
	// processes that lost their parent and must take their exit codes.
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		select {
		case <-stop:
			return
		case <-child:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}
}
