package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/filesource"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func newTranslateCommand() *cobra.Command {
	var files []string
	var format string
	cmd := &cobra.Command{
		Use:   "translate -f PATH [-o ir|istio|envoy]",
		Short: "Show offline what files mean: the IR, the Istio objects or the Envoy resources",
		Long: `translate reads YAML files and prints what the control plane makes of them, without
a cluster. Problems and assumptions go to standard error; the exit code is 1 when an
object could not be translated.`,
		Example: `  lambdamesh translate -f examples/commerce -o istio
  lambdamesh translate -f rule.yaml -o envoy`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("translate needs -f PATH (see `lambdamesh translate --help`)")
			}
			return translateFiles(files, format, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "YAML file or directory; repeatable")
	cmd.Flags().StringVarP(&format, "output", "o", "istio", "ir, istio or envoy")
	return cmd
}

func translateFiles(files []string, format string, stdout, stderr io.Writer) error {
	var write func(*ir.Mesh, io.Writer) error
	switch format {
	case "ir":
		write = func(mesh *ir.Mesh, w io.Writer) error { return writeDocument(w, mesh) }
	case "istio":
		write = writeIstio
	case "envoy":
		write = writeEnvoy
	default:
		return usagef("output %q: use ir, istio or envoy", format)
	}
	snapshot, notes, err := filesource.Load(files...)
	if err != nil {
		return err
	}
	if format == "istio" {
		// Which pods have a sidecar is not known here; the rest is.
		snapshot.Settings.Lacks = slices.DeleteFunc(istio.Lacks(), func(f ir.Feature) bool { return f == ir.ClientIPsAtGateway })
	}
	mesh, problems := translate.Translate(snapshot)
	if err := write(&mesh, stdout); err != nil {
		return err
	}
	for _, note := range notes {
		fmt.Fprintln(stderr, "note:", note)
	}
	failed := false
	for _, p := range problems {
		if p.Reason == v1alpha1.ReasonPending {
			continue // keys that nobody fetches offline: a note says so
		}
		severity := "problem"
		if p.Warning {
			severity = "warning"
		} else {
			failed = true
		}
		fmt.Fprintf(stderr, "%s: %s %s/%s %s: %s: %s\n", severity, p.Kind, p.Namespace, p.Name, p.Field, p.Reason, p.Message)
	}
	if failed {
		return errors.New("not everything could be translated: see the problems above")
	}
	return nil
}

func writeDocument(w io.Writer, value any) error {
	raw, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	_, err = fmt.Fprintf(w, "---\n%s", raw)
	return err
}

func writeIstio(mesh *ir.Mesh, w io.Writer) error {
	for _, object := range istio.Objects(mesh) {
		if err := writeDocument(w, object); err != nil {
			return err
		}
	}
	return nil
}

// envoyNode is what one data plane is served.
type envoyNode struct {
	Node      string            `json:"node"`
	Listeners []json.RawMessage `json:"listeners,omitempty"`
	Routes    []json.RawMessage `json:"routes,omitempty"`
	Clusters  []json.RawMessage `json:"clusters,omitempty"`
	Endpoints []json.RawMessage `json:"endpoints,omitempty"`
}

func writeEnvoy(mesh *ir.Mesh, w io.Writer) error {
	for i := range mesh.Gateways {
		g := &mesh.Gateways[i]
		resources, err := xds.GatewayResources(mesh, g.Namespace, g.Name)
		if err == nil {
			err = writeNode(w, "gateway~"+g.Namespace+"~"+g.Name, resources)
		}
		if err != nil {
			return err
		}
	}
	for i := range mesh.Sidecars {
		resources, err := xds.SidecarResources(mesh, mesh.Sidecars[i].Node)
		if err == nil {
			err = writeNode(w, mesh.Sidecars[i].Node, resources)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeNode(w io.Writer, id string, r xds.Resources) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("the resources of %s are invalid, which is a bug: %w", id, err)
	}
	node := envoyNode{Node: id}
	var err error
	if node.Listeners, err = encode(r.Listeners); err != nil {
		return err
	}
	if node.Routes, err = encode(r.Routes); err != nil {
		return err
	}
	if node.Clusters, err = encode(r.Clusters); err != nil {
		return err
	}
	if node.Endpoints, err = encode(r.Endpoints); err != nil {
		return err
	}
	return writeDocument(w, node)
}

// encode writes resources as they travel: with their type beside their fields.
func encode[T proto.Message](resources []T) ([]json.RawMessage, error) {
	var all []json.RawMessage
	for _, r := range resources {
		raw, err := protojson.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", r, err)
		}
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, fmt.Errorf("encode %T: %w", r, err)
		}
		fields["@type"] = json.RawMessage(`"type.googleapis.com/` + string(r.ProtoReflect().Descriptor().FullName()) + `"`)
		if raw, err = json.Marshal(fields); err != nil {
			return nil, fmt.Errorf("encode %T: %w", r, err)
		}
		all = append(all, raw)
	}
	return all, nil
}
