package localnode

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
)

func TestScalerFollowsWhatIsInFlight(t *testing.T) {
	var s scaler
	now := time.Now()
	scale := deploy.Scale{Min: 1, Max: 4, Concurrency: 10}
	at := func(after time.Duration, inFlight int) int { return s.decide(now.Add(after), scale, inFlight) }
	require.Equal(t, 1, at(0, 0))
	require.Equal(t, 1, at(time.Second, 10))
	require.Equal(t, 2, at(2*time.Second, 11), "at once when more")
	require.Equal(t, 4, at(3*time.Second, 1000), "not beyond max")
	require.Equal(t, 4, at(10*time.Second, 15))
	require.Equal(t, 4, at(20*time.Second, 0))
	require.Equal(t, 2, at(34*time.Second, 0), "fewer when fewer were enough for the whole window")
	require.Equal(t, 1, at(51*time.Second, 0))
	scale.Min = 0
	require.Equal(t, 1, at(52*time.Second, 0), "zero is the gate's to decide")
	scale.Min, scale.Max = 3, 3
	require.Equal(t, 3, at(53*time.Second, 0))
}
