package compile

import (
	"fmt"
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// SecretSeparator is between the name of a server and that of its secret, in the
// name that a secret has here. One of the control plane's has its own name.
const SecretSeparator = "|"

// fromServer tells which server a secret comes from; empty: the control plane.
func (r *Resources) fromServer(name string) (server, secret string) {
	if server, secret, found := strings.Cut(name, SecretSeparator); found && r.servers[server] {
		return server, secret
	}
	return "", name
}

// known refuses a context with secrets of servers that there are not.
func (r *Resources) known(at string, t *tlsContext) error {
	if t == nil {
		return nil
	}
	for _, server := range t.servers {
		if !r.servers[server] {
			return fmt.Errorf("%s: there is no SDS server %q in the bootstrap", at, server)
		}
	}
	return nil
}

// AcceptSecrets takes what another server of secrets sent, whole or not at all.
func (r *Resources) AcceptSecrets(server string, list []*anypb.Any) error {
	next := maps.Clone(r.Secrets)
	for _, packed := range list {
		var message tlsv3.Secret
		if err := strict.Unmarshal(resource.SecretType, packed, &message); err != nil {
			return err
		}
		compiled, err := compileSecret(&message)
		if err != nil {
			return err
		}
		next[server+SecretSeparator+message.GetName()] = compiled
	}
	r.Secrets = next
	r.SecretGen++
	return nil
}

// Wanted are the names to subscribe to with the control plane, by type, because
// of what was accepted.
func (r *Resources) Wanted() map[string][]string {
	names, _ := r.split()
	return names
}

// WantedSecrets are those to ask other servers for, by server.
func (r *Resources) WantedSecrets() map[string][]string {
	_, others := r.split()
	return others
}

func (r *Resources) split() (names, others map[string][]string) {
	names, others = maps.Clone(r.wanted()), map[string][]string{}
	var own []string
	for _, name := range names[resource.SecretType] {
		if server, secret := r.fromServer(name); server != "" {
			others[server] = append(others[server], secret)
		} else {
			own = append(own, name)
		}
	}
	names[resource.SecretType] = own
	return names, others
}

// sdsName is the name that a secret has here.
func (t *tlsContext) sdsName(at string, c *tlsv3.SdsSecretConfig) (string, error) {
	if c.GetName() == "" {
		return "", fmt.Errorf("%s: has no name", at)
	}
	source := c.GetSdsConfig()
	if source == nil {
		return "", fmt.Errorf("%s[%s]: secrets of the bootstrap are not supported", at, c.GetName())
	}
	at = fmt.Sprintf("%s[%s].sds_config", at, c.GetName())
	api := source.GetApiConfigSource()
	if api == nil {
		return c.GetName(), strict.OverADS(at, source)
	}
	if err := strict.Allow(at, source, "api_config_source", "resource_api_version", "initial_fetch_timeout"); err != nil {
		return "", err
	}
	at += ".api_config_source"
	if err := strict.Allow(at, api, "api_type", "transport_api_version", "grpc_services", "set_node_on_first_message_only"); err != nil {
		return "", err
	}
	services := api.GetGrpcServices()
	if api.GetApiType() != corev3.ApiConfigSource_GRPC || api.GetTransportApiVersion() != corev3.ApiVersion_V3 || len(services) != 1 {
		return "", fmt.Errorf("%s: only one of grpc_services with api_type GRPC and transport_api_version V3 is supported", at)
	}
	if err := strict.Allow(at+".grpc_services", services[0], "envoy_grpc"); err != nil {
		return "", err
	}
	if err := strict.Allow(at+".grpc_services.envoy_grpc", services[0].GetEnvoyGrpc(), "cluster_name"); err != nil {
		return "", err
	}
	server := services[0].GetEnvoyGrpc().GetClusterName()
	t.servers = append(t.servers, server)
	return server + SecretSeparator + c.GetName(), nil
}
