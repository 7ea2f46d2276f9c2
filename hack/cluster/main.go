// Command cluster brings up real Kubernetes nodes on this machine, without a
// container engine; see README.md. `make cluster` and hack/cluster/run call it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/boot"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/cluster"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/images"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

const usage = `usage: hack/cluster/run COMMAND [--name NAME]

  up [--nodes 2] [--network 10.210.0.0/16] [--timeout 2m]
                        start a cluster; prints what to export
  down [--all]          end it and undo all it changed, also after an interrupted start
  list                  the clusters of this machine
  node kill N           end a node as a power cut would (or: control-plane)
  node start N          start it again with what is on its disk
  node exec N COMMAND   run a command inside the node
  push FILE REFERENCE   make an image of one static program and push it, as REGISTRY/test/app:1
  check                 say in one line why nodes cannot run here; exits with 77 when the
                        machine lacks a privilege or a part of the kernel
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		if errors.As(err, &host.Lack{}) {
			// It tells a machine that cannot run nodes from nodes that do not run;
			// test drivers take it for "skipped".
			os.Exit(host.ExitLack)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	// What the program starts itself with.
	switch {
	case command == host.ProbeCommand:
		return host.Probe(ctx)
	case command == host.InitCommand && len(args) == 2:
		signal.Ignore(syscall.SIGHUP)
		return boot.Run(ctx, args[0], args[1])
	}

	config := cluster.Config{Programs: os.Getenv("LAMBDAMESH_CLUSTER_PATH"), Progress: progress}
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&config.Name, "name", "mesh", "")
	flags.IntVar(&config.Nodes, "nodes", 2, "")
	flags.TextVar(&config.Network, "network", netip.Prefix{}, "")
	flags.DurationVar(&config.Timeout, "timeout", 2*time.Minute, "")
	all := flags.Bool("all", false, "")
	// Flags may stand behind the words: node kill 2 --name b. Behind `exec N` all
	// belongs to the command.
	var words []string
	for len(args) > 0 {
		if len(words) >= 2 && words[0] == "exec" {
			words = append(words, args...)
			break
		}
		if !strings.HasPrefix(args[0], "-") {
			words, args = append(words, args[0]), args[1:]
			continue
		}
		if err := flags.Parse(args); err != nil {
			fmt.Fprintf(progress, "cluster: %v\n", err)
			return flag.ErrHelp
		}
		args = flags.Args()
	}
	if err := state.ValidName(config.Name); err != nil {
		return err
	}
	switch {
	case command == "push" && len(words) == 2:
		return images.Push(ctx, images.Image{Program: words[0], Name: filepath.Base(words[0])}, words[1])
	case command == "check" && len(words) == 0:
		return host.Check(ctx)
	case command == "up" && len(words) == 0:
		return up(ctx, config, out)
	case command == "down" && len(words) == 0:
		return down(ctx, config.Name, *all, progress)
	case command == "list" && len(words) == 0:
		return list(out)
	case command == "node" && len(words) == 2 && words[0] == "kill":
		return cluster.Kill(ctx, config.Name, cluster.ParsePart(words[1]))
	case command == "node" && len(words) == 2 && words[0] == "start":
		return cluster.Start(ctx, config.Name, cluster.ParsePart(words[1]))
	case command == "node" && len(words) > 2 && words[0] == "exec":
		return enter(config.Name, cluster.ParsePart(words[1]), words[2:])
	}
	return flag.ErrHelp
}

func up(ctx context.Context, config cluster.Config, out io.Writer) error {
	if err := host.Check(ctx); err != nil {
		return err
	}
	s, started, err := cluster.Up(ctx, config)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "export KUBECONFIG=%s\nexport REGISTRY=%s\n", s.Kubeconfig(), s.Registry())
	if started {
		fmt.Fprintln(out, "# started") // who started it may end it
	}
	return nil
}

func down(ctx context.Context, name string, all bool, progress io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, as the start did")
	}
	names := []string{name}
	if all {
		clusters, err := state.All()
		if err != nil {
			return err
		}
		names = nil
		for _, s := range clusters {
			names = append(names, s.Name)
		}
	}
	var errs []error
	for _, name := range names {
		err := cluster.Down(ctx, name)
		if err == nil {
			fmt.Fprintf(progress, "nothing is left of cluster %s\n", name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func list(out io.Writer) error {
	all, err := state.All()
	if err != nil {
		return err
	}
	for _, s := range all {
		parts, err := host.Processes(s)
		if err != nil {
			return err
		}
		running := 0
		for part := range parts {
			if strings.HasPrefix(part, "node") {
				running++
			}
		}
		fmt.Fprintf(out, "%-11s  %d of %d nodes running  KUBECONFIG=%s  REGISTRY=%s\n", s.Name, running, s.Nodes, s.Kubeconfig(), s.Registry())
	}
	return nil
}

// enter becomes a command in the namespaces of a part.
func enter(name, part string, command []string) error {
	_, parts, err := cluster.Parts(name)
	if err != nil {
		return err
	}
	pid, ok := parts[part]
	if !ok {
		return fmt.Errorf("%s of cluster %s is not running", part, name)
	}
	argv := slices.Concat([]string{"nsenter", "--target", strconv.Itoa(pid), "--mount", "--pid", "--net", "--ipc", "--uts", "--"}, command)
	return syscall.Exec(host.Look("nsenter"), argv, append(os.Environ(), "PATH="+boot.Path()))
}
