package main

import (
	"context"
	"debug/elf"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cacheDir is where hack/images/run keeps what it made.
func cacheDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("LAMBDAMESH_CACHE"); dir != "" {
		return filepath.Join(dir, "images")
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "lambdamesh", "images")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "lambdamesh", "images")
}

// TestRuntimes pushes the images that lambdas run from and starts a lambda in
// each, the way a pod does.
func TestRuntimes(t *testing.T) {
	host := newRegistry(t)
	runImages(t, root(t), "push", "--version", version, "--platforms", "linux/"+runtime.GOARCH, "--images", "runtime-nodejs,runtime-python", host)
	for language, want := range map[string]struct{ program, server, source, code, alias, root string }{
		"nodejs": {"node", "server.mjs", "main.mjs", "export function main() { return 'hello' }", "20", "nodejs"},
		"python": {"python3", "server.py", "main.py", "def main(event, context):\n    return 'hello'\n", "3.13", "python3"},
	} {
		t.Run(language, func(t *testing.T) {
			repository := host + "/runtime-" + language
			image := pull(t, repository+":"+tag, runtime.GOARCH)
			if other := pull(t, repository+":"+want.alias+"-"+tag, runtime.GOARCH); digest(t, other) != digest(t, image) {
				t.Errorf("%s-%s is another image than %s", want.alias, tag, tag)
			}
			config, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Config.User != "65532:65532" {
				t.Errorf("user %q, want one that is not root, as a number", config.Config.User)
			}
			if entrypoint := config.Config.Entrypoint; len(entrypoint) != 1 || entrypoint[0] != "/usr/bin/"+want.program {
				t.Errorf("entrypoint %q", entrypoint)
			}
			document := sbomOf(t, repository, image)
			for _, name := range []string{"libc6", want.root} {
				if !document.has("pkg:deb/debian/" + name + "@") {
					t.Errorf("the SBOM does not name Debian's package %s", name)
				}
			}
			files := unpack(t, image)
			checkBase(t, files)
			checkStatus(t, files, document)

			if os.Geteuid() != 0 {
				t.Log("LEFT OUT: a lambda in this image's root file system: changing to it takes root")
				return
			}
			source := filepath.Join(files, "lambda/source")
			err = errors.Join(os.MkdirAll(source, 0o755), os.WriteFile(filepath.Join(source, want.source), []byte(want.code), 0o644),
				os.CopyFS(filepath.Join(files, "lambda/runtime"), os.DirFS(filepath.Join(root(t), "lambdas/runtimes", language))))
			if err != nil {
				t.Fatal(err)
			}
			if language == "python" {
				checkBytecode(t, files)
			}
			checkLambda(t, files, config.Config.Env, want.program, "/lambda/runtime/"+want.server)
		})
	}
}

// checkStatus compares what scanners of images read with the SBOM.
func checkStatus(t *testing.T, files string, document spdx) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join(files, "var/lib/dpkg/status"))
	if err != nil {
		t.Fatal(err)
	}
	stanzas := regexp.MustCompile(`(?m)^Package: (\S+)\nStatus: install ok installed\n(?:.+\n)*?Version: (\S+)$`).FindAllStringSubmatch(string(status), -1)
	if len(stanzas) != len(document.Packages)-1 { // the first one is the image
		t.Errorf("dpkg's status has %d packages, the SBOM %d", len(stanzas), len(document.Packages)-1)
	}
	listed := map[string]string{}
	for _, p := range document.Packages {
		listed[p.Name] = p.VersionInfo
	}
	for _, stanza := range stanzas {
		if listed[stanza[1]] != stanza[2] {
			t.Errorf("dpkg's status has %s %s, the SBOM %q", stanza[1], stanza[2], listed[stanza[1]])
		}
	}
}

// checkBytecode asks the interpreter which modules it would have to compile.
func checkBytecode(t *testing.T, files string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "/usr/bin/python3", "-v", "-c", "import asyncio, http.client, json, logging, ssl")
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: files, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	command.Dir = "/"
	said, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if n := strings.Count(string(said), "matches /usr/lib/python3"); n < 50 {
		t.Errorf("the interpreter took %d modules compiled", n)
	}
	for _, compiled := range regexp.MustCompile(`code object from (/usr/lib/\S+)`).FindAllStringSubmatch(string(said), -1) {
		// The one that is a link to a file of some lines, in /etc, where it may be changed.
		if filepath.Base(compiled[1]) != "sitecustomize.py" {
			t.Errorf("the interpreter compiled %s", compiled[1])
		}
	}
}

// checkLambda runs the server with files as its root, as nobody in particular,
// and calls the lambda.
func checkLambda(t *testing.T, files string, env []string, program, server string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	command := exec.CommandContext(ctx, "/usr/bin/"+program, server)
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: files, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	command.Dir = "/"
	command.Env = append(env,
		"LAMBDAMESH_LISTEN=unix:/tmp/app.sock", "LAMBDAMESH_ADMIN_LISTEN=unix:/tmp/admin.sock", "LAMBDAMESH_LAMBDA=hello", "LAMBDAMESH_NAMESPACE=shop",
		"LAMBDAMESH_HANDLER=main", "LAMBDAMESH_SOURCE=/lambda/source", "LAMBDAMESH_TIMEOUT=10s", "LAMBDAMESH_MAX_BODY_BYTES=1024")
	var output strings.Builder
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()

	ready := time.NewTicker(50 * time.Millisecond)
	defer ready.Stop()
	deadline := time.After(time.Minute)
	for get(ctx, filepath.Join(files, "tmp/admin.sock"), "/readyz") != http.StatusOK {
		select {
		case err := <-ended:
			t.Fatalf("%s ended: %v\n%s", program, err, output.String())
		case <-deadline:
			t.Fatalf("%s is not ready after a minute", program)
		case <-ready.C:
		}
	}
	if status := get(ctx, filepath.Join(files, "tmp/app.sock"), "/"); status != http.StatusOK {
		t.Errorf("the lambda answers %d", status)
	}
	stop()
	<-ended
}

// get returns the status of an answer, 0 without one.
func get(ctx context.Context, socket, path string) int {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lambda"+path, nil)
	if err != nil {
		return 0
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

// checkELF finds for every program and library that it is of the architecture
// and that what it is linked with is there: what needs no machine of it.
func checkELF(t *testing.T, files, arch string) {
	t.Helper()
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	have := map[string]bool{}
	needs := map[string][]string{}
	err := filepath.WalkDir(files, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		have[entry.Name()] = true
		if !entry.Type().IsRegular() {
			return nil
		}
		binary, err := elf.Open(path)
		if err != nil {
			return nil //nolint:nilerr // no ELF file
		}
		defer binary.Close()
		name, err := filepath.Rel(files, path)
		if err != nil {
			return err
		}
		if binary.Machine != machines[arch] {
			t.Errorf("/%s is for %s, the image for %s", name, binary.Machine, arch)
		}
		libraries, err := binary.ImportedLibraries()
		needs[name] = libraries
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(needs) == 0 {
		t.Error("there is no program")
	}
	for name, libraries := range needs {
		for _, library := range libraries {
			if !have[library] {
				t.Errorf("/%s is linked with %s, which is not in the image", name, library)
			}
		}
	}
}

// TestDebianMovedOn builds from a lock with a version that Debian does not have.
func TestDebianMovedOn(t *testing.T) {
	dir := t.TempDir()
	checkout(t, dir)
	lock := filepath.Join(dir, "hack/images/debian.lock")
	data, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	gone := regexp.MustCompile(`(?m)^(python3 `+runtime.GOARCH+` libffi8) \S+ (\d+) \S+$`).ReplaceAll(data, []byte("$1 1.0-gone $2 "+strings.Repeat("0", 64)))
	if string(gone) == string(data) {
		t.Fatal("the lock has no libffi8")
	}
	if err := os.WriteFile(lock, gone, 0o644); err != nil {
		t.Fatal(err)
	}
	build := []string{"build", "--version", version, "--images", "runtime-python"}
	command := exec.CommandContext(t.Context(), filepath.Join(dir, "hack/images/run"), append(build, "--locked")...)
	if said, err := command.CombinedOutput(); err == nil || !strings.Contains(string(said), "libffi8 1.0-gone") || !strings.Contains(string(said), "make images-lock") {
		t.Errorf("with --locked: %v\n%s", err, said)
	}
	command = exec.CommandContext(t.Context(), filepath.Join(dir, "hack/images/run"), build...)
	if said, err := command.CombinedOutput(); err != nil || !strings.Contains(string(said), "libffi8 1.0-gone") {
		t.Errorf("without --locked: %v\n%s", err, said)
	}
}
