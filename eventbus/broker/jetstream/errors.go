package jetstream

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Error codes of nats-server (its errors.json). What is not here means that NATS
// cannot store now: [broker.ErrUnavailable].
const (
	codeAccountExceeded           jetstream.ErrorCode = 10002 // resource limits exceeded for account
	codeServerExceeded            jetstream.ErrorCode = 10023 // insufficient resources: max_file_store is used up
	codeMemoryExceeded            jetstream.ErrorCode = 10028 // insufficient memory resources available
	codeStorageExceeded           jetstream.ErrorCode = 10047 // insufficient storage resources available
	codeMessageTooLarge           jetstream.ErrorCode = 10054 // message size exceeds maximum allowed
	codeOtherLastSequence         jetstream.ErrorCode = 10071 // wrong last sequence: {seq}
	codeOtherLastSequenceConstant jetstream.ErrorCode = 10164 // wrong last sequence
	codeOtherLastID               jetstream.ErrorCode = 10070 // wrong last msg ID
	codeNotStored                 jetstream.ErrorCode = 10077 // the stream's limits, or a message too large for it
	codeHeaderTooLarge            jetstream.ErrorCode = 10097 // header size exceeds maximum allowed of 64k
	codeBatchHoldsDuplicates      jetstream.ErrorCode = 10201
)

// tooLargeForStream is the text of codeNotStored when not the space but the
// message is the reason.
const tooLargeForStream = "message too large"

// translate maps an error of NATS to the vocabulary of package broker.
func translate(err error) error {
	if err == nil {
		return nil
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch api.ErrorCode {
		case codeNotStored:
			if strings.Contains(api.Description, tooLargeForStream) {
				return fmt.Errorf("%w: %w", event.ErrTooLarge, err)
			}
			return fmt.Errorf("%w: %w", broker.ErrFull, err)
		case codeAccountExceeded, codeServerExceeded, codeMemoryExceeded, codeStorageExceeded:
			return fmt.Errorf("%w: %w", broker.ErrFull, err)
		case codeMessageTooLarge, codeHeaderTooLarge:
			return fmt.Errorf("%w: %w", event.ErrTooLarge, err)
		}
	}
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", event.ErrTooLarge, err)
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("%w: %w", broker.ErrNotFound, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}
