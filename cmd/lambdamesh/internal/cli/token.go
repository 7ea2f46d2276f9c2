package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"
)

type tokenOptions struct {
	key       string
	issuer    string
	subject   string
	audiences []string
	scopes    []string
	claims    []string
	expiresIn time.Duration
}

func newTokenCommand() *cobra.Command {
	var o tokenOptions
	cmd := &cobra.Command{
		Use:   "token --key FILE --issuer ISSUER [flags]",
		Short: "Mint a JSON Web Token for trying out rules with jwt",
		Long: `token signs a JSON Web Token (RFC 7519) with a private JSON Web Key and prints it.
It is for trying out APIRules; in production an identity provider issues tokens.`,
		Example: `  lambdamesh token --key examples/commerce/keys/demo.jwk \
    --issuer https://issuer.lambdas.localhost --audience shop --scope orders:read
  lambdamesh token new-key --private my.jwk --public jwks.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := mint(o, time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "file with the private JSON Web Key")
	f.StringVar(&o.issuer, "issuer", "", "the iss claim")
	f.StringVar(&o.subject, "subject", "demo", "the sub claim")
	f.StringSliceVar(&o.audiences, "audience", nil, "an aud claim; repeatable")
	f.StringSliceVar(&o.scopes, "scope", nil, "a scope; repeatable")
	f.StringArrayVar(&o.claims, "claim", nil, "a further claim NAME=VALUE, the value JSON or text; repeatable")
	f.DurationVar(&o.expiresIn, "expires-in", time.Hour, "until exp")
	cmd.AddCommand(newTokenKeyCommand())
	return cmd
}

// mint returns the signed token.
func mint(o tokenOptions, now time.Time) (string, error) {
	if o.key == "" || o.issuer == "" {
		return "", usagef("token needs --key and --issuer (see `lambdamesh token --help`)")
	}
	claims := jwt.MapClaims{
		"iss": o.issuer,
		"sub": o.subject,
		"iat": now.Unix(),
		"exp": now.Add(o.expiresIn).Unix(),
	}
	if len(o.audiences) > 0 {
		claims["aud"] = o.audiences
	}
	if len(o.scopes) > 0 {
		claims["scope"] = strings.Join(o.scopes, " ") // RFC 8693, section 4.2
	}
	for _, c := range o.claims {
		name, text, ok := strings.Cut(c, "=")
		if !ok || name == "" {
			return "", usagef("--claim %q: write NAME=VALUE", c)
		}
		var value any
		if json.Unmarshal([]byte(text), &value) != nil {
			value = text
		}
		claims[name] = value
	}
	raw, err := os.ReadFile(o.key)
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	var marshal jwkset.JWKMarshal
	if err := json.Unmarshal(raw, &marshal); err != nil {
		return "", fmt.Errorf("read the key %s: not a JSON Web Key: %w", o.key, err)
	}
	jwk, err := jwkset.NewJWKFromMarshal(marshal, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{SkipAll: true})
	if err != nil {
		return "", fmt.Errorf("read the key %s: %w", o.key, err)
	}
	method, err := signingMethod(jwk.Key())
	if err != nil {
		return "", fmt.Errorf("the key %s: %w", o.key, err)
	}
	token := jwt.NewWithClaims(method, claims)
	if marshal.KID != "" {
		token.Header["kid"] = marshal.KID
	}
	signed, err := token.SignedString(jwk.Key())
	if err != nil {
		return "", fmt.Errorf("sign with the key %s: %w", o.key, err)
	}
	return signed, nil
}

// signingMethod picks the algorithm that goes with the key (RFC 7518, section
// 3.1).
func signingMethod(key any) (jwt.SigningMethod, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		switch k.Curve {
		case elliptic.P256():
			return jwt.SigningMethodES256, nil
		case elliptic.P384():
			return jwt.SigningMethodES384, nil
		case elliptic.P521():
			return jwt.SigningMethodES512, nil
		}
		return nil, fmt.Errorf("the curve %s is not one of P-256, P-384, P-521", k.Curve.Params().Name)
	case *rsa.PrivateKey:
		return jwt.SigningMethodRS256, nil
	default:
		return nil, fmt.Errorf("a %T cannot sign: give a private EC or RSA key, such as `lambdamesh token new-key` makes", key)
	}
}

func newTokenKeyCommand() *cobra.Command {
	var private, public string
	cmd := &cobra.Command{
		Use:   "new-key --private FILE --public FILE",
		Short: "Make a key for `token`, and the key set for an APIRule's jwksSecret",
		Example: `  lambdamesh token new-key --private my.jwk --public jwks.json
  kubectl -n shop create secret generic my-jwks --from-file=jwks.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if private == "" || public == "" {
				return usagef("new-key needs --private and --public")
			}
			return newKey(private, public)
		},
	}
	cmd.Flags().StringVar(&private, "private", "", "file for the private JSON Web Key, readable by you only")
	cmd.Flags().StringVar(&public, "public", "", "file for the public JSON Web Key Set")
	return cmd
}

func newKey(private, public string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("make a key id: %w", err)
	}
	options := jwkset.JWKOptions{
		Marshal:  jwkset.JWKMarshalOptions{Private: true},
		Metadata: jwkset.JWKMetadataOptions{KID: base64.RawURLEncoding.EncodeToString(id), ALG: jwkset.AlgES256, USE: jwkset.UseSig},
	}
	jwk, err := jwkset.NewJWKFromKey(key, options)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	options.Marshal.Private = false
	publicJWK, err := jwkset.NewJWKFromKey(key.Public(), options)
	if err != nil {
		return fmt.Errorf("encode the public key: %w", err)
	}
	if err := writeNew(private, jwk.Marshal(), 0o600); err != nil {
		return err
	}
	return writeNew(public, jwkset.JWKSMarshal{Keys: []jwkset.JWKMarshal{publicJWK.Marshal()}}, 0o644)
}

// writeNew writes a file that must not exist: a key that is overwritten is lost.
func writeNew(path string, value any, mode fs.FileMode) (err error) {
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is not overwritten: choose another name or remove it", path)
	}
	if err != nil {
		return fmt.Errorf("write the key: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = file.Write(append(raw, '\n'))
	return err
}
