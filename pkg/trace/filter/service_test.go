package filter

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// listed is what Debian's /etc/services says; other systems list ssh and http with UDP too.
var listed = map[string]uint16{
	"tcp/ssh": 22, "tcp/http": 80, "tcp/domain": 53, "udp/domain": 53, "udp/syslog": 514, "tcp/shell": 514,
	"tcp/ftp-data": 20, "tcp/two": 1, "udp/two": 2,
}

func TestMain(m *testing.M) {
	systemPort := servicePort
	servicePort = func(network, name string) (uint16, error) {
		if name == "telnet" { // one for the real list
			return systemPort(network, name)
		}
		if port, ok := listed[network+"/"+name]; ok {
			return port, nil
		}
		return 0, errors.New("not listed")
	}
	os.Exit(m.Run())
}

func TestLookupService(t *testing.T) {
	tests := []struct {
		word string
		want []service
	}{
		{"80", []service{{port: 80}}},
		{"0", []service{{port: 0}}},
		{"ssh", []service{{trace.TCP, 22}}},
		{"syslog", []service{{trace.UDP, 514}}},
		{"domain", []service{{port: 53}}},
		{"two", []service{{trace.TCP, 1}, {trace.UDP, 2}}},
		{"telnet", []service{{trace.TCP, 23}}}, // in Go's built-in list
		{"65536", nil},
		{"nosuchservice", nil},
		{"a/b", nil},
		{"", nil},
	}
	for _, tt := range tests {
		if got := lookupService(tt.word); !slices.Equal(got, tt.want) {
			t.Errorf("lookupService(%q) gives %v, want %v", tt.word, got, tt.want)
		}
	}
}

func TestServices(t *testing.T) {
	for expression, want := range map[string]string{
		"port two":                 "tcp port 1 or udp port 2",
		"not dst port two":         "not (tcp dst port 1 or udp dst port 2)",
		"udp port two":             "udp port 2",
		"portrange ftp-data-ssh":   "tcp portrange 20-22",
		"portrange ssh-syslog":     "portrange 22-514",
		"udp portrange syslog-600": "udp portrange 514-600",
	} {
		f, err := Parse(expression)
		if err != nil || f.String() != want {
			t.Errorf("Parse(%q) gives %q, %v, want %q", expression, f, err, want)
		}
	}
}
