package stan

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	stand "github.com/nats-io/nats-streaming-server/server"
	"github.com/nats-io/nats-streaming-server/stores"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/stan.go"
	"github.com/nats-io/stan.go/pb"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestServerErrorsAreTranslated(t *testing.T) {
	for text, want := range map[string]error{
		"write /data/msgs.1.dat: no space left on device": broker.ErrFull,
		"too many channels":                 broker.ErrFull,
		"stan: publish ack timeout":         broker.ErrUnavailable,
		"stan: clientID already registered": broker.ErrUnavailable,
	} {
		require.ErrorIs(t, translate(errors.New(text)), want, text)
	}
	require.ErrorIs(t, translate(nats.ErrMaxPayload), event.ErrTooLarge)
	require.NoError(t, translate(nil))
}

func TestDocumentedServerConfigKeepsWhatWasAccepted(t *testing.T) {
	page, err := os.ReadFile("../../../docs/nats-streaming.md")
	require.NoError(t, err)
	_, block, found := strings.Cut(string(page), "```\n# stan.conf\n")
	require.True(t, found)
	block, _, _ = strings.Cut(block, "```")
	file := filepath.Join(t.TempDir(), "stan.conf")
	require.NoError(t, os.WriteFile(file, []byte(block), 0o600))
	opts := stand.GetDefaultOptions()
	require.NoError(t, stand.ProcessConfigFile(file, opts))
	require.Equal(t, stores.TypeFile, opts.StoreType)
	require.True(t, opts.FileStoreOpts.DoSync)
	require.Equal(t, stores.ChannelLimits{MsgStoreLimits: stores.MsgStoreLimits{MaxAge: 7 * 24 * time.Hour}}, opts.ChannelLimits, "nothing else is limited")
	nats := &natsd.Options{}
	require.NoError(t, nats.ProcessConfigFile(file))
	require.Equal(t, int32(2<<20), nats.MaxPayload)
}

func TestMessagesNotOursAreNoEvents(t *testing.T) {
	for _, payload := range []string{"", "{}", "lambdamesh/1 event", "lambdamesh/1 event\na\n\n", "lambdamesh/1 event\na: 1\na: 2\n\n", "lambdamesh/1 event\na: %zz\n\n"} {
		_, err := decode([]byte(payload))
		require.Error(t, err, "%q", payload)
	}
	m, err := decode([]byte("lambdamesh/1 event\nce-id: 1\n\n"))
	require.NoError(t, err)
	_, err = m.event()
	require.ErrorContains(t, err, "source")
}

// message of an event as the server sends it.
func fromServer(id string, sequence uint64, again bool) *stan.Msg {
	e := event.Event{ID: id, Source: "/shop/cart", Type: "t"}
	return &stan.Msg{MsgProto: pb.MsgProto{Sequence: sequence, Timestamp: time.Now().UnixNano(), Redelivered: again, Data: eventMessage(&e).encode()}}
}

func TestWhatTheServerSendsAgainWhileItIsHeldIsNoAttempt(t *testing.T) {
	config := Config{URL: "nats://127.0.0.1:1", ClusterID: "c", AckWait: time.Hour}
	s, err := New(config)
	require.NoError(t, err)
	c := newConsumer(s, broker.ConsumerSpec{Name: "c"})
	c.selectOnly([]broker.Selector{{Owner: "shop", Type: "**"}})
	ready := func() (ids []string) {
		for d, _ := c.pop(1 << 20); d != nil; d, _ = c.pop(1 << 20) {
			ids = append(ids, d.event.ID)
		}
		return ids
	}

	c.receive(fromServer("1", 1, false))
	c.receive(fromServer("1", 1, true)) // held, not handed out yet
	d, _ := c.pop(1 << 20)
	require.Equal(t, 1, d.Attempt())
	c.receive(fromServer("1", 1, true)) // handed out
	require.Empty(t, ready())
	require.NoError(t, d.Retry(time.Hour))
	c.receive(fromServer("1", 1, true)) // waits for its next attempt
	c.receive(fromServer("2", 2, false))
	require.Equal(t, []string{"2"}, ready())

	require.NoError(t, d.Retry(0), "an answer that comes twice changes nothing")
	require.Empty(t, ready())
	info, err := c.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, broker.ConsumerInfo{Unacknowledged: 2}, info)
}

func TestPublicationInDoubtIsNotStoredTwice(t *testing.T) {
	config := Config{}.Defaults()
	c := newChannel("c", &config)
	m := eventMessage(&event.Event{ID: "1", Source: "s", Type: "t"})
	conn := &silent{}
	p, duplicate := c.publish(conn, m.key(), m.encode())
	require.False(t, duplicate)
	conn.answer(stan.ErrTimeout) // and yet it was stored
	<-p.done
	require.ErrorIs(t, p.err, broker.ErrUnavailable)

	conn.then = func(payload []byte) { // the marker: the server sends everything before it first
		c.received(&stan.Msg{MsgProto: pb.MsgProto{Sequence: 7, Timestamp: time.Now().UnixNano(), Data: m.encode()}})
		c.received(&stan.Msg{MsgProto: pb.MsgProto{Sequence: 8, Timestamp: time.Now().UnixNano(), Data: payload}})
		go conn.answer(nil)
	}
	require.NoError(t, c.settle(t.Context(), conn, m.key()))
	p, duplicate = c.publish(conn, m.key(), m.encode())
	require.True(t, duplicate)
	require.Equal(t, uint64(7), p.sequence)
}

// silent is a connection that answers when it is told to.
type silent struct {
	stan.Conn
	answered stan.AckHandler
	then     func(payload []byte)
}

func (s *silent) PublishAsync(_ string, payload []byte, answered stan.AckHandler) (string, error) {
	s.answered = answered
	if s.then != nil {
		s.then(payload)
	}
	return "", nil
}

func (s *silent) answer(err error) { s.answered("", err) }
