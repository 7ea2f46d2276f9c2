package ca

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pair is a CA certificate and its key in PEM.
type Pair struct {
	CertPEM, KeyPEM []byte
}

func (p Pair) empty() bool { return len(p.CertPEM) == 0 && len(p.KeyPEM) == 0 }

func (p Pair) parse() (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		return nil, nil, err
	}
	if !pair.Leaf.IsCA {
		return nil, nil, errors.New("the certificate is not a CA certificate (basicConstraints CA:TRUE is missing)")
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("the key (%T) cannot sign", pair.PrivateKey)
	}
	return pair.Leaf, signer, nil
}

// signs returns why the pair cannot sign now, or not for as long as left afterwards.
func (p Pair) signs(now time.Time, left time.Duration) error {
	cert, _, err := p.parse()
	switch {
	case err != nil:
		return err
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate expired at %s", cert.NotAfter)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", cert.NotBefore)
	case now.Add(left).After(cert.NotAfter):
		return fmt.Errorf("the certificate expires at %s, and has to be valid for another %s", cert.NotAfter, left)
	// Without the extension a key may be used for all (RFC 5280, section 4.2.1.3).
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the certificate is not for signing certificates (keyUsage keyCertSign is missing)")
	}
	return nil
}

// Roots are what a mesh is signed with and verified by, as a Storage keeps them:
// one root, and another one while that is replaced.
//
//	Issuer A                 steady
//	Issuer A, Next B         all learn to trust B; A signs
//	Issuer B, Previous A     B signs; what A has signed is replaced or expires
//	Issuer B                 steady
type Roots struct {
	// Issuer signs.
	Issuer Pair
	// Next is trusted already and signs after this step; empty in the others.
	Next Pair
	// Previous (PEM) has signed and is still trusted; empty in the other steps.
	Previous []byte
	// Since is when the step began; zero when nothing is replaced, and for a Next
	// that somebody has just put there.
	Since time.Time
}

// bundle is all that is trusted, the one that signs first.
func (r Roots) bundle() []byte {
	var bundle []byte
	for _, certs := range [][]byte{r.Issuer.CertPEM, r.Next.CertPEM, r.Previous} {
		for block, rest := pem.Decode(certs); block != nil; block, rest = pem.Decode(rest) {
			if one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}); block.Type == "CERTIFICATE" && !bytes.Contains(bundle, one) {
				bundle = append(bundle, one...)
			}
		}
	}
	return bundle
}

// Step of a replacement; the empty one is none.
type Step string

// Steps, by what has just begun.
const (
	StepTrust Step = "Trust" // all learn to trust the next root
	StepSign  Step = "Sign"  // it signs, and the last one is still trusted
	StepDone  Step = "Done"  // the last one is forgotten
)

// renewBefore of a root's life is left when it is replaced without being asked.
const renewBefore = 5

// Advance takes the step of a replacement that is due, if one is: the first one
// when it is asked for, or when the root was made here and a fifth of its life is
// left; the others when the step before has lasted for overlap, in which everybody
// has learned of it. It returns the roots then in force, and for how long nothing
// is due. A next root that could not sign until the replacement is over is refused:
// nothing is given up for it.
func (r Roots) Advance(now time.Time, asked bool, overlap time.Duration) (next Roots, step Step, wait time.Duration, err error) {
	due := r.Since.Add(overlap)
	switch {
	case !r.Next.empty() && r.Since.IsZero():
		if err := r.Next.signs(now, 2*overlap); err != nil {
			return r, "", 0, fmt.Errorf("read the next mesh CA: %w", err)
		}
		r.Since = now
		return r, StepTrust, overlap, nil
	case !r.Next.empty() && !now.Before(due):
		if err := r.Next.signs(now, overlap); err != nil {
			return r, "", 0, fmt.Errorf("read the next mesh CA: %w", err)
		}
		r.Issuer, r.Next, r.Previous, r.Since = r.Next, Pair{}, r.Issuer.CertPEM, now
		return r, StepSign, overlap, nil
	case len(r.Previous) > 0 && !now.Before(due):
		r.Previous, r.Since = nil, time.Time{}
		return r, StepDone, overlap, nil
	case !r.Next.empty() || len(r.Previous) > 0:
		return r, "", due.Sub(now), nil
	}
	renew, err := r.renewAt()
	if err != nil {
		return r, "", 0, err
	}
	if !asked && (renew.IsZero() || now.Before(renew)) {
		if renew.IsZero() {
			return r, "", overlap, nil
		}
		return r, "", renew.Sub(now), nil
	}
	if r.Next, err = NewRoot(now); err != nil {
		return r, "", 0, err
	}
	r.Since = now
	return r, StepTrust, overlap, nil
}

// renewAt is when the issuer is replaced without being asked; zero: never, it is
// somebody's.
func (r Roots) renewAt() (time.Time, error) {
	cert, _, err := r.Issuer.parse()
	if err != nil {
		return time.Time{}, fmt.Errorf("read the mesh CA: %w", err)
	}
	if !slices.Equal(cert.Subject.Organization, []string{organization}) || !bytes.Equal(cert.RawSubject, cert.RawIssuer) {
		return time.Time{}, nil
	}
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / renewBefore), nil
}
