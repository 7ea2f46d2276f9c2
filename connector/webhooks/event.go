package webhooks

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/connector/inbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// errMalformed: it is signed, and we cannot read it.
var errMalformed = errors.New("malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// topicForm is what topics and types look like, of every provider.
var topicForm = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._/]{0,199}$`)

// plainID is an id that is taken as it is; others are hashed.
var plainID = regexp.MustCompile(`^[-A-Za-z0-9._:]{1,200}$`)

// delivery is what a call says.
type delivery struct {
	// topics are the names by which spec.webhooks[].types may take it.
	topics []string
	// kind is the type of the event.
	kind string
	// id within the webhook, of what is signed; empty: the digest of the body.
	id string
	// unsignedKind: who sends a recorded call again chooses topics and kind, and
	// the webhook among those with its secret.
	unsignedKind bool

	subject string
	at      time.Time
	data    []byte
}

// read makes a delivery of a call that is signed.
func read(c *call) (*delivery, error) {
	if !json.Valid(c.body) {
		return nil, malformed("the body is no JSON: have the provider send application/json")
	}
	var d *delivery
	var err error
	switch c.hook.Provider {
	case "shopify":
		d, err = ofShopify(c)
	case "github":
		d, err = ofGitHub(c)
	case "stripe":
		d, err = ofStripe(c)
	case "commercetools":
		d, err = ofCommercetools(c)
	default:
		d, err = ofHMAC(c)
	}
	if err != nil {
		return nil, err
	}
	for _, topic := range append(d.topics, d.kind) {
		if !topicForm.MatchString(topic) {
			return nil, malformed("the topic %.200q: must be letters, digits, '.', '_', '-' and '/'", topic)
		}
	}
	if d.data == nil {
		d.data = c.body
	}
	return d, nil
}

// taken tells whether a webhook takes the delivery.
func (d *delivery) taken(hook *v1alpha1.Webhook) bool {
	return len(hook.Types) == 0 || slices.ContainsFunc(append(d.topics, d.kind), func(t string) bool { return slices.Contains(hook.Types, t) })
}

// event is the CloudEvent of a delivery.
func (d *delivery) event(hook *v1alpha1.Webhook, body []byte) *inbound.Event {
	of, id := hook.Name, d.id
	if d.unsignedKind {
		of = hook.Provider
	}
	if !plainID.MatchString(id) {
		signed := []byte(id)
		if id == "" {
			signed = body
		}
		id = hex.EncodeToString(digest(signed))
	}
	return &inbound.Event{
		ID: of + "/" + id, Type: d.kind, Subject: d.subject, Time: d.at, ContentType: "application/json", Data: d.data,
	}
}

// ofShopify: https://shopify.dev/docs/api/webhooks. The body does not say its
// topic.
func ofShopify(c *call) (*delivery, error) {
	topic, ok := c.only("X-Shopify-Topic")
	if !ok {
		return nil, malformed("the header X-Shopify-Topic is missing")
	}
	var body struct {
		ID json.Number `json:"id"`
	}
	_ = json.Unmarshal(c.body, &body) // not every topic has one, of this form
	return &delivery{
		topics: []string{topic}, kind: "com.shopify." + strings.ReplaceAll(topic, "/", "."), subject: body.ID.String(),
		unsignedKind: true,
	}, nil
}

// ofGitHub names types as the GitHub adapter of the CloudEvents specification
// does: https://github.com/cloudevents/spec/blob/main/cloudevents/adapters/github.md.
func ofGitHub(c *call) (*delivery, error) {
	event, ok := c.only("X-Github-Event")
	if !ok {
		return nil, malformed("the header X-GitHub-Event is missing")
	}
	var body struct {
		Action     string `json:"action"`
		Repository struct {
			FullName string `json:"full_name"`
		} `json:"repository"`
	}
	if err := json.Unmarshal(c.body, &body); err != nil {
		return nil, malformed("%v", err)
	}
	d := &delivery{topics: []string{event}, kind: "com.github." + event, subject: body.Repository.FullName, unsignedKind: true}
	if body.Action != "" {
		d.topics = append(d.topics, event+"."+body.Action)
		d.kind += "." + body.Action
	}
	return d, nil
}

// ofStripe: https://docs.stripe.com/api/events/object.
func ofStripe(c *call) (*delivery, error) {
	var body struct {
		ID      string `json:"id"`
		Type    string `json:"type"`
		Created int64  `json:"created"`
		Data    struct {
			Object struct {
				ID string `json:"id"`
			} `json:"object"`
		} `json:"data"`
	}
	if err := json.Unmarshal(c.body, &body); err != nil {
		return nil, malformed("%v", err)
	}
	if body.ID == "" || body.Type == "" {
		return nil, malformed("the body has no id or no type")
	}
	d := &delivery{topics: []string{body.Type}, kind: "com.stripe." + body.Type, id: body.ID, subject: body.Data.Object.ID}
	if body.Created > 0 {
		d.at = time.Unix(body.Created, 0)
	}
	return d, nil
}

// ofCommercetools takes both formats of a Subscription's notifications:
// https://docs.commercetools.com/api/projects/subscriptions#deliveries.
func ofCommercetools(c *call) (*delivery, error) {
	var body struct {
		SpecVersion      string          `json:"specversion"`
		Subject          string          `json:"subject"`
		Time             time.Time       `json:"time"`
		Data             json.RawMessage `json:"data"`
		ID               string          `json:"id"`
		Type             string          `json:"type"`
		NotificationType string          `json:"notificationType"`
		CreatedAt        time.Time       `json:"createdAt"`
		Resource         struct {
			TypeID string `json:"typeId"`
			ID     string `json:"id"`
		} `json:"resource"`
	}
	if err := json.Unmarshal(c.body, &body); err != nil {
		return nil, malformed("%v", err)
	}
	if body.SpecVersion != "" {
		if body.ID == "" || body.Type == "" {
			return nil, malformed("the CloudEvent has no id or no type")
		}
		short := body.Type[strings.LastIndexByte(body.Type, '.')+1:]
		return &delivery{
			topics: []string{short}, kind: body.Type, id: body.ID, subject: body.Subject, at: body.Time, data: orNull(body.Data),
		}, nil
	}
	// A notification of a change has no id: resource, version and kind are it.
	name, group := body.Type, "message"
	switch body.NotificationType {
	case "Message":
	case "Event":
		group = "event"
	case "":
		return nil, malformed("the body has no notificationType")
	default:
		name, group, body.ID = body.NotificationType, "change", ""
	}
	parts := []string{"com", "commercetools", body.Resource.TypeID, group, name}
	if body.Resource.TypeID == "" {
		parts = slices.Delete(parts, 2, 3)
	}
	if name == "" {
		return nil, malformed("the body has no type")
	}
	return &delivery{
		topics: []string{name}, kind: strings.Join(parts, "."), id: body.ID, subject: body.Resource.ID, at: body.CreatedAt,
	}, nil
}

func orNull(data json.RawMessage) []byte {
	if len(data) == 0 {
		return []byte("null")
	}
	return data
}

// ofHMAC is a call as Standard Webhooks has it, or as spec.webhooks[].hmac says.
func ofHMAC(c *call) (*delivery, error) {
	typePointer, id := "/type", ""
	if scheme := c.hook.HMAC; scheme != nil {
		if scheme.TypePointer != "" {
			typePointer = scheme.TypePointer
		}
		if scheme.IDPointer != "" {
			if id = at(c.body, scheme.IDPointer); id == "" {
				return nil, malformed("the body has no id at %s", scheme.IDPointer)
			}
		}
	} else {
		id, _ = c.only("Webhook-Id") // signed
	}
	kind := at(c.body, typePointer)
	if kind == "" {
		kind = c.hook.Name
	}
	return &delivery{topics: []string{kind}, kind: strings.ReplaceAll(kind, "/", "."), id: id}, nil
}

// at is the text or the number at a JSON pointer (RFC 6901), if there is one.
func at(body []byte, pointer string) string {
	raw := json.RawMessage(body)
	for token := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) == nil {
			raw = object[token]
			continue
		}
		var list []json.RawMessage
		i, err := strconv.Atoi(token)
		if err != nil || json.Unmarshal(raw, &list) != nil || i < 0 || i >= len(list) {
			return ""
		}
		raw = list[i]
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil {
		return number.String()
	}
	return ""
}
