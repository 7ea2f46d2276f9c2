// Command kube-scheduler is the upstream scheduler, for `make cluster`. The
// local mesh has one node and schedules nothing.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() { os.Exit(cli.Run(app.NewSchedulerCommand())) }
