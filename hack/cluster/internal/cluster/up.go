package cluster

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/boot"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/images"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/pki"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

//go:embed manifests/*.yaml
var manifests embed.FS

const corednsImage = "registry.k8s.io/coredns/coredns"

// Config is what one may ask of a cluster.
type Config struct {
	Name  string
	Nodes int
	// Network is a /16 for nodes, pods and services; a free one, when it is none.
	Network netip.Prefix
	// Programs is a PATH of Kubernetes', containerd's, CoreDNS's and our programs.
	Programs string
	// Timeout ends a start that does not come to its end.
	Timeout time.Duration
	// Progress gets a line for each step.
	Progress io.Writer
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	if err := state.ValidName(c.Name); err != nil {
		return err
	}
	if c.Nodes < 1 || c.Nodes > state.MaxNodes {
		return fmt.Errorf("%d nodes: a cluster has 1 to %d", c.Nodes, state.MaxNodes)
	}
	if n := c.Network; n.IsValid() && (!n.Addr().Is4() || n.Bits() != 16 || n != n.Masked()) {
		return fmt.Errorf("the network %s is no IPv4 network of 16 bits, as 10.210.0.0/16 is", n)
	}
	for _, program := range []string{"kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "coredns", "pause"} {
		if find(c.Programs, program) == "" {
			return fmt.Errorf("no program %s in %q: run hack/cluster/get.sh, and start by `make cluster`", program, c.Programs)
		}
	}
	return nil
}

// Up starts a cluster and returns when pods run on all its nodes. One that is
// running already stays as it is, and was not started then; what is left of another start goes first.
// When the start fails nothing of it stays but the logs.
func Up(ctx context.Context, c Config) (s *state.State, started bool, err error) {
	if err := c.Validate(); err != nil {
		return nil, false, err
	}
	unlock, err := state.Lock(c.Name)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	s, err = state.Load(c.Name)
	switch {
	case err == nil && s.Ready && complete(s):
		fmt.Fprintf(c.Progress, "cluster %s with %d nodes is running already\n", s.Name, s.Nodes)
		return s, false, nil
	case err == nil:
		fmt.Fprintf(c.Progress, "removing what is left of a cluster %s\n", c.Name)
		if err := undo(ctx, s); err != nil {
			return nil, false, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, err
	}
	if err := state.New(c.Name).Remove(); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("not ready after %s", c.Timeout))
	defer cancel()
	u := &up{Config: c, began: time.Now()}
	err = u.run(ctx)
	if err == nil {
		u.say("ready")
		return u.state, true, nil
	}
	if u.state == nil {
		return nil, false, err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	why := u.logs()
	if undone := undo(ctx, u.state); undone != nil {
		return nil, false, errors.Join(err, fmt.Errorf("and it could not be removed (make cluster-down NAME=%s tries again): %w", c.Name, undone))
	}
	return nil, false, fmt.Errorf("%w%s\nnothing of it runs; logs are in %s until cluster-down", err, why, u.state.Dir())
}

// complete says whether a cluster survived what happened since its start: after
// a reboot of the machine its file says ready, and nothing runs. Nodes that were
// killed on purpose do not count.
func complete(s *state.State) bool {
	parts, err := host.Processes(s)
	return err == nil && parts[boot.Switch] != 0
}

type up struct {
	Config
	began  time.Time
	state  *state.State
	client *kube.Client
}

func (u *up) say(format string, args ...any) {
	fmt.Fprintf(u.Progress, "%5.1fs  %s\n", time.Since(u.began).Seconds(), fmt.Sprintf(format, args...))
}

func (u *up) run(ctx context.Context) error {
	if err := u.allocate(); err != nil {
		return err
	}
	s := u.state
	u.say("cluster %s: nodes %s, pods %s, services %s", s.Name, s.NodeNetwork(), s.Pods(), s.Services())
	if err := u.certificates(); err != nil {
		return err
	}
	switchPID, err := startSwitch(ctx, s)
	if err != nil {
		return err
	}
	u.say("registry on %s", s.Registry())
	for _, part := range u.parts() {
		if err := startPart(ctx, s, part, switchPID); err != nil {
			return err
		}
	}
	group, inGroup := errgroup.WithContext(ctx)
	group.Go(func() error { return u.push(inGroup) })
	group.Go(func() error { return u.apiServer(inGroup) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := u.install(ctx); err != nil {
		return err
	}
	if err := u.nodes(ctx); err != nil {
		return err
	}
	if err := u.poll(ctx, "CoreDNS", func(ctx context.Context) (bool, error) {
		return u.client.Available(ctx, "kube-system", "coredns")
	}); err != nil {
		return err
	}
	s.Ready = true
	return s.Save()
}

func (u *up) parts() []string {
	parts := []string{boot.ControlPlane}
	for n := 1; n <= u.Nodes; n++ {
		parts = append(parts, boot.NodeName(n))
	}
	return parts
}

// allocate chooses addresses and writes the state, so that no other cluster
// chooses the same ones.
func (u *up) allocate() error {
	unlock, err := state.LockMachine()
	if err != nil {
		return err
	}
	defer unlock()
	s := state.New(u.Name)
	s.Nodes, s.Programs, s.CNI, s.Nameservers = u.Nodes, u.Programs, host.CNI(), host.Nameservers()
	if s.Block = u.Network; !s.Block.IsValid() {
		others, err := state.All()
		if err != nil {
			return err
		}
		var taken []netip.Prefix
		for _, other := range others {
			taken = append(taken, other.Block)
		}
		if s.Block, err = host.FreeBlock(taken); err != nil {
			return err
		}
	}
	if err := s.Save(); err != nil {
		return err
	}
	u.state = s
	return nil
}

func (u *up) certificates() error {
	s, dir := u.state, u.state.Path("pki")
	ca, err := pki.NewAuthority(dir, "lambdamesh-"+s.Name)
	if err != nil {
		return err
	}
	kubeconfigs := []string{"admin", "controller-manager", "scheduler", "kube-proxy"}
	subjects := map[string]pki.Subject{
		"admin":              {CommonName: "admin", Groups: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":         {CommonName: "system:kube-proxy"},
		"volumes":            {CommonName: "system:lambdamesh-volumes"},
		"kubelet-client":     {CommonName: "kube-apiserver", Groups: []string{"system:masters"}},
		"front-proxy":        {CommonName: "front-proxy"},
		"apiserver": {
			CommonName: "kube-apiserver",
			Names:      []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
			Addresses:  []netip.Addr{netip.MustParseAddr("127.0.0.1"), s.ControlPlane(), s.APIService()},
		},
	}
	for n := 1; n <= s.Nodes; n++ {
		name := boot.NodeName(n)
		subjects[name] = pki.Subject{CommonName: "system:node:" + name, Groups: []string{"system:nodes"}, Names: []string{name}, Addresses: []netip.Addr{s.Node(n)}}
		kubeconfigs = append(kubeconfigs, name)
	}
	for name, subject := range subjects {
		if err := ca.Issue(name, subject); err != nil {
			return err
		}
	}
	if err := ca.Key("service-account"); err != nil {
		return err
	}
	for _, name := range kubeconfigs {
		config, err := pki.Kubeconfig(dir, name, "lambdamesh-"+s.Name, s.Server())
		if err != nil {
			return err
		}
		file := filepath.Join(dir, name+".kubeconfig")
		if name == "admin" {
			file = s.Kubeconfig()
		}
		if err := os.WriteFile(file, config, 0o600); err != nil {
			return err
		}
	}
	u.client, err = kube.New(s.Server(), dir, "admin")
	return err
}

// push brings the images that the cluster itself needs into its registry.
func (u *up) push(ctx context.Context) error {
	for reference, image := range map[string]images.Image{
		boot.PauseImage:  {Program: find(u.Programs, "pause"), Name: "pause", User: "65535:65535"},
		u.corednsImage(): {Program: find(u.Programs, "coredns"), Name: "coredns"},
	} {
		_, repository, _ := strings.Cut(reference, "/")
		if err := images.Push(ctx, image, u.state.Registry()+"/"+repository); err != nil {
			return err
		}
	}
	return nil
}

// corednsImage has the version that is the name of the program's folder's parent
// in the cache.
func (u *up) corednsImage() string {
	version := filepath.Base(filepath.Dir(filepath.Dir(find(u.Programs, "coredns"))))
	if !strings.HasPrefix(version, "v") {
		version = "local"
	}
	return corednsImage + ":" + version
}

func (u *up) apiServer(ctx context.Context) error {
	return u.poll(ctx, "the API server", func(ctx context.Context) (bool, error) {
		err := u.client.Healthy(ctx)
		return err == nil, err
	})
}

// install applies what every cluster has: names and storage.
func (u *up) install(ctx context.Context) error {
	t, err := template.ParseFS(manifests, "manifests/*.yaml")
	if err != nil {
		return err
	}
	var all bytes.Buffer
	for _, manifest := range t.Templates() {
		all.WriteString("---\n")
		if err := manifest.Execute(&all, map[string]any{
			"Nameservers": u.state.Nameservers, "Image": u.corednsImage(), "Address": u.state.DNS(),
			"StorageClass": boot.StorageClass, "Provisioner": boot.Provisioner,
		}); err != nil {
			return err
		}
	}
	// It need not fetch all schemas to validate what never changes.
	apply := exec.CommandContext(ctx, find(u.Programs, "kubectl"), "--kubeconfig="+u.state.Kubeconfig(), "apply", "--validate=false", "-f", "-")
	apply.Env = []string{"HOME=" + u.state.Path("kubectl")} // its cache
	apply.Stdin = &all
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("install names and storage: %s: %w", bytes.TrimSpace(out), err)
	}
	return nil
}

func (u *up) nodes(ctx context.Context) error {
	seen := map[string]bool{}
	return u.poll(ctx, "the nodes", func(ctx context.Context) (bool, error) {
		nodes, err := u.client.Nodes(ctx)
		if err != nil {
			return false, err
		}
		if len(nodes) < u.Nodes {
			err = fmt.Errorf("%d of %d nodes registered", len(nodes), u.Nodes)
		}
		for _, node := range nodes {
			ready, why := node.Ready()
			if name := node.Metadata.Name; ready && !seen[name] {
				seen[name] = true
				u.say("%s ready", name)
			} else if !ready {
				err = fmt.Errorf("%s: %s", name, why)
			}
		}
		return len(seen) == u.Nodes, err
	})
}

// poll waits until something is true, and says so.
func (u *up) poll(ctx context.Context, what string, ready func(context.Context) (bool, error)) error {
	var last error
	for {
		ok, err := ready(ctx)
		if ok {
			if what != "the nodes" { // each has a line of its own
				u.say("%s ready", what)
			}
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(last))
		}
		kube.Pause(ctx, 100*time.Millisecond)
	}
}

// logs are the last words of the parts, for the message of a start that failed.
func (u *up) logs() string {
	var out strings.Builder
	for _, part := range append([]string{boot.Switch}, u.parts()...) {
		if lines := lastLines(u.state.Path(part, "log"), 3); lines != "" {
			fmt.Fprintf(&out, "\n%s", lines)
		}
	}
	return out.String()
}

// find is where a program is in a PATH, or "".
func find(path, program string) string {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, program)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return file
		}
	}
	return ""
}
