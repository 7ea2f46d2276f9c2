package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of the program.
const (
	ExitOK = 0
	// ExitFailure: the command was understood and failed.
	ExitFailure = 1
	// ExitUsage: the command line is wrong.
	ExitUsage = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// Run executes the command line and returns the exit code. Errors are printed
// to stderr, one line each, with what to do next.
func Run(ctx context.Context, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot(version)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(stderr, "lambdamesh: %v\n", err)
	if usage := (usageError{}); errors.As(err, &usage) {
		return ExitUsage
	}
	return ExitFailure
}

func newRoot(version string) *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "lambdamesh",
		Short: "Run lambdas behind a service-mesh gateway and wire them to business events",
		Long: `lambdamesh runs lambdas behind a service-mesh gateway and wires them to business
events and third-party commerce systems.

Begin with:

  lambdamesh dev --apply examples/commerce

It starts everything on this machine. The other commands talk to the cluster that
--kubeconfig or --context names, else to that of an exported KUBECONFIG, else to the
local mesh that runs with --data-dir, else to kubectl's default. Where there is a
namespace to choose it is that of -n, else the context's.

The same program named kubectl-lambdamesh is kubectl's plugin: kubectl lambdamesh.

Exit codes: 0, it is done; 1, it failed; 2, the command line is wrong.`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl lambdamesh"}
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w (see `%s --help`)", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	g.register(flags)
	root.AddCommand(
		newDevCommand(g),
		newStatusCommand(g),
		newLambdaCommand(g),
		newLogsCommand(g),
		newPublishCommand(g),
		newEventsCommand(g),
		newDeadLettersCommand(g),
		newPairCommand(g),
		newTokenCommand(),
		newTranslateCommand(),
	)
	return root
}

func defaultDataDir() string {
	if dir := os.Getenv("LAMBDAMESH_DATA_DIR"); dir != "" {
		return dir
	}
	return ".lambdamesh"
}

// noArgs and exactArgs are cobra's checks as usage errors.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown argument %q (see `%s --help`)", args[0], cmd.CommandPath())
	}
	return nil
}

func exactArgs(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(what) {
			return usagef("%s takes %d argument(s), %v, and got %d (see `%[1]s --help`)", cmd.CommandPath(), len(what), what, len(args))
		}
		return nil
	}
}
