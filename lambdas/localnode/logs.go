package localnode

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// keptLogs is how many replicas' logs of a lambda are kept.
const keptLogs = 20

// LogDir is where the logs of a lambda's replicas lie, one file <replica>.log
// each; rotated parts end in .1 and .2.
func LogDir(dataDir, namespace, lambda string) string {
	return filepath.Join(dataDir, "logs", "lambdas", namespace, lambda)
}

func (n *Node) logPath(r *replica) string {
	return filepath.Join(LogDir(n.config.DataDir, r.deployment.Namespace, r.deployment.Name), r.name+".log")
}

// pruneLogs removes the oldest logs in a directory; what cannot be removed
// stays for the next time.
func pruneLogs(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var logs []os.FileInfo
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && strings.HasSuffix(info.Name(), ".log") {
			logs = append(logs, info)
		}
	}
	slices.SortFunc(logs, func(a, b os.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, old := range logs[min(len(logs), keptLogs):] {
		for _, suffix := range []string{"", ".1", ".2"} {
			_ = os.Remove(filepath.Join(dir, old.Name()+suffix))
		}
	}
}
