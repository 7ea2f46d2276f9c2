// Package state holds what is on disk about a cluster: its folder, and in it the
// file that says what the machine was changed by. The file is written before
// each change, so that `cluster down` can undo a start that was interrupted
// anywhere. Running processes are not in it: their command lines name the
// folder, which also holds after a reboot and when process ids are used again.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// State is one cluster.
type State struct {
	Name  string `json:"name"`
	Nodes int    `json:"nodes"`
	// Block is a /16 that was free: services, nodes and pods get their addresses
	// from it (see the methods below).
	Block netip.Prefix `json:"block"`
	// RegistryPort is where the registry listens on the machine's loopback.
	RegistryPort int `json:"registryPort"`
	// Programs is a PATH of Kubernetes', containerd's, CoreDNS's and our programs.
	Programs string `json:"programs"`
	// CNI is the folder of the CNI plugins.
	CNI string `json:"cni"`
	// Nameservers are the machine's that nodes can reach.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`

	// Firewall says that accepting rules were put into the chain FORWARD.
	Firewall bool `json:"firewall,omitempty"`
	// Ready says that the start came to its end.
	Ready bool `json:"ready"`

	dir string
}

// Root is the folder of all clusters of this machine.
func Root() string {
	// Absolute: a cluster's processes have it in their command lines.
	if dir, err := filepath.Abs(os.Getenv("LAMBDAMESH_CLUSTERS")); err == nil && os.Getenv("LAMBDAMESH_CLUSTERS") != "" {
		return dir
	}
	return "/var/lib/lambdamesh/clusters"
}

const file = "state.json"

// ValidName says whether a cluster can have this name: an interface is called
// lm-NAME, and the kernel allows 15 bytes.
func ValidName(name string) error {
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?$`).MatchString(name) {
		return fmt.Errorf("the name %q is no name for a cluster: use up to 11 of a-z, 0-9 and, inside, the hyphen", name)
	}
	return nil
}

// Dir is the folder of the cluster with this name.
func Dir(name string) string { return filepath.Join(Root(), name) }

// New is a cluster that has no file yet.
func New(name string) *State { return &State{Name: name, dir: Dir(name)} }

// Load reads the cluster of that name; the error is fs.ErrNotExist where none is.
func Load(name string) (*State, error) { return Open(Dir(name)) }

// Open reads the cluster in a folder.
func Open(dir string) (*State, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	s := &State{dir: dir}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, file), err)
	}
	return s, nil
}

// All are the clusters of this machine.
func All() ([]*State, error) {
	files, err := filepath.Glob(filepath.Join(Root(), "*", file))
	if err != nil {
		return nil, err
	}
	var all []*State
	for _, f := range files {
		s, err := Open(filepath.Dir(f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went in between
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Save writes the file: whole or not at all, and on the disk when it returns.
func (s *State) Save() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.dir, file)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write the state of cluster %s: %w", s.Name, err)
	}
	return os.Rename(tmp.Name(), filepath.Join(s.dir, file))
}

// Forget deletes the file, as the last step of undoing what it says.
func (s *State) Forget() error {
	if err := os.Remove(s.Path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget cluster %s: %w", s.Name, err)
	}
	return nil
}

// Remove deletes the cluster's folder.
func (s *State) Remove() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove %s: %w", s.dir, err)
	}
	return nil
}

// Dir is the cluster's folder; Path is something in it.
func (s *State) Dir() string { return s.dir }

// Path names a file of the cluster's folder.
func (s *State) Path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// Kubeconfig is the administrator's.
func (s *State) Kubeconfig() string { return s.Path("kubeconfig") }

// Link is the machine's interface into the cluster's network.
func (s *State) Link() string { return "lm-" + s.Name }

// Table is the cluster's table of nftables on the machine.
func (s *State) Table() string { return "lambdamesh-" + s.Name }

// Cgroup is the group that holds those of the nodes, below the root.
func (s *State) Cgroup() string { return "/lambdamesh-" + s.Name }

// Registry is the registry's address for those on this machine.
func (s *State) Registry() string { return fmt.Sprintf("127.0.0.1:%d", s.RegistryPort) }

// The block: services in its first quarter, then the network of the nodes, pods
// in the second half (a /24 for each node).

// Services is the range of the ClusterIPs.
func (s *State) Services() netip.Prefix { return netip.PrefixFrom(s.at(0, 0), 18) }

// NodeNetwork is the network of the machine, the control plane and the nodes.
func (s *State) NodeNetwork() netip.Prefix { return netip.PrefixFrom(s.at(64, 0), 24) }

// Pods is the range the controller manager cuts the nodes' ranges from.
func (s *State) Pods() netip.Prefix { return netip.PrefixFrom(s.at(128, 0), 17) }

// APIService and DNS are the ClusterIPs of the API server and of CoreDNS.
func (s *State) APIService() netip.Addr { return s.at(0, 1) }

// DNS is the ClusterIP of CoreDNS.
func (s *State) DNS() netip.Addr { return s.at(0, 10) }

// Switch is the address of the registry's namespace, which joins all others.
func (s *State) Switch() netip.Addr { return s.at(64, 1) }

// ControlPlane is the API server's address.
func (s *State) ControlPlane() netip.Addr { return s.at(64, 2) }

// Node is the address of node n.
func (s *State) Node(n int) netip.Addr { return s.at(64, byte(10+n)) }

// Machine is this machine's address in the cluster's network.
func (s *State) Machine() netip.Addr { return s.at(64, 254) }

// MaxNodes is how many have room: half of the /16 in ranges of /24.
const MaxNodes = 100

// Server is the URL of the API server.
func (s *State) Server() string {
	return "https://" + netip.AddrPortFrom(s.ControlPlane(), 6443).String()
}

func (s *State) at(third, fourth byte) netip.Addr {
	a := s.Block.Addr().As4()
	return netip.AddrFrom4([4]byte{a[0], a[1], third, fourth})
}

// LockMachine is held while something is changed that clusters share: the choice
// of addresses, and settings of the kernel.
func LockMachine() (unlock func(), err error) { return lock(Root(), ".lock") }

// Lock is held by whoever starts or ends the cluster or one of its nodes. It
// waits for the one before and goes with its process, however that ends.
func Lock(name string) (unlock func(), err error) { return lock(Root(), "."+name+".lock") }

func lock(dir, name string) (func(), error) {
	path := filepath.Join(dir, name)
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the folder went in between
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Its last holder removes the file: only the one that still has the
		// name is the lock.
		held, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return func() {
				os.Remove(path)
				f.Close()
				// The last one leaves no folder; one that is not empty stays.
				if os.Remove(dir) == nil && filepath.Base(filepath.Dir(dir)) == "lambdamesh" {
					os.Remove(filepath.Dir(dir))
				}
			}, nil
		}
		f.Close()
	}
}
