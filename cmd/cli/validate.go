package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/redirect"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

func newValidate(w *world) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "validate",
		Short:   "Is what a service mesh needs here sound?",
		Long:    "Say whether what a service mesh needs is sound, before there is traffic.",
		Example: "  sudo replypath validate redirect --netns pod\n  replypath validate names --mesh aa.a --proxy dp-1",
		GroupID: groupAsk,
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newValidateRedirect(w), newValidateNames(w))
	return cmd
}

const validateRedirectHelp = `Say whether the redirection to a transparent proxy (Kuma, Istio, or any other)
is sound in this network namespace, or that of --netns, --pid or --pod: what is
redirected where, inbound, outbound and DNS, IPv4 and IPv6; whether somebody
listens there; whether the proxy's own traffic is let go; whether filters or the
loopback device are in the way; and, where no rules are found, what should have
written them.

Rules are not searched for by their words: netfilter is asked what it would do
with sample packets. nftables, iptables-nft and iptables-legacy are understood.

No agent and no eBPF is needed. Nothing is sent and nothing is changed, but with
--probe: then real connections are made, as the proxy's user, to 127.0.0.6 (::6)
and a random port from 20000 to 29999, as Kuma's validator does. They must be
brought back to the proxy's inbound port; where nobody listens there, replypath
does so itself for that moment. It tries again, and waits for a proxy that is
not ready, until --timeout.

As an init container, before the proxy is started: --probe --before-proxy.

It takes CAP_NET_ADMIN to read rules, CAP_SYS_ADMIN to look into another
namespace, CAP_SETUID and CAP_SETGID to probe as the proxy's user.

Exit: 0 sound, 1 findings, 2 usage, 3 it could not be checked, or not in full:
what was not checked is never called sound.`

const validateRedirectExamples = `  sudo replypath validate redirect --netns pod
  sudo replypath validate redirect --pid 4711 --probe
  sudo replypath validate redirect --pod shop/web-0
  replypath validate redirect --probe --before-proxy --proxy-uid 5678
  sudo replypath validate redirect --netns pod --dns-server 10.96.0.10 -o json`

// validateOptions are the flags of validate redirect.
type validateOptions struct {
	netns, pod  string
	pid         int
	proxyUID    int64
	proxyGID    int64
	resolvers   []string
	cni         string
	timeout     time.Duration
	probe, all  bool
	beforeProxy bool
	output      format
}

func newValidateRedirect(w *world) *cobra.Command {
	var o validateOptions
	cmd := &cobra.Command{
		Use:               "redirect",
		Short:             "Is the redirection to a transparent proxy sound?",
		Long:              validateRedirectHelp,
		Example:           validateRedirectExamples,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			if err := o.namespaceFlags(cmd); err != nil {
				return err
			}
			asked, err := o.question(cmd, args)
			if err != nil {
				return err
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			return w.validateRedirect(ctx, asked, &o)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.netns, "netns", "", "network namespace: a name under /run/netns, a path, or its number")
	f.IntVar(&o.pid, "pid", 0, "the network namespace of this process, and its name servers")
	f.StringVar(&o.pod, "pod", "", "that of a pod on this node: NAMESPACE/NAME, NAME, or its UID")
	f.Int64Var(&o.proxyUID, "proxy-uid", -1, "user of the proxy (default: whose sockets listen where traffic is redirected to)")
	f.Int64Var(&o.proxyGID, "proxy-gid", -1, "group of the proxy (default: with --proxy-uid, the same number)")
	f.StringSliceVar(&o.resolvers, "dns-server", nil, "name server of the application (default: of its own resolv.conf)")
	f.StringVar(&o.cni, "cni-dir", redirect.CNIDir, "where the node keeps its CNI configuration")
	f.BoolVar(&o.probe, "probe", false, "make real connections too")
	f.DurationVar(&o.timeout, "timeout", 3*time.Second, "with --probe: how long to try, and to wait for the proxy")
	f.BoolVar(&o.beforeProxy, "before-proxy", false, "the proxy is not started yet: nobody has to listen")
	f.BoolVarP(&o.all, "all", "a", false, "also show what becomes of each kind of traffic")
	o.output.flag(cmd)
	must(cmd.RegisterFlagCompletionFunc("netns", completeNetns))
	must(cmd.MarkFlagDirname("cni-dir"))
	for _, name := range []string{"pid", "pod", "proxy-uid", "proxy-gid", "dns-server", "timeout"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// namespaceFlags refuses flags that name no namespace, or two.
func namespaceFlags(cmd *cobra.Command, netns string, pid int) error {
	flags := cmd.Flags()
	switch {
	case flags.Changed("netns") && flags.Changed("pid"):
		return usagef("--netns and --pid both name a network namespace: choose one")
	case flags.Changed("netns") && netns == "", flags.Changed("pid") && pid <= 0:
		return usagef("--netns takes a name or a path, --pid the number of a process")
	}
	return nil
}

// namespaceFlags refuses flags that name no namespace, or two.
func (o *validateOptions) namespaceFlags(cmd *cobra.Command) error {
	flags := cmd.Flags()
	if !flags.Changed("pod") {
		return namespaceFlags(cmd, o.netns, o.pid)
	}
	if flags.Changed("netns") || flags.Changed("pid") {
		return usagef("--pod, --netns and --pid each name a network namespace: choose one")
	}
	if _, err := redirect.ParsePod(o.pod); err != nil {
		return usagef("--pod: %v", err)
	}
	return nil
}

// process finds a process of the pod that is asked about.
func (o *validateOptions) process() error {
	if o.pod == "" {
		return nil
	}
	pod, err := redirect.ParsePod(o.pod)
	if err != nil {
		return usagef("--pod: %v", err)
	}
	o.pid, err = pod.Process()
	switch {
	case errors.Is(err, redirect.ErrNoPod):
		return noAgentf("%w; --netns or --pid name the namespace otherwise", err)
	case err != nil:
		return usagef("--pod: %v", err)
	}
	return nil
}

// question reads the flags; the namespace is found later.
func (o *validateOptions) question(cmd *cobra.Command, args []string) (q redirect.Options, err error) {
	if len(args) > 0 {
		return q, usagef("no argument is taken: --netns and --pid name the namespace")
	}
	q = redirect.Options{PID: o.pid, Before: o.beforeProxy, CNIDir: o.cni, Probe: o.probe, Patience: o.timeout}
	if o.probe && o.timeout <= 0 || !o.probe && cmd.Flags().Changed("timeout") {
		return q, usagef("--timeout takes a time above zero, and goes with --probe")
	}
	for name, id := range map[string]struct {
		number int64
		to     **uint32
	}{"proxy-uid": {o.proxyUID, &q.ProxyUID}, "proxy-gid": {o.proxyGID, &q.ProxyGID}} {
		if !cmd.Flags().Changed(name) {
			continue
		}
		if id.number < 0 || id.number >= 1<<32-1 {
			return q, usagef("--%s takes a number of a user or group, not %d", name, id.number)
		}
		n := uint32(id.number)
		*id.to = &n
	}
	if q.ProxyGID != nil && q.ProxyUID == nil {
		return q, usagef("--proxy-gid goes with --proxy-uid")
	}
	for _, s := range o.resolvers {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return q, usagef("--dns-server takes an address, not %q", s)
		}
		q.Resolvers = append(q.Resolvers, a.Unmap())
	}
	return q, nil
}

// retryPause is the time between two looks at a proxy that is not ready.
const retryPause = 200 * time.Millisecond

// validateRedirect asks, and tells the answer.
func (w *world) validateRedirect(ctx context.Context, q redirect.Options, o *validateOptions) error {
	inspector, err := redirect.New()
	if err != nil {
		return noAgentf("%w", err)
	}
	defer inspector.Close()
	if err := o.process(); err != nil {
		return err
	}
	if o.pod != "" {
		q.PID = o.pid
	}
	if q.Place, err = locate(inspector, o.netns, o.pid); err != nil {
		return err
	}
	if q.Place.Name == "" && !q.Place.Host && o.pid > 0 {
		q.Place.PID = o.pid
	}
	if o.pod != "" {
		w.note("process %d is of pod %s", o.pid, o.pod)
		if q.Place.Host {
			w.note("the pod has no network namespace of its own (hostNetwork): the node's is asked about")
		}
	}
	var found *trace.Redirection
	var findings []trace.Finding
	for until := time.Now().Add(o.timeout); ; {
		found, err = inspector.Inspect(ctx, q)
		switch {
		case ctx.Err() != nil:
			return noAgentf("interrupted")
		case err != nil:
			return checkError(err)
		}
		findings = diagnose.Redirection(found)
		waits := slices.ContainsFunc(findings, func(f trace.Finding) bool { return f.ID == "redirect-target-not-listening" })
		if !o.probe || !waits || time.Now().Add(retryPause).After(until) {
			break
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
	for _, note := range redirect.Describe(found) {
		w.note("%s", note)
	}
	for _, unread := range found.Unread {
		w.note("not known: %s", unread)
	}
	return w.printer(o.output).validated(validated(found, findings, o.all), "sample connection")
}

// validated makes the answer that is printed of what was found.
func validated(found *trace.Redirection, findings []trace.Finding, all bool) *answer {
	a := &answer{summary: &tracev1.Summary{Verdict: "ok", Findings: uint32(len(findings)), Nodes: 1}}
	node, _ := os.Hostname()
	for i := range findings {
		findings[i].Where.Node = node
		a.findings = append(a.findings, stream.ProtoFinding(&findings[i]))
	}
	for _, path := range redirect.Paths(found) {
		a.summary.Paths++
		if all {
			a.paths = append(a.paths, stream.ProtoPath(&path))
		}
	}
	for _, unread := range found.Unread {
		a.summary.Losses = append(a.summary.Losses, &tracev1.Loss{Cause: strings.ToValidUTF8(unread, "\uFFFD"), Count: 1})
	}
	switch {
	case len(a.findings) > 0:
		a.summary.Verdict = "fault"
	case len(found.Unread) > 0 || a.summary.Paths == 0:
		a.summary.Verdict = "incomplete"
	}
	return a
}

// errUnchecked ends a validation that could not look at everything: that is no success.
var errUnchecked = &exitError{exitNoAgent, errors.New("not everything could be checked")}

// validated writes the answer of a validation, which asked about things of that name.
func (p *printer) validated(a *answer, thing string) error {
	write := func() error {
		for _, f := range a.findings {
			if err := p.finding(f); err != nil {
				return err
			}
		}
		for _, path := range a.paths {
			if err := p.path(path); err != nil {
				return err
			}
		}
		if p.json {
			return p.summary(a)
		}
		return p.paragraph(p.text.Validated(a.summary, thing), true)
	}
	if err := write(); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	if err := a.exit(); err != nil {
		return err
	}
	if a.summary.GetVerdict() == "incomplete" {
		if a.summary.GetPaths() == 0 {
			return noAgentf("nothing could be checked")
		}
		return errUnchecked
	}
	return nil
}
