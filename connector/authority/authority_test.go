package authority_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/connector/authority"
)

// value of an attribute, of an ASN.1 type.
type value struct {
	OID  asn1.ObjectIdentifier
	Text asn1.RawValue
}

type nameSET []value

func text(tag, last int, s string) value {
	return value{asn1.ObjectIdentifier{2, 5, 4, last}, asn1.RawValue{Class: asn1.ClassUniversal, Tag: tag, Bytes: []byte(s)}}
}

func utf8(last int, s string) nameSET { return nameSET{text(asn1.TagUTF8String, last, s)} }

// wanted is the subject of the application shop, in another order than it is
// written in.
func wanted() []nameSET {
	return []nameSET{utf8(6, "ZZ"), utf8(10, "Lambdamesh"), utf8(11, "Applications"), utf8(7, "Mesh"), utf8(8, "Mesh"), utf8(3, "shop")}
}

func edited(i int, to ...nameSET) []nameSET {
	all := wanted()
	return append(append(append([]nameSET{}, all[:i]...), to...), all[i+1:]...)
}

func ecKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	return key
}

func der(t testing.TB, subject any, key crypto.Signer) []byte {
	t.Helper()
	raw, err := asn1.Marshal(subject)
	require.NoError(t, err)
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: raw}, key)
	require.NoError(t, err)
	return request
}

func encoded(der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestASubjectIsTheApplicationsOrNone(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	printable := wanted()
	for i := range printable {
		printable[i][0].Text.Tag = asn1.TagPrintableString
	}
	for name, subject := range map[string][]nameSET{"as written by most": wanted(), "of printable strings": printable} {
		_, err := authority.ParseRequest(encoded(der(t, subject, key)), "shop")
		require.NoError(t, err, name)
	}
	for name, subject := range map[string][]nameSET{
		"nothing":                      {},
		"the common name alone":        {utf8(3, "shop")},
		"another common name":          edited(5, utf8(3, "bank")),
		"another case":                 edited(5, utf8(3, "Shop")),
		"a blank behind":               edited(5, utf8(3, "shop ")),
		"a letter that looks the same": edited(5, utf8(3, "shοp")), //nolint:gosmopolitan // a Greek omicron
		"a NUL in it":                  edited(5, utf8(3, "shop\x00.bank")),
		"an escape in it":              edited(5, utf8(3, "shop,CN=bank")),
		"an empty value":               edited(5, utf8(3, "")),
		"two common names":             append(wanted(), utf8(3, "shop")),
		"two common names, one's":      edited(3, utf8(3, "bank")),
		"two in one place":             edited(5, nameSET{text(asn1.TagUTF8String, 3, "shop"), text(asn1.TagUTF8String, 3, "bank")}),
		"two kinds in one place":       edited(5, nameSET{text(asn1.TagUTF8String, 3, "shop"), text(asn1.TagUTF8String, 5, "7")}),
		"an empty place":               append(wanted(), nameSET{}),
		"an empty place in between":    edited(5, nameSET{}),
		"one more":                     append(wanted(), utf8(12, "admin")),
		"another instead":              edited(3, utf8(12, "Mesh")),
		"another unit":                 edited(2, utf8(11, "System")),
		"text of a wide alphabet":      edited(5, nameSET{text(asn1.TagBMPString, 3, "\x00s\x00h\x00o\x00p")}),
		"text of no alphabet":          edited(5, nameSET{text(asn1.TagOctetString, 3, "shop")}),
		"text of Teletex":              edited(5, nameSET{text(asn1.TagT61String, 3, "shop")}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := authority.ParseRequest(encoded(der(t, subject, key)), "shop")
			require.Error(t, err)
		})
	}
}

func TestKeysAreStrongAndTheirSendersOwn(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	for want, key := range map[string]crypto.Signer{
		"":                       strong,
		"has 1024 bits":          weak,
		"of the curve P-384":     ecKey(t, elliptic.P384()),
		"of a kind (ed25519.Pub": edwards,
	} {
		_, err := authority.ParseRequest(encoded(der(t, wanted(), key)), "shop")
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
	}
	good := der(t, wanted(), ecKey(t, elliptic.P256()))
	good[len(good)-1] ^= 1
	_, err = authority.ParseRequest(encoded(good), "shop")
	require.ErrorContains(t, err, "not signed with its own key")
	good[len(good)-1] ^= 1
	twice := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good})
	for name, csr := range map[string]string{
		"two":       base64.StdEncoding.EncodeToString(append(twice, twice...)),
		"too large": strings.Repeat("A", 1<<20),
		"a key":     base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: good})),
		"its DER":   base64.StdEncoding.EncodeToString(good),
	} {
		_, err := authority.ParseRequest(csr, "shop")
		require.Error(t, err, name)
	}
}

func TestAnAuthorityIsRenewedWithAnOverlap(t *testing.T) {
	now := time.Now()
	first, reason, until, err := authority.Renew(nil, false, now)
	require.NoError(t, err)
	require.Empty(t, reason)
	same, _, again, err := authority.Renew(first, false, until.Add(-time.Hour))
	require.NoError(t, err)
	require.Nil(t, same, "it is good until then")
	require.WithinDuration(t, until, again, 10*time.Minute)

	data := first
	for i := range 6 {
		if data, reason, _, err = authority.Renew(data, true, now.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
		require.NotEmpty(t, reason)
	}
	require.LessOrEqual(t, bytes.Count(data["ca.crt"], []byte("BEGIN")), 4, "those before it are few")
	second, reason, _, err := authority.Renew(first, false, until.Add(time.Hour))
	require.NoError(t, err)
	require.Contains(t, reason, "half of its life")
	old, err := authority.Parse(first)
	require.NoError(t, err)
	rotated, _, _, err := authority.Renew(first, true, now)
	require.NoError(t, err)
	next, err := authority.Parse(rotated)
	require.NoError(t, err)
	request, err := authority.ParseRequest(encoded(der(t, wanted(), ecKey(t, elliptic.P256()))), "shop")
	require.NoError(t, err)
	for _, by := range []*authority.Authority{old, next} {
		issued, err := by.Sign(request, now)
		require.NoError(t, err)
		block, _ := pem.Decode(issued.Certificate)
		leaf, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.Equal(t, issued.Serial, authority.Serial(leaf))
		chains, err := leaf.Verify(x509.VerifyOptions{Roots: next.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		require.NoError(t, err)
		require.True(t, next.Trusts(chains[0][len(chains[0])-1]))
		application, err := authority.ApplicationOf(leaf)
		require.NoError(t, err)
		require.Equal(t, "shop", application)
	}
	gone, _, _, err := authority.Renew(second, true, now.Add(3*365*24*time.Hour))
	require.NoError(t, err)
	require.Equal(t, 2, bytes.Count(gone["ca.crt"], []byte("BEGIN")), "what has expired is left out")
	for name, bad := range map[string]map[string][]byte{"nothing": nil, "another's key": {"tls.crt": first["tls.crt"], "tls.key": second["tls.key"]}} {
		_, err := authority.Parse(bad)
		require.Error(t, err, name)
	}
}

// Who issues an intermediate writes its own root into ca.crt, as cert-manager does.
func TestWhoSignedTheAuthorityIsNotTrusted(t *testing.T) {
	now := time.Now()
	sign := func(name string, key crypto.Signer, issuer *x509.Certificate, with crypto.Signer) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if issuer == nil {
			issuer = template
		}
		raw, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), with)
		require.NoError(t, err)
		certificate, err := x509.ParseCertificate(raw)
		require.NoError(t, err)
		return certificate
	}
	rootKey, middleKey, key, formerKey := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	root := sign("root", rootKey, nil, rootKey)
	middle := sign("middle", middleKey, root, rootKey)
	issuer := sign("applications", key, middle, middleKey)
	former := sign("applications before", formerKey, middle, middleKey)
	private, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	require.NoError(t, err)
	written := func(all ...*x509.Certificate) (bundle []byte) {
		for _, certificate := range all {
			bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
		}
		return bundle
	}
	a, err := authority.Parse(map[string][]byte{
		"tls.crt": written(issuer, middle),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
		"ca.crt":  written(root, middle, former, issuer),
	})
	require.NoError(t, err)
	require.True(t, a.Trusts(issuer))
	require.True(t, a.Trusts(former), "what it signed is good until it expires")
	require.False(t, a.Trusts(middle))
	require.False(t, a.Trusts(root))
	_, err = sign("shop", ecKey(t, elliptic.P256()), root, rootKey).Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	require.Error(t, err, "the root has signed others, too")
}

// Whatever is sent: what is signed is of the application, and of a key that may be
// taken.
func FuzzRequest(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	f.Add(der(f, wanted(), key), "shop")
	f.Add(der(f, append(wanted(), nameSET{}), key), "shop")
	f.Add(der(f, edited(5, nameSET{text(asn1.TagUTF8String, 3, "shop"), text(asn1.TagUTF8String, 3, "bank")}), key), "shop")
	f.Add([]byte("0"), "")
	data, _, _, err := authority.Renew(nil, false, time.Now())
	require.NoError(f, err)
	signer, err := authority.Parse(data)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, raw []byte, application string) {
		request, err := authority.ParseRequest(encoded(raw), application)
		if err != nil {
			return
		}
		issued, err := signer.Sign(request, time.Now())
		if err != nil {
			return // no name of an application
		}
		block, _ := pem.Decode(issued.Certificate)
		leaf, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		of, err := authority.ApplicationOf(leaf)
		require.NoError(t, err)
		require.Equal(t, application, of)
		require.False(t, leaf.IsCA)
		require.Empty(t, leaf.DNSNames)
	})
}
