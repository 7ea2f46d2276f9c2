package boot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// programs is where a part finds what the state calls Programs, in order.
const programs = "/opt/programs"

// Path finds the programs of a part.
func Path() string {
	return strings.Join([]string{programs + "/0", programs + "/1", programs + "/2", programs + "/3", host.Path}, ":")
}

// root is a part's root file system while it is made: of the machine's it has
// programs, libraries and devices, read-only; /var is the part's disk, a folder
// that a power cut leaves; all else is in memory and new with each start.
type root struct {
	dir   string // where it is mounted before it becomes the root
	state *state.State
	part  string
}

// newRoot mounts it. Nothing of it is seen outside of the part's mount namespace.
func newRoot(s *state.State, part string) (*root, error) {
	r := &root{dir: s.Path(part, "root"), state: s, part: part}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", r.dir, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount the root: %w", err)
	}
	for _, step := range []func() error{r.system, r.etc, r.disk, r.kernel} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// system brings the machine's programs.
func (r *root) system() error {
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 { // into /usr
			target, err := os.Readlink(dir)
			if err == nil {
				err = os.Symlink(target, r.dir+dir)
			}
			if err != nil {
				return err
			}
		} else if err := r.readOnly(dir, dir); err != nil {
			return err
		}
	}
	for i, dir := range filepath.SplitList(r.state.Programs) {
		if err := r.readOnly(dir, fmt.Sprintf("%s/%d", programs, i)); err != nil {
			return err
		}
	}
	return r.readOnly(r.state.CNI, "/opt/cni/bin")
}

// etc brings of the machine's configuration what programs need to run at all,
// and writes what makes the part a machine of its own.
func (r *root) etc() error {
	for _, name := range []string{
		"/etc/alternatives", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", // iptables is one of the alternatives
		"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/ld.so.cache", "/etc/localtime",
	} {
		if _, err := os.Stat(name); err != nil {
			continue
		}
		if err := r.readOnly(name, name); err != nil {
			return err
		}
	}
	if target, err := os.Readlink("/etc/os-release"); err == nil {
		if err := os.Symlink(target, r.dir+"/etc/os-release"); err != nil {
			return err
		}
	}
	var resolv strings.Builder
	for _, nameserver := range r.state.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", nameserver)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	machineID, err := keep(r.state.Path(r.part, "machine-id"), hex.EncodeToString(id)+"\n")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"/etc/hostname":    r.part + "\n",
		"/etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", Address(r.state, r.part), r.part),
		"/etc/resolv.conf": resolv.String(),
		"/etc/machine-id":  machineID,
	} {
		if err := r.write(name, content); err != nil {
			return err
		}
	}
	return nil
}

// keep writes a file unless it is there, and returns what it holds.
func keep(file, content string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return content, os.WriteFile(file, []byte(content), 0o644)
	}
	return string(data), err
}

// disk brings what a power cut leaves, and what it does not.
func (r *root) disk() error {
	disk := r.state.Path(r.part, "var")
	for _, dir := range []string{"lib", "log", "cache", "tmp"} {
		if err := os.MkdirAll(filepath.Join(disk, dir), 0o755); err != nil {
			return err
		}
	}
	if err := r.bind(disk, "/var", 0); err != nil {
		return err
	}
	if err := os.Symlink("/run", filepath.Join(disk, "run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, dir := range []string{"/run", "/root", "/home", "/mnt", "/srv"} {
		if err := os.MkdirAll(r.dir+dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(r.dir+"/tmp", 0o755); err != nil {
		return err
	}
	return os.Chmod(r.dir+"/tmp", 0o777|fs.ModeSticky)
}

// kernel brings /dev, /proc and /sys.
func (r *root) kernel() error {
	if err := r.bind("/dev", "/dev", unix.MS_REC); err != nil {
		return err
	}
	for _, m := range []struct{ fstype, target, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""},
	} {
		if err := os.MkdirAll(r.dir+m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, r.dir+m.target, m.fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if _, err := os.Stat("/dev/shm"); err == nil {
		if err := unix.Mount("tmpfs", r.dir+"/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("mount /dev/shm: %w", err)
		}
	}
	if err := r.bind("/sys/fs/cgroup", "/sys/fs/cgroup", unix.MS_REC); err != nil {
		return err
	}
	return r.pretend()
}

// pretend covers files of the kernel that are not in a namespace. The kubelet
// sets the first ones (a panic would take the machine along, not the node), and
// sees here that they are as it wants them. The boot's id tells it that its node
// was away.
func (r *root) pretend() error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	boot := hex.EncodeToString(id)
	for name, content := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
		"kernel/random/boot_id":     strings.Join([]string{boot[:8], boot[8:12], boot[12:16], boot[16:20], boot[20:]}, "-"),
	} {
		file := "/run/kernel/" + name
		if err := r.write(file, content+"\n"); err != nil {
			return err
		}
		if err := unix.Mount(r.dir+file, r.dir+"/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover /proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// enter makes it the root of this process, and the machine's disappear.
func (r *root) enter() error {
	old := r.dir + "/mnt"
	if err := unix.PivotRoot(r.dir, old); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/mnt", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	// What the kubelet mounts for pods has to be seen in containers that ask for
	// it, as on a machine with systemd.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func (r *root) write(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(r.dir+name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(r.dir+name, []byte(content), 0o644)
}

// bind shows a file or folder of the machine under a name in the root.
func (r *root) bind(from, to string, flags uintptr) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	target := r.dir + to
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, target, "", unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

func (r *root) readOnly(from, to string) error {
	if err := r.bind(from, to, 0); err != nil {
		return err
	}
	// These flags a remount would take away.
	var info unix.Statfs_t
	if err := unix.Statfs(from, &info); err != nil {
		return err
	}
	flags := uintptr(info.Flags)&(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC) | unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY
	if err := unix.Mount("", r.dir+to, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", to, err)
	}
	return nil
}
