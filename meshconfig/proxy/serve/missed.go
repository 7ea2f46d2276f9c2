package serve

import "time"

// missedSecrets are the secrets that listeners named and that have not come, and
// since when.
type missedSecrets struct {
	since map[string]time.Time
	named map[string]bool // since begin
	next  time.Time       // when the first wait ends; zero: none does
}

// begin a look at all listeners.
func (m *missedSecrets) begin() { m.named, m.next = map[string]bool{}, time.Time{} }

// wait says whether to go on waiting for a secret that is missing.
func (m *missedSecrets) wait(name string, timeout time.Duration) bool {
	m.named[name] = true
	now := time.Now()
	if _, known := m.since[name]; !known {
		m.since[name] = now
	}
	if timeout <= 0 {
		return true
	}
	end := m.since[name].Add(timeout)
	if !now.Before(end) {
		return false
	}
	if m.next.IsZero() || end.Before(m.next) {
		m.next = end
	}
	return true
}

// end forgets the secrets that came or are not named any more.
func (m *missedSecrets) end() {
	for name := range m.since {
		if !m.named[name] {
			delete(m.since, name)
		}
	}
}
