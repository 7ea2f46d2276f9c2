// Command lambdamesh is the command line, and `lambdamesh dev`: the whole mesh
// on one machine.
package main

import (
	"context"
	"os"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/cli"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// version is set by the build.
var version = "dev"

func main() {
	process.WatcherMain()
	os.Exit(cli.Run(context.Background(), version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
