package runtimes

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"
)

//go:embed nodejs/*.mjs python/*.py python/lambdamesh_runtime/*.py go/*.go go/sdk.mod
var files embed.FS

// GoModule is the module path of the Go SDK.
const GoModule = "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"

// NodeJS returns the files of the Node.js server; server.mjs starts it.
func NodeJS() fs.FS { return mustSub("nodejs") }

// Python returns the files of the Python server; server.py starts it.
func Python() fs.FS { return mustSub("python") }

// GoSDK returns the Go SDK as the module [GoModule]: its sources without tests,
// and its go.mod.
func GoSDK() (fs.FS, error) {
	entries, err := fs.ReadDir(files, "go")
	if err != nil {
		return nil, fmt.Errorf("read the embedded Go SDK: %w", err)
	}
	module := fstest.MapFS{}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		data, err := fs.ReadFile(files, path.Join("go", name))
		if err != nil {
			return nil, fmt.Errorf("read the embedded Go SDK: %w", err)
		}
		if name == "sdk.mod" {
			name = "go.mod"
		}
		module[name] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
	return module, nil
}

func mustSub(folder string) fs.FS {
	sub, err := fs.Sub(files, folder)
	if err != nil {
		panic(err) // the folder is embedded above: a mistake in this file
	}
	return sub
}
