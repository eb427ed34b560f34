package lab_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/replypath/replypath/internal/lab"
)

// TestCommand has `replypath explain -- COMMAND` find what is the command's own,
// in a lab that stands: the connection of a TCP client, and the datagrams of a UDP client,
// whose first one waits for its neighbour and so leaves in nobody's name.
func TestCommand(t *testing.T) {
	needRoot(t)
	cli := program(t, "replypath", "cli")
	for name, talk := range map[string]string{
		"routed-forward-drop":      "</dev/tcp/%s/%d",
		"routed6-forward-drop":     "</dev/tcp/%s/%d",
		"routed-udp-forward-drop":  "exec 3<>/dev/udp/%s/%d; echo hello >&3; timeout 1 head -c 5 <&3",
		"routed6-udp-forward-drop": "exec 3<>/dev/udp/%s/%d; echo hello >&3; timeout 1 head -c 5 <&3",
	} {
		if testing.Short() && strings.Contains(name, "6-") != strings.Contains(name, "udp-") {
			continue // one of either IP version, and of either protocol
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, ok := lab.Find(name)
			if !ok {
				t.Fatalf("no lab %s", name)
			}
			n, err := lab.Up(t.Context(), l, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := n.Down(); err != nil {
					t.Error(err)
				}
			})
			client, server := n.Namespaces()[l.Topology.Client.Host], l.Topology.Client.Server
			ip(t, "-n", client, "neigh", "flush", "all")
			check(t, l, ask(t.Context(), cli, "explain", "-o", "json", "--", "ip", "netns", "exec", client,
				"timeout", "3", "bash", "-c", fmt.Sprintf(talk, server.Addr(), server.Port())))
		})
	}
}
