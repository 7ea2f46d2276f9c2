package localnode

import (
	"time"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
)

const (
	// scaleInterval is how often requests in flight are counted.
	scaleInterval = 500 * time.Millisecond
	// scaleWindow is how long fewer replicas must have been enough before there
	// are fewer.
	scaleWindow = 30 * time.Second
)

// scaler decides how many replicas there are: as many as it takes for the
// requests in flight, at once when more and after a while when fewer.
type scaler struct {
	target int
	peaks  []peak // what was needed in the window, each later and lower than the one before
}

type peak struct {
	at   time.Time
	need int
}

// decide takes what is in flight now.
func (s *scaler) decide(now time.Time, scale deploy.Scale, inFlight int) (target int) {
	concurrency := int(scale.Concurrency)
	need := (inFlight + concurrency - 1) / concurrency
	for len(s.peaks) > 0 && (s.peaks[len(s.peaks)-1].need <= need) {
		s.peaks = s.peaks[:len(s.peaks)-1]
	}
	s.peaks = append(s.peaks, peak{now, need})
	for now.Sub(s.peaks[0].at) > scaleWindow {
		s.peaks = s.peaks[1:]
	}
	s.target = min(max(s.peaks[0].need, 1, int(scale.Min)), int(scale.Max))
	return s.target
}
