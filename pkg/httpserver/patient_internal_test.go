package httpserver

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAWriteLastsAsLongAsSomethingIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		defer client.Close()
		c := &patient{Conn: server, patience: 10 * time.Second}
		defer c.Close()
		began := time.Now()
		go func() {
			for range 5 {
				time.Sleep(9 * time.Second)
				_, _ = io.ReadFull(client, make([]byte, 1))
			}
		}()
		n, err := c.Write([]byte("ten bytes."))
		require.Equal(t, 5, n)
		require.True(t, errors.Is(err, os.ErrDeadlineExceeded), err)
		require.GreaterOrEqual(t, time.Since(began), 55*time.Second)
	})
}

func TestADeadlineOfTheServersOwnEndsAWriteThatIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		c := &patient{Conn: server, patience: 10 * time.Second}
		defer c.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			one := make([]byte, 1)
			for {
				time.Sleep(time.Second)
				if _, err := client.Read(one); err != nil {
					return
				}
			}
		}()
		began := time.Now()
		require.NoError(t, c.SetDeadline(began.Add(4*time.Second+time.Millisecond)))
		n, err := c.Write([]byte("ten bytes."))
		require.Equal(t, 4, n)
		require.True(t, errors.Is(err, os.ErrDeadlineExceeded), err)
		require.NoError(t, c.SetDeadline(time.Time{}))
		_, err = c.Write([]byte("more"))
		require.NoError(t, err)
		client.Close()
		<-ended
	})
}
