package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os/exec"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/sbom"
)

// What scanners look at to know whose packages these are.
const osRelease = `PRETTY_NAME="Lambdamesh runtime, of packages of Debian ` + VersionID + ` (` + Suite + `)"
NAME="Debian GNU/Linux"
VERSION_ID="` + VersionID + `"
VERSION_CODENAME=` + Suite + `
ID=debian
`

// Layer has the files of the set's packages, which were fetched.
func (a *Apt) Layer(ctx context.Context, cache *layer.Cache, set Set) (v1.Layer, error) {
	key := []string{"debian", osRelease}
	for _, p := range set.Packages {
		key = append(key, p.SHA256)
	}
	return cache.Layer(key, func(w *layer.Writer) error {
		var status bytes.Buffer
		for _, p := range set.Packages {
			if err := a.unpack(ctx, w, p); err != nil {
				return fmt.Errorf("unpack %s: %w", p, err)
			}
			control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", a.File(p)).Output()
			if err != nil {
				return fmt.Errorf("read what %s is: %w", p, err)
			}
			name, rest, _ := strings.Cut(string(control), "\n")
			fmt.Fprintf(&status, "%s\nStatus: install ok installed\n%s\n", name, rest)
		}
		return errors.Join(
			w.File("usr/lib/os-release", 0o644, []byte(osRelease)),
			w.Symlink("etc/os-release", "../usr/lib/os-release"),
			w.File("var/lib/dpkg/status", 0o644, status.Bytes()),
		)
	})
}

func (a *Apt) unpack(ctx context.Context, w *layer.Writer, p Package) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", a.File(p))
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	reader := tar.NewReader(out)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = add(w, header, reader)
		}
		if err != nil {
			stop()
			return errors.Join(err, command.Wait())
		}
	}
	if _, err := io.Copy(io.Discard, out); err != nil { // what pads the archive
		return err
	}
	return command.Wait()
}

func add(w *layer.Writer, header *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
	if name == "" || stripped(name) {
		return nil
	}
	// Nobody in the image may become somebody else.
	mode := header.Mode & 0o1777
	switch header.Typeflag {
	case tar.TypeDir:
		return nil // those of files suffice
	case tar.TypeReg:
		return w.Copy(name, mode, header.ModTime, header.Size, content)
	case tar.TypeSymlink:
		return w.Symlink(name, header.Linkname)
	case tar.TypeLink:
		return w.Link(name, header.Linkname)
	}
	return fmt.Errorf("%s is neither a file nor a link", name)
}

// stripped files are for people and for who builds: licenses stay.
func stripped(name string) bool {
	if strings.HasPrefix(name, "usr/share/doc/") {
		return path.Base(name) != "copyright"
	}
	for _, dir := range []string{
		"usr/include", "usr/share/applications", "usr/share/bash-completion", "usr/share/bug", "usr/share/doc-base",
		"usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/pixmaps",
		"usr/share/nodejs/@types", "usr/lib/valgrind", "usr/lib/systemd",
	} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return strings.HasSuffix(name, ".d.ts") || strings.HasSuffix(name, ".js.map") || strings.HasSuffix(name, ".mjs.map")
}

// Parts are the packages as an SBOM lists them.
func (s Set) Parts() []sbom.Package {
	var parts []sbom.Package
	for _, p := range s.Packages {
		purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-%s", url.QueryEscape(p.Name), url.QueryEscape(p.Version), p.Arch, VersionID)
		parts = append(parts, sbom.Package{Name: p.Name, Version: p.Version, PURL: purl, Supplier: "Debian", SHA256: p.SHA256})
	}
	return parts
}
