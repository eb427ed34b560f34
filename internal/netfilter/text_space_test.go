package netfilter

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// counters are left out of a rule's text, since they change.
var counterNumbers = regexp.MustCompile(`counter packets \d+ bytes \d+`)

// readChain returns the texts of a chain's rules.
func (s *space) readChain(t *testing.T, table, chain string) []string {
	t.Helper()
	var out []string
	s.do(func() error {
		socket, err := openSocket(time.Now().Add(timeLimit))
		if err != nil {
			return err
		}
		defer socket.close()
		tables, err := (&nftReader{socket: socket}).read()
		if err != nil {
			return err
		}
		for _, tb := range tables {
			if tb.name != table || tb.chains[chain] == nil {
				continue
			}
			c := tb.chains[chain]
			rules, err := c.load()
			if err != nil {
				return err
			}
			for i := range rules {
				out = append(out, rules[i].text(c, deviceName))
			}
		}
		return nil
	})
	return out
}

// TestTextAsListed compares the text of rules with what nft prints for them.
func TestTextAsListed(t *testing.T) {
	s := newSpace(t)
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for _, family := range []string{"inet", "ip", "ip6"} {
		for range 60 {
			g := &nftGenerator{r: r, hook: trace.Input}
			rule := g.match(family)
			if r.IntN(2) == 0 {
				rule = g.match(family) + " " + rule
			}
			rule = strings.NewReplacer(` f0`, ` lo`, ` f1`, ` lo`).Replace(rule + " counter " + g.end(family, false))
			if seen[family+rule] || strings.Contains(rule, "ip6 nexthdr") || strings.Contains(rule, "meta protocol") {
				continue // nft leaves these out when they say what it would check by itself
			}
			seen[family+rule] = true
			_, err := s.try("flush ruleset\ntable "+family+" t {\n"+g.sets()+" chain c { type filter hook input priority 0;\n "+rule+"\n }\n}\n", "nft", "-f", "-")
			if err != nil {
				continue
			}
			listing := s.run("", "nft", "list", "chain", family, "t", "c")
			lines := strings.Split(listing, "\n")
			want := counterNumbers.ReplaceAllString(strings.TrimSpace(lines[3]), "counter")
			got := s.readChain(t, "t", "c")
			if len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s\n got %q\nwant %q", family, rule, got, want)
			}
		}
	}
}
