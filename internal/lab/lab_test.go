package lab

import (
	"regexp"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// findings are the ids of design's contract that labs exist for.
// True: the client is connected all the same.
var findings = map[string]bool{
	"request-no-route": false, "request-route-rejected": false, "reply-no-route": false, "reply-route-rejected": false, "rp-filter-drop": false, "neighbor-unresolved": false,
	"reply-wrong-source": false, "reply-policy-routed": false, "routing-loop": false, "neighbor-conflict": false,
	"accept-queue-full": false, "conntrack-entry-lost": false,
	"forwarding-disabled": false, "vip-not-local": false, "netfilter-drop": false, "port-not-listening": false,
	"xdp-drop": false, "tc-drop": false, "conntrack-invalid-drop": false, "tunnel-mismatch": false, "openvswitch-drop": false,
	"dns-unanswered": false, "dns-error-response": false, "dns-late-reply": false, "dns-tcp-fallback-blocked": false,
	"dns-search-amplification": false,
	"mtu-blackhole":            false, "fragment-drop": false, "socket-buffer-full": false,
	"redirect-missing": true, "redirect-bypassed-ipv6": true, "redirect-target-not-listening": false, "redirect-loop": false,
	"loopback-blocked": false, "loopback-down": false, "loopback-source-leaked": false, "route-localnet-disabled": false,
}

// onlyOf are findings that one IP version alone has.
var onlyOf = map[string]Family{"rp-filter-drop": IPv4, "route-localnet-disabled": IPv4, "redirect-bypassed-ipv6": IPv6}

func TestNames(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for _, l := range All() {
		if seen[l.Name] {
			t.Errorf("%s: name is used twice", l.Name)
		}
		seen[l.Name] = true
		if !form.MatchString(l.Name) {
			t.Errorf("%s: name does not match %s", l.Name, form)
		}
		if l.Title == "" || l.Doc == "" {
			t.Errorf("%s: no title or doc", l.Name)
		}
		found, ok := Find(l.Name)
		if !ok || found.Title != l.Title {
			t.Errorf("Find(%q) = %q, %v", l.Name, found.Title, ok)
		}
		for _, h := range l.Topology.Hosts {
			name := prefix + l.Name + "-0a1b-" + h.Name
			if id, ok := parseName(name); !ok || id != prefix+l.Name+"-0a1b" {
				t.Errorf("parseName(%q) = %q, %v", name, id, ok)
			}
		}
	}
	if _, ok := Find("no-such-lab"); ok {
		t.Error("Find found a lab that is not there")
	}
}

func TestParseNameRefuses(t *testing.T) {
	for _, name := range []string{"", "rplab-", "rplab-dsr-0a1b", "x-rplab-dsr-0a1b-lb", "rplab-dsr-0a1g-lb", "rplab-dsr-0a1b-lb/..", "rplab-DSR-0a1b-lb"} {
		if id, ok := parseName(name); ok {
			t.Errorf("parseName(%q) = %q, want refusal", name, id)
		}
	}
}

func TestCatalogue(t *testing.T) {
	healthy := map[string]bool{}
	for _, l := range All() {
		if l.Healthy() {
			healthy[l.Topology.Name] = true
		}
	}
	covered := map[string]map[Family]bool{}
	for _, l := range All() {
		if !healthy[l.Topology.Name] {
			t.Errorf("%s: topology %s has no healthy twin", l.Name, l.Topology.Name)
		}
		checkHosts(t, l)
		if l.Healthy() {
			if l.Direction != trace.DirectionUnknown || l.Where != "" || len(l.Faults) > 0 || l.Outcome != Connected {
				t.Errorf("%s: healthy, yet says what is wrong", l.Name)
			}
			continue
		}
		if _, ok := findings[l.Finding]; !ok {
			t.Errorf("%s: unknown finding %s", l.Name, l.Finding)
		}
		served := l.Topology.Client.Lookup != nil // a name may be found all the same
		if l.Direction == trace.DirectionUnknown || len(l.Faults) == 0 || l.Outcome == Connected && !served && !findings[l.Finding] {
			t.Errorf("%s: a fault without direction, cause or effect", l.Name)
		}
		if _, ok := l.Topology.host(l.Where); !ok {
			t.Errorf("%s: no host %q", l.Name, l.Where)
		}
		if covered[l.Finding] == nil {
			covered[l.Finding] = map[Family]bool{}
		}
		covered[l.Finding][l.Topology.Family] = true
	}
	for id := range findings {
		if !covered[id][IPv4] && onlyOf[id] != IPv6 {
			t.Errorf("no IPv4 lab for %s", id)
		}
		if !covered[id][IPv6] && onlyOf[id] != IPv4 {
			t.Errorf("no IPv6 lab for %s", id)
		}
	}
}

// checkHosts checks that everything in a lab is at a host that exists, once.
func checkHosts(t *testing.T, l Lab) {
	t.Helper()
	known := map[string]bool{}
	for _, h := range l.Topology.Hosts {
		if known[h.Name] || strings.Contains(h.Name, "-") {
			t.Errorf("%s: host %q is there twice or has a dash", l.Name, h.Name)
		}
		known[h.Name] = true
	}
	var named []string
	for _, link := range l.Topology.Links {
		named = append(named, link.A.Host, link.B.Host)
		for _, d := range []string{link.A.Device, link.B.Device} {
			if len(d) > 15 || strings.Contains(d, ".") {
				t.Errorf("%s: device name %q is too long or has a dot", l.Name, d)
			}
		}
	}
	for _, s := range l.Topology.Services {
		named = append(named, s.Host)
	}
	for _, c := range append(append([]Change{}, l.Setting...), l.Faults...) {
		named = append(named, c.Host)
		if c.Text == "" {
			t.Errorf("%s: a change without text", l.Name)
		}
	}
	for _, name := range append(named, l.Topology.Client.Host) {
		if !known[name] {
			t.Errorf("%s: no host %q", l.Name, name)
		}
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{gateway(IPv4, servers.addr(IPv4, 1)).String(), "default via 10.2.0.1"},
		{Route{To: clients.in(IPv6), Type: "blackhole"}.String(), "blackhole 2001:db8:1::/64"},
		{Route{To: single(vip(IPv4)), Device: "eth0", Table: 100}.String(), "203.0.113.80/32 dev eth0 table 100"},
		{Rule{Priority: 100, From: single(vip(IPv4)), Table: 100}.String(), "from 203.0.113.80/32 lookup 100 priority 100"},
		{Rule{Priority: 7, To: clients.in(IPv4), Type: "prohibit"}.String(), "from all to 198.51.100.0/24 prohibit priority 7"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
