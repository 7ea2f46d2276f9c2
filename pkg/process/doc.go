// Package process starts child processes that never outlive this one.
//
//	this process ──starts──> watcher ──starts──> child (leads its own group)
//	      │  lifeline pipe      │                  └─ grandchildren, same group
//	      └────────────────────>│
//
// Each child has a watcher: this program once more, holding the read end of a
// pipe whose write end only this process has. The pipe closes when this process
// ends for whatever reason, kill -9 included; the watcher then sends SIGTERM to
// the child's process group, and SIGKILL after the grace period. It works alike
// on Linux and macOS. A signal to this process, Ctrl-C in a terminal included,
// reaches no child: what is to stop is this process's decision.
//
// main must call [WatcherMain] before anything else; so must TestMain:
//
//	func main() {
//		process.WatcherMain()
//		...
//	}
//
// Then:
//
//	p, err := process.Start(ctx, process.Spec{
//		Name:   "etcd",
//		Path:   "/path/to/etcd",
//		Args:   []string{"--data-dir", dir},
//		Env:    []string{"HOME=" + dir}, // exactly this
//		Stderr: log,                     // one Write per line
//	})
//	<-p.Done()    // it ended by itself: p.Err() says how, with its last lines
//	p.Stop(ctx)   // SIGTERM to the group, SIGKILL after the grace period
//
//	process.Run(ctx, spec)        // start, run until ctx ends, stop
//	process.Restarter{...}.Run    // the same, restarted with backoff
//	process.OpenLog(path, size)   // a file that rotates
//	process.LineFunc(f)           // a callback per line as an io.Writer
//
// A descendant that leaves the group on purpose (setsid) is killed when the
// group has ended, on Linux; elsewhere its watcher does not know it.
//
// What may enter: starting, stopping, restarting and listening to processes.
// What is started, and when it is ready, is the caller's to know.
package process
