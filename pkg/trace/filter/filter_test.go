package filter

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func TestParseErrors(t *testing.T) {
	tests := []struct{ expression, want string }{
		{"tcp host port", `column 10: expected an address after "host", got "port"`},
		{"host", `column 5: expected an address after "host", got the end`},
		{"src", `column 4: expected an address after "src", got the end`},
		{"host not 1.2.3.4", `column 6: expected an address after "host", got "not"`},
		{"host web.example.com", `column 6: "web.example.com" is not an address, and names are not resolved: use an address`},
		{"localhost", `column 1: "localhost" is not an address, and names are not resolved: use an address`},
		{"host 300.1.1.1", `column 6: expected an address after "host", got "300.1.1.1"`},
		{"host 010.0.0.1", `column 6: expected an address after "host", got "010.0.0.1"`},
		{"host 10.0.0.0/8", `column 6: "10.0.0.0/8" is a network: write "net 10.0.0.0/8"`},
		{"host 10.1", `column 6: "10.1" is not a whole address: write "net 10.1"`},
		{"host 10.0.0.1:80", `column 6: "10.0.0.1:80" is an address and a port: write "host 10.0.0.1 and port 80"`},
		{"[2001:db8::1]:80", `column 1: "[2001:db8::1]:80": packet contents cannot be matched; replypath matches addresses, ports and protocols`},
		{"host fe80::1%eth0", `column 6: "fe80::1%eth0" has a zone: write the address alone`},
		{"host 2001:db8:::1", `column 6: expected an address after "host", got "2001:db8:::1"`},
		{"tcp and 80", `column 9: expected an address, got "80": for a port write "port 80"`},
		{"port 80 or 1.2.3.4", `column 12: expected a port after "port", got "1.2.3.4": for an address write "host 1.2.3.4"`},
		{"net 10.0.0.1/8", `column 5: "10.0.0.1/8" has bits set beyond its prefix: write "10.0.0.0/8"`},
		{"net 10.0.0.0/33", `column 5: "10.0.0.0/33": expected a prefix length from 0 to 32`},
		{"net 10.0.0.0/", `column 5: "10.0.0.0/": expected a prefix length from 0 to 32`},
		{"net 10.0.0.0/08", `column 5: "10.0.0.0/08": expected a prefix length from 0 to 32`},
		{"net 2001:db8::/129", `column 5: "2001:db8::/129": expected a prefix length from 0 to 128`},
		{"net ::ffff:10.0.0.0/104", `column 5: "::ffff:10.0.0.0/104" is an IPv4 prefix in IPv6 form: write it as IPv4`},
		{"net 10.0.0.0 mask", `column 18: expected an IPv4 mask after "mask", got the end`},
		{"net 10.0.0.0 mask 8", `column 19: expected an IPv4 mask after "mask", got "8"`},
		{"net 10.0.0.1 mask 255.0.0.0", `column 5: "10.0.0.1" has bits set beyond its mask: write "10.0.0.0"`},
		{"net 2001:db8:: mask 255.0.0.0", `column 16: "mask" follows "net" and an IPv4 address only`},
		{"host 10.0.0.1 mask 255.0.0.0", `column 15: "mask" follows "net" and an IPv4 address only`},
		{"mask 255.0.0.0", `column 1: expected a primitive such as "host ADDRESS" or "port NUMBER", got "mask"`},
		{"port", `column 5: expected a port after "port", got the end`},
		{"port 65536", `column 6: expected a port from 0 to 65535 after "port", got "65536"`},
		{"port 080", `column 6: expected a port from 0 to 65535 after "port", got "080"`},
		{"port -1", `column 6: unknown port or service "-1"`},
		{"port nosuchservice", `column 6: unknown port or service "nosuchservice"`},
		{"port 80-90", `column 6: expected one port after "port", got "80-90": write "portrange 80-90"`},
		{"portrange 80", `column 11: expected two ports FIRST-LAST after "portrange", got "80": write "port 80"`},
		{"portrange 80-", `column 11: expected two ports FIRST-LAST after "portrange", got "80-"`},
		{"portrange a-b-c-d", `column 11: expected two ports FIRST-LAST after "portrange", got "a-b-c-d"`},
		{"udp port ssh", `column 10: "ssh" is not a service of udp`},
		{"icmp port 80", `column 1: "icmp" has no ports`},
		{"ip6 host 10.0.0.1", `column 10: "10.0.0.1" is an IPv4 address, but follows "ip6"`},
		{"ip host ::1", `column 9: "::1" is an IPv6 address, but follows "ip"`},
		{"icmp6 host 10.0.0.1", `column 12: "10.0.0.1" is an IPv4 address, but follows "icmp6"`},
		{"ip6 net 10", `column 9: "10" is an IPv4 address, but follows "ip6"`},
		{"src tcp port 80", `column 5: expected an address after "src", got "tcp"`},
		{"1.2.3.4 5.6.7.8", `column 9: expected "and" or "or", got "5.6.7.8"`},
		{"tcp port 80 host 1.2.3.4", `column 13: expected "and" or "or", got "host"`},
		{"tcp (port 80)", `column 5: expected "and" or "or", got "("`},
		{"tcp and", `column 8: expected a primitive such as "host ADDRESS" or "port NUMBER" after "and", got the end`},
		{"and tcp", `column 1: expected a primitive such as "host ADDRESS" or "port NUMBER", got "and"`},
		{"not", `column 4: expected a primitive such as "host ADDRESS" or "port NUMBER" after "not", got the end`},
		{"()", `column 2: expected a primitive such as "host ADDRESS" or "port NUMBER" after "(", got ")"`},
		{"(tcp", `column 1: "(" without ")"`},
		{"tcp)", `column 4: ")" without "("`},
		{"(tcp udp)", `column 6: expected "and", "or" or ")", got "udp"`},
		{"host (1.2.3.4 or port 80)", `column 18: expected an address after "host", got "port"`},
		{"tcp & udp", `column 5: expected "&&", got "&"`},
		{"tcp | udp", `column 5: expected "||", got "|"`},
		{"vlan 10", `column 1: "vlan" is not supported; replypath matches addresses, ports and protocols`},
		{"tcp[tcpflags]&tcp-syn!=0", `column 14: expected "&&", got "&"`},
		{"tcp[13]=2", `column 1: "tcp[13]=2": packet contents cannot be matched; replypath matches addresses, ports and protocols`},
		{"hôst 10.0.0.1 und", `column 1: "hôst" is not an address, and names are not resolved: use an address`},
		{"(é)", `column 2: "é" is not an address, and names are not resolved: use an address`},
		{"tcp or é or x", `column 8: "é" is not an address, and names are not resolved: use an address`},
		{"host \x1b[31mred", `column 6: "\x1b[31mred" is not an address, and names are not resolved: use an address`},
		{"host a\nb", `column 6: "a" is not an address, and names are not resolved: use an address`},
		{"host \xff\xfe", `column 6: "\xff\xfe" is not an address, and names are not resolved: use an address`},
		{strings.Repeat("(", 101) + "tcp" + strings.Repeat(")", 101), `column 101: parentheses are nested more than 100 deep`},
		{strings.Repeat("x", 4097), `column 4097: the expression is longer than 4096 bytes`},
		{strings.Repeat("(", 4096), `column 101: parentheses are nested more than 100 deep`},
		{"src and dst port 1" + strings.Repeat("||2", 1000), `column 1: the expression with its qualifiers written out is longer than 4096 bytes`},
		{strings.Repeat("x", 100), `column 1: "` + strings.Repeat("x", 64) + `"… is not an address, and names are not resolved: use an address`},
	}
	for _, tt := range tests {
		f, err := Parse(tt.expression)
		if err == nil {
			t.Errorf("Parse(%.60q) gives %q, want an error", tt.expression, f)
			continue
		}
		if got := err.Error(); got != "filter: "+tt.want {
			t.Errorf("Parse(%.60q)\n got %s\nwant filter: %s", tt.expression, got, tt.want)
		}
		if syntax := new(SyntaxError); !errors.As(err, &syntax) {
			t.Errorf("Parse(%.60q) gives a %T", tt.expression, err)
		}
	}
}

func TestString(t *testing.T) {
	tests := []struct{ expression, want string }{
		{"", ""},
		{" \t\n", ""},
		{"203.0.113.80", "host 203.0.113.80"},
		{"2001:DB8::80", "host 2001:db8::80"},
		{"::ffff:203.0.113.80", "host 203.0.113.80"},
		{"203.0.113.0/24", "net 203.0.113.0/24"},
		{"10.1", "net 10.1.0.0/16"},
		{"net 10", "net 10.0.0.0/8"},
		{"net 10/8", "net 10.0.0.0/8"},
		{"net 10.1.2.3", "host 10.1.2.3"},
		{"net 10.1.2.3/32", "host 10.1.2.3"},
		{"net 2001:db8::/128", "host 2001:db8::"},
		{"net 10.0.0.0 mask 255.0.0.0", "net 10.0.0.0/8"},
		{"net 10.0.0.0 mask 255.0.255.0", "net 10.0.0.0 mask 255.0.255.0"},
		{"net 0.0.0.0 mask 0.0.0.0", "net 0.0.0.0/0"},
		{"TCP AND DST PORT HTTP", "tcp and tcp dst port 80"},
		{"port domain", "port 53"},
		{"port ssh", "tcp port 22"},
		{"ip6 port ssh", "ip6 and tcp port 22"},
		{"not ip6 port ssh", "not (ip6 and tcp port 22)"},
		{"tcp and ip6 port ssh", "tcp and (ip6 and tcp port 22)"},
		{"portrange 90-80", "portrange 80-90"},
		{"portrange 80-80", "port 80"},
		{"portrange ssh-http", "tcp portrange 22-80"},
		{"tcp host 10.0.0.1", "tcp host 10.0.0.1"},
		{"tcp 10.0.0.1", "tcp host 10.0.0.1"},
		{"icmp 10.0.0.1", "icmp host 10.0.0.1"},
		{"src or dst port 80", "port 80"},
		{"dst and src port 80", "src and dst port 80"},
		{"tcp dst port 80 or 443 and 8080", "tcp dst port 80 or tcp dst port 443 and tcp dst port 8080"},
		{"port 80 and tcp and 203.0.113.80", "port 80 and tcp and host 203.0.113.80"},
		{"tcp and (udp or icmp)", "tcp and (udp or icmp)"},
		{"(tcp and udp) or icmp", "tcp and udp or icmp"},
		{"tcp or udp and icmp", "tcp or udp and icmp"},
		{"not (tcp or udp)", "not (tcp or udp)"},
		{"not (not tcp)", "tcp"},
		{"!!!tcp", "not tcp"},
		{"host (1.2.3.4 or not (5.6.7.8))", "host 1.2.3.4 or not host 5.6.7.8"},
		{"src net (10.1 or 10.2/16) and tcp", "src net 10.1.0.0/16 or src net 10.2.0.0/16 and tcp"},
	}
	for _, tt := range tests {
		f, err := Parse(tt.expression)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.expression, err)
			continue
		}
		if got := f.String(); got != tt.want {
			t.Errorf("Parse(%q) gives %q, want %q", tt.expression, got, tt.want)
		}
		if again, err := Parse(f.String()); err != nil || again.String() != f.String() {
			t.Errorf("Parse(%q) gives %q, %v", f, again, err)
		}
	}
}

// natPath is a connection to a VIP that a load balancer sends on to a backend
// (10.2.0.9:8080), under a source of its own (10.2.0.1:61000).
func natPath() trace.Path {
	client := tuple(trace.TCP, "198.51.100.7:41822", "203.0.113.80:80")
	backend := tuple(trace.TCP, "10.2.0.1:61000", "10.2.0.9:8080")
	return trace.Path{
		Protocol: trace.TCP, Client: client.Src, Server: client.Dst, Connection: client,
		Request: []trace.Hop{{Tuple: client}, {Tuple: backend}, {Tuple: backend}},
		Reply:   []trace.Hop{{Tuple: backend.Reverse()}, {Tuple: client.Reverse()}},
	}
}

func TestMatchPath(t *testing.T) {
	tests := []struct {
		expression string
		want       bool
	}{
		{"", true},
		{"host 198.51.100.7", true},
		{"host 10.2.0.9", true},  // behind NAT
		{"host 10.2.0.7", false}, // nowhere
		{"src host 198.51.100.7", true},
		{"dst host 198.51.100.7", false}, // the reply's hops count in the direction of the request
		{"src host 10.2.0.9", false},
		{"dst host 10.2.0.9", true},
		{"dst port 8080", true},
		{"src port 8080", false},
		{"dst port 80 and src host 198.51.100.7", true},
		{"src host 10.2.0.1 and dst port 8080", true},
		{"src host 198.51.100.7 and dst port 8080", false}, // no one tuple has both
		{"host 198.51.100.7 or dst port 9", true},
		{"port 80 and host 203.0.113.80", true},
		{"not host 10.2.0.9", false}, // one tuple has it, so the path does
		{"not port 8080", false},
		{"not port 81", true},
		{"tcp and not port 8080", false},
		{"tcp and not (src host 198.51.100.7 and dst port 8080)", true},
		{"not (tcp and not port 8080)", true},
		{"udp", false},
		{"ip6", false},
		{"src net 198.51.100 and not dst net 10/8", false},
	}
	for _, tt := range tests {
		f, err := Parse(tt.expression)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(natPath()); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.expression, got, tt.want)
		}
		if tt.expression == "" {
			continue
		}
		negated, err := Parse("not (" + tt.expression + ")")
		if err != nil {
			t.Fatal(err)
		}
		if negated.Match(natPath()) == tt.want {
			t.Errorf("%q and its negation agree", tt.expression)
		}
	}
}

// TestMatchReplyOnly has a path of which only the reply was seen with other addresses.
func TestMatchReplyOnly(t *testing.T) {
	p := natPath()
	p.Request = nil
	for expression, want := range map[string]bool{"dst host 10.2.0.9": true, "src host 10.2.0.9": false} {
		f, _ := Parse(expression)
		if got := f.Match(p); got != want {
			t.Errorf("%q: got %v, want %v", expression, got, want)
		}
	}
}

func TestMatchZero(t *testing.T) {
	var f Filter
	if !f.Match(trace.Path{}) || !f.MatchTuple(trace.Tuple{}) || f.String() != "" {
		t.Error("the zero filter does not match everything")
	}
	for _, expression := range []string{"tcp", "host 0.0.0.0", "net 0.0.0.0/0", "net ::/0", "port 0", "ip", "ip6", "net 10.0.0.0 mask 255.0.255.0"} {
		f, err := Parse(expression)
		if err != nil {
			t.Fatal(err)
		}
		if f.Match(trace.Path{}) {
			t.Errorf("%q matches a path without addresses", expression)
		}
	}
}

// TestMatchDeepNegation would run for ever if negations were evaluated for each tuple again.
func TestMatchDeepNegation(t *testing.T) {
	expression := "port 1"
	for range maxDepth {
		expression = "not (udp or " + expression + ")"
	}
	f, err := Parse(expression)
	if err != nil {
		t.Fatal(err)
	}
	if f.Match(natPath()) {
		t.Errorf("%d negations of \"false\" match", maxDepth)
	}
}

// TestMatchManyNegations uses all of verdicts.
func TestMatchManyNegations(t *testing.T) {
	expression := "!ip6" + strings.Repeat("||!ip", (maxLength-4)/11) // " or not ip" is longer
	f, err := Parse(expression)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Match(trace.Path{}) || !f.MatchTuple(natPath().Connection) {
		t.Error("no match")
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	f, err := Parse("tcp and not port 53 and host 10.2.0.9")
	if err != nil {
		t.Fatal(err)
	}
	p := longPath()
	if n := testing.AllocsPerRun(100, func() { f.Match(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// longPath has 8 hops each way.
func longPath() trace.Path {
	p := natPath()
	for len(p.Request) < 8 {
		p.Request = append(p.Request, p.Request[len(p.Request)%2])
	}
	for len(p.Reply) < 8 {
		p.Reply = append(p.Reply, p.Reply[len(p.Reply)%2])
	}
	return p
}

func BenchmarkMatch(b *testing.B) {
	p := longPath()
	for _, expression := range []string{"host 192.0.2.99", "tcp dst port 81", "not port 53", "tcp and not net 192.0.2.0/24 and (port 81 or port 443)"} {
		f, err := Parse(expression)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(strings.ReplaceAll(expression, "/", "|"), func(b *testing.B) {
			for b.Loop() {
				f.Match(p)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("tcp and host 203.0.113.80 and port 80"); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "tcp and host 203.0.113.80 and port 80", "not (src net 10.1 or ip6 net 2001:db8::/32)", "tcp dst port 80 or 443",
		"host (1.2.3.4 or not 5.6.7.8) && !udp", "src and dst portrange ssh-80", "net 10.0.0.0 mask 255.0.255.0", "((((", "port domain||!icmp6",
	} {
		f.Add(seed)
	}
	path := natPath()
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := Parse(text)
		if err != nil {
			if message := err.Error(); strings.ContainsAny(message, "\n\x1b") || !strings.HasPrefix(message, "filter: column ") {
				t.Fatalf("Parse(%q): error %q", text, message)
			}
			return
		}
		again, err := Parse(parsed.String())
		if err != nil {
			t.Fatalf("Parse(%q) gives %q, which does not parse: %v", text, parsed, err)
		}
		if again.String() != parsed.String() {
			t.Fatalf("Parse(%q) gives %q and then %q", text, parsed, again)
		}
		if parsed.Match(path) != again.Match(path) {
			t.Fatalf("Parse(%q): %q matches differently", text, parsed)
		}
		for _, p := range packets {
			if parsed.MatchTuple(p) != again.MatchTuple(p) {
				t.Fatalf("Parse(%q): %q matches %s differently", text, parsed, p)
			}
		}
	})
}

func TestTuples(t *testing.T) {
	p := natPath()
	got := Tuples(nil, &p)
	want := []trace.Tuple{
		tuple(trace.TCP, "198.51.100.7:41822", "203.0.113.80:80"),
		tuple(trace.TCP, "10.2.0.1:61000", "10.2.0.9:8080"),
		tuple(trace.TCP, "198.51.100.7:41822", "203.0.113.80:80"),
	}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("tuple %d: got %v, want %v", i, got[i], want[i])
		}
	}
	if got := Tuples(nil, &trace.Path{Client: netip.MustParseAddrPort("10.0.0.1:1")}); len(got) != 0 {
		t.Errorf("half a tuple: %v", got)
	}
}
