package strict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Allow returns an error that names the first field that is set in m and not
// among names. Every message the proxy reads goes through it, so that what is
// not implemented is refused instead of overlooked.
func Allow(at string, m proto.Message, names ...string) error {
	var unknown []string
	if r := m.ProtoReflect(); r.IsValid() {
		r.Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			if name := string(field.Name()); !slices.Contains(names, name) {
				unknown = append(unknown, name)
			}
			return true
		})
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return fmt.Errorf("%s: %s is not supported", at, strings.Join(unknown, ", "))
}

// Unmarshal unpacks an Any into m, refusing any other type.
func Unmarshal(at string, any *anypb.Any, m proto.Message) error {
	if any == nil {
		return fmt.Errorf("%s: has no typed_config", at)
	}
	if !any.MessageIs(m) {
		return fmt.Errorf("%s: %s is not supported", at, any.GetTypeUrl())
	}
	if err := any.UnmarshalTo(m); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

// Duration returns d, or fallback when it is not set.
func Duration(d *durationpb.Duration, fallback time.Duration) time.Duration {
	if d == nil {
		return fallback
	}
	return d.AsDuration()
}

// Inline returns the content of a data source that is not a file.
func Inline(at string, source *corev3.DataSource) ([]byte, error) {
	switch s := source.GetSpecifier().(type) {
	case *corev3.DataSource_InlineBytes:
		return s.InlineBytes, nil
	case *corev3.DataSource_InlineString:
		return []byte(s.InlineString), nil
	case nil:
		return nil, nil
	default:
		return nil, fmt.Errorf("%s: only inline_string and inline_bytes are supported", at)
	}
}

// OverADS refuses configuration sources other than the ADS stream itself.
func OverADS(at string, source *corev3.ConfigSource) error {
	if err := Allow(at, source, "ads", "resource_api_version", "initial_fetch_timeout"); err != nil {
		return err
	}
	if source.GetAds() == nil {
		return fmt.Errorf("%s: only ads is supported", at)
	}
	return nil
}

// Address returns network and address as net.Dial takes them.
func Address(at string, a *corev3.Address) (network, addr string, err error) {
	switch v := a.GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		s := v.SocketAddress
		if err := Allow(at+".socket_address", s, "protocol", "address", "port_value", "ipv4_compat"); err != nil {
			return "", "", err
		}
		if s.GetProtocol() != corev3.SocketAddress_TCP {
			return "", "", fmt.Errorf("%s.socket_address: protocol %s is not supported", at, s.GetProtocol())
		}
		return "tcp", hostPort(s.GetAddress(), s.GetPortValue()), nil
	case *corev3.Address_Pipe:
		if err := Allow(at+".pipe", v.Pipe, "path"); err != nil {
			return "", "", err
		}
		return "unix", v.Pipe.GetPath(), nil
	default:
		return "", "", fmt.Errorf("%s: only socket_address and pipe are supported", at)
	}
}

func hostPort(host string, port uint32) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, port)
}
