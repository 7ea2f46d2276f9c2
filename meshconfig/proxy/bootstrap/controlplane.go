package bootstrap

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

// maxFile bounds a CA or token file.
const maxFile = 1 << 20

// ControlPlane is the ADS server and how to speak to it.
type ControlPlane struct {
	// Address is host:port, or unix:PATH of an agent on this machine that speaks to
	// it for the proxy: then nothing else is set.
	Address string
	// ServerName is what its certificate must say.
	ServerName string
	// CAFile verifies it (PEM); TokenFile is what it is shown.
	CAFile, TokenFile string
	// WholeState: it is asked for state of the world, not for changes.
	WholeState bool
}

// Agent tells whether there is one: it is spoken to in plain text, and known by
// where its socket is.
func (c *ControlPlane) Agent() bool { return strings.HasPrefix(c.Address, unixScheme) }

// RootCAs reads the CA file.
func (c *ControlPlane) RootCAs() (*x509.CertPool, error) {
	pem, err := read(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("the control plane's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the control plane's CA: %s holds no certificate in PEM", c.CAFile)
	}
	return pool, nil
}

// Token reads the token file.
func (c *ControlPlane) Token(context.Context) (string, error) {
	text, err := read(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("the token for the control plane: %w", err)
	}
	if text = bytes.TrimSpace(text); len(text) == 0 {
		return "", fmt.Errorf("the token for the control plane: %s is empty", c.TokenFile)
	}
	return string(text), nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), maxFile)
	}
	return os.ReadFile(path)
}

func controlPlane(c *clusterv3.Cluster) (ControlPlane, error) {
	var out ControlPlane
	var err error
	if out.Address, err = onlyAddress(c); err != nil {
		return out, err
	}
	if out.Agent() {
		_, err := plainSocket(c)
		return out, err
	}
	if err := out.security(c); err != nil {
		return out, err
	}
	options, err := http2Options(c)
	if err != nil {
		return out, err
	}
	out.TokenFile, err = tokenFile(options.GetHttpFilters())
	return out, err
}

// http2Options of a cluster that speaks gRPC.
func http2Options(c *clusterv3.Cluster) (*upstreamsv3.HttpProtocolOptions, error) {
	packed := c.GetTypedExtensionProtocolOptions()["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
	if packed == nil {
		return nil, errors.New("it needs HttpProtocolOptions with http2_protocol_options")
	}
	options := &upstreamsv3.HttpProtocolOptions{}
	if err := packed.UnmarshalTo(options); err != nil {
		return nil, fmt.Errorf("its HttpProtocolOptions: %w", err)
	}
	if options.GetExplicitHttpConfig().GetHttp2ProtocolOptions() == nil {
		return nil, errors.New("it needs explicit_http_config with http2_protocol_options: gRPC is HTTP/2")
	}
	return options, nil
}

// plainSocket is the Unix socket of a gRPC server on this machine.
func plainSocket(c *clusterv3.Cluster) (string, error) {
	address, err := onlyAddress(c)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(address, unixScheme) {
		return "", fmt.Errorf("%s is no Unix socket", address)
	}
	options, err := http2Options(c)
	if err != nil {
		return "", err
	}
	if c.GetTransportSocket() != nil || len(options.GetHttpFilters()) > 0 {
		return "", errors.New("on a Unix socket neither a transport_socket nor http_filters are supported")
	}
	return address, nil
}

// security reads how the control plane is verified.
func (c *ControlPlane) security(cluster *clusterv3.Cluster) error {
	if cluster.GetTransportSocket() == nil {
		return errors.New("it needs a transport_socket with TLS, or the token would be sent in plain text")
	}
	tls := &tlsv3.UpstreamTlsContext{}
	if err := cluster.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
		return fmt.Errorf("its transport_socket: %w", err)
	}
	common := tls.GetCommonTlsContext()
	if protocols := common.GetAlpnProtocols(); len(protocols) > 0 && !slices.Equal(protocols, []string{"h2"}) {
		return fmt.Errorf("alpn_protocols %v: only [h2] is supported", protocols)
	}
	c.CAFile = common.GetValidationContext().GetTrustedCa().GetFilename()
	if c.CAFile == "" {
		return errors.New("its validation_context needs trusted_ca with a filename, or anybody could be the control plane")
	}
	names := common.GetValidationContext().GetMatchTypedSubjectAltNames()
	if len(names) != 1 || names[0].GetSanType() != tlsv3.SubjectAltNameMatcher_DNS || names[0].GetMatcher().GetExact() == "" {
		return errors.New("its validation_context needs one of match_typed_subject_alt_names, with san_type: DNS and an exact name")
	}
	c.ServerName = names[0].GetMatcher().GetExact()
	if sni := tls.GetSni(); sni != c.ServerName {
		return fmt.Errorf("sni %q is not the name %q that the certificate must have; only the same is supported", sni, c.ServerName)
	}
	return nil
}

// tokenFile is what the credential injector sends.
func tokenFile(filters []*hcmv3.HttpFilter) (string, error) {
	if len(filters) != 2 || !filters[1].GetTypedConfig().MessageIs(&codecv3.UpstreamCodec{}) {
		return "", errors.New("its http_filters must be a credential injector and the upstream codec")
	}
	injector := &injectorv3.CredentialInjector{}
	if err := filters[0].GetTypedConfig().UnmarshalTo(injector); err != nil {
		return "", fmt.Errorf("its first HTTP filter must be a credential injector: %w", err)
	}
	credential := &genericv3.Generic{}
	if err := injector.GetCredential().GetTypedConfig().UnmarshalTo(credential); err != nil {
		return "", fmt.Errorf("the injector's credential: %w", err)
	}
	if credential.GetHeaderValuePrefix() != "Bearer " {
		return "", fmt.Errorf("header_value_prefix %q: only \"Bearer \" is supported", credential.GetHeaderValuePrefix())
	}
	secret := credential.GetCredential()
	path := secret.GetSdsConfig().GetPathConfigSource().GetPath()
	if path == "" {
		return "", fmt.Errorf("the credential %q must come from a file: sds_config with path_config_source", secret.GetName())
	}
	file, err := secretFile(path, secret.GetName())
	if err != nil {
		return "", fmt.Errorf("the credential %q in %s: %w", secret.GetName(), path, err)
	}
	return file, nil
}

// secretFile reads a file with the resources of a DiscoveryResponse and returns
// the file that a secret's value lies in.
func secretFile(path, name string) (string, error) {
	text, err := read(path)
	if err != nil {
		return "", err
	}
	var response struct {
		Resources []json.RawMessage `json:"resources"`
	}
	if err := yaml.UnmarshalStrict(text, &response); err != nil {
		return "", err
	}
	for _, raw := range response.Resources {
		resource, secret := &anypb.Any{}, &tlsv3.Secret{}
		if err := protojson.Unmarshal(raw, resource); err != nil {
			return "", err
		}
		if err := resource.UnmarshalTo(secret); err != nil {
			return "", err
		}
		if secret.GetName() != name {
			continue
		}
		file := secret.GetGenericSecret().GetSecret().GetFilename()
		understood := &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: file}},
		}}}
		if file == "" || !proto.Equal(secret, understood) {
			return "", errors.New("only a generic_secret with the filename of the secret is supported")
		}
		return file, nil
	}
	return "", errors.New("there is no such secret")
}
