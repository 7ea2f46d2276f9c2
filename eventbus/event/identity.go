package event

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
)

var workloadSource = regexp.MustCompile(`^/([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)$`)

// WorkloadOf returns namespace and name of the workload that a source of the
// form /<namespace>/<name> stands for.
func WorkloadOf(source string) (namespace, name string, ok bool) {
	m := workloadSource.FindStringSubmatch(source)
	if m == nil {
		return "", "", false
	}
	return m[1], m[3], true
}

// Key identifies an event for deduplication: source and id together
// (CloudEvents 1.0, section "id").
func (e *Event) Key() string {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%s", len(e.Source), e.Source, e.ID)
	return hex.EncodeToString(h.Sum(nil)[:16])
}
