package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sourceCondition waits until SourceReady has the status, and a message with
// every one of the texts.
func (m *mesh) sourceCondition(t testing.TB, namespace, name, status string, texts ...string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		told, err := m.kubectl(t, "", "get", "lambda", "-n", namespace, name, "-o",
			`jsonpath={.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=="SourceReady")].status} {.status.conditions[?(@.type=="SourceReady")].message}`)
		if err != nil {
			return err
		}
		parts := append(strings.SplitN(told, " ", 4), "", "", "", "")
		if parts[0] != parts[1] || parts[2] != status {
			return errorf("SourceReady: %s", told)
		}
		for _, text := range texts {
			if !strings.Contains(parts[3], text) {
				return errorf("SourceReady says %q, not %q", parts[3], text)
			}
		}
		return nil
	})
}

// answers waits until a lambda answers so: a newer version takes over.
func (m *mesh) answers(t testing.TB, name, path, want string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		answer, err := m.get(t.Context(), name+".lambdas.localhost", path)
		if err == nil && (answer.status != http.StatusOK || answer.body != want) {
			err = errorf("%d %s", answer.status, answer.body)
		}
		return err
	})
}

func inline(fields object) object { return object{"source": object{"inline": fields}} }

// A mesh of its own, because dev gives the registries of its environment to npm
// and pip.
func TestSourcesWithDependencies(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	packages := newRegistries(t, []npmPackage{
		{
			map[string]any{"name": "greeter", "version": "1.2.0", "type": "module", "exports": "./index.js", "dependencies": map[string]string{"exclaim": "^2.0.0"}, "scripts": map[string]string{"install": "touch " + ran}},
			map[string]string{"index.js": "import exclaim from 'exclaim';\nexport const greet = (name) => exclaim(`hello ${name}`);\n"},
		},
		{
			map[string]any{"name": "exclaim", "version": "2.0.1", "main": "lib.js"},
			map[string]string{"lib.js": "const path = require('path');\nmodule.exports = (text) => text + '!'.repeat(path.sep.length);\n"},
		},
	}, map[string]map[string]string{
		"pygreeter": {"pygreeter/__init__.py": "from .text import hello\n", "pygreeter/text.py": "def hello(name):\n    return 'hello ' + name\n"},
	})
	for name, value := range map[string]string{
		"NPM_CONFIG_REGISTRY": packages.npm, "NPM_CONFIG_FETCH_RETRIES": "0", "NPM_CONFIG_CACHE": t.TempDir(), "NPM_CONFIG_USERCONFIG": filepath.Join(t.TempDir(), "none"),
		"PIP_INDEX_URL": packages.python, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null", "PIP_CACHE_DIR": t.TempDir(), "PIP_RETRIES": "1", "NO_PROXY": "127.0.0.1",
	} {
		t.Setenv(name, value)
	}
	repository := newRepository(t)
	t.Setenv("SSL_CERT_FILE", repository.roots)
	m := start(t, t.TempDir(), "--allow-target", "127.0.0.1/32")
	const namespace = "sources"
	m.applyObjects(t, namespaceObject(namespace))

	t.Run("npm packages in TypeScript", func(t *testing.T) {
		needs(t, "node", "npm")
		version := func(text, dependencies string) object {
			return lambdaObject(namespace, "npm", "nodejs", "", inline(object{
				"code":         "import { greet } from 'greeter';\nimport type { Named } from './lib/named';\nimport { fail } from './lib/named';\n\nexport const main = (event: { path: string }) => {\n  const who: Named = { name: '" + text + "' };\n  if (event.path === '/fail') fail(who);\n  return greet(who.name);\n};\n",
				"files":        object{"lib/named.ts": "export interface Named {\n  name: string;\n}\n\nexport function fail(who: Named): never {\n  throw new Error('no ' + who.name);\n}\n"},
				"dependencies": dependencies,
			}))
		}
		const greeter = `{"dependencies": {"greeter": "^1.0.0"}}`
		m.applyObjects(t, version("npm", greeter), exposed(namespace, "npm"))
		m.awaitRoute(t, namespace, "npm")
		m.answers(t, "npm", "/", "hello npm!")
		require.NoFileExists(t, ran, "no script of a package runs")

		answer, err := m.get(t.Context(), "npm.lambdas.localhost", "/fail")
		require.NoError(t, err)
		require.Equal(t, http.StatusInternalServerError, answer.status)
		eventually(t, time.Minute, func() error {
			log, _ := m.cli(t, "logs", "npm", "-n", namespace)
			for _, line := range []string{"lib/named.ts:6:9", "main.ts:7:31"} {
				if !strings.Contains(log, line) {
					return errorf("the log has no %s:\n%s", line, log)
				}
			}
			return nil
		})

		before := packages.downloads.Load()
		m.applyObjects(t, version("again", greeter))
		m.answers(t, "npm", "/", "hello again!")
		require.Equal(t, before, packages.downloads.Load(), "the same packages are installed once")

		m.applyObjects(t, version("missing", `{"dependencies": {"greeter": "^1.0.0", "no-such-package": "1.0.0"}}`))
		m.sourceCondition(t, namespace, "npm", "False", "package.json: npm: E404", "no-such-package")
		m.answers(t, "npm", "/", "hello again!")
		m.applyObjects(t, version("version", `{"dependencies": {"greeter": "^7.0.0"}}`))
		m.sourceCondition(t, namespace, "npm", "False", "package.json: npm: ETARGET", "greeter@^7.0.0")
		m.applyObjects(t, version("file", `{"dependencies": {"greeter": "file:/etc"}}`))
		m.sourceCondition(t, namespace, "npm", "False", `package.json: greeter: "file:/etc" is not taken`)
		m.applyObjects(t, version("syntax", "{\n  dependencies: 1\n}"))
		m.sourceCondition(t, namespace, "npm", "False", "package.json:2: invalid character 'd'")
		m.answers(t, "npm", "/", "hello again!")

		// What may pass is tried again, without anybody's doing.
		packages.down.Store(true)
		m.applyObjects(t, version("patience", `{"dependencies": {"greeter": "1.2.0"}}`))
		m.sourceCondition(t, namespace, "npm", "False", "package.json: npm: E503")
		m.answers(t, "npm", "/", "hello again!")
		packages.down.Store(false)
		m.sourceCondition(t, namespace, "npm", "True")
		m.answers(t, "npm", "/", "hello patience!")
	})

	t.Run("Python packages", func(t *testing.T) {
		needs(t, "python3")
		version := func(text, requirements string) object {
			return lambdaObject(namespace, "pip", "python", "", inline(object{
				"code":         "import pygreeter\nfrom lib.names import name\n\n\ndef main(event, context):\n    return pygreeter.hello(name)\n",
				"files":        object{"lib/names.py": "name = '" + text + "'\n"},
				"dependencies": requirements,
			}))
		}
		m.applyObjects(t, version("pip", "# greets\npygreeter >= 1.0 ; python_version >= '3'\n"), exposed(namespace, "pip"))
		m.awaitRoute(t, namespace, "pip")
		m.answers(t, "pip", "/", "hello pip")
		m.applyObjects(t, version("missing", "pygreeter\n\nno-such-package==1.0\n"))
		m.sourceCondition(t, namespace, "pip", "False", "requirements.txt:3: pip: ", "No matching distribution found for no-such-package==1.0")
		m.applyObjects(t, version("option", "pygreeter\n--index-url http://elsewhere.example/\n"))
		m.sourceCondition(t, namespace, "pip", "False", "requirements.txt:2: want a package of an index")
		m.applyObjects(t, version("url", "pygreeter @ file:///etc/passwd\n"))
		m.sourceCondition(t, namespace, "pip", "False", "requirements.txt:1: want a package of an index")
		m.answers(t, "pip", "/", "hello pip")
		m.applyObjects(t, version("again", "pygreeter==1.0.0\n"))
		m.answers(t, "pip", "/", "hello again")
	})

	t.Run("a push is live", func(t *testing.T) {
		needs(t, "node", "git")
		repository.push(t, map[string]string{"shop/main.ts": "export const main = (): string => 'first'\n"})
		secret := object{"apiVersion": "v1", "kind": "Secret", "metadata": object{"namespace": namespace, "name": "git"}, "stringData": object{"username": "robot", "password": "sesame"}}
		source := object{"source": object{"git": object{"url": repository.url, "directory": "shop", "auth": object{"type": "basic", "secretName": "git"}}}}
		m.applyObjects(t, lambdaObject(namespace, "git", "nodejs", "", source), exposed(namespace, "git"))
		m.sourceCondition(t, namespace, "git", "False", "Secret git does not exist in namespace sources")
		m.applyObjects(t, secret)
		m.awaitRoute(t, namespace, "git")
		m.answers(t, "git", "/", "first")
		commit := repository.push(t, map[string]string{"shop/main.ts": "import { second } from './second'\nexport const main = () => second\n", "shop/second.ts": "export const second: string = 'second'\n"})
		m.answers(t, "git", "/", "second")
		m.sourceCondition(t, namespace, "git", "True", "commit "+commit[:12])
		repository.push(t, map[string]string{"shop/second.ts": "export const second = \n"})
		m.sourceCondition(t, namespace, "git", "False", "second.ts:2:1: Unexpected end of file")
		m.answers(t, "git", "/", "second")
		repository.push(t, map[string]string{"shop/second.ts": "export const second = 'third'\n"})
		m.answers(t, "git", "/", "third")
	})
}
