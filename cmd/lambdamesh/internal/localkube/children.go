package localkube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

const (
	etcdGrace        = 10 * time.Second
	apiServerGrace   = 15 * time.Second
	controllersGrace = 5 * time.Second
	// All end at once when we are gone. etcd needs a moment; what it has
	// acknowledged is on disk anyway. The others can do nothing without it.
	orphanGrace = 2 * time.Second

	// A child that ends this often in a row, each time within restartStable, is
	// broken rather than unlucky.
	restartFailures = 5
	restartFirst    = 100 * time.Millisecond
	restartLongest  = 2 * time.Second
	restartStable   = 20 * time.Second

	logSize = 10 << 20

	// The names of etcd's sockets, relative to the run directory in which it and
	// the API server run: an absolute path may be longer than a socket's can be.
	// etcd insists on something like a port.
	etcdSocket     = "unix://etcd:0"
	etcdPeerSocket = "unix://etcd-peer:0"

	// authentication lets everybody ask for the server's health and nothing else.
	authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
    - path: /livez
    - path: /readyz
    - path: /healthz
`
)

func (r *running) authenticationFile() string {
	return filepath.Join(r.runDir(), "authentication.yaml")
}

func (r *running) controllersKubeconfig() string {
	return filepath.Join(r.runDir(), "controller-manager.kubeconfig")
}

// logs holds the open log files of the children.
type logs struct {
	mu    sync.Mutex
	files map[string]*process.Log
}

func (l *logs) open(name, path string) (io.Writer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if log := l.files[name]; log != nil {
		return log, nil
	}
	log, err := process.OpenLog(path, logSize)
	if err != nil {
		return nil, fmt.Errorf("the log of %s: %w", name, err)
	}
	if l.files == nil {
		l.files = map[string]*process.Log{}
	}
	l.files[name] = log
	return log, nil
}

func (l *logs) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, log := range l.files {
		_ = log.Close()
	}
}

// child is a component that keeps a program running. args is asked before each
// start; the component is ready when wait returns.
func (r *running) child(name string, grace time.Duration, args func(context.Context) ([]string, error),
	output func(log io.Writer) io.Writer, wait func(context.Context) error,
) component.Component {
	return component.New(name, func(ctx context.Context, ready func()) error {
		r.wait(name)
		r.Log.InfoContext(ctx, "starting", "component", name, "log", r.logFile(name))
		ctx, fail := context.WithCancelCause(ctx)
		defer fail(nil)
		go func() {
			switch err := wait(ctx); {
			case err == nil:
				ready()
			case ctx.Err() == nil:
				fail(err)
			}
		}()
		err := process.Restarter{
			Next: func(ctx context.Context) (process.Spec, error) {
				log, err := r.logs.open(name, r.logFile(name))
				if err != nil {
					return process.Spec{}, err
				}
				arguments, err := args(ctx)
				if err != nil {
					return process.Spec{}, err
				}
				out := output(log)
				return process.Spec{
					Name: name, Path: r.binary(name), Args: arguments, Dir: r.runDir(),
					Stdout: out, Stderr: out, Grace: grace, OrphanGrace: orphanGrace,
				}, nil
			},
			Min: restartFirst, Max: restartLongest, Stable: restartStable, Failures: restartFailures,
			OnStart: func(p *process.Process) {
				if err := writeFile(r.pidFile(name), []byte(strconv.Itoa(p.PID())+"\n")); err != nil {
					r.Log.WarnContext(ctx, "cannot note the process id", "process", name, "error", err)
				}
			},
			OnFailure: func(err error, pause time.Duration) {
				r.Log.WarnContext(ctx, "it ended and is started again", "component", name, "error", err, "pause", pause)
			},
		}.Run(ctx)
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = errors.Join(cause, err)
		}
		if removeErr := os.Remove(r.pidFile(name)); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return err
	})
}

func plain(log io.Writer) io.Writer { return log }

// said is closed when a child has logged a text. A child that cannot be asked
// whether it is ready is taken at its word.
type said struct {
	text []byte
	once sync.Once
	done chan struct{}
}

func says(text string) *said { return &said{text: []byte(text), done: make(chan struct{})} }

// tee returns a writer to log that looks for the text.
func (s *said) tee(log io.Writer) io.Writer {
	return writerFunc(func(line []byte) (int, error) {
		if bytes.Contains(line, s.text) {
			s.once.Do(func() { close(s.done) })
		}
		return log.Write(line)
	})
}

func (s *said) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

func (r *running) etcd() component.Component {
	// The path of its socket may be too long for us to connect.
	serving := says(`"ready to serve client requests"`)
	args := func(context.Context) ([]string, error) {
		return []string{
			"--name=lambdamesh",
			"--data-dir=" + r.etcdDir(),
			"--listen-client-urls=" + etcdSocket,
			"--advertise-client-urls=" + etcdSocket,
			"--listen-peer-urls=" + etcdPeerSocket,
			"--initial-advertise-peer-urls=" + etcdPeerSocket,
			"--initial-cluster=lambdamesh=" + etcdPeerSocket,
		}, nil
	}
	return r.child("etcd", etcdGrace, args, serving.tee, serving.wait)
}

func (r *running) apiServer() component.Component {
	args := func(ctx context.Context) ([]string, error) {
		if !r.fixed.Load() {
			// Between the choice and the server's start somebody may have taken it.
			port, err := r.choosePort(ctx)
			if err != nil {
				return nil, err
			}
			r.port.Store(int32(port)) //nolint:gosec // a port
		}
		pki := r.pki
		return []string{
			"--bind-address=" + r.host(),
			"--advertise-address=" + r.host(),
			"--secure-port=" + strconv.Itoa(int(r.port.Load())),
			"--etcd-servers=" + etcdSocket,
			"--storage-backend=etcd3",
			"--tls-cert-file=" + pki.file("apiserver.crt"),
			"--tls-private-key-file=" + pki.file("apiserver.key"),
			"--client-ca-file=" + pki.file("ca.crt"),
			"--authentication-config=" + r.authenticationFile(),
			"--authorization-mode=RBAC",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + pki.file("sa.key"),
			"--service-account-signing-key-file=" + pki.file("sa.key"),
			"--service-cluster-ip-range=" + serviceIPRange,
			// Nothing connects to the Service "kubernetes" here, and the API
			// refuses loopback addresses for its endpoints.
			"--endpoint-reconciler-type=none",
			"--profiling=false",
		}, nil
	}
	wait := func(ctx context.Context) error {
		client := &http.Client{}
		defer client.CloseIdleConnections()
		err := r.until(ctx, "kube-apiserver", func(ctx context.Context) error {
			config := r.admin()
			transport, err := rest.TransportFor(config)
			if err != nil {
				return err
			}
			client.Transport = transport
			return readyz(ctx, client, config.Host)
		})
		if err != nil {
			return err
		}
		r.fixed.Store(true)
		return r.publish()
	}
	return r.child("kube-apiserver", apiServerGrace, args, plain, wait)
}

// readyz returns nil when the API server says that it is ready, else which of
// its checks fail.
func readyz(ctx context.Context, client *http.Client, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/readyz?verbose", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil || response.StatusCode == http.StatusOK {
		return err
	}
	var failing []string
	for line := range strings.Lines(string(body)) {
		if check, found := strings.CutPrefix(line, "[-]"); found {
			name, _, _ := strings.Cut(check, " ")
			failing = append(failing, name)
		}
	}
	return fmt.Errorf("it answers %s (%s)", response.Status, strings.Join(failing, ", "))
}

// publish writes what others find the API server by.
func (r *running) publish() error {
	if err := writeFile(r.portFile(), []byte(strconv.Itoa(int(r.port.Load()))+"\n")); err != nil {
		return err
	}
	if err := r.writeKubeconfig(r.controllersKubeconfig(), "controller-manager"); err != nil {
		return err
	}
	return r.writeKubeconfig(r.kubeconfig(), "admin")
}

// controllers is the component of kube-controller-manager.
func (r *running) controllers() component.Component {
	// It listens nowhere. That it has listed all objects may take seconds more;
	// its controllers work from state, so nobody needs to wait for that.
	started := says(`"Starting controller" controller="garbagecollector"`)
	args := func(context.Context) ([]string, error) {
		return []string{
			"--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller",
			"--kubeconfig=" + r.controllersKubeconfig(),
			// Each controller has the role that RBAC grants it; their common
			// certificate may do little more than get them tokens.
			"--use-service-account-credentials",
			"--secure-port=0",
			"--leader-elect=false",
			// One for this machine: its queues are short, the default of 20
			// makes the deletion of a namespace take seconds.
			"--kube-api-qps=1000",
			"--kube-api-burst=2000",
		}, nil
	}
	wait := func(ctx context.Context) error {
		if err := started.wait(ctx); err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(r.admin())
		if err != nil {
			return err
		}
		return r.until(ctx, "the service account that kube-controller-manager gives every namespace", func(ctx context.Context) error {
			_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err
		})
	}
	return r.child("kube-controller-manager", controllersGrace, args, started.tee, wait)
}

// choosePort returns the configured port if it is free, else, if any will do,
// that of the last start or a free one.
func (r *running) choosePort(ctx context.Context) (int, error) {
	if port := r.Config.port(); port != 0 {
		if _, err := listen(ctx, r.host(), port); err != nil {
			return 0, fmt.Errorf("the API server's address %s is taken: %w; stop what listens there, or choose another", r.Address, err)
		}
		return port, nil
	}
	if data, err := os.ReadFile(r.portFile()); err == nil {
		if last, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && last > 0 && last < 1<<16 {
			if port, err := listen(ctx, r.host(), last); err == nil {
				return port, nil
			}
			r.Log.InfoContext(ctx, "the last port of the API server is taken, so it gets another", "port", last)
		}
	}
	port, err := listen(ctx, r.host(), 0)
	if err != nil {
		return 0, fmt.Errorf("no port for the API server: %w", err)
	}
	return port, nil
}

// listen tries to listen and returns the port. kube-apiserver can neither take a
// listener nor tell which port it got.
func listen(ctx context.Context, host string, port int) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = listener.Close() }()
	_, chosen, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(chosen)
}

func (r *running) server() string {
	return "https://" + net.JoinHostPort(r.host(), strconv.Itoa(int(r.port.Load())))
}

// admin is the administrator's client configuration.
func (r *running) admin() *rest.Config {
	return &rest.Config{
		Host: r.server(),
		TLSClientConfig: rest.TLSClientConfig{
			CAFile:   r.pki.file("ca.crt"),
			CertFile: r.pki.file("admin.crt"),
			KeyFile:  r.pki.file("admin.key"),
		},
		QPS: -1, // the server's priority and fairness is limit enough
	}
}

// writeKubeconfig writes a kubeconfig that stands by itself, with the
// certificate of that name.
func (r *running) writeKubeconfig(path, name string) error {
	const context = "lambdamesh"
	config := clientcmdapi.NewConfig()
	cluster, user := clientcmdapi.NewCluster(), clientcmdapi.NewAuthInfo()
	cluster.Server = r.server()
	for file, field := range map[string]*[]byte{
		"ca.crt":      &cluster.CertificateAuthorityData,
		name + ".crt": &user.ClientCertificateData,
		name + ".key": &user.ClientKeyData,
	} {
		data, err := os.ReadFile(r.pki.file(file))
		if err != nil {
			return err
		}
		*field = data
	}
	config.Clusters[context] = cluster
	config.AuthInfos[context] = user
	config.Contexts[context] = &clientcmdapi.Context{Cluster: context, AuthInfo: context, Namespace: "default"}
	config.CurrentContext = context
	data, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}
