package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha1" //nolint:gosec // npm's shasum
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// registries are an npm registry and a Python index of a few packages.
type registries struct {
	npm, python string
	down        atomic.Bool
	downloads   atomic.Int64 // of packages' files
}

// npmPackage is package.json and the files beside it.
type npmPackage struct {
	manifest map[string]any
	files    map[string]string
}

func newRegistries(t *testing.T, packages []npmPackage, wheels map[string]map[string]string) *registries {
	t.Helper()
	r := &registries{}
	files := map[string][]byte{} // by path
	mux := http.NewServeMux()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if r.down.Load() {
			http.Error(w, "down for a while", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	r.npm, r.python = server.URL+"/npm/", server.URL+"/simple/"

	for _, p := range packages {
		name, version := fmt.Sprint(p.manifest["name"]), fmt.Sprint(p.manifest["version"])
		archive := tarball(t, p)
		sum1, sum512 := sha1.Sum(archive), sha512.Sum512(archive) //nolint:gosec // npm's shasum
		path := "/files/" + name + "-" + version + ".tgz"
		files[path] = archive
		published := maps.Clone(p.manifest)
		published["dist"] = map[string]string{
			"tarball": server.URL + path, "shasum": hex.EncodeToString(sum1[:]), "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum512[:]),
		}
		document, err := json.Marshal(map[string]any{"name": name, "dist-tags": map[string]string{"latest": version}, "versions": map[string]any{version: published}})
		require.NoError(t, err)
		mux.HandleFunc("GET /npm/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(document)
		})
	}
	for name, content := range wheels {
		file := name + "-1.0.0-py3-none-any.whl"
		path := "/files/" + file
		files[path] = wheel(t, name, content)
		sum := sha256.Sum256(files[path])
		mux.HandleFunc("GET /simple/"+name+"/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="%s#sha256=%x">%s</a></body></html>`, path, sum, file)
		})
	}
	for path, content := range files {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			r.downloads.Add(1)
			_, _ = w.Write(content)
		})
	}
	return r
}

func tarball(t *testing.T, p npmPackage) []byte {
	t.Helper()
	manifest, err := json.Marshal(p.manifest)
	require.NoError(t, err)
	files := maps.Clone(p.files)
	files["package.json"] = string(manifest)
	var out bytes.Buffer
	compressed := gzip.NewWriter(&out)
	archive := tar.NewWriter(compressed)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		require.NoError(t, archive.WriteHeader(&tar.Header{Name: "package/" + name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg}))
		_, err := archive.Write([]byte(files[name]))
		require.NoError(t, err)
	}
	require.NoError(t, archive.Close())
	require.NoError(t, compressed.Close())
	return out.Bytes()
}

// wheel is a binary distribution (PEP 427).
func wheel(t *testing.T, name string, content map[string]string) []byte {
	t.Helper()
	info := name + "-1.0.0.dist-info/"
	files := maps.Clone(content)
	files[info+"METADATA"] = "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0.0\n"
	files[info+"WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
	var record strings.Builder
	for _, file := range slices.Sorted(maps.Keys(files)) {
		sum := sha256.Sum256([]byte(files[file]))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", file, base64.RawURLEncoding.EncodeToString(sum[:]), len(files[file]))
	}
	files[info+"RECORD"] = record.String() + info + "RECORD,,\n"
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		w, err := archive.Create(file)
		require.NoError(t, err)
		_, err = w.Write([]byte(files[file]))
		require.NoError(t, err)
	}
	require.NoError(t, archive.Close())
	return out.Bytes()
}
