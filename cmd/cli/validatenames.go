package main

import (
	"io"
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

Names are those of MESH and PROXY, of the flags, or of the resources in a file
(--file: Dataplane and Mesh, and what Kubernetes labels with a mesh); without any,
those that the kuma-dp processes in this network namespace, or that of --netns or
--pid, were given: on their command line, in their environment, and in the
Dataplane that they were started with.

Exit: 0 sound, 1 findings, 2 usage, 3 no name was found, or not all could be read.`

const validateNamesExamples = `  replypath validate names --mesh aa.a --proxy dp-1
  replypath validate names --mesh default --proxy web --namespace shop
  replypath validate names --file dataplane.yaml --var name=web-1
  sudo replypath validate names --netns pod
  sudo replypath validate names --pid 4711 -o json`

// namesOptions are the flags of validate names.
type namesOptions struct {
	netns  string
	pid    int
	given  trace.MeshName
	file   string
	vars   map[string]string
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
	f.StringVarP(&o.file, "file", "f", "", "names of the resources in this file, YAML or JSON; -: standard input")
	f.StringToStringVar(&o.vars, "var", nil, "what a variable of that file stands for, as kuma-dp's --dataplane-var: name=value")
	o.output.flag(cmd)
	must(cmd.RegisterFlagCompletionFunc("netns", completeNetns))
	for _, name := range []string{"pid", "mesh", "proxy", "name", "namespace", "service", "var"} {
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
	if o.asked() && (o.netns != "" || o.pid != 0) || o.file != "" && (o.asked() || o.netns != "" || o.pid != 0) {
		return usagef("either names are given, or --netns, --pid or --file says where to find some")
	}
	if len(o.vars) > 0 && o.file == "" {
		return usagef("--var is for variables in a --file")
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
		if names, place, err = w.findNames(o); err != nil && len(names) == 0 {
			return err
		} else if err != nil {
			a.summary.Losses = append(a.summary.Losses, &tracev1.Loss{Cause: err.Error(), Count: 1})
			w.note("not known: %v", err)
		}
		if len(names) == 0 {
			a.summary.Verdict = "incomplete"
			w.note("%s", o.nothing())
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

// findNames looks where names are to be found.
func (w *world) findNames(o *namesOptions) ([]trace.MeshName, trace.Place, error) {
	if o.file == "" {
		return o.processes()
	}
	read := func() ([]byte, error) { return os.ReadFile(o.file) }
	if o.file == "-" {
		read = func() ([]byte, error) { return io.ReadAll(w.stdin) }
	}
	text, err := read()
	if err != nil {
		return nil, trace.Place{}, usagef("read resources: %w", err)
	}
	names, err := meshname.Resources(text, o.vars, o.file)
	if err != nil {
		err = usagef("%w", err)
	}
	return names, trace.Place{}, err
}

// nothing says that no name was found.
func (o *namesOptions) nothing() string {
	if o.file != "" {
		return "no resource in " + o.file + " names a mesh, or what is in one"
	}
	return "no kuma-dp with a name runs in that network namespace: name a mesh with --mesh"
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
