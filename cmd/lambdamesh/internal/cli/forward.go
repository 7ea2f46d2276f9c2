package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// The event bus's public port in a cluster, as the chart installs it.
const (
	publicService = "eventbus-public"
	publicPort    = "public"
	adminPort     = "admin"
	publicSecret  = "eventbus-tls"
	meshConfigMap = "lambdamesh-mesh"
	caKey         = "ca.crt"
)

// forwardEventBus leads to the event bus of a cluster through its API server, as
// `kubectl port-forward` does, until ctx ends. It returns the bus's URL and a
// client for it: whoever answers must be the bus, by the certificates that sign
// the bus's (PEM), "" for those of the installation.
func forwardEventBus(ctx context.Context, cfg *rest.Config, ca string) (url string, client *http.Client, err error) {
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return "", nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	roots, err := busRoots(ctx, clientset, ca)
	if err != nil {
		return "", nil, err
	}
	address, err := forwardPort(ctx, cfg, clientset, publicService, publicPort)
	if err != nil {
		return "", nil, err
	}
	host := publicService + "." + v1alpha1.SystemNamespace + ".svc"
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}
	return "https://" + host, &http.Client{Transport: transport, Timeout: publishTimeout}, nil
}

// forwardPort leads to a port of a pod behind a Service of the system, by its name
// in the pod, until ctx ends, and returns the address on this machine.
func forwardPort(ctx context.Context, cfg *rest.Config, clientset kubernetes.Interface, service, portName string) (address string, err error) {
	pod, port, err := servicePod(ctx, clientset, service, portName)
	if err != nil {
		return "", err
	}
	address, err = forward(ctx, cfg, clientset.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(v1alpha1.SystemNamespace).Name(pod).SubResource("portforward"), port)
	if err != nil {
		return "", fmt.Errorf("reach %s through the API server (pod %s/%s): %w; or name its address", service, v1alpha1.SystemNamespace, pod, err)
	}
	return address, nil
}

// servicePod is a pod behind a Service that is ready, and a port of it.
func servicePod(ctx context.Context, clientset kubernetes.Interface, of, portName string) (name string, port int32, err error) {
	system := clientset.CoreV1()
	service, err := system.Services(v1alpha1.SystemNamespace).Get(ctx, of, metav1.GetOptions{})
	if err != nil {
		return "", 0, fmt.Errorf("find the Service %s of the cluster (is Lambdamesh installed there, with that part's public.enabled?): %w", of, err)
	}
	pods, err := system.Pods(v1alpha1.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(service.Spec.Selector).String()})
	if err != nil {
		return "", 0, fmt.Errorf("find the pods of %s: %w", of, err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !isReady(pod) {
			continue
		}
		for _, c := range pod.Spec.Containers {
			for _, p := range c.Ports {
				if p.Name == portName {
					return pod.Name, p.ContainerPort, nil
				}
			}
		}
	}
	return "", 0, fmt.Errorf("none of the %d pods of %s is ready: see `kubectl -n %s get pods`", len(pods.Items), of, v1alpha1.SystemNamespace)
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// busRoots are what verifies the event bus's certificate.
func busRoots(ctx context.Context, clientset kubernetes.Interface, file string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read --ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(raw) {
			return nil, usagef("--ca %s: there is no certificate (PEM) in it", file)
		}
		return pool, nil
	}
	// The ConfigMap is for everybody, where there is one; the Secret is not.
	system := clientset.CoreV1()
	config, configErr := system.ConfigMaps(v1alpha1.SystemNamespace).Get(ctx, meshConfigMap, metav1.GetOptions{})
	if configErr == nil && pool.AppendCertsFromPEM([]byte(config.Data[caKey])) {
		return pool, nil
	}
	secret, secretErr := system.Secrets(v1alpha1.SystemNamespace).Get(ctx, publicSecret, metav1.GetOptions{})
	if secretErr == nil && pool.AppendCertsFromPEM(secret.Data[caKey]) {
		return pool, nil
	}
	return nil, fmt.Errorf("find what verifies the event bus's certificate: pass --ca FILE: %w", errors.Join(configErr, secretErr))
}

// forward listens on loopback, carries connections to a pod's port until ctx
// ends, and returns where it listens.
func forward(ctx context.Context, cfg *rest.Config, request *rest.Request, port int32) (address string, err error) {
	transport, upgrader, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return "", err
	}
	overWebSocket, err := portforward.NewSPDYOverWebsocketDialer(request.URL(), cfg)
	if err != nil {
		return "", err
	}
	// As kubectl does: SPDY for what stands before an API server and knows no
	// WebSockets.
	dialer := portforward.NewFallbackDialer(overWebSocket,
		spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, request.URL()),
		func(err error) bool { return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) })
	ready := make(chan struct{})
	forwarder, err := portforward.NewOnAddressesWithContext(ctx, dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(int(port))}, ready, io.Discard, io.Discard)
	if err != nil {
		return "", err
	}
	failed := make(chan error, 1)
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return "", err
	case <-ctx.Done():
		return "", ctx.Err()
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))), nil
}
