// Command images builds the container images of the project without a container
// engine and without another registry's base images (README.md):
//
//	images build [FLAGS]            into dist/images and dist/images.tar
//	images push [FLAGS] REGISTRY    to a registry, e.g. ghcr.io/lambdamesh
//	images istio [FLAGS] REGISTRY   Istio's pilot and proxyv2 of --programs, for tests, to a registry
//	images lock [FLAGS]             takes the versions that Debian has today
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/oci"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
)

const localNames = "ghcr.io/lambdamesh"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

type options struct {
	root, cache, version string
	platforms, only      string
	registry             string
	programs             string // of Istio
	locked               bool
}

func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) error {
	if len(arguments) == 0 || !slices.Contains([]string{"build", "push", "istio", "lock"}, arguments[0]) {
		return errors.New("say what to do: build, push REGISTRY, istio REGISTRY or lock")
	}
	verb := arguments[0]
	o := options{registry: localNames}
	flags := flag.NewFlagSet("images "+verb, flag.ContinueOnError)
	flags.StringVar(&o.root, "root", ".", "the checkout")
	flags.StringVar(&o.cache, "cache", "", "folder that keeps layers and Debian's packages")
	flags.StringVar(&o.version, "version", "", "what the programs print as their version, and with '-' for '+' the tag")
	flags.StringVar(&o.platforms, "platforms", "", "comma-separated; default: this machine's architecture to build, linux/amd64,linux/arm64 to push")
	flags.StringVar(&o.only, "images", "", "comma-separated names; default: all")
	flags.StringVar(&o.programs, "programs", "", "of istio: the folder that hack/istio/get.sh filled")
	flags.BoolVar(&o.locked, "locked", false, "fail when Debian no longer has a package of debian.lock; default: take today's, and say so")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	switch pushes := verb == "push" || verb == "istio"; {
	case verb == "istio" && o.programs == "":
		return errors.New("--programs is missing: the folder that hack/istio/get.sh filled")
	case pushes && flags.NArg() == 1 && flags.Arg(0) != "":
		o.registry = strings.TrimSuffix(flags.Arg(0), "/")
	case pushes:
		return fmt.Errorf("say where to: make push REGISTRY=registry.example.com/lambdamesh")
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.platforms == "" {
		o.platforms = "linux/" + runtime.GOARCH
		if verb == "push" {
			o.platforms = "linux/amd64,linux/arm64"
		}
	}
	platforms, err := parsePlatforms(o.platforms)
	if err != nil {
		return err
	}
	if o.root, err = filepath.Abs(o.root); err != nil {
		return err
	}
	report := progress.New(stderr)
	if verb == "lock" {
		return lock(ctx, report, o)
	}
	source, images, err := build(ctx, report, o, platforms)
	if err != nil {
		return err
	}
	if verb != "build" {
		pushed, err := oci.Push(ctx, report, source, images)
		for _, reference := range pushed {
			fmt.Fprintln(stdout, reference)
		}
		return err
	}
	dir := filepath.Join(o.root, "dist", "images")
	write := func() error { return oci.Write(dir, dir+".tar", source, images) }
	if err := report.Step("write dist/images.tar", nil, write); err != nil {
		return err
	}
	for _, image := range images {
		digest, err := image.Index.Digest()
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s/%s:%s@%s\n", source.Registry, image.Name, image.Tags[0], digest)
	}
	report.Say("in dist/images (an OCI layout) and dist/images.tar (docker load, ctr images import)")
	return nil
}

func parsePlatforms(list string) ([]v1.Platform, error) {
	var platforms []v1.Platform
	for text := range strings.SplitSeq(list, ",") {
		switch text = strings.TrimSpace(text); text {
		case "linux/amd64", "linux/arm64":
			platforms = append(platforms, v1.Platform{OS: "linux", Architecture: strings.TrimPrefix(text, "linux/")})
		default:
			return nil, fmt.Errorf("PLATFORMS=%s: images are built for linux/amd64 and linux/arm64, not for %q", list, text)
		}
	}
	return platforms, nil
}
