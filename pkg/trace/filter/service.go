package filter

import (
	"context"
	"net"
	"strconv"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// service is a port and the protocol that it is listed with; 0: both TCP and UDP, or a number.
type service struct {
	protocol trace.Protocol
	port     uint16
}

// lookupService finds a port by number or by its name in /etc/services. A name
// that TCP and UDP give to different ports yields two services; an unknown one none.
func lookupService(word string) []service {
	if number, ok := parseNumber(word, 65535); ok {
		return []service{{port: uint16(number)}}
	}
	if !isServiceName(word) {
		return nil
	}
	tcp, tcpErr := servicePort("tcp", word)
	udp, udpErr := servicePort("udp", word)
	switch {
	case tcpErr == nil && udpErr == nil && tcp == udp:
		return []service{{port: tcp}}
	case tcpErr == nil && udpErr == nil:
		return []service{{protocol: trace.TCP, port: tcp}, {protocol: trace.UDP, port: udp}}
	case tcpErr == nil:
		return []service{{protocol: trace.TCP, port: tcp}}
	case udpErr == nil:
		return []service{{protocol: trace.UDP, port: udp}}
	}
	return nil
}

// servicePort reads /etc/services (and a short built-in list) in Go: libc's
// lookup might ask a name service over the network. Tests put a list of their own here.
var servicePort = func(network, name string) (uint16, error) {
	resolver := net.Resolver{PreferGo: true}
	port, err := resolver.LookupPort(context.Background(), network, name)
	return uint16(port), err
}

// isServiceName reports whether the word can be a service's name (RFC 6335,
// section 5.1, and the older names with "_", "." and "+"): it holds a letter.
func isServiceName(word string) bool {
	letter := false
	for i := 0; i < len(word); i++ {
		c := word[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letter = true
		case c >= '0' && c <= '9', strings.IndexByte("-_.+", c) >= 0:
		default:
			return false
		}
	}
	return letter && len(word) <= 64
}

// parseNumber reads a decimal number without sign or leading zeros (libpcap would take those for octal).
func parseNumber(word string, most uint64) (uint64, bool) {
	if word == "" || word[0] < '0' || word[0] > '9' || (len(word) > 1 && word[0] == '0') {
		return 0, false
	}
	number, err := strconv.ParseUint(word, 10, 32)
	return number, err == nil && number <= most
}
