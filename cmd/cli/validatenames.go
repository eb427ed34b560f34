package main

import (
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/meshname"
	"github.com/replypath/replypath/internal/redirect"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

const validateNamesHelp = `Say whether names of a mesh and of what is in it can be told apart once they are
joined: Kuma joins mesh and proxy with a dot and splits them at the first one, so
that mesh aa.a and proxy dp-1 become mesh aa and proxy a.dp-1.

Names are those of MESH and PROXY or of the flags; without any, those that the
kuma-dp processes in this network namespace, or that of --netns or --pid, were
given on their command line and in their environment.

Exit: 0 sound, 1 findings, 2 usage, 3 no name was found, or not all could be read.`

const validateNamesExamples = `  replypath validate names --mesh aa.a --proxy dp-1
  replypath validate names --mesh default --proxy web --namespace shop
  sudo replypath validate names --netns pod
  sudo replypath validate names --pid 4711 -o json`

// namesOptions are the flags of validate names.
type namesOptions struct {
	netns  string
	pid    int
	given  trace.MeshName
	output format
}

func newValidateNames(w *world) *cobra.Command {
	var o namesOptions
	cmd := &cobra.Command{
		Use:               "names [MESH [PROXY]]",
		Short:             "Are the names of a mesh and its proxies unambiguous?",
		Long:              validateNamesHelp,
		Example:           validateNamesExamples,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			if err := o.read(cmd, args); err != nil {
				return err
			}
			return w.validateNames(&o)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.netns, "netns", "", "names of the proxies in this network namespace: a name under /run/netns, a path, or its number")
	f.IntVar(&o.pid, "pid", 0, "names of the proxies in the network namespace of this process")
	f.StringVar(&o.given.Mesh, "mesh", "", "name of a mesh")
	f.StringVar(&o.given.Name, "proxy", "", "name of a proxy (data plane)")
	f.StringVar(&o.given.Name, "name", "", "the same as --proxy")
	f.StringVar(&o.given.Namespace, "namespace", "", "Kubernetes namespace of the proxy")
	f.StringVar(&o.given.Service, "service", "", "name of a service")
	o.output.flag(cmd)
	must(cmd.RegisterFlagCompletionFunc("netns", completeNetns))
	for _, name := range []string{"pid", "mesh", "proxy", "name", "namespace", "service"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// read takes flags and arguments.
func (o *namesOptions) read(cmd *cobra.Command, args []string) error {
	if err := namespaceFlags(cmd, o.netns, o.pid); err != nil {
		return err
	}
	flags := cmd.Flags()
	switch {
	case len(args) > 2:
		return usagef("a mesh and a proxy are taken, not %d names", len(args))
	case len(args) > 0 && flags.Changed("mesh"), len(args) > 1 && o.given.Name != "", flags.Changed("proxy") && flags.Changed("name"):
		return usagef("the same name is given twice")
	}
	for i, to := range []*string{&o.given.Mesh, &o.given.Name} {
		if i < len(args) {
			*to = args[i]
		}
	}
	for _, name := range []string{"mesh", "proxy", "name", "namespace", "service"} {
		if v, _ := flags.GetString(name); flags.Changed(name) && v == "" {
			return usagef("--%s is empty", name)
		}
	}
	if o.asked() && (o.netns != "" || o.pid != 0) {
		return usagef("either names are given, or --netns or --pid says where to find some")
	}
	return nil
}

// asked reports whether names were given.
func (o *namesOptions) asked() bool { return o.given != trace.MeshName{} }

// validateNames judges names, and tells the answer.
func (w *world) validateNames(o *namesOptions) error {
	names, place := []trace.MeshName{o.given}, trace.Place{}
	a := &answer{summary: &tracev1.Summary{Verdict: "ok", Nodes: 1}}
	if !o.asked() {
		var err error
		if names, place, err = o.processes(); err != nil && len(names) == 0 {
			return err
		} else if err != nil {
			a.summary.Losses = append(a.summary.Losses, &tracev1.Loss{Cause: err.Error(), Count: 1})
			w.note("not known: %v", err)
		}
		if len(names) == 0 {
			a.summary.Verdict = "incomplete"
			w.note("no kuma-dp with a name runs in that network namespace: name a mesh with --mesh")
			return w.printer(o.output).validated(a, "name")
		}
	}
	node, _ := os.Hostname()
	for i := range names {
		for _, f := range diagnose.MeshName(&names[i], place, time.Now()) {
			f.Where.Node = node
			a.findings = append(a.findings, stream.ProtoFinding(&f))
		}
	}
	a.summary.Paths, a.summary.Findings = uint32(len(names)), uint32(len(a.findings))
	switch {
	case len(a.findings) > 0:
		a.summary.Verdict = "fault"
	case len(a.summary.Losses) > 0:
		a.summary.Verdict = "incomplete"
	}
	return w.printer(o.output).validated(a, "name")
}

// processes finds the names that proxies in a namespace were given.
func (o *namesOptions) processes() ([]trace.MeshName, trace.Place, error) {
	inspector, err := redirect.New()
	if err != nil {
		return nil, trace.Place{}, noAgentf("%w", err)
	}
	defer inspector.Close()
	place, err := locate(inspector, o.netns, o.pid)
	if err != nil {
		return nil, place, err
	}
	want := "net:[" + strconv.FormatUint(uint64(place.Netns), 10) + "]"
	names, err := meshname.Processes(func(pid int) bool {
		got, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"))
		return err == nil && got == want
	})
	if err != nil {
		err = noAgentf("%w", err)
	}
	return names, place, err
}
