package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// followInterval is how often files are looked at for more; people read slower.
const followInterval = 200 * time.Millisecond

type logsOptions struct {
	namespace string
	follow    bool
	previous  bool
	tail      int
}

func newLogsCommand(g *globals) *cobra.Command {
	o := logsOptions{}
	cmd := &cobra.Command{
		Use:   "logs LAMBDA",
		Short: "Print what a lambda's replicas wrote",
		Example: `  lambdamesh logs last-order
  lambdamesh logs last-order -n shop -f
  lambdamesh logs last-order -n shop --previous   # what it wrote before it crashed`,
		Args: exactArgs("LAMBDA"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.previous && o.follow {
				return usagef("--previous is of containers that write no more: leave out --follow")
			}
			t := g.target()
			if t.local() {
				if err := t.check(); err != nil {
					return err
				}
				if own, err := t.namespace(""); err == nil && o.namespace == "" {
					if _, err := logDir(filepath.Join(t.dataDir, dev.LambdaLogsDir), args[0], own); err == nil {
						o.namespace = own
					}
				}
				return localLogs(cmd.Context(), filepath.Join(t.dataDir, dev.LambdaLogsDir), args[0], o, cmd.OutOrStdout())
			}
			return clusterLogs(cmd.Context(), t, args[0], o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "the lambda's namespace (default: the context's; in a local mesh, where that has none, the only one with a lambda of that name)")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on printing what comes")
	f.BoolVarP(&o.previous, "previous", "p", false, "in a cluster, what the container before the last restart wrote; a local mesh prints it anyway")
	f.IntVar(&o.tail, "tail", 100, "how many lines of each replica to begin with; -1 for all")
	return cmd
}

// localLogs prints <root>/<namespace>/<lambda>/<replica>.log.
func localLogs(ctx context.Context, root, lambda string, o logsOptions, w io.Writer) error {
	dir, err := logDir(root, lambda, o.namespace)
	if err != nil {
		return err
	}
	offsets := map[string]int64{}
	for {
		files, err := filepath.Glob(filepath.Join(dir, "*.log"))
		if err != nil {
			return fmt.Errorf("list logs in %s: %w", dir, err)
		}
		// Old replicas first, so that the newest lines come last.
		slices.SortFunc(files, func(a, b string) int { return modTime(a).Compare(modTime(b)) })
		for _, file := range files {
			offset, seen := offsets[file]
			tail := -1
			if !seen {
				tail = o.tail
			}
			if offsets[file], err = printFrom(w, file, offset, tail, len(files) > 1); err != nil {
				return err
			}
		}
		if !o.follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followInterval):
		}
	}
}

// logDir finds the lambda's directory; without a namespace it must be the only
// one of that name.
func logDir(root, lambda, namespace string) (string, error) {
	if strings.ContainsAny(lambda+namespace, `/\*?[`) {
		return "", usagef("%q is not the name of a lambda", lambda)
	}
	pattern := namespace
	if pattern == "" {
		pattern = "*"
	}
	dirs, err := filepath.Glob(filepath.Join(root, pattern, lambda))
	switch {
	case err != nil:
		return "", fmt.Errorf("look for logs in %s: %w", root, err)
	case len(dirs) == 0:
		return "", fmt.Errorf("no lambda %q has run here yet: see `lambdamesh status -A`", lambda)
	case len(dirs) > 1:
		return "", usagef("several namespaces have a lambda %q: pass -n NAMESPACE", lambda)
	}
	return dirs[0], nil
}

func modTime(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// printFrom prints a file from offset, at most its last tail lines, and returns
// the offset of what comes next. A file that shrank was rotated and is read
// anew.
func printFrom(w io.Writer, path string, offset int64, tail int, prefix bool) (int64, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return offset, fmt.Errorf("read the log: %w", err)
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() < offset {
		offset = 0
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return offset, fmt.Errorf("read the log %s: %w", path, err)
	}
	var lines []string
	r := bufio.NewReader(file)
	for {
		line, err := r.ReadString('\n')
		if err != nil { // the rest is an unfinished line: it comes next time
			break
		}
		offset += int64(len(line))
		lines = append(lines, line)
		if tail >= 0 && len(lines) > tail {
			lines = lines[1:]
		}
	}
	name := strings.TrimSuffix(filepath.Base(path), ".log")
	for _, line := range lines {
		if prefix {
			line = name + " " + line
		}
		if _, err := io.WriteString(w, line); err != nil {
			return offset, err
		}
	}
	return offset, nil
}

// clusterLogs prints the logs of the lambda's pods: of its own container, not of
// a sidecar's.
func clusterLogs(ctx context.Context, t target, lambda string, o logsOptions, w, stderr io.Writer) error {
	cfg, err := t.restConfig()
	if err != nil {
		return err
	}
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	if o.namespace, err = t.namespace(o.namespace); err != nil {
		return err
	}
	pods, err := clientset.CoreV1().Pods(o.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(labels.Set{v1alpha1.LabelLambda: lambda}).String(),
	})
	if err != nil {
		return fmt.Errorf("list the pods of lambda %s/%s: %w", o.namespace, lambda, err)
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("lambda %q has no pods in namespace %s: pass -n NAMESPACE, or see `lambdamesh status -A`", lambda, o.namespace)
	}
	lines := make(chan string)
	// A pod without a log, because its image cannot be pulled or it has not crashed
	// yet, does not hide those of the others.
	silent := make(chan error, len(pods.Items))
	group, ctx := errgroup.WithContext(ctx)
	for i := range pods.Items {
		pod := &pods.Items[i]
		group.Go(func() error {
			options := &corev1.PodLogOptions{Follow: o.follow, Previous: o.previous, Container: deploy.ContainerName}
			if o.tail >= 0 {
				tail := int64(o.tail)
				options.TailLines = &tail
			}
			stream, err := clientset.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
			if err != nil {
				silent <- fmt.Errorf("read the log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
				return nil
			}
			defer stream.Close()
			scanner := bufio.NewScanner(stream)
			scanner.Buffer(nil, maxAnswer)
			for scanner.Scan() {
				select {
				case lines <- pod.Name + " " + scanner.Text() + "\n":
				case <-ctx.Done():
					return nil
				}
			}
			return scanner.Err()
		})
	}
	done := make(chan error, 1)
	go func() { done <- group.Wait(); close(lines) }()
	for line := range lines {
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	if err := <-done; err != nil {
		return err
	}
	close(silent)
	var errs []error
	for err := range silent {
		errs = append(errs, err)
	}
	if len(errs) == len(pods.Items) {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		fmt.Fprintf(stderr, "lambdamesh: %v\n", err)
	}
	return nil
}
