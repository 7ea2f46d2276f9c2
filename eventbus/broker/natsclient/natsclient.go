package natsclient

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// Access to NATS, by files. The zero value is a server that asks for nothing and
// that anybody could be; a URL may hold user and password as well.
type Access struct {
	// CredentialsFile is a NATS credentials file (JWT and seed).
	CredentialsFile string
	// UserFile and PasswordFile hold a user's name and password.
	UserFile, PasswordFile string
	// CAFile holds the certificates (PEM) that sign the servers'. With it, only TLS
	// is spoken.
	CAFile string
	// CertFile and KeyFile are the client's certificate and key (PEM), for servers
	// that ask for one.
	CertFile, KeyFile string
}

// Validate names every wrong setting. That the files can be read is found out
// when they are: they may come later than the process.
func (a Access) Validate() error {
	var errs []error
	if (a.UserFile == "") != (a.PasswordFile == "") {
		errs = append(errs, errors.New("NATS: the files of the user and of the password belong together: set both or none"))
	}
	if a.UserFile != "" && a.CredentialsFile != "" {
		errs = append(errs, errors.New("NATS: give a credentials file, or a user and a password, not both"))
	}
	if (a.CertFile == "") != (a.KeyFile == "") {
		errs = append(errs, errors.New("NATS: the client's certificate and key belong together: set both or none"))
	}
	return errors.Join(errs...)
}

// Options are what nats.go needs. log is told what a connection could not read.
func (a Access) Options(log *slog.Logger) []nats.Option {
	// Without it a client gives up for good when it was refused twice: credentials
	// that are changed reach NATS and the bus at different times.
	options := []nats.Option{nats.IgnoreAuthErrorAbort()}
	if a.CredentialsFile != "" {
		options = append(options, nats.UserCredentials(a.CredentialsFile))
	}
	if a.UserFile != "" {
		options = append(options, nats.UserInfoHandler(func() (user, password string) {
			return read(log, a.UserFile), read(log, a.PasswordFile)
		}))
	}
	if a.CAFile != "" {
		options = append(options, nats.RootCAs(a.CAFile))
	}
	if a.CertFile != "" {
		options = append(options, nats.ClientCert(a.CertFile, a.KeyFile))
	}
	return options
}

// Fingerprint changes with what a connection shows to NATS: the user, the password
// or the credentials in the files. It is empty where there are none, or while one
// cannot be read.
func (a Access) Fingerprint() string {
	sum := sha256.New()
	named := false
	for _, file := range []string{a.CredentialsFile, a.UserFile, a.PasswordFile} {
		if file == "" {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return ""
		}
		named = true
		fmt.Fprintf(sum, "%d\n", len(raw))
		sum.Write(raw)
	}
	if !named {
		return ""
	}
	return string(sum.Sum(nil))
}

// read returns the file's line. Without it the server refuses the connection,
// and the next one tries again.
func read(log *slog.Logger, file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		log.Error("connecting to NATS without what a file should hold", "error", fmt.Errorf("read the NATS credentials: %w", err))
	}
	return strings.TrimSpace(string(raw))
}
