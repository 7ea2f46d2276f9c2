package ca

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

var (
	// ErrNotFound is returned by Storage.Load when nothing is stored yet.
	ErrNotFound = errors.New("no mesh CA is stored")
	// ErrExists is returned by Storage.Create when something is stored already.
	ErrExists = errors.New("a mesh CA is stored already")
)

// Storage keeps the roots of a mesh.
type Storage interface {
	// Load returns what is stored, or an error that is ErrNotFound.
	Load(ctx context.Context) (Roots, error)
	// Create stores the root, or returns an error that is ErrExists and leaves
	// what is stored alone.
	Create(ctx context.Context, root Pair) error
}

// SecretName is the Secret, in the system namespace, that holds the root.
const SecretName = "lambdamesh-ca"

// rootFile holds key and certificate in one file, so that creating it is atomic.
const rootFile = "root.pem"

// Directory keeps the root in a directory, which it creates with mode 0700; the
// file has mode 0600. It is for development.
func Directory(path string) Storage { return directory(path) }

type directory string

func (d directory) Load(context.Context) (Roots, error) {
	name := filepath.Join(string(d), rootFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Roots{}, ErrNotFound
	}
	if err != nil {
		return Roots{}, fmt.Errorf("read the mesh CA: %w", err)
	}
	var root Pair
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			root.CertPEM = append(root.CertPEM, pem.EncodeToMemory(block)...)
		} else {
			root.KeyPEM = append(root.KeyPEM, pem.EncodeToMemory(block)...)
		}
	}
	if root.CertPEM == nil || root.KeyPEM == nil {
		return Roots{}, fmt.Errorf("read the mesh CA: %s does not hold a key and a certificate in PEM; remove the file to have a new one created", name)
	}
	return Roots{Issuer: root}, nil
}

func (d directory) Create(_ context.Context, root Pair) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("store the mesh CA: %w", err)
	}
	// A temporary file made visible by a link: complete or not there, and never
	// over another one.
	tmp, err := os.CreateTemp(string(d), ".root-*")
	if err != nil {
		return fmt.Errorf("store the mesh CA: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(bytes.Clone(root.KeyPEM), root.CertPEM...))
	if err == nil {
		err = tmp.Chmod(0o600)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Link(tmp.Name(), filepath.Join(string(d), rootFile))
	}
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("store the mesh CA: %w", err)
	}
	return nil
}

// SecretClient reads and creates Secrets of one namespace; client-go's
// CoreV1().Secrets(namespace) is one.
type SecretClient interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Secret, error)
	Create(ctx context.Context, secret *corev1.Secret, options metav1.CreateOptions) (*corev1.Secret, error)
}

// Keys of the Secret besides those of its type, and the annotation that says since
// when they are as they are (RFC 3339).
const (
	nextCertKey     = "next.crt"
	nextKeyKey      = "next.key"
	previousCertKey = "previous.crt"

	annotationSince = v1alpha1.Group + "/rotating-since"
)

// FromSecret are the roots in a Secret.
func FromSecret(object *corev1.Secret) Roots {
	since, err := time.Parse(time.RFC3339, object.Annotations[annotationSince])
	if err != nil {
		since = time.Time{}
	}
	return Roots{
		Issuer:   Pair{CertPEM: object.Data[corev1.TLSCertKey], KeyPEM: object.Data[corev1.TLSPrivateKeyKey]},
		Next:     Pair{CertPEM: object.Data[nextCertKey], KeyPEM: object.Data[nextKeyKey]},
		Previous: object.Data[previousCertKey],
		Since:    since,
	}
}

// Into writes the roots into a Secret.
func (r Roots) Into(object *corev1.Secret) {
	if object.Data == nil {
		object.Data = map[string][]byte{}
	}
	for key, value := range map[string][]byte{
		corev1.TLSCertKey: r.Issuer.CertPEM, corev1.TLSPrivateKeyKey: r.Issuer.KeyPEM,
		nextCertKey: r.Next.CertPEM, nextKeyKey: r.Next.KeyPEM, previousCertKey: r.Previous,
	} {
		if object.Data[key] = value; len(value) == 0 {
			delete(object.Data, key)
		}
	}
	if r.Since.IsZero() {
		delete(object.Annotations, annotationSince)
	} else {
		metav1.SetMetaDataAnnotation(&object.ObjectMeta, annotationSince, r.Since.UTC().Format(time.RFC3339))
	}
}

// Secret keeps the roots in a Kubernetes Secret of type kubernetes.io/tls, which
// the API server creates at most once.
func Secret(client SecretClient, name string) Storage { return secret{client: client, name: name} }

type secret struct {
	client SecretClient
	name   string
}

func (s secret) Load(ctx context.Context) (Roots, error) {
	object, err := s.client.Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Roots{}, ErrNotFound
	}
	if err != nil {
		return Roots{}, fmt.Errorf("read the mesh CA from Secret %s: %w", s.name, err)
	}
	return FromSecret(object), nil
}

func (s secret) Create(ctx context.Context, root Pair) error {
	_, err := s.client.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: s.name},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: root.CertPEM, corev1.TLSPrivateKeyKey: root.KeyPEM},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("store the mesh CA in Secret %s: %w", s.name, err)
	}
	return nil
}
