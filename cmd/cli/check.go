package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/check"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/pkg/trace"
)

func newCheck(w *world) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Ask before there is traffic: would a reply find its way?",
		Long:    "Ask before there is traffic. Nothing is sent and nothing is changed.",
		Example: "  sudo replypath check reply --netns backend --vip 203.0.113.80:80 198.51.100.7",
		GroupID: groupAsk,
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCheckReply(w))
	return cmd
}

const checkReplyHelp = `Say whether the reply of a service would reach a client, before there is
traffic: from this network namespace, or that of --netns or --pid, with the VIP
as source.

The first packet of a connection is followed through the network namespaces of
this node, from the client (where it is one of them) to the host that answers,
and the reply from there to the client, as far as the links are known. Each is
asked: routes and rules, reverse-path filtering, forwarding, filter and NAT
rules, neighbours, who owns the address, whether a socket listens. Findings are
those that "explain" gives once the packets are lost. Where the client is not on
this node, the request is taken to come in by the device that leads back to it:
--in names another.

No agent and no eBPF is needed. Nothing is sent and nothing is changed, but with
--probe: then packets really go from the VIP to the client first, and it is told
which, and what became of them: one empty UDP datagram (so that the next hop has
to answer ARP or ND), one echo request, and one as big as the device by which it
leaves takes, that must not be fragmented. It takes 6 s at most. BPF programs on
the way that keep state are then run too, on a copy of the packet; those that
only look at it always are, as that changes nothing.

It takes root (CAP_SYS_ADMIN) to look into other network namespaces, and
CAP_NET_ADMIN to read filter rules.

Exit: 0 nothing found, 1 findings, 2 usage, 3 it cannot be asked. The verdict is
"ok" only if everything could be read and judged, else "incomplete".`

const checkReplyExamples = `  sudo replypath check reply 198.51.100.7
  sudo replypath check reply --netns backend --vip 203.0.113.80:80 198.51.100.7
  sudo replypath check reply --pid 4711 --vip 203.0.113.80:53 --protocol udp --client 198.51.100.7
  sudo replypath check reply --netns backend --vip 203.0.113.80:80 --in vx0 -o json 198.51.100.7`

// checkOptions are the flags and arguments of check reply.
type checkOptions struct {
	netns, pod       string
	pid              int
	client, vip      string
	protocol, device string
	mark             string
	probe, all       bool
	output           format
}

func newCheckReply(w *world) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:               "reply [CLIENT[:PORT]]",
		Short:             "Would a reply from here to that client find its way?",
		Long:              checkReplyHelp,
		Example:           checkReplyExamples,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			q, err := o.question(cmd, args)
			if err != nil {
				return err
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			return w.checkReply(ctx, q, o)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.netns, "netns", "", "network namespace that answers: a name under /run/netns, a path, or a number as lsns shows it")
	f.IntVar(&o.pid, "pid", 0, "answer from the network namespace of this process")
	f.StringVar(&o.pod, "pod", "", "answer from a pod (not yet)")
	f.StringVar(&o.client, "client", "", "address of the client, ADDR or ADDR:PORT, instead of the argument")
	f.StringVar(&o.vip, "vip", "", "address with which it answers, ADDR or ADDR:PORT (default: the one that it would choose)")
	f.StringVar(&o.vip, "source", "", "the same as --vip")
	f.StringVar(&o.protocol, "protocol", "tcp", "tcp or udp")
	f.StringVar(&o.device, "in", "", "device by which the request comes in (default: as it is routed here)")
	f.StringVar(&o.mark, "mark", "", "firewall mark of request and reply, 0x for hexadecimal")
	f.BoolVar(&o.probe, "probe", false, "really send packets from the VIP to the client first, and tell what became of them")
	f.BoolVarP(&o.all, "all", "a", false, "also show the way where no fault is found")
	o.output.flag(cmd)
	must(cmd.RegisterFlagCompletionFunc("netns", completeNetns))
	must(cmd.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"tcp", "udp"}, cobra.ShellCompDirectiveNoFileComp)))
	for _, name := range []string{"pid", "pod", "client", "vip", "source", "in", "mark"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// question reads flags and arguments; the namespace is found later.
func (o *checkOptions) question(cmd *cobra.Command, args []string) (q check.Question, err error) {
	flags := cmd.Flags()
	switch {
	case flags.Changed("pod"):
		return q, usagef("--pod comes with the knowledge of Kubernetes, which replypath does not have yet: name the pod's namespace with --netns, or a process in it with --pid")
	case flags.Changed("netns") && flags.Changed("pid"):
		return q, usagef("--netns and --pid both name a network namespace: choose one")
	case flags.Changed("netns") && o.netns == "", flags.Changed("pid") && o.pid <= 0:
		return q, usagef("--netns takes a name or a path, --pid the number of a process")
	case flags.Changed("vip") && flags.Changed("source"):
		return q, usagef("--vip and --source are the same: choose one")
	case len(args) > 1:
		return q, usagef("one client at a time, not %d", len(args))
	case len(args) == 1 && flags.Changed("client"):
		return q, usagef("the client is named twice: by --client and as argument")
	case len(args) == 1:
		o.client = args[0]
	case o.client == "":
		return q, usagef("which client? name its address")
	}
	if q.Client, err = parseAddress("client", o.client); err != nil {
		return q, err
	}
	if flags.Changed("vip") || flags.Changed("source") {
		if q.Server, err = parseAddress("VIP", o.vip); err != nil {
			return q, err
		}
		if q.Server.Addr().Is4() != q.Client.Addr().Is4() {
			return q, usagef("client %s and VIP %s are of different families", q.Client.Addr(), q.Server.Addr())
		}
	}
	switch o.protocol {
	case "tcp":
		q.Protocol = trace.TCP
	case "udp":
		q.Protocol = trace.UDP
	default:
		return q, usagef("--protocol takes tcp or udp, not %q", o.protocol)
	}
	if o.mark != "" {
		mark, err := strconv.ParseUint(o.mark, 0, 32)
		if err != nil {
			return q, usagef("--mark takes a number of 32 bits, not %q", o.mark)
		}
		q.Mark = uint32(mark)
	}
	q.In = o.device
	return q, nil
}

// parseAddress reads ADDR or ADDR:PORT, of IPv6 with brackets where there is a port.
func parseAddress(what, text string) (netip.AddrPort, error) {
	bare := text
	if strings.HasPrefix(bare, "[") && strings.HasSuffix(bare, "]") {
		bare = bare[1 : len(bare)-1]
	}
	a := netip.AddrPort{}
	if addr, err := netip.ParseAddr(bare); err == nil {
		a = netip.AddrPortFrom(addr.Unmap(), 0)
	} else if a, err = netip.ParseAddrPort(text); err != nil {
		return a, usagef("%s %q is neither ADDR nor ADDR:PORT ([ADDR]:PORT for IPv6); names are not looked up", what, text)
	} else {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	switch addr := a.Addr(); {
	case addr.Zone() != "":
		return a, usagef("%s %q: an address with a zone has no meaning in another namespace: leave %%%s out, and say --in", what, text, addr.Zone())
	case addr.IsUnspecified(), addr.IsMulticast():
		return a, usagef("%s %q is not the address of one host", what, text)
	}
	return a, nil
}

// checkReply asks, and tells the answer.
func (w *world) checkReply(ctx context.Context, q check.Question, o checkOptions) error {
	checker, err := check.New()
	if err != nil {
		return noAgentf("%w", err)
	}
	defer checker.Close()
	if q.From, err = o.place(checker); err != nil {
		return err
	}
	lost := ""
	if o.probe {
		told, failed, err := checker.Probe(ctx, q)
		if err != nil {
			return checkError(err)
		}
		for _, line := range told {
			w.note("%s", line)
		}
		lost, q.Run = failed, true
	}
	found, err := checker.Reply(ctx, q)
	if err == nil && lost != "" {
		found.Unread = append(found.Unread, lost)
	}
	switch {
	case ctx.Err() != nil:
		return noAgentf("interrupted")
	case err != nil:
		return checkError(err)
	}
	for _, note := range found.Notes {
		w.note("%s", note)
	}
	for _, unread := range found.Unread {
		w.note("not known: %s", unread)
	}
	return w.printer(o.output).whole(checked(found, o.all))
}

// place finds the namespace that answers.
func (o *checkOptions) place(checker *check.Checker) (trace.Place, error) {
	return locate(checker, o.netns, o.pid)
}

// locator finds namespaces.
type locator interface {
	Locate(path string) (trace.Place, error)
	Numbered(ns trace.Netns) (trace.Place, error)
}

// locate finds a namespace by its name, path or number, or by a process; this one where none is named.
func locate(in locator, netns string, pid int) (trace.Place, error) {
	if isInode(netns) {
		return byInode(in, netns)
	}
	path, what := "/proc/self/ns/net", "own network namespace"
	switch {
	case netns != "" && !strings.Contains(netns, "/"):
		path, what = netstate.NamePath(netns), fmt.Sprintf("network namespace %q", netns)
	case netns != "":
		path, what = netns, "network namespace "+netns
	case pid != 0:
		path, what = netstate.ProcessPath(pid), fmt.Sprintf("network namespace of process %d", pid)
	}
	place, err := in.Locate(path)
	switch {
	case err == nil:
		return place, nil
	case errors.Is(err, fs.ErrPermission):
		return place, needsAdmin(what)
	case netns != "" && errors.Is(err, fs.ErrNotExist) || pid != 0 && !exists(path):
		return place, usagef("there is no %s", what)
	}
	return place, usagef("open %s: %w", what, innermost(err))
}

// isInode reports whether a namespace is named by its number, as findings and
// lsns(8) show it: nothing under /run/netns has that name.
func isInode(netns string) bool {
	_, err := strconv.ParseUint(netns, 10, 32)
	return err == nil && !exists(netstate.NamePath(netns))
}

// byInode finds the namespace by its number.
func byInode(in locator, netns string) (trace.Place, error) {
	n, err := strconv.ParseUint(netns, 10, 32)
	if err != nil {
		return trace.Place{}, usagef("--netns: %w", innermost(err))
	}
	place, err := in.Numbered(trace.Netns(n))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return place, needsAdmin("network namespace " + netns)
	case err != nil:
		return place, usagef("there is no network namespace with the number %s that has a name or a process", netns)
	}
	return place, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func needsAdmin(what string) error {
	return noAgentf("looking into the %s takes CAP_SYS_ADMIN: run this as root (sudo replypath …)", what)
}

// checkError says why it could not be asked.
func checkError(err error) error {
	switch {
	case errors.Is(err, check.ErrUsage):
		return usagef("%s", strings.TrimPrefix(err.Error(), check.ErrUsage.Error()+": "))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return needsAdmin("network namespace")
	}
	return noAgentf("%w", err)
}

// checked makes the answer that is printed of what was found.
func checked(found *check.Answer, all bool) *answer {
	a := &answer{summary: &tracev1.Summary{Verdict: "ok", Paths: 1, Findings: uint32(len(found.Findings)), Nodes: 1}}
	for i := range found.Findings {
		a.findings = append(a.findings, stream.ProtoFinding(&found.Findings[i]))
	}
	for _, unread := range found.Unread {
		a.summary.Losses = append(a.summary.Losses, &tracev1.Loss{Cause: strings.ToValidUTF8(unread, "\uFFFD"), Count: 1})
	}
	switch {
	case len(a.findings) > 0:
		a.summary.Verdict = "fault"
	case len(found.Unread) > 0:
		a.summary.Verdict = "incomplete"
	}
	if all && len(a.findings) == 0 {
		a.paths = append(a.paths, stream.ProtoPath(&found.Path))
	}
	return a
}

// completeNetns offers the names of network namespaces; a path is completed as a file.
func completeNetns(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(typed, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	entries, err := os.ReadDir(netstate.NamePath(""))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
