package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	version = "v1.2.3+test"
	tag     = "v1.2.3-test"
	both    = "linux/amd64,linux/arm64"
)

// newRegistry serves an empty registry on loopback.
func newRegistry(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), quiet()))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/team"
}

func quiet() registry.Option { return registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)) }

// runImages runs hack/images/run of a checkout and returns what it printed.
func runImages(t *testing.T, checkout string, arguments ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(checkout, "hack/images/run"), arguments...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("images %s: %v\n%s", strings.Join(arguments, " "), err, stderr.String())
	}
	t.Logf("%s", stderr.String())
	return stdout.String()
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// pull returns the image of a registry for one architecture.
func pull(t *testing.T, reference, arch string) v1.Image {
	t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
	if err != nil {
		t.Fatalf("pull %s for %s: %v", reference, arch, err)
	}
	return image
}

// unpack lays the image's root file system into a folder of the test.
func unpack(t *testing.T, image v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	content := mutate.Extract(image)
	defer content.Close()
	links := map[string]string{}
	reader := tar.NewReader(content)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Mode&0o6000 != 0 {
			t.Errorf("%s changes who runs it: mode %o", header.Name, header.Mode)
		}
		path := filepath.Join(dir, header.Name)
		switch header.Typeflag {
		case tar.TypeDir:
			err = errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, fs.FileMode(header.Mode)&0o777))
		case tar.TypeReg:
			err = writeFile(path, header, reader)
		case tar.TypeSymlink:
			links[path] = header.Linkname
		case tar.TypeLink:
			err = os.Link(filepath.Join(dir, header.Linkname), path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, target := range links { // last, so that nothing is written through one
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeFile(path string, header *tar.Header, content io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(header.Mode)&0o777)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// spdx is what the tests read of an SBOM.
type spdx struct {
	SPDXVersion string
	Packages    []struct {
		Name, VersionInfo string
		ExternalRefs      []struct{ ReferenceLocator string }
	}
}

// sbomOf returns the SBOM that refers to the image in the registry.
func sbomOf(t *testing.T, repository string, image v1.Image) spdx {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(repo.Digest(digest.String()), remote.WithFilter("artifactType", "application/spdx+json"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d SBOMs refer to %s@%s, want 1", len(manifest.Manifests), repository, digest)
	}
	artifact, err := remote.Image(repo.Digest(manifest.Manifests[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := artifact.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("the SBOM has %d layers: %v", len(layers), err)
	}
	content, err := layers[0].Compressed() // it is not: the layer is the document
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var document spdx
	if err := json.NewDecoder(content).Decode(&document); err != nil {
		t.Fatal(err)
	}
	if document.SPDXVersion != "SPDX-2.3" {
		t.Errorf("the SBOM of %s is %q", repository, document.SPDXVersion)
	}
	return document
}

func (s spdx) has(locator string) bool {
	for _, p := range s.Packages {
		for _, ref := range p.ExternalRefs {
			if strings.HasPrefix(ref.ReferenceLocator, locator) {
				return true
			}
		}
	}
	return false
}

// TestPrograms pushes every program's image for this machine and runs it.
func TestPrograms(t *testing.T) {
	host := newRegistry(t)
	var names []string
	for _, p := range programs() {
		if _, err := os.Stat(filepath.Join(root(t), "cmd", p.name)); err == nil {
			names = append(names, p.name)
		}
	}
	if len(names) < 3 {
		t.Fatalf("only %q are programs of this checkout", names)
	}
	printed := runImages(t, root(t), "push", "--version", version, "--platforms", "linux/"+runtime.GOARCH, "--images", strings.Join(names, ","), host)
	for _, program := range names {
		t.Run(program, func(t *testing.T) {
			repository := host + "/" + program
			if !strings.Contains(printed, repository+":"+tag+"@sha256:") {
				t.Errorf("push printed no reference of %s:\n%s", program, printed)
			}
			image := pull(t, repository+":"+tag, runtime.GOARCH)
			config, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Config.User != "65532:65532" {
				t.Errorf("user %q, want one that is not root, as a number", config.Config.User)
			}
			for label, want := range map[string]string{
				"org.opencontainers.image.version":  version,
				"org.opencontainers.image.revision": git(t, root(t), "rev-parse", "HEAD"),
				"org.opencontainers.image.source":   "https://github.com/lambdamesh/lambdamesh",
			} {
				if got := config.Config.Labels[label]; got != want {
					t.Errorf("label %s is %q, want %q", label, got, want)
				}
			}
			if want := git(t, root(t), "log", "-1", "--format=%ct"); timestamp(config) != want {
				t.Errorf("created at %s, want the commit's time %s", timestamp(config), want)
			}

			files := unpack(t, image)
			entrypoint := config.Config.Entrypoint
			if len(entrypoint) != 1 || filepath.Base(entrypoint[0]) != program {
				t.Fatalf("entrypoint %q", entrypoint)
			}
			said, err := exec.CommandContext(t.Context(), filepath.Join(files, entrypoint[0]), "--version").Output()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(strings.Fields(string(said)), version) {
				t.Errorf("%s --version says %q; the image's tag is %s", program, said, tag)
			}
			if program == "controlplane" {
				// It runs lambdas from the images that are pushed with it.
				help, err := exec.CommandContext(t.Context(), filepath.Join(files, entrypoint[0]), "--help").Output()
				if err != nil || !bytes.Contains(help, []byte(`(default "`+tag+`")`)) {
					t.Errorf("the runtimes' images are tagged %s, and the control plane looks for others: %v\n%s", tag, err, help)
				}
			}
			checkBase(t, files)
			if document := sbomOf(t, repository, image); !document.has("pkg:golang/sigs.k8s.io/controller-runtime@v") && !document.has("pkg:golang/google.golang.org/grpc@v") {
				t.Errorf("the SBOM names no module that every program is made of: %d packages", len(document.Packages))
			}
		})
	}
}

// checkBase looks at what programs read of a root file system.
func checkBase(t *testing.T, files string) {
	t.Helper()
	for path, want := range map[string]string{
		"etc/passwd":                         "nonroot:x:65532:65532:",
		"etc/ssl/certs/ca-certificates.crt":  "ISRG Root X1",
		"usr/share/zoneinfo/Europe/Berlin":   "TZif",
		"usr/share/zoneinfo/America/Halifax": "TZif",
	} {
		data, err := os.ReadFile(filepath.Join(files, path))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("/%s holds no %q", path, want)
		}
	}
	if _, err := os.Stat(filepath.Join(files, "usr/bin/sh")); err == nil {
		t.Error("there is a shell")
	}
}

// TestReproducible builds images for both platforms in two checkouts of one
// commit, the second without the layers of the first.
func TestReproducible(t *testing.T) {
	names := []string{"connector", "runtime-nodejs", "runtime-python"}
	first, second := newRegistry(t), newRegistry(t)
	push := []string{"push", "--version", version, "--platforms", both, "--images", strings.Join(names, ",")}
	runImages(t, root(t), append(push, first)...)
	again, cache := t.TempDir(), t.TempDir()
	checkout(t, again)
	// Debian's packages are checked by their content wherever they come from.
	if err := os.Symlink(filepath.Join(cacheDir(t), "debian"), filepath.Join(cache, "debian")); err != nil {
		t.Fatal(err)
	}
	runImages(t, again, append(push, "--cache", cache, second)...)

	for _, name := range names {
		one, two := index(t, first+"/"+name+":"+tag), index(t, second+"/"+name+":"+tag)
		if digest(t, one) != digest(t, two) {
			t.Errorf("two builds of %s differ: %s and %s", name, digest(t, one), digest(t, two))
		}
		manifest, err := one.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		var platforms []string
		for _, m := range manifest.Manifests {
			platforms = append(platforms, m.Platform.String())
			image := pull(t, first+"/"+name+":"+tag, m.Platform.Architecture)
			was, is := sbomOf(t, first+"/"+name, image), sbomOf(t, second+"/"+name, image)
			if !reflect.DeepEqual(was, is) {
				t.Errorf("two SBOMs of %s for %s differ", name, m.Platform)
			}
			checkELF(t, unpack(t, image), m.Platform.Architecture)
		}
		if got := strings.Join(platforms, ","); got != both {
			t.Errorf("%s is for %s, want %s", name, got, both)
		}
	}
}

// TestLayout reads what `make images` writes as the programs do that load it.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	checkout(t, dir)
	runImages(t, dir, "build", "--version", version, "--images", "connector")

	written, err := layout.ImageIndexFromPath(filepath.Join(dir, "dist/images"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := written.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	const reference = "ghcr.io/lambdamesh/connector:" + tag
	if !slices.ContainsFunc(manifest.Manifests, func(d v1.Descriptor) bool {
		return d.Annotations["io.containerd.image.name"] == reference
	}) {
		t.Errorf("the layout has no %s", reference)
	}
	checkArchive(t, filepath.Join(dir, "dist/images.tar"), reference)
}

// checkArchive follows manifest.json as `docker load` does.
func checkArchive(t *testing.T, path, reference string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sizes := map[string]int64{}
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes[header.Name] = header.Size
		if header.Name == "manifest.json" {
			if err := json.NewDecoder(reader).Decode(&entries); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(entries) != 1 || !slices.Contains(entries[0].RepoTags, reference) {
		t.Fatalf("manifest.json: %+v", entries)
	}
	for _, blob := range append(entries[0].Layers, entries[0].Config, "oci-layout", "index.json") {
		if sizes[blob] == 0 {
			t.Errorf("%s is not in the archive", blob)
		}
	}
}

func index(t *testing.T, reference string) v1.ImageIndex {
	t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	found, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func digest(t *testing.T, of interface{ Digest() (v1.Hash, error) }) v1.Hash {
	t.Helper()
	hash, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash
}
