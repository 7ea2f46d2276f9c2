package main_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// snapshot is all that a cluster could leave on a machine, as key and value.
func snapshot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 5 { // without ids, which mean nothing
			all["mount "+fields[4]] += strings.Join(fields[5:], " ") + "; "
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		all["link "+link.Attrs().Name] = link.Type()
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range routes {
		all["route "+route.String()] = ""
	}
	for _, command := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip", "netns", "list"}, {"ip", "rule"}} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		all["output of "+command[0]+" "+command[len(command)-1]] = regexp.MustCompile(`(?m)^#.*\n|packets \d+ bytes \d+|\[\d+:\d+\]`).ReplaceAllString(string(out), "")
	}
	walk(t, "/sys/fs/cgroup", func(path string, d fs.DirEntry) {
		if d.IsDir() {
			all["cgroup "+path] = ""
		}
	})
	walk(t, "/proc/sys", func(path string, d fs.DirEntry) {
		// These count, or are new with each look.
		if d.Type().IsRegular() && !regexp.MustCompile(`/random/|-state$|-nr$|last_pid|/pty/nr|nf_conntrack_count|/quota/`).MatchString(path) {
			if value, err := os.ReadFile(path); err == nil {
				all["sysctl "+path] = string(value)
			}
		}
	})
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	namespaces, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range namespaces {
		pid := filepath.Dir(filepath.Dir(path))
		cmdline, _ := os.ReadFile(filepath.Join(pid, "cmdline"))
		status, _ := os.ReadFile(filepath.Join(pid, "status"))
		if strings.Contains(string(status), "State:\tZ") {
			continue // it has ended; its parent, the machine's init, has yet to hear of it
		}
		other, err := os.Readlink(path)
		if err == nil && other != own || strings.Contains(string(cmdline), "lambdamesh-cluster") {
			all["process "+pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	for _, dir := range []string{"/var/lib/lambdamesh", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/run/containerd", "/run/netns", "/etc/cni", "/var/log/pods", "/var/log/containers", "/opt/programs"} {
		if _, err := os.Stat(dir); err == nil {
			all["folder "+dir] = ""
		}
	}
	return all
}

func walk(t *testing.T, root string, visit func(string, fs.DirEntry)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			visit(path, d)
		}
		return nil //nolint:nilerr // groups and interfaces of others come and go
	})
	if err != nil {
		t.Fatal(err)
	}
}

// compare reports what is there and was not, what was there and is not, and what
// is different.
func compare(t *testing.T, before, after map[string]string) {
	t.Helper()
	for key, value := range after {
		was, known := before[key]
		// A module of the kernel that was loaded brings settings of its own.
		if !known && !strings.HasPrefix(key, "sysctl ") {
			t.Errorf("left behind: %s %s", key, value)
		} else if known && was != value {
			t.Errorf("changed: %s was %q and is %q", key, was, value)
		}
	}
	for key, value := range before {
		if _, known := after[key]; !known {
			t.Errorf("gone: %s %s", key, value)
		}
	}
}
