package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/replypath/replypath/internal/version"
)

const rootHelp = `replypath tells where a reply was lost and why: which hop, which cause, which
fix, how to verify, on what evidence.

It asks the replypath-agent of this machine. Where none runs, root can trace
without one: replypath then does it in its own process. Agents of several nodes
are asked together (--server A,B), and what they saw of one connection is joined.

Exit codes: 0 no fault found, 1 findings, 2 usage, 3 no agent or tracing
impossible. Answers go to stdout, everything else to stderr.`

const rootExamples = `  sudo replypath lab run dsr-no-route          see a lost reply explained
  replypath explain host 203.0.113.80          what became of that address's traffic
  replypath explain -- curl http://shop/       run a command and explain its packets
  replypath watch tcp and port 443             faults as they happen
  sudo replypath check reply 198.51.100.7      would a reply to it find its way?`

// filterHelp ends the help of commands that take a FILTER.
const filterHelp = `

FILTER is an expression as in pcap-filter(7) and tcpdump: host, net, port,
src, dst, tcp, udp, icmp, ip, ip6, and, or, not and parentheses (quote these
for the shell). It is compared with the addresses before and after NAT.`

// The groups of the root's help.
const (
	groupAsk   = "ask"
	groupTry   = "try"
	groupOther = "other"
)

func newRoot(w *world) *cobra.Command {
	root := &cobra.Command{
		Use:           "replypath",
		Short:         "Tells where a reply was lost and why",
		Long:          rootHelp,
		Example:       rootExamples,
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(
		&cobra.Group{ID: groupAsk, Title: "Ask:"},
		&cobra.Group{ID: groupTry, Title: "Try:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	server := &server{world: w}
	server.flags(root)
	root.AddCommand(newExplain(w, server), newCheck(w), newValidate(w), newWatch(w, server), newDNS(w, server), newStatus(w, server), newLab(w, server), newVersion(w))
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	return root
}

// noSuchCommand refuses what is not a command, and names what it may have meant.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2 // as cobra does for commands that leave Args to it
	}
	if close := cmd.SuggestionsFor(args[0]); len(close) > 0 {
		return usagef("unknown command %q; did you mean %s?", args[0], strings.Join(close, " or "))
	}
	return usagef("unknown command %q", args[0])
}
