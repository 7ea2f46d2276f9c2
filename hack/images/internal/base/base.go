// Package base is the layer below all images: certificate roots, time zones and
// the names of the users, and no program at all.
//
// The roots are Mozilla's as the module golang.org/x/crypto/x509roots has them
// and the zones those of the Go toolchain: go.sum and the toolchain pin both,
// whoever can build the programs has them, on any machine, and an update is an
// update of a dependency like any other.
package base

import (
	"archive/zip"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
)

const (
	// User of the images: the one that others call nonroot.
	User = "65532:65532"
	// Roots is the file of the certificate roots.
	Roots = "/etc/ssl/certs/ca-certificates.crt"

	// Lambdas run as 1000; some libraries ask for the name of the user they are.
	passwd = "root:x:0:0:root:/root:/sbin/nologin\n" +
		"lambda:x:1000:1000:lambda:/tmp:/sbin/nologin\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n" +
		"nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n"
	group = "root:x:0:\nlambda:x:1000:\nnobody:x:65534:\nnonroot:x:65532:\n"
	// Without it the C library asks DNS before it reads /etc/hosts.
	nsswitch = "passwd: files\ngroup: files\nhosts: files dns\n"
)

// Layer of the base. goroot is the Go toolchain's folder.
func Layer(cache *layer.Cache, goroot string) (v1.Layer, error) {
	zones := filepath.Join(goroot, "lib", "time", "zoneinfo.zip")
	sum, err := layer.HashFile(zones)
	if err != nil {
		return nil, fmt.Errorf("read the time zones of the Go toolchain: %w", err)
	}
	roots, err := certificates()
	if err != nil {
		return nil, err
	}
	return cache.Layer([]string{"base", sum}, func(w *layer.Writer) error {
		return write(w, roots, zones)
	})
}

func write(w *layer.Writer, roots []byte, zones string) error {
	// As Debian has them since 12: its packages lie in the same tree.
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := w.Dir("usr/"+name, 0o755); err != nil {
			return err
		}
		if err := w.Symlink(name, "usr/"+name); err != nil {
			return err
		}
	}
	for _, file := range []struct{ name, content string }{
		{"etc/group", group},
		{"etc/nsswitch.conf", nsswitch},
		{"etc/passwd", passwd},
		{Roots, string(roots)},
	} {
		if err := w.File(file.name, 0o644, []byte(file.content)); err != nil {
			return err
		}
	}
	// Where Debian's OpenSSL looks for the roots, without a setting.
	if err := w.Symlink("usr/lib/ssl/cert.pem", Roots); err != nil {
		return err
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := w.Dir(dir, 0o1777); err != nil {
			return err
		}
	}
	return writeZones(w, zones)
}

// certificates are the roots for servers, in the format that all programs read.
// It cannot say "until then only", so roots that Mozilla trusts with a limit are
// left out.
func certificates() ([]byte, error) {
	var roots []*x509.Certificate
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("parse a certificate root: %w", err)
		}
		roots = append(roots, certificate)
	}
	slices.SortFunc(roots, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	var out bytes.Buffer
	for _, root := range roots {
		fmt.Fprintf(&out, "# %s\n", root.Subject)
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

func writeZones(w *layer.Writer, zones string) (err error) {
	archive, err := zip.OpenReader(zones)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, archive.Close()) }()
	slices.SortFunc(archive.File, func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	for _, file := range archive.File {
		if file.FileInfo().IsDir() {
			continue
		}
		content, err := file.Open()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(content)
		content.Close()
		if err != nil {
			return err
		}
		if err := w.File("usr/share/zoneinfo/"+file.Name, 0o644, data); err != nil {
			return err
		}
	}
	return nil
}
