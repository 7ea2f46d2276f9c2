package translate

import "github.com/lambdamesh/lambdamesh/meshconfig/ir"

// Translate says what the objects of s mean, and what is wrong with them. The
// mesh is always valid ([ir.Mesh.Validate]): what is wrong is left out or
// closed.
func Translate(s Snapshot) (ir.Mesh, Problems) {
	return ir.Mesh{}, nil
}
