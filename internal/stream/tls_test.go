package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// authority signs certificates for tests.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.certificate, a.key, a.pem = certificate(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// certificate makes a key and a certificate for it, signed by the authority or by itself.
func certificate(t *testing.T, a *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue writes a server's or client's certificate and key.
func (a *authority) issue(t *testing.T, cert, key string) {
	t.Helper()
	_, private, text := certificate(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: filepath.Base(cert)}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, text)
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	servers, clients, strangers := newAuthority(t), newAuthority(t), newAuthority(t)
	files := TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}
	servers.issue(t, files.Cert, files.Key)
	write(t, files.ClientCA, clients.pem)

	server, err := NewServer(Options{Source: newSource(), Listen: []string{"tcp://127.0.0.1:0"}, TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	address := server.Addresses()[0].String()

	call := func(protection credentials.TransportCredentials) error {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(protection))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err = tracev1.NewTracerClient(conn).Status(ctx, &tracev1.StatusRequest{})
		return err
	}
	trust := func(a, issuer *authority) credentials.TransportCredentials {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(a.pem)
		config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		if issuer != nil {
			cert, key := filepath.Join(t.TempDir(), "client.crt"), filepath.Join(t.TempDir(), "client.key")
			issuer.issue(t, cert, key)
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		return credentials.NewTLS(config)
	}
	if err := call(trust(servers, clients)); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
	refused := map[string]credentials.TransportCredentials{
		"without a certificate": trust(servers, nil),
		"of another CA":         trust(servers, strangers),
		"without TLS":           insecure.NewCredentials(),
	}
	for name, protection := range refused {
		if err := call(protection); status.Code(err) != codes.Unavailable {
			t.Errorf("a client %s: %v", name, err)
		}
	}

	// Certificates are renewed under the running server; half of a renewal does no harm.
	write(t, files.Cert, []byte("half written"))
	if err := call(trust(servers, clients)); err != nil {
		t.Errorf("in the middle of a renewal: %v", err)
	}
	renewed := newAuthority(t)
	renewed.issue(t, files.Cert, files.Key)
	write(t, files.ClientCA, strangers.pem)
	if err := call(trust(renewed, strangers)); err != nil {
		t.Errorf("after a renewal: %v", err)
	}
	if err := call(trust(renewed, clients)); status.Code(err) != codes.Unavailable {
		t.Errorf("a client of the old CA: %v", err)
	}
}

func TestTCPNeedsTLS(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t)
	good := TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}
	a.issue(t, good.Cert, good.Key)
	write(t, good.ClientCA, a.pem)
	tests := []struct {
		name   string
		change func(*TLSFiles)
		want   string
	}{
		{"no files", func(f *TLSFiles) { *f = TLSFiles{} }, "listen on tcp://127.0.0.1:0: TCP needs mutual TLS: a certificate, its key and the clients' CA"},
		{"no CA", func(f *TLSFiles) { f.ClientCA = "" }, "listen on tcp://127.0.0.1:0: TCP needs mutual TLS"},
		{"missing file", func(f *TLSFiles) { f.Key += ".gone" }, "listen on tcp://127.0.0.1:0: load certificate "},
		{"empty CA", func(f *TLSFiles) { f.ClientCA = good.Key }, "listen on tcp://127.0.0.1:0: load clients' CA " + good.Key + ": no certificate in it"},
	}
	for _, tt := range tests {
		files := good
		tt.change(&files)
		server, err := NewServer(Options{Source: newSource(), Listen: []string{"tcp://127.0.0.1:0"}, TLS: files})
		if err == nil {
			_ = server.Close()
			t.Errorf("%s: it listens", tt.name)
			continue
		}
		if !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestNewServerUndoes: a second address that fails gives the first back.
func TestNewServerUndoes(t *testing.T) {
	e := endpoint(t, "agent.sock")
	if _, err := NewServer(Options{Source: newSource(), Listen: []string{e.String(), "tcp://127.0.0.1:0"}}); err == nil {
		t.Fatal("TCP without TLS")
	}
	if _, err := os.Lstat(e.Address); !os.IsNotExist(err) {
		t.Errorf("the first socket is still there: %v", err)
	}
	if _, err := NewServer(Options{Source: newSource()}); err == nil {
		t.Error("no address")
	}
}
