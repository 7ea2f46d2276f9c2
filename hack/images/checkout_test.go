package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// checkout makes dir a second checkout of this one's commit, with what is not
// committed yet.
func checkout(t *testing.T, dir string) {
	t.Helper()
	git(t, dir, "clone", "-q", "--shared", "--no-checkout", root(t), ".")
	git(t, dir, "checkout", "-q", "--detach", git(t, root(t), "rev-parse", "HEAD"))
	files := git(t, root(t), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimSuffix(files, "\x00"), "\x00") {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(root(t), name)); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(to, from string) error {
	info, err := os.Lstat(from)
	if os.IsNotExist(err) {
		return os.RemoveAll(to) // removed and not committed
	}
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func git(t *testing.T, dir string, arguments ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "git", arguments...)
	command.Dir = dir
	out, err := command.Output()
	if err != nil {
		t.Fatalf("git %s: %v", strings.Join(arguments, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func timestamp(config *v1.ConfigFile) string {
	return strconv.FormatInt(config.Created.Unix(), 10)
}
