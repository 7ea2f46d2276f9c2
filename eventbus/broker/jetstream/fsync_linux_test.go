package jetstream_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

// envNoSync makes the test binary the process whose disk syncs nothing any more.
const envNoSync = "LAMBDAMESH_TEST_NO_SYNC"

// An answer is given when the disk has the event and not when the kernel has it:
// where the disk cannot be asked to keep it, nothing is accepted. A server that
// does not ask accepts, which shows that this test would see it.
func TestNothingIsAcceptedThatCannotBeSynced(t *testing.T) {
	for _, server := range []string{"bus", "control"} {
		t.Run(server, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWithoutSync$", "-test.timeout=2m", "-test.v")
			cmd.Env = append(os.Environ(), envNoSync+"="+server)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "--- PASS: TestWithoutSync")
		})
	}
}

func TestWithoutSync(t *testing.T) {
	switch os.Getenv(envNoSync) {
	case "":
		t.Skip("runs as a child of TestNothingIsAcceptedThatCannotBeSynced only")
	case "control":
		nats, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, MaxPayload: 2 << 20})
		require.NoError(t, err)
		nats.Start()
		store, err := jetstream.New(jetstream.Config{InProcess: nats})
		require.NoError(t, err)
		run(t, store)
		failSyncs(t)
		conformance.Publish(t, store, conformance.Event("1"))
	default:
		_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{PublishTimeout: time.Second})
		require.Eventually(t, func() bool { // the disk works, which may be slower than the timeout
			_, err := store.Publish(t.Context(), []event.Event{conformance.Event("1")})
			return err == nil && store.Check() == nil
		}, time.Minute, 10*time.Millisecond)
		failSyncs(t)
		_, err := store.Publish(t.Context(), []event.Event{conformance.Event("2")})
		require.ErrorIs(t, err, broker.ErrUnavailable)
		require.ErrorIs(t, store.Check(), broker.ErrUnavailable)
		// NATS goes on answering questions; ready is only who can store.
		require.Never(t, func() bool { return store.Check() == nil }, 4*time.Second, 10*time.Millisecond)
		var many []event.Event
		for i := range 20 {
			e := conformance.Event(string(rune('a' + i)))
			many = append(many, e)
		}
		_, err = store.Publish(t.Context(), many)
		require.ErrorIs(t, err, broker.ErrUnavailable)
	}
}

// failSyncs makes every sync of this process fail with EIO from now on, as that
// of a disk that breaks.
func failSyncs(t *testing.T) {
	t.Helper()
	const syscallNumber = 0 // its offset in seccomp_data
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	fail := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: syscallNumber},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FSYNC, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FDATASYNC, Jt: 1},
		allow, fail,
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	require.Zero(t, errno)
}
