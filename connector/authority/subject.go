package authority

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// attribute of a subject. Go's own type for it accepts every kind of string and
// more than one attribute in a place.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// attributeSET is a relative distinguished name (RFC 5280, section 4.1.2.4); the
// suffix tells encoding/asn1 that it is a SET.
type attributeSET []attribute

// part of a subject.
type part struct {
	oid         asn1.ObjectIdentifier
	name, value string
}

// parts of the subject of an application, in the order of RFC 4514's string. Its
// clients expect each of them to have a value.
func parts(application string) []part {
	oid := func(last int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 4, last} } // RFC 5280, appendix A.1
	return []part{
		{oid(11), "OU", "Applications"},
		{oid(10), "O", "Lambdamesh"},
		{oid(7), "L", "Mesh"},
		{oid(8), "ST", "Mesh"},
		{oid(6), "C", "ZZ"},
		{oid(3), "CN", application},
	}
}

// Subject is what a request for a certificate of the application must have as its
// subject, as people and clients write it: "OU=Applications,...,CN=commerce".
func Subject(application string) string {
	all := parts(application)
	written := make([]string, len(all))
	for i, p := range all {
		written[i] = p.name + "=" + p.value
	}
	return strings.Join(written, ",")
}

// rawSubject is the subject as it stands in every certificate of the application.
func rawSubject(application string) ([]byte, error) {
	var sequence pkix.RDNSequence
	for _, p := range parts(application) {
		sequence = append(sequence, pkix.RelativeDistinguishedNameSET{{Type: p.oid, Value: p.value}})
	}
	return asn1.Marshal(sequence)
}

// checkSubject compares the subject of a request with the application's: the same
// attributes with the same values, each once and in a place of its own, in any
// order, since clients write them in different ones.
func checkSubject(raw []byte, application string) error {
	wanted := parts(application)
	wrong := func(why string, args ...any) error {
		return fmt.Errorf("the subject must be %s: %s", Subject(application), fmt.Sprintf(why, args...))
	}
	var names []attributeSET
	if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 {
		return wrong("it cannot be read")
	}
	if len(names) != len(wanted) {
		return wrong("it has %d parts", len(names))
	}
	found := make([]bool, len(wanted))
	for _, name := range names {
		if len(name) != 1 {
			return wrong("each part holds one attribute")
		}
		known := false
		for i, p := range wanted {
			if !p.oid.Equal(name[0].Type) {
				continue
			}
			if found[i] {
				return wrong("%s is there twice", p.name)
			}
			if !isText(name[0].Value) || string(name[0].Value.Bytes) != p.value {
				return wrong("%s is another", p.name)
			}
			found[i], known = true, true
		}
		if !known {
			return wrong("there is an attribute %s", name[0].Type)
		}
	}
	return nil
}

// isText tells whether the bytes of a value are its text, as they are in what
// clients send: UTF8String and PrintableString.
func isText(value asn1.RawValue) bool {
	return value.Class == asn1.ClassUniversal && !value.IsCompound &&
		(value.Tag == asn1.TagUTF8String || value.Tag == asn1.TagPrintableString)
}

// errNoApplication is told of certificates that we have not issued.
var errNoApplication = errors.New("the subject is none of an application")

// ApplicationOf returns the application that a certificate is of. The certificate
// has been verified: it is one that an [Authority] has signed.
func ApplicationOf(certificate *x509.Certificate) (string, error) {
	application := certificate.Subject.CommonName
	raw, err := rawSubject(application)
	if err != nil || !bytes.Equal(raw, certificate.RawSubject) {
		return "", errNoApplication
	}
	return application, nil
}
