package process_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// helper selects what the test binary is when it runs itself.
const helper = "PROCESS_TEST_HELPER"

func TestMain(m *testing.M) {
	process.WatcherMain()
	if f, ok := helpers[os.Getenv(helper)]; ok {
		f(os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var helpers = map[string]func(args []string){
	// sleep runs until a signal.
	"sleep": func([]string) { fmt.Println("running"); forever() },
	// stubborn ignores SIGTERM.
	"stubborn": func([]string) {
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("running")
		forever()
	},
	// polite says goodbye.
	"polite": func([]string) {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("running")
		<-c
		fmt.Println("goodbye")
	},
	// family starts itself as the helper args[0] and prints the pids of its
	// watcher, itself and that.
	"family": func(args []string) {
		cmd := exec.Command(os.Args[0]) //nolint:gosec // ourselves
		cmd.Env = []string{helper + "=" + args[0]}
		stdout, err := cmd.StdoutPipe()
		check(err)
		if len(args) > 2 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			cmd.Stderr = os.Stderr // and it holds the output open
		}
		check(cmd.Start())
		_, err = bufio.NewReader(stdout).ReadString('\n')
		check(err)
		fmt.Println("pids", os.Getppid(), os.Getpid(), cmd.Process.Pid)
		if len(args) > 1 {
			os.Exit(3) // leaving the other behind
		}
		forever()
	},
	// parent supervises a family and repeats its output.
	"parent": func(args []string) {
		_, err := process.Start(context.Background(), process.Spec{
			Path: os.Args[0], Args: []string{args[0]}, Env: []string{helper + "=family"},
			Stdout: process.LineFunc(func(line []byte) {
				fmt.Println(string(line))
				if len(args) > 1 {
					panic("a goroutine's bug")
				}
			}),
			Grace: time.Hour, OrphanGrace: 100 * time.Millisecond,
		})
		check(err)
		forever()
	},
	// parent of supervises any helper and repeats its output.
	"parent of": func(args []string) {
		_, err := process.Start(context.Background(), process.Spec{
			Path: os.Args[0], Args: args[1:], Env: []string{helper + "=" + args[0]}, Stdout: os.Stdout,
		})
		check(err)
		forever()
	},
	// careful writes more than a pipe holds before it makes its file.
	"careful": func(args []string) {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("running")
		<-c
		for range 1000 {
			fmt.Println(strings.Repeat("x", 200))
			fmt.Fprintln(os.Stderr, strings.Repeat("x", 200))
		}
		check(os.WriteFile(args[0], nil, 0o600))
	},
	"exit": func(args []string) {
		code, err := strconv.Atoi(args[0])
		check(err)
		for i := range 20 {
			fmt.Fprintln(os.Stderr, "line", i)
		}
		os.Exit(code)
	},
	"signal": func([]string) { check(syscall.Kill(os.Getpid(), syscall.SIGKILL)); forever() },
	"env": func([]string) {
		dir, err := os.Getwd()
		check(err)
		fmt.Println(strings.Join(os.Environ(), " "))
		fmt.Println(dir)
	},
	// descriptors prints the open ones above standard error.
	"descriptors": func([]string) {
		for fd := 3; fd < 20; fd++ {
			var stat syscall.Stat_t
			if syscall.Fstat(fd, &stat) == nil && stat.Mode&syscall.S_IFMT == syscall.S_IFIFO {
				fmt.Println("pipe", fd)
			}
		}
	},
	"print": func(args []string) { fmt.Print(args[0]) },
}

// forever waits for a signal. The runtime takes an empty select for a deadlock.
func forever() {
	for range time.Tick(time.Hour) {
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// spec runs this binary as a helper.
func spec(name string, args ...string) process.Spec {
	return process.Spec{Name: name, Path: os.Args[0], Args: args, Env: []string{helper + "=" + name}}
}

// lines is an output that tests wait on.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- strings.TrimSuffix(string(line), "\n")
	return len(line), nil
}

func (l lines) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l:
		return line
	case <-time.After(time.Minute):
		t.Fatal("no output within a minute")
		return ""
	}
}

func start(t *testing.T, s process.Spec) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), s)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.Stop(ctx)
	})
	return p
}

func waitDone(t *testing.T, p *process.Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatal("the process did not end within a minute")
	}
}

// pids reads those that "family" printed: watcher, child, grandchild.
func pids(t *testing.T, line string) []int {
	t.Helper()
	fields := strings.Fields(line)
	require.Equal(t, "pids", fields[0], line)
	var found []int
	for _, field := range fields[1:] {
		pid, err := strconv.Atoi(field)
		require.NoError(t, err)
		found = append(found, pid)
	}
	require.Len(t, found, 3)
	return found
}

// alive reports whether pid runs; a zombie does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}

func requireGone(t *testing.T, pids ...int) {
	t.Helper()
	testkit.Eventually(t, time.Minute, func() error {
		for _, pid := range pids {
			if alive(pid) {
				return fmt.Errorf("pid %d is alive", pid)
			}
		}
		return nil
	}, "leaving no orphans")
}
