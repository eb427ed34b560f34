package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/replypath/replypath/internal/lab"
)

const labHelp = `The fault lab builds a network with a fault in it, in network namespaces of its
own, so that anyone can see a lost reply explained. The machine's own network is
never touched. It needs root.`

func newLab(w *world, s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "lab",
		Short:   "Build a broken network and see it explained",
		Long:    labHelp,
		Example: "  replypath lab list\n  sudo replypath lab run dsr-no-route\n  sudo replypath lab run --all",
		GroupID: groupTry,
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLabList(w), newLabRun(w, s), newLabUp(w), newLabDown(w), newLabServe(w))
	return cmd
}

func newLabList(w *world) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs, and the finding that each must give",
		Args:  cobra.NoArgs,
		RunE: command(func(*cobra.Command, []string) error {
			t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tFINDING\tTITLE")
			for _, l := range lab.All() {
				title := l.Title
				if missing := l.Missing(); missing != "" {
					title += " (needs " + missing + ")"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", l.Name, expectation(l), title)
			}
			return t.Flush()
		}),
	}
}

// expectation is the finding that a lab must give, or "none".
func expectation(l lab.Lab) string {
	if l.Healthy() {
		return "none"
	}
	return l.Finding
}

func newLabUp(w *world) *cobra.Command {
	return &cobra.Command{
		Use:   "up NAME",
		Short: "Build a lab and leave it standing",
		Long: `Build a lab and leave it standing, with its services, until "replypath lab down".
Its namespaces are listed, and a command that meets the fault.`,
		Example:           "  sudo replypath lab up dsr-no-route",
		Args:              oneLab,
		ValidArgsFunction: completeLab,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			l, err := w.chosenLab(args[0])
			if err != nil {
				return err
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			n, err := lab.Up(ctx, l, w.stderr)
			if err != nil {
				return noAgentf("%w", err)
			}
			if err := n.Detach(); err != nil {
				return noAgentf("%w", errors.Join(err, n.Down()))
			}
			return tellLab(w.stdout, l, n.Namespaces())
		}),
	}
}

// tellLab says what stands and what can be done with it.
func tellLab(out io.Writer, l lab.Lab, namespaces map[string]string) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s is up: %s\n\n", l.Name, l.Title)
	fmt.Fprintln(t, "HOST\tNAMESPACE")
	for _, host := range slices.Sorted(maps.Keys(namespaces)) {
		fmt.Fprintf(t, "%s\t%s\n", host, namespaces[host])
	}
	c := l.Topology.Client
	try := "</dev/tcp/%s/%d"
	if c.UDP {
		try = "exec 3<>/dev/udp/%s/%d; echo hello >&3; head -c 5 <&3"
	}
	fmt.Fprintf(t, "\ntry     replypath explain -- ip netns exec %s timeout 3 bash -c '%s'\n",
		namespaces[c.Host], fmt.Sprintf(try, c.Server.Addr(), c.Server.Port()))
	fmt.Fprintf(t, "remove  replypath lab down\n")
	return t.Flush()
}

func newLabDown(w *world) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove all labs that stand",
		Long: `Remove the labs that were left standing by "lab up" or by a process that was
killed. A lab that a running process uses is left alone.`,
		Args: cobra.NoArgs,
		RunE: command(func(cmd *cobra.Command, _ []string) error {
			if err := w.rootOnly(); err != nil {
				return err
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			removed, err := lab.DownAll(ctx)
			for _, name := range removed {
				fmt.Fprintln(w.stdout, "removed", name)
			}
			if err != nil {
				return noAgentf("%w", err)
			}
			if len(removed) == 0 {
				w.note("no lab stands")
			}
			return nil
		}),
	}
}

// newLabServe is the process that lab up leaves behind; see lab.Serve.
func newLabServe(w *world) *cobra.Command {
	return &cobra.Command{
		Use:    "serve",
		Short:  "Answer in a lab that stands (started by lab up)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: command(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			return lab.Serve(ctx)
		}),
	}
}

func oneLab(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 1:
		return nil
	case 0:
		return usagef("which lab? 'replypath lab list' names them")
	}
	return usagef("one lab at a time, not %d", len(args))
}

// chosenLab finds a lab and checks that it can be built.
func (w *world) chosenLab(name string) (lab.Lab, error) {
	l, ok := lab.Find(name)
	if !ok {
		return l, usagef("unknown lab %q: 'replypath lab list' names them", name)
	}
	if missing := l.Missing(); missing != "" {
		return l, noAgentf("lab %s cannot be built here: it needs %s", l.Name, missing)
	}
	return l, w.rootOnly()
}

// buildable leaves out the labs that this machine lacks something for, and says so.
func (w *world) buildable(labs []lab.Lab) []lab.Lab {
	skipped := map[string]int{}
	labs = slices.DeleteFunc(labs, func(l lab.Lab) bool {
		missing := l.Missing()
		if missing != "" {
			skipped[missing]++
		}
		return missing != ""
	})
	for _, missing := range slices.Sorted(maps.Keys(skipped)) {
		w.note("skipped %d labs that cannot be built here: they need %s", skipped[missing], missing)
	}
	return labs
}

func (w *world) rootOnly() error {
	if w.euid() != 0 {
		return noAgentf("labs are made of network namespaces, and that takes root: run this with sudo")
	}
	return nil
}

func completeLab(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, l := range lab.All() {
		names = append(names, cobra.CompletionWithDesc(l.Name, l.Title))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
