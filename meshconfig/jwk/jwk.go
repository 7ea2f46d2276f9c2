package jwk

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// minRSABits of a modulus (RFC 7518, section 3.3).
const minRSABits = 2048

// publicKey has the members of a JWK that verifying needs (RFC 7517, section 4;
// RFC 7518, section 6; RFC 8037, section 2).
type publicKey struct {
	Type  string `json:"kty"`
	ID    string `json:"kid,omitempty"`
	Alg   string `json:"alg,omitempty"`
	Use   string `json:"use,omitempty"`
	N     string `json:"n,omitempty"`
	E     string `json:"e,omitempty"`
	Curve string `json:"crv,omitempty"`
	X     string `json:"x,omitempty"`
	Y     string `json:"y,omitempty"`
}

// Public keeps the keys of a JWK Set that can verify a signature, and of
// them the public members. A private key that got in by mistake must not travel
// to proxies; a symmetric key would let every reader of the set mint tokens; and
// a key that a proxy cannot read would have it refuse the routes of everybody.
func Public(text string) (string, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return "", fmt.Errorf("it is no JWK Set: %w", err)
	}
	var out struct {
		Keys []publicKey `json:"keys"`
	}
	for _, raw := range set.Keys {
		var key publicKey
		if json.Unmarshal(raw, &key) == nil && key.usable() {
			out.Keys = append(out.Keys, key)
		}
	}
	switch {
	case len(set.Keys) == 0:
		return "", errors.New("it holds no keys")
	case len(out.Keys) == 0:
		return "", errors.New("it has no RSA (2048 bits or more), EC or Ed25519 key for signatures")
	}
	encoded, err := json.Marshal(out)
	return string(encoded), err
}

func (k *publicKey) usable() bool {
	if k.Use != "" && k.Use != "sig" {
		return false
	}
	algorithms := map[string][]string{
		"RSA": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
		"EC":  {"ES256", "ES384", "ES512"},
		"OKP": {"EdDSA"},
	}[k.Type]
	if k.Alg != "" && !slices.Contains(algorithms, k.Alg) {
		return false
	}
	switch k.Type {
	case "RSA":
		n, e := new(big.Int).SetBytes(decode(k.N)), new(big.Int).SetBytes(decode(k.E))
		return n.BitLen() >= minRSABits && e.IsInt64() && e.Int64() > 1 && e.Int64() < 1<<31 && e.Bit(0) == 1
	case "EC":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[k.Curve]
		if curve == nil {
			return false
		}
		_, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, decode(k.X), decode(k.Y)))
		return err == nil
	case "OKP":
		return k.Curve == "Ed25519" && len(decode(k.X)) == ed25519.PublicKeySize
	default:
		return false
	}
}

// decode base64url without padding; what is none is empty.
func decode(s string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}
