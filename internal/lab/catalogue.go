package lab

// complete fills in what a lab of the catalogue leaves out: its name starts
// with its topology's, a healthy one connects, a broken one times out, and the
// client tries two or four times.
func complete(labs []Lab) []Lab {
	for i := range labs {
		l := &labs[i]
		l.Name = l.Topology.Name + "-" + l.Name
		client := &l.Topology.Client
		client.Connects = 2
		if client.Timeout == 0 {
			client.Timeout = connectTimeout
		}
		if l.Unforeseen == "" {
			l.Unforeseen = unforeseen[l.Finding]
		}
		if l.Finding == "neighbor-unresolved" || l.Finding == "tunnel-mismatch" {
			client.Timeout = neighborTimeout
		}
		if l.Healthy() {
			client.Connects = 4
			l.Outcome = Connected
		}
		if l.Outcome == NotRun {
			l.Outcome = Timeout
		}
	}
	return labs
}

// unforeseen are the findings that `replypath check reply` cannot know before there is traffic.
var unforeseen = map[string]string{
	"mtu-blackhole":        "the handshake that is checked is small, and passes",
	"fragment-drop":        "the datagram that is checked is small, and passes whole",
	"xdp-drop":             "what a program does is not asked",
	"tc-drop":              "what a program or a classifier does is not asked",
	"conntrack-entry-lost": "the entry is lost later",
	"reply-wrong-source":   "which source a server chooses is not known; that a translation is missing is told as what cannot be checked",
	"routing-loop":         "that a way leads back is told as what cannot be checked",
	"neighbor-conflict":    "who answers ARP first is not known: what becomes of the packet at one of them is told",
	"accept-queue-full":    "the queue may have room by then",
	"socket-buffer-full":   "the buffer may have room by then",
}
