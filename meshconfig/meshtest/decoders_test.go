package meshtest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// decoders are how backends read the path of a target in origin form: three
// standard libraries, written down in Go so that a million requests can be
// compared. TestDecodersReadAsTheirLibraries holds them to the programs.
var decoders = map[string]func(target string) (decoded string, ok bool){
	"go": goPath, "node": nodePath, "python": pythonPath,
}

// goPath is what http.ServeMux matches: URL.Path, cleaned (net/http, server.go,
// cleanPath).
func goPath(target string) (string, bool) {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return "", false
	}
	clean := path.Clean(u.Path)
	if strings.HasSuffix(u.Path, "/") && clean != "/" {
		clean += "/"
	}
	return clean, true
}

// nodePath is decodeURIComponent(new URL(target, "http://x").pathname), by the
// URL Standard: the state machine of section 4.4 from the path on, and the path
// percent-encode set of section 1.3.
func nodePath(target string) (string, bool) {
	if strings.HasPrefix(target, "//") || strings.HasPrefix(target, `/\`) {
		return "", false // the authority of another URL
	}
	raw, _, _ := strings.Cut(strings.Map(func(c rune) rune {
		if c == '\t' || c == '\n' || c == '\r' {
			return -1
		}
		return c
	}, strings.TrimFunc(target, func(c rune) bool { return c <= ' ' })), "#")
	raw, _, _ = strings.Cut(raw, "?")
	var segments []string
	parts := strings.Split(strings.ReplaceAll(raw, `\`, "/"), "/")[1:]
	for i, s := range parts {
		last := i == len(parts)-1
		switch strings.ReplaceAll(strings.ToLower(s), "%2e", ".") {
		case ".":
		case "..":
			if len(segments) > 0 {
				segments = segments[:len(segments)-1]
			}
		default:
			segments = append(segments, s)
			continue
		}
		if last {
			segments = append(segments, "")
		}
	}
	// What the standard encodes here, decodeURIComponent decodes again.
	decoded, ok := unquote("/"+strings.Join(segments, "/"), true)
	return decoded, ok && utf8.ValidString(decoded)
}

// pythonPath is urllib.parse.unquote(urllib.parse.urlsplit(target).path). What is
// no UTF-8, of which unquote makes U+FFFD, is no path here.
func pythonPath(target string) (string, bool) {
	if strings.HasPrefix(target, "//") {
		return "", false // an authority
	}
	raw, _, _ := strings.Cut(target, "#")
	raw, _, _ = strings.Cut(raw, "?")
	decoded, _ := unquote(raw, false)
	return decoded, utf8.ValidString(decoded)
}

// unquote resolves escapes; strictly, what is none is an error.
func unquote(s string, strictly bool) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			high, low := strings.IndexByte("0123456789ABCDEF", upper(s[i+1])), strings.IndexByte("0123456789ABCDEF", upper(s[i+2]))
			if high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low))
				i += 2
				continue
			}
		}
		if s[i] == '%' && strictly {
			return "", false
		}
		b.WriteByte(s[i])
	}
	return b.String(), true
}

// Each program reads targets, a JSON string a line, and answers with the decoded
// path or null.
const (
	nodeProgram = `
const lines = require("readline").createInterface({input: process.stdin});
lines.on("line", (line) => {
  let decoded = null;
  try {
    const target = JSON.parse(line), u = new URL(target, "http://x");
    if (u.host === "x") decoded = decodeURIComponent(u.pathname);
  } catch {}
  console.log(JSON.stringify(decoded));
});`
	pythonProgram = `
import json, sys
from urllib.parse import unquote, urlsplit
for line in sys.stdin:
    try:
        parts = urlsplit(json.loads(line))
        print(json.dumps(unquote(parts.path) if not parts.netloc and not parts.scheme else None))
    except ValueError:
        print("null")
`
)

func TestDecodersReadAsTheirLibraries(t *testing.T) {
	for _, program := range []struct {
		decoder string
		command []string
	}{
		{"node", []string{"node", "-e", nodeProgram}},
		{"python", []string{"python3", "-c", pythonProgram}},
	} {
		t.Run(program.decoder, func(t *testing.T) {
			if _, err := exec.LookPath(program.command[0]); err != nil {
				t.Skipf("LEFT OUT: no %s on PATH, so the model of its decoding is not held to it", program.command[0])
			}
			cmd := exec.CommandContext(t.Context(), program.command[0], program.command[1:]...)
			stdin, err := cmd.StdinPipe()
			require.NoError(t, err)
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			r := rand.New(rand.NewPCG(1, 2))
			targets := make([]string, 5000)
			for i := range targets {
				for {
					// Programs take targets from an HTTP parser: no blanks, no bytes above
					// ASCII; and the gateway merges the slashes that begin one.
					targets[i] = spell(r, randomPath(r), true)
					if !strings.HasPrefix(targets[i], "//") && !strings.HasPrefix(targets[i], `/\`) && isASCII(targets[i]) {
						break
					}
				}
			}
			go func() {
				defer stdin.Close()
				for _, target := range targets {
					line, _ := json.Marshal(target)
					fmt.Fprintf(stdin, "%s\n", line)
				}
			}()
			lines := bufio.NewReader(stdout)
			decodes := decoders[program.decoder]
			for _, target := range targets {
				line, err := lines.ReadString('\n')
				require.NoError(t, err)
				var real *string
				require.NoError(t, json.Unmarshal([]byte(line), &real))
				got, ok := decodes(target)
				if !ok && program.decoder == "python" {
					require.NotNil(t, real)
					require.Contains(t, *real, "\ufffd", "%q", target)
					continue
				}
				if real == nil {
					require.False(t, ok, "%s does not read %q; the model reads %q", program.decoder, target, got)
					continue
				}
				require.True(t, ok, "%s reads %q as %q", program.decoder, target, *real)
				require.Equal(t, *real, got, "%q", target)
			}
			_, err = io.Copy(io.Discard, lines)
			require.NoError(t, err)
			require.NoError(t, cmd.Wait())
		})
	}
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
