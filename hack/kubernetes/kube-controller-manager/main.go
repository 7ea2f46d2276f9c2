// Command kube-controller-manager is the upstream controller manager. `dev`
// needs its garbage collector, namespace and service account controllers; the
// setup-envtest bundle has no such binary, so this one is always built.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() { os.Exit(cli.Run(app.NewControllerManagerCommand())) }
