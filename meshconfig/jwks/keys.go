package jwks

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/MicahParks/keyfunc/v3"
)

// usable returns the set (RFC 7517) with those keys that can verify a
// signature: RSA, EC or OKP, well formed, and not for encryption.
func usable(body []byte) (string, error) {
	var in, out struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "", fmt.Errorf("the answer is no JWK Set: %w", err)
	}
	var last error
	for i, raw := range in.Keys {
		if err := check(raw); err != nil {
			last = fmt.Errorf("key %d: %w", i, err)
			continue
		}
		out.Keys = append(out.Keys, raw)
	}
	switch {
	case len(out.Keys) > 0:
	case last != nil:
		return "", fmt.Errorf("the set holds no usable key (%w)", last)
	default:
		return "", errors.New("the set holds no keys")
	}
	set, err := json.Marshal(out)
	return string(set), err
}

func check(raw json.RawMessage) error {
	var key struct {
		Type string `json:"kty"`
		Use  string `json:"use"`
	}
	if err := json.Unmarshal(raw, &key); err != nil {
		return err
	}
	switch key.Type {
	case "RSA", "EC", "OKP":
	default:
		return fmt.Errorf("kty %q is not RSA, EC or OKP", key.Type)
	}
	if key.Use != "" && key.Use != "sig" {
		return fmt.Errorf("use %q is not sig", key.Use)
	}
	_, err := keyfunc.NewJWKJSON(raw)
	return err
}
