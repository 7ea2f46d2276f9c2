package filesource

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	istionetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// AssumedDomain completes host labels when no file has the default Gateway; it
// is the one of `lambdamesh dev`.
const AssumedDomain = "lambdas.localhost"

// Load reads every .yaml, .yml and .json file of the paths, each a file or a
// directory that is searched through. Objects without a namespace are in
// "default". Kinds that a translation does not need are passed over. The notes
// say what was assumed. An error names the file and the object.
func Load(paths ...string) (translate.Snapshot, []string, error) {
	l := newLoader()
	for _, path := range paths {
		err := filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if entry.IsDir() || file != path && !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
				return nil
			}
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			return l.read(file, f)
		})
		if err != nil {
			return translate.Snapshot{}, nil, fmt.Errorf("reading objects: %w", err)
		}
	}
	return l.snapshot, l.complete(), nil
}

// Read is Load for one stream of documents; name is for errors.
func Read(name string, r io.Reader) (translate.Snapshot, []string, error) {
	l := newLoader()
	if err := l.read(name, r); err != nil {
		return translate.Snapshot{}, nil, fmt.Errorf("reading objects: %w", err)
	}
	return l.snapshot, l.complete(), nil
}

type loader struct {
	decoder  runtime.Decoder
	snapshot translate.Snapshot
	seen     map[string]string // object to file
}

func newLoader() *loader {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // the kinds are compiled in
		}
	}
	return &loader{
		decoder: json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true}),
		seen:    map[string]string{},
	}
}

func (l *loader) read(file string, r io.Reader) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", file, n, err)
		}
		if blank(text) {
			continue
		}
		object, kind, err := l.decoder.Decode(text, nil, nil)
		if runtime.IsNotRegisteredError(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", file, n, err)
		}
		if err := l.add(file, kind.Kind, object); err != nil {
			return fmt.Errorf("%s: document %d: %w", file, n, err)
		}
	}
}

// blank documents have nothing but space and comments.
func blank(document []byte) bool {
	for line := range strings.Lines(string(document)) {
		if line = strings.TrimSpace(line); line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

func (l *loader) add(file, kind string, object runtime.Object) error {
	meta, ok := object.(metav1.Object)
	if !ok {
		return fmt.Errorf("%s: write the objects of a list one by one", kind)
	}
	meta.SetNamespace(cmp.Or(meta.GetNamespace(), "default"))
	id := kind + " " + meta.GetNamespace() + "/" + meta.GetName()
	if meta.GetName() == "" {
		return fmt.Errorf("%s has no metadata.name", kind)
	}
	if first, twice := l.seen[id]; twice {
		return fmt.Errorf("%s is in %s already", id, first)
	}
	l.seen[id] = file
	s := &l.snapshot
	switch o := object.(type) {
	case *v1alpha1.APIRule:
		s.APIRules = append(s.APIRules, o)
	case *v1alpha1.Lambda:
		s.Lambdas = append(s.Lambdas, o)
	case *v1alpha1.Subscription:
		s.Subscriptions = append(s.Subscriptions, o)
	case *v1alpha1.ApplicationBinding:
		s.ApplicationBindings = append(s.ApplicationBindings, o)
	case *corev1.Service:
		s.Services = append(s.Services, o)
	case *corev1.Pod:
		s.Pods, s.Members = append(s.Pods, o), append(s.Members, o)
	case *discoveryv1.EndpointSlice:
		s.EndpointSlices = append(s.EndpointSlices, o)
	case *corev1.Secret:
		for key, value := range o.StringData { // as the API server does
			if o.Data == nil {
				o.Data = map[string][]byte{}
			}
			o.Data[key] = []byte(value)
		}
		o.StringData = nil
		s.Secrets = append(s.Secrets, o)
	case *networkingv1.Gateway:
		s.Gateways = append(s.Gateways, o)
	case *networkingv1.Sidecar:
		s.Sidecars = append(s.Sidecars, o)
	case *networkingv1.WorkloadEntry:
		s.WorkloadEntries = append(s.WorkloadEntries, o)
	}
	return nil
}

// complete assumes what comes with an installation and notes what files cannot
// hold.
func (l *loader) complete() []string {
	var notes []string
	wanted := slices.ContainsFunc(l.snapshot.APIRules, func(r *v1alpha1.APIRule) bool {
		return r.Spec.Gateway == "" || r.Spec.Gateway == v1alpha1.DefaultGateway
	})
	if _, there := l.seen["Gateway "+v1alpha1.DefaultGateway]; wanted && !there {
		l.snapshot.Gateways = append(l.snapshot.Gateways, defaultGateway())
		notes = append(notes, fmt.Sprintf("no file has the Gateway %s: assumed one that serves every host at port 80, with domain %s", v1alpha1.DefaultGateway, AssumedDomain))
	}
	for _, uri := range translate.JWKSURIs(l.snapshot.Settings, l.snapshot.APIRules) {
		notes = append(notes, fmt.Sprintf("the keys of %s are not fetched here: every token is refused in this translation", uri))
	}
	return notes
}

func defaultGateway() *networkingv1.Gateway {
	namespace, name, _ := strings.Cut(v1alpha1.DefaultGateway, "/")
	g := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name,
		Annotations: map[string]string{v1alpha1.AnnotationDomain: AssumedDomain},
	}}
	g.Spec.Servers = []*istionetworking.Server{{
		Port:  &istionetworking.Port{Number: 80, Name: "http", Protocol: "HTTP"},
		Hosts: []string{"*/*"},
	}}
	return g
}
