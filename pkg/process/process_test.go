package process_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestStopEndsTheGroup(t *testing.T) {
	for name, tc := range map[string]struct {
		grandchild string
		grace      time.Duration
		want       error
	}{
		"that ends by SIGTERM":                     {"sleep", time.Minute, nil},
		"with a grandchild that ignores SIGTERM":   {"stubborn", 200 * time.Millisecond, process.ErrKilled},
		"with a grandchild that takes its goodbye": {"polite", time.Minute, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out := make(lines, 10)
			s := spec("family", tc.grandchild)
			s.Stdout, s.Grace = out, tc.grace
			p := start(t, s)
			family := pids(t, out.next(t))
			require.Equal(t, p.PID(), family[1])
			for _, pid := range family {
				require.True(t, alive(pid))
			}
			require.NoError(t, p.Err(), "it runs")

			require.ErrorIs(t, p.Stop(t.Context()), tc.want)
			for _, pid := range family[1:] {
				require.False(t, alive(pid), "Stop returns when all are gone")
			}
			require.NoError(t, p.Err(), "it was asked to end")
			require.ErrorIs(t, p.Stop(t.Context()), tc.want, "stopping twice is harmless")
		})
	}
}

func TestStopKillsAtOnceWhenItsContextEnds(t *testing.T) {
	out := make(lines, 10)
	s := spec("stubborn")
	s.Stdout, s.Grace = out, time.Hour
	p := start(t, s)
	require.Equal(t, "running", out.next(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.EqualError(t, p.Stop(ctx), "stopping stubborn: killed: did not end in time")
	require.False(t, alive(p.PID()))
}

func TestNothingOutlivesTheParent(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		end  func(*exec.Cmd) error
	}{
		"killed": {[]string{"sleep"}, func(c *exec.Cmd) error { return c.Process.Kill() }},
		"killed, with a grandchild that ignores SIGTERM": {[]string{"stubborn"}, func(c *exec.Cmd) error { return c.Process.Kill() }},
		"panicking":  {[]string{"sleep", "panic"}, func(*exec.Cmd) error { return nil }},
		"terminated": {[]string{"sleep"}, func(c *exec.Cmd) error { return c.Process.Signal(syscall.SIGTERM) }},
	} {
		t.Run(name, func(t *testing.T) {
			parent := exec.CommandContext(t.Context(), os.Args[0], tc.args...) //nolint:gosec // ourselves
			parent.Env = []string{helper + "=parent"}
			out := make(lines, 10)
			stdout := process.LineFunc(func(line []byte) { out <- string(line) })
			parent.Stdout = stdout
			require.NoError(t, parent.Start())
			family := pids(t, out.next(t))
			require.NoError(t, tc.end(parent))
			require.Error(t, parent.Wait())
			requireGone(t, family...)
		})
	}
}

func TestAChildMayWriteWhileItEndsAfterTheParent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "end")
	parent := exec.CommandContext(t.Context(), os.Args[0], "careful", file) //nolint:gosec // ourselves
	parent.Env = []string{helper + "=parent of"}
	out := make(lines, 10)
	parent.Stdout = process.LineFunc(func(line []byte) { out <- string(line) })
	require.NoError(t, parent.Start())
	require.Equal(t, "running", out.next(t))
	require.NoError(t, parent.Process.Kill())
	require.Error(t, parent.Wait())
	testkit.Eventually(t, time.Minute, func() error {
		_, err := os.Stat(file)
		return err
	}, "the child finishing its work")
}

func TestNothingOutlivesTheWatcher(t *testing.T) {
	out := make(lines, 10)
	s := spec("family", "stubborn")
	s.Stdout = out
	p := start(t, s)
	family := pids(t, out.next(t))
	require.NoError(t, syscall.Kill(family[0], syscall.SIGKILL))
	waitDone(t, p)
	require.EqualError(t, p.Err(), "family ended: its watcher was killed")
	requireGone(t, family...)
	require.NoError(t, p.Stop(t.Context()), "there is nothing left to stop")
}

func TestStopDoesNotDependOnTheWatcher(t *testing.T) {
	out := make(lines, 10)
	s := spec("family", "sleep")
	s.Stdout = out
	p := start(t, s)
	family := pids(t, out.next(t))
	require.NoError(t, syscall.Kill(family[0], syscall.SIGSTOP))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.Stop(ctx), process.ErrKilled)
	requireGone(t, family...)
}

func TestGrandchildrenEndWithTheChild(t *testing.T) {
	out := make(lines, 10)
	s := spec("family", "sleep", "exit")
	s.Stdout = out
	p := start(t, s)
	line := out.next(t)
	waitDone(t, p)
	require.EqualError(t, p.Err(), "family exited with code 3")
	require.False(t, alive(pids(t, line)[2]))
}

func TestADescendantThatLeftTheGroupHoldsNobodyUp(t *testing.T) {
	out := make(lines, 10)
	s := spec("family", "sleep", "exit", "leave")
	s.Stdout = out
	p := start(t, s)
	family := pids(t, out.next(t))
	waitDone(t, p)
	require.EqualError(t, p.Err(), "family exited with code 3")
	if runtime.GOOS == "linux" {
		require.False(t, alive(family[2]))
	} else {
		require.NoError(t, syscall.Kill(family[2], syscall.SIGKILL))
	}
}

func TestErrSaysHowTheChildEnded(t *testing.T) {
	for name, tc := range map[string]struct {
		spec process.Spec
		want string
	}{
		"exit code 0 is no error":             {spec("print", ""), ""},
		"a code, with the last lines":         {spec("exit", "7"), "exit exited with code 7; its last lines:\n\tline 10\n"},
		"128 and more are codes, not signals": {spec("exit", "137"), "exit exited with code 137;"},
		"a signal":                            {spec("signal"), "signal ended by signal 9 (killed)"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, tc.spec)
			waitDone(t, p)
			if tc.want == "" {
				require.NoError(t, p.Err())
				return
			}
			require.ErrorContains(t, p.Err(), tc.want)
			require.LessOrEqual(t, strings.Count(p.Err().Error(), "\n"), 10)
		})
	}
}

func TestStartSaysWhyItCannot(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("true"), 0o600))
	for name, tc := range map[string]struct {
		spec process.Spec
		want string
	}{
		"no such file":          {process.Spec{Path: dir + "/no"}, "starting no: exec " + dir + "/no: no such file or directory"},
		"not executable":        {process.Spec{Name: "x", Path: script}, "starting x: exec " + script + ": permission denied"},
		"no such directory":     {process.Spec{Name: "x", Path: "/bin/sh", Dir: dir + "/no"}, "starting x: its directory: stat " + dir + "/no: no such file or directory"},
		"a name without a path": {process.Spec{Path: "sh"}, `path "sh" has no directory: PATH is not searched`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := process.Start(t.Context(), tc.spec)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := process.Start(ctx, spec("sleep"))
	require.EqualError(t, err, "starting sleep: context canceled")
}

func TestTheChildGetsExactlyItsEnvironment(t *testing.T) {
	t.Setenv("SECRET_OF_THE_PARENT", "1")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	out := make(lines, 10)
	s := spec("env")
	s.Stdout, s.Dir = out, dir
	s.Env = append(s.Env, "A=b")
	start(t, s)
	require.Equal(t, helper+"=env A=b", out.next(t))
	require.Equal(t, dir, out.next(t))
}

func TestTheChildDoesNotHoldItsOwnLifeline(t *testing.T) {
	var out bytes.Buffer
	s := spec("descriptors")
	s.Stdout = &out
	p := start(t, s)
	waitDone(t, p)
	require.Empty(t, out.String())
}

func TestOutputComesInWholeLines(t *testing.T) {
	long := strings.Repeat("x", process.MaxLine)
	for name, tc := range map[string]struct {
		printed string
		want    []string
	}{
		"lines":                {"a\nb\n", []string{"a\n", "b\n"}},
		"a line without end":   {"a\nb", []string{"a\n", "b\n"}},
		"empty lines":          {"\n\na\n", []string{"\n", "\n", "a\n"}},
		"a long line in parts": {long + "tail\n", []string{long + "\n", "tail\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			s := spec("print", tc.printed)
			s.Stdout = writerFunc(func(line []byte) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, string(line))
				return 0, os.ErrClosed // a writer's trouble is not the child's
			})
			p := start(t, s)
			waitDone(t, p)
			require.NoError(t, p.Err())
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, tc.want, got)
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

func TestRunStopsTheChildWhenItsContextEnds(t *testing.T) {
	out := make(lines, 10)
	s := spec("polite")
	s.Stdout = out
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- process.Run(ctx, s) }()
	require.Equal(t, "running", out.next(t))
	cancel()
	require.Equal(t, "goodbye", out.next(t))
	require.NoError(t, <-result)
}

func TestRunFailsWhenTheChildEndsByItself(t *testing.T) {
	require.EqualError(t, process.Run(t.Context(), spec("print", "")), "print exited with code 0")
}

func TestLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "x.log")
	log, err := process.OpenLog(path, 10)
	require.NoError(t, err)
	for _, line := range []string{"one 1\n", "two 2\n", "three 3\n", "four 4 is long\n"} {
		_, err := log.Write([]byte(line))
		require.NoError(t, err)
	}
	require.NoError(t, log.Close())
	_, err = log.Write([]byte("late\n"))
	require.ErrorIs(t, err, os.ErrClosed)

	for suffix, want := range map[string]string{"": "four 4 is long\n", ".1": "three 3\n", ".2": "two 2\n"} {
		got, err := os.ReadFile(path + suffix)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
		info, err := os.Stat(path + suffix)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode())
	}
	require.NoFileExists(t, path+".3")

	log, err = process.OpenLog(path, 1000)
	require.NoError(t, err)
	_, err = log.Write([]byte("five\n"))
	require.NoError(t, err)
	require.NoError(t, log.Close())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "four 4 is long\nfive\n", string(got), "a file is continued")
}
