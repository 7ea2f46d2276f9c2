package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Apt is an apt that knows no package as installed and uses no folder of the
// machine's.
type Apt struct {
	dir    string
	report *progress.Reporter
	// updated architectures, whose lists of packages are of this run.
	updated map[string]bool
}

// NewApt returns the apt that keeps its files in dir.
func NewApt(dir string, report *progress.Reporter) (*Apt, error) {
	for _, program := range []string{"apt-get", "apt-cache", "apt-config", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("the runtimes' images are made of Debian's packages by %s, which is not here: build them on Debian or Ubuntu, or only the others, IMAGES=controlplane,eventbus,connector,proxy", program)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("whether Debian's packages are Debian's is checked with %s, which is not here: apt-get install debian-archive-keyring", keyring)
	}
	if err := os.MkdirAll(filepath.Join(dir, "packages"), 0o750); err != nil {
		return nil, err
	}
	return &Apt{dir: dir, report: report, updated: map[string]bool{}}, nil
}

func (a *Apt) root(arch string) string { return filepath.Join(a.dir, arch) }

// File is where the package is once it was fetched.
func (a *Apt) File(p Package) string { return filepath.Join(a.dir, "packages", p.SHA256+".deb") }

// configure writes the configuration of an architecture's apt. Of the machine's
// only this holds here too: how to reach servers, and whether dates are checked.
func (a *Apt) configure(ctx context.Context, arch string) error {
	root := a.root(arch)
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o750); err != nil {
			return err
		}
	}
	machine, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", `%F "%v";%n`,
		"Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until", "Acquire::Check-Date").Output()
	if err != nil {
		return fmt.Errorf("apt-config dump: %w", err)
	}
	conf := fmt.Sprintf(`Dir "%[1]s";
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Etc "%[1]s/etc";
Dir::Etc::sourcelist "%[1]s/debian.sources";
Dir::Etc::sourceparts "-";
Dir::Log "%[1]s";
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root"; // the folder may be one that only its owner reads
Acquire::Languages "none";
%[3]s`, root, arch, machine)
	sources := ""
	for _, source := range [][2]string{
		{"http://deb.debian.org/debian", Suite + " " + Suite + "-updates"},
		{"http://deb.debian.org/debian-security", Suite + "-security"},
	} {
		sources += fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n", source[0], source[1], keyring)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "apt.conf"), []byte(conf), 0o600),
		os.WriteFile(filepath.Join(root, "debian.sources"), []byte(sources), 0o600),
		os.WriteFile(filepath.Join(root, "status"), nil, 0o600),
	)
}

func (a *Apt) run(ctx context.Context, arch, dir, program string, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.root(arch), "apt.conf"), "LC_ALL=C")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", program, arguments[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// alone runs the function while no other program uses the folder: apt's own
// lock is refused, not waited for.
func (a *Apt) alone(ctx context.Context, run func() error) error {
	lock, err := os.OpenFile(filepath.Join(a.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // which gives it back
	retry := time.NewTicker(200 * time.Millisecond)
	defer retry.Stop()
	err = a.report.Step("wait for another build that downloads Debian's packages", nil, func() error {
		for {
			err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-retry.C:
			}
		}
	})
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return run()
}

// update gets the lists of packages, once in a run.
func (a *Apt) update(ctx context.Context, arch string) error {
	if a.updated[arch] {
		return nil
	}
	if err := a.configure(ctx, arch); err != nil {
		return err
	}
	err := a.report.Step("get Debian's list of packages for "+arch, nil, func() error {
		// Without Error-Mode apt is content with the lists it had before.
		_, err := a.run(ctx, arch, "", "apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")
		return err
	})
	a.updated[arch] = err == nil
	return err
}

// leftOut are packages that others' scripts need, and no script runs here: dpkg
// with its libraries, and the time zones that are in the base. corepack
// downloads package managers.
func leftOut() []string {
	return []string{"debconf", "dpkg", "libacl1", "libmd0", "libpcre2-8-0", "libselinux1", "node-corepack", "tar", "tzdata"}
}

// Resolve returns the package and all it needs, in the versions of today.
func (a *Apt) Resolve(ctx context.Context, root, arch string) (set Set, err error) {
	err = a.alone(ctx, func() error {
		set, err = a.resolve(ctx, root, arch)
		return err
	})
	return set, err
}

func (a *Apt) resolve(ctx context.Context, root, arch string) (Set, error) {
	if err := a.update(ctx, arch); err != nil {
		return Set{}, err
	}
	listed, err := a.run(ctx, arch, "", "apt-get", "install", "-qq", "-y", "--print-uris", root)
	if err != nil {
		return Set{}, err
	}
	set := Set{Root: root, Arch: arch}
	for line := range strings.Lines(string(listed)) {
		// 'http://.../libc6_2.41-12_amd64.deb' libc6_2.41-12_amd64.deb 2846580 HASH
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasPrefix(line, "'") {
			continue
		}
		name, err := url.PathUnescape(fields[1])
		if err != nil {
			return Set{}, fmt.Errorf("read the name of %s: %w", line, err)
		}
		parts := strings.Split(strings.TrimSuffix(name, ".deb"), "_")
		if len(parts) != 3 || slices.Contains(leftOut(), parts[0]) {
			continue
		}
		p, err := a.describe(ctx, arch, parts[0], parts[1])
		if err != nil {
			return Set{}, err
		}
		set.Packages = append(set.Packages, p)
	}
	slices.SortFunc(set.Packages, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	if set.Version(root) == "" {
		return Set{}, fmt.Errorf("apt did not resolve %s for %s:\n%s", root, arch, listed)
	}
	return set, nil
}

func (a *Apt) describe(ctx context.Context, arch, name, version string) (Package, error) {
	shown, err := a.run(ctx, arch, "", "apt-cache", "show", name+"="+version)
	if err != nil {
		return Package{}, err
	}
	p := Package{Arch: arch, Name: name, Version: version}
	for line := range strings.Lines(string(shown)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "SHA256":
			p.SHA256 = value
		case "Size":
			if p.Size, err = strconv.ParseInt(value, 10, 64); err != nil {
				return Package{}, err
			}
		}
	}
	if len(p.SHA256) != 64 || p.Size == 0 {
		return Package{}, fmt.Errorf("Debian's list of packages has no SHA-256 of %s", p)
	}
	return p, nil
}

// ErrGone: the archive no longer has a version, because it has a newer one.
var ErrGone = errors.New("Debian's archive has newer ones now") //nolint:gochecknoglobals,staticcheck // a name, and errors.Is needs a variable

// Fetch gets the packages that are not there yet.
func (a *Apt) Fetch(ctx context.Context, set Set) error {
	if len(a.missing(set)) == 0 {
		return nil
	}
	return a.alone(ctx, func() error { return a.fetch(ctx, set) })
}

func (a *Apt) missing(set Set) []Package {
	var missing []Package
	for _, p := range set.Packages {
		if info, err := os.Stat(a.File(p)); err != nil || info.Size() != p.Size {
			missing = append(missing, p)
		}
	}
	return missing
}

func (a *Apt) fetch(ctx context.Context, set Set) error {
	missing := a.missing(set)
	if len(missing) == 0 { // another build got them
		return nil
	}
	if err := a.update(ctx, set.Arch); err != nil {
		return err
	}
	var bytesMissing int64
	var gone []string
	wanted := []string{"download", "-qq"}
	for _, p := range missing {
		known, err := a.describe(ctx, set.Arch, p.Name, p.Version)
		if err != nil || known.SHA256 != p.SHA256 {
			gone = append(gone, p.String())
		}
		bytesMissing += p.Size
		wanted = append(wanted, p.Name+"="+p.Version)
	}
	if len(gone) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(gone, ", "), ErrGone)
	}
	into, err := os.MkdirTemp(a.dir, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(into)
	name := fmt.Sprintf("download %d of Debian's packages for %s, %d MB", len(missing), set.Arch, bytesMissing>>20)
	err = a.report.Step(name, nil, func() error {
		_, err := a.run(ctx, set.Arch, into, "apt-get", wanted...)
		return err
	})
	if err != nil {
		return err
	}
	return a.keep(into, missing)
}

// keep moves what was downloaded to where it is found by its content.
func (a *Apt) keep(from string, packages []Package) error {
	files, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		return err
	}
	found := map[string]string{}
	for _, file := range files {
		sum, err := layer.HashFile(file)
		if err != nil {
			return err
		}
		found[sum] = file
	}
	for _, p := range packages {
		file, ok := found[p.SHA256]
		if !ok {
			return fmt.Errorf("apt downloaded another %s than the one with SHA-256 %s", p, p.SHA256)
		}
		if err := os.Rename(file, a.File(p)); err != nil {
			return err
		}
	}
	return nil
}
