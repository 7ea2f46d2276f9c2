package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestRefusals are one line each, and say what to do.
func TestRefusals(t *testing.T) {
	m := newMachine(t)
	for name, test := range map[string]struct {
		args []string
		uid  uint32
		want string
	}{
		"not root":           {[]string{"check"}, 65534, "need root"},
		"down, not root":     {[]string{"down"}, 65534, "needs root"},
		"a name for no link": {[]string{"up", "--name", "Too_Long_A_Name"}, 0, "up to 11"},
		"no nodes":           {[]string{"up", "--nodes", "0"}, 0, "1 to 100"},
		"no network":         {[]string{"up", "--network", "10.1.0.0/24"}, 0, "16 bits"},
		"no such node":       {[]string{"node", "kill", "1", "--name", "nosuch"}, 0, "make cluster NAME=nosuch"},
		"no cgroups":         {[]string{"unshared", "umount --recursive --lazy /sys/fs/cgroup"}, 0, "cgroup controller cpu, cpuset, memory, pids"},
		"clusters on an overlay": {[]string{"unshared", "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m && " +
			"mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w o /mnt/m && export LAMBDAMESH_CLUSTERS=/mnt/m/clusters"}, 0, "is on overlayfs"},
		"missing packages": {[]string{"unshared", "mount -t tmpfs tmpfs /usr/sbin && mount -t tmpfs tmpfs /usr/lib/cni"}, 0, "apt-get install"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := m.command(test.args...)
			if test.args[0] == "unshared" {
				cmd = exec.Command("unshare", "--mount", "sh", "-c", test.args[1]+` && exec "$0" check`, m.program)
				cmd.Env = m.env
			}
			if test.uid != 0 {
				// It cannot enter root's folders: it gets a copy.
				program := filepath.Join(t.TempDir(), "cluster")
				data, err := os.ReadFile(m.program)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(program, data, 0o755); err != nil {
					t.Fatal(err)
				}
				for dir := filepath.Dir(program); dir != os.TempDir(); dir = filepath.Dir(dir) {
					if err := os.Chmod(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				cmd = exec.Command(program, test.args...)
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("it was not refused: %s", out)
			}
			// What a machine lacks is told from what went wrong on it.
			lacks := (test.args[0] == "check" || test.args[0] == "unshared") && name != "missing packages"
			if code := cmd.ProcessState.ExitCode(); lacks != (code == 77) {
				t.Errorf("exit code %d", code)
			}
			if err := contains(string(out), test.want); err != nil || strings.Count(string(out), "\n") != 1 {
				t.Errorf("want one line: %v: %s", err, out)
			}
		})
	}
}

// TestFirewall starts a cluster on a machine that drops what it forwards, as
// Docker makes it do: here a namespace that stands for the machine.
func TestFirewall(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.run(t, "down", "--name", "test-d") })
	cmd := exec.Command("unshare", "--net", "bash", "-euc", `
		ip link set lo up
		iptables -P FORWARD DROP
		unshare --net sleep 600 & outside=$!
		trap 'kill $outside' EXIT
		until [ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
		ip link add out type veth peer name in netns $outside
		ip addr add `+outsideMachine+`/30 dev out
		ip link set out up
		nsenter --target $outside --net sh -c 'ip addr add 198.51.100.2/30 dev in; ip link set in up'
		"$0" up --name test-d --nodes 1 >&2
		"$0" node --name test-d exec 1 timeout 10 bash -c '</dev/tcp/198.51.100.2/9' 2>&1 || true
		"$0" down --name test-d
		echo "rules: $(iptables -S FORWARD)"`, m.program)
	cmd.Env = m.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	// Nobody listens there; being told so takes an answer from beyond.
	if err := contains(string(out), "Connection refused"); err != nil {
		t.Errorf("a node does not get through: %v", err)
	}
	if err := contains(string(out), "rules: -P FORWARD DROP\n"); err != nil {
		t.Errorf("rules stayed: %v", err)
	}
}
