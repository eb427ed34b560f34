package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// TLSFiles name the PEM files for mutual TLS.
type TLSFiles struct {
	Cert, Key string // the agent's own
	ClientCA  string // who signs clients' certificates
}

// errTLSMissing refuses an open TCP port: who may ask an agent sees the node's traffic.
var errTLSMissing = errors.New("TCP needs mutual TLS: a certificate, its key and the clients' CA")

// config returns a configuration that reads the files at each handshake, so
// that certificates can be renewed under a running agent. While they cannot be
// read, as in the middle of a renewal, the last good ones serve.
func (f TLSFiles) config() (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" || f.ClientCA == "" {
		return nil, errTLSMissing
	}
	first, err := f.load()
	if err != nil {
		return nil, err
	}
	var good atomic.Pointer[tls.Config]
	good.Store(first)
	outer := first.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if now, err := f.load(); err == nil {
			good.Store(now)
		}
		return good.Load(), nil
	}
	return outer, nil
}

func (f TLSFiles) load() (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate %s and key %s: %w", f.Cert, f.Key, err)
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("load clients' CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load clients' CA %s: no certificate in it", f.ClientCA)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		// Each handshake shows the client's certificate: a ticket would outlive a change of the CA.
		SessionTicketsDisabled: true,
	}, nil
}
