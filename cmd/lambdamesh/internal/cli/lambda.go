package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/project"
	"github.com/lambdamesh/lambdamesh/lambdas/standalone"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

func newLambdaCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lambda",
		Short: "Write, run, deploy and call a lambda",
		Long: `lambda is for who writes one. A project is a directory with the lambda's files and a
lambda.yaml, the Lambda without its source.`,
		Example: `  lambdamesh lambda init greet --runtime nodejs
  lambdamesh lambda run greet
  lambdamesh lambda deploy greet -n shop
  lambdamesh lambda invoke greet -n shop --event greet/event.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLambdaInitCommand(), newLambdaRunCommand(), newLambdaDeployCommand(g), newLambdaInvokeCommand(g))
	return cmd
}

func newLambdaInitCommand() *cobra.Command {
	var runtime string
	names := make([]string, 0, len(project.Runtimes()))
	for _, known := range project.Runtimes() {
		names = append(names, string(known))
	}
	cmd := &cobra.Command{
		Use:   "init NAME --runtime " + strings.Join(names, "|"),
		Short: "Make a directory with a lambda that works, its test, and types for editors",
		Long: `init makes the directory NAME; of a path the last element is the lambda's name.
It takes TypeScript where it takes JavaScript: rename main.js to main.ts.`,
		Example: `  lambdamesh lambda init greet --runtime nodejs
  lambdamesh lambda init lambdas/last-order --runtime python`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			known := false
			for _, name := range names {
				known = known || name == runtime
			}
			if !known {
				return usagef("--runtime %q: use %s", runtime, strings.Join(names, ", "))
			}
			dir := filepath.Clean(args[0])
			files, err := project.Init(dir, filepath.Base(dir), v1alpha1.Runtime(runtime))
			if err != nil {
				return err
			}
			for _, file := range files {
				fmt.Fprintln(cmd.OutOrStdout(), file)
			}
			test := map[string]string{"nodejs": "node --test", "python": "python3 -m unittest", "go": "go test ./..."}[runtime]
			fmt.Fprintf(cmd.OutOrStdout(), "\n  lambdamesh lambda run %s      runs it, again when a file is saved\n  (cd %[1]s && %s)      tests it\n", dir, test)
			return nil
		},
	}
	cmd.Flags().StringVar(&runtime, "runtime", "", "`language`: "+strings.Join(names, ", "))
	return cmd
}

func newLambdaRunCommand() *cobra.Command {
	var address, inspect string
	var env []string
	cmd := &cobra.Command{
		Use:   "run DIR",
		Short: "Run a lambda alone, without a mesh, and again when a file is saved",
		Long: `run builds the project and serves it on this machine until Ctrl-C. A saved file is
live when it builds and starts; until then, and when it does not, the version
before answers.

A request with the attributes of a CloudEvent is an event. Events that the lambda
publishes are printed. Applications need a mesh: lambdamesh dev.`,
		Example: `  lambdamesh lambda run greet
  lambdamesh lambda run greet --address 127.0.0.1:8000 --inspect
  lambdamesh lambda invoke greet --url http://127.0.0.1:8000 --event greet/event.json`,
		Args: exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			log, err := telemetry.Logger(cmd.ErrOrStderr(), telemetry.LogConfig{Level: "warn"})
			if err != nil {
				return err
			}
			toolchain, err := projectToolchain(args[0])
			if err != nil {
				return err
			}
			listener, err := httpserver.Listen(ctx, address, "--address")
			if err != nil {
				return err
			}
			config := standalone.Config{
				Dir: args[0], Listener: listener, Toolchain: toolchain, Inspect: inspect, Env: env,
				Out: cmd.OutOrStdout(), Logs: cmd.ErrOrStderr(), Log: log,
			}
			if err := config.Validate(); err != nil {
				return usageError{errors.Join(err, listener.Close())}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lambdamesh: serving %s at http://%s\n", args[0], listener.Addr())
			return standalone.Run(ctx, config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "address", "127.0.0.1:0", "where to serve it")
	f.StringVar(&inspect, "inspect", "", "let a debugger of Node.js attach at `host:port`")
	f.Lookup("inspect").NoOptDefVal = "127.0.0.1:9229"
	f.StringArrayVar(&env, "env", nil, "environment variable `NAME=VALUE`, besides those of lambda.yaml; repeatable")
	return cmd
}

// projectToolchain keeps what it builds of a project in the user's cache.
func projectToolchain(dir string) (*build.Toolchain, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find a directory for what is built: %w", err)
	}
	sum := sha256.Sum256([]byte(dir))
	return build.NewToolchain(build.ToolchainConfig{Dir: filepath.Join(cache, "lambdamesh", "run", hex.EncodeToString(sum[:8]))})
}
