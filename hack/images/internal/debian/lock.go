// Package debian makes layers of Debian's packages, for any architecture on any,
// without root and without a change of the machine: apt resolves, downloads and
// checks signatures in folders of its own, and the packages' files go straight
// into the layer. No script of a package runs.
package debian

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Suite of Debian that packages come from, and what /etc/os-release says of it.
const (
	Suite     = "trixie"
	VersionID = "13"
)

// Package is one of Debian's, of one version for one architecture.
type Package struct {
	Arch, Name, Version string
	SHA256              string
	Size                int64
}

func (p Package) String() string { return p.Name + " " + p.Version + " (" + p.Arch + ")" }

// Set is the packages of one image on one architecture, by name.
type Set struct {
	Root     string // the package that needs the others
	Arch     string
	Packages []Package
}

// Lock has a set for each image and architecture. It is what makes two builds of
// one commit the same while Debian's archive goes on.
type Lock []Set

const lockHeader = `# The packages of Debian ` + VersionID + ` (` + Suite + `) in the runtimes' images, written by make images-lock:
# image's package, architecture, package, version, bytes, SHA-256
`

// ReadLock reads the file.
func ReadLock(name string) (Lock, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var lock Lock
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 {
			return nil, fmt.Errorf("%s:%d: want 6 fields; write it anew with make images-lock", name, n)
		}
		size, err := strconv.ParseInt(fields[4], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		at := slices.IndexFunc(lock, func(s Set) bool { return s.Root == fields[0] && s.Arch == fields[1] })
		if at < 0 {
			lock = append(lock, Set{Root: fields[0], Arch: fields[1]})
			at = len(lock) - 1
		}
		lock[at].Packages = append(lock[at].Packages, Package{
			Arch: fields[1], Name: fields[2], Version: fields[3], Size: size, SHA256: fields[5],
		})
	}
	return lock, lines.Err()
}

// Write writes the file, in an order that makes differences readable.
func (l Lock) Write(name string) error {
	sets := slices.Clone(l)
	slices.SortFunc(sets, func(a, b Set) int { return cmp.Or(cmp.Compare(a.Root, b.Root), cmp.Compare(a.Arch, b.Arch)) })
	var out bytes.Buffer
	out.WriteString(lockHeader)
	for _, set := range sets {
		for _, p := range set.Packages {
			fmt.Fprintln(&out, set.Root, set.Arch, p.Name, p.Version, p.Size, p.SHA256)
		}
	}
	return os.WriteFile(name, out.Bytes(), 0o600)
}

// Set returns the one of an image's package on an architecture.
func (l Lock) Set(root, arch string) (Set, bool) {
	at := slices.IndexFunc(l, func(s Set) bool { return s.Root == root && s.Arch == arch })
	if at < 0 {
		return Set{}, false
	}
	return l[at], true
}

// Version of a package in the set.
func (s Set) Version(name string) string {
	for _, p := range s.Packages {
		if p.Name == name {
			return p.Version
		}
	}
	return ""
}
