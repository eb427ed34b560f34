package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := authority{&x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}, key}
	if a.cert, err = x509.ParseCertificate(a.sign(t, a.cert, key)); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a authority) sign(t *testing.T, cert *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// issue makes a certificate for 127.0.0.1 and writes it and its key, as PEM, into dir.
func (a authority) issue(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, dir, name+".pem", "CERTIFICATE", der), writePEM(t, dir, name+".key", "PRIVATE KEY", raw)
}

func writePEM(t *testing.T, dir, name, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestTLS asks an agent that takes only clients with a certificate of its authority.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	trusted, stranger := newAuthority(t), newAuthority(t)
	ca := writePEM(t, dir, "ca.pem", "CERTIFICATE", trusted.cert.Raw)
	otherCA := writePEM(t, dir, "other-ca.pem", "CERTIFICATE", stranger.cert.Raw)
	serverCert, serverKey := trusted.issue(t, dir, "server")
	cert, key := trusted.issue(t, dir, "client")
	otherCert, otherKey := stranger.issue(t, dir, "stranger")

	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(trusted.cert)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeTracer{answers: []*tracev1.ExplainResponse{summaryAnswer(1, 0)}}
	t.Cleanup(f.serve(l, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}))))

	cases := []struct {
		name, cert, key, ca string
		code                int
		stdout, stderr      string
	}{
		{"both know each other", cert, key, ca, exitOK, "No fault found in 1 connection.\n", ""},
		{"client unknown", otherCert, otherKey, ca, exitNoAgent, "", "replypath: no answer from the agent at 127.0.0.1:.*\n"},
		{"server unknown", cert, key, otherCA, exitNoAgent, "", "replypath: no answer from the agent at 127.0.0.1:.*\n"},
		{"key of another", cert, otherKey, ca, exitUsage, "", "replypath: read client certificate: .*\n"},
		{"no authority", cert, key, key, exitUsage, "", "replypath: read certificate authority: .* holds no PEM certificate .*\n"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newTestWorld("explain", "--server", l.Addr().String(), "--tls-cert", tc.cert, "--tls-key", tc.key, "--tls-ca", tc.ca)
			w.expect(t, w.run(), tc.code, tc.stdout, tc.stderr)

			w = newTestWorld("explain")
			w.getenv = func(name string) string {
				return map[string]string{"REPLYPATH_SERVER": l.Addr().String(), "REPLYPATH_TLS_CERT": tc.cert,
					"REPLYPATH_TLS_KEY": tc.key, "REPLYPATH_TLS_CA": tc.ca}[name]
			}
			w.expect(t, w.run(), tc.code, tc.stdout, tc.stderr)
		})
	}
}
