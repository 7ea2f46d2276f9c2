// Package kube asks an API server the few things that starting a cluster has to
// know. It is not client-go, which would be ten times the program: what a start
// applies, kubectl applies.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Client talks to one API server with a certificate.
type Client struct {
	server string
	http   http.Client
}

// New is a client with the certificate NAME.crt of a folder that package pki filled.
func New(server, dir, name string) (*Client, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	return &Client{server: server, http: http.Client{Transport: &http.Transport{
		TLSClientConfig:       &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		ResponseHeaderTimeout: 10 * time.Second,
	}}}, nil
}

// Node is what we read of a Node.
type Node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR netip.Prefix `json:"podCIDR"`
	} `json:"spec"`
	Status struct {
		Conditions []Condition `json:"conditions"`
		Addresses  []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

// Condition is one of a Node or a Deployment.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

// Ready says whether pods can run on the node, and if not, in its own words why.
func (n Node) Ready() (bool, string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", c.Message
		}
	}
	return false, "no word from its kubelet"
}

// Address is its address among the nodes.
func (n Node) Address() (netip.Addr, bool) {
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			address, err := netip.ParseAddr(a.Address)
			return address, err == nil
		}
	}
	return netip.Addr{}, false
}

type list[T any] struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items []T `json:"items"`
}

const nodesPath = "/api/v1/nodes"

// Healthy asks whether the API server is ready.
func (c *Client) Healthy(ctx context.Context) error { return c.get(ctx, "/readyz", nil) }

// Nodes lists the nodes.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var nodes list[Node]
	err := c.get(ctx, nodesPath, &nodes)
	return nodes.Items, err
}

// EachChange calls back with all nodes, now and after each change of one, until
// the context ends. What fails is tried again: an API server may be away.
func (c *Client) EachChange(ctx context.Context, changed func([]Node)) {
	each(ctx, c, nodesPath, changed)
}

func each[T any](ctx context.Context, c *Client, path string, changed func([]T)) {
	for ctx.Err() == nil {
		var all list[T]
		err := c.get(ctx, path, &all)
		if err == nil {
			changed(all.Items)
			err = c.waitForEvent(ctx, path, all.Metadata.ResourceVersion)
		}
		if err != nil {
			Pause(ctx, 500*time.Millisecond)
		}
	}
}

func (c *Client) waitForEvent(ctx context.Context, path, version string) error {
	// A connection that died with the other end must not be waited on for ever.
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	body, err := c.open(ctx, path+"?watch=true&timeoutSeconds=30&resourceVersion="+url.QueryEscape(version))
	if err != nil {
		return err
	}
	defer body.Close()
	var event struct {
		Type string `json:"type"`
	}
	if err := json.NewDecoder(body).Decode(&event); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// Available says whether a Deployment has all the pods it wants.
func (c *Client) Available(ctx context.Context, namespace, name string) (bool, error) {
	var d struct {
		Spec struct {
			Replicas int `json:"replicas"`
		} `json:"spec"`
		Status struct {
			AvailableReplicas int `json:"availableReplicas"`
		} `json:"status"`
	}
	err := c.get(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+name, &d)
	return err == nil && d.Spec.Replicas > 0 && d.Status.AvailableReplicas == d.Spec.Replicas, err
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := c.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func (c *Client) open(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return nil, fmt.Errorf("%s: %s: %s", strings.TrimPrefix(path, c.server), response.Status, bytes.TrimSpace(text))
	}
	return response.Body, nil
}

// Pause waits, or for the context's end.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
