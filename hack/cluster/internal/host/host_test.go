package host

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

func TestFirstFree(t *testing.T) {
	for name, test := range map[string]struct {
		taken []string
		want  string
	}{
		"nothing is taken":                   {nil, "10.210.0.0/16"},
		"by a smaller network in it":         {[]string{"10.210.3.0/24"}, "10.211.0.0/16"},
		"by a larger one around it":          {[]string{"10.208.0.0/13"}, "10.216.0.0/16"},
		"by two":                             {[]string{"10.211.0.0/16", "10.210.0.0/16"}, "10.212.0.0/16"},
		"all of 10/8, as by a VPN":           {[]string{"10.0.0.0/8"}, "172.20.0.0/16"},
		"all private networks":               {[]string{"10.0.0.0/8", "172.16.0.0/12"}, "198.18.0.0/16"},
		"all there are: the error says what": {[]string{"10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var taken []netip.Prefix
			for _, prefix := range test.taken {
				taken = append(taken, netip.MustParsePrefix(prefix))
			}
			got, err := firstFree(taken)
			if test.want == "" {
				if err == nil {
					t.Fatalf("got %s, want an error", got)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Errorf("got %s, %v; want %s", got, err, test.want)
			}
		})
	}
}

func TestNameservers(t *testing.T) {
	got := nameservers("# a comment\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.2\nnameserver\nsearch example.com\nnameserver 192.0.2.1 # so\n")
	want := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.0.2.1")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTreesOfVersion1(t *testing.T) {
	got := parseV1(`24 1 0:22 / /sys/fs/cgroup rw,relatime shared:2 - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:3 - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
27 24 0:25 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw
28 24 0:26 / /elsewhere/cpuset rw - cgroup cgroup rw,cpuset
`)
	want := []cgroupTree{
		{"/sys/fs/cgroup/cpu,cpuacct", 1, []string{"cpu", "cpuacct"}},
		{"/sys/fs/cgroup/systemd", 1, []string{"xattr", "name=systemd"}},
		{"/sys/fs/cgroup/unified", 2, nil},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A new group of version 1 has to get its CPUs from the one above, at each level.
func TestMakeGivesCPUs(t *testing.T) {
	tree := cgroupTree{t.TempDir(), 1, []string{"cpuset"}}
	for name, value := range map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"} {
		if err := os.WriteFile(filepath.Join(tree.path, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.make("/lambdamesh-a/node1"); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"lambdamesh-a/cpuset.cpus": "0-1", "lambdamesh-a/node1/cpuset.cpus": "0-1", "lambdamesh-a/node1/cpuset.mems": "0"} {
		if got, err := read(filepath.Join(tree.path, file)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
}

// Two clusters share what they change, and the first value is the one to restore.
func TestRememberKeepsTheFirstValue(t *testing.T) {
	t.Setenv("LAMBDAMESH_CLUSTERS", t.TempDir())
	for _, value := range []string{"0", "1"} {
		if err := remember("/proc/sys/net/ipv4/ip_forward", value); err != nil {
			t.Fatal(err)
		}
	}
	before, err := loadBefore()
	if err != nil || before["/proc/sys/net/ipv4/ip_forward"] != "0" {
		t.Errorf("got %v, %v; want 0", before, err)
	}
}

// TestTheLastRestores ends two clusters, each before the other's folder is gone.
func TestTheLastRestores(t *testing.T) {
	t.Setenv("LAMBDAMESH_CLUSTERS", filepath.Join(t.TempDir(), "clusters"))
	setting := filepath.Join(t.TempDir(), "ip_forward")
	if err := os.WriteFile(setting, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := state.New("a"), state.New("b")
	for _, s := range []*state.State{a, b} {
		if err := s.Save(); err != nil {
			t.Fatal(err)
		}
	}
	if err := change(setting, "1"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		ends *state.State
		want string
	}{{a, "1"}, {b, "0"}} {
		if err := Restore(step.ends); err != nil {
			t.Fatal(err)
		}
		if got, err := read(setting); err != nil || got != step.want {
			t.Errorf("after the end of %s: %q, %v; want %q", step.ends.Name, got, err, step.want)
		}
	}
	if _, err := os.Stat(beforeFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s stays: %v", beforeFile(), err)
	}
}
