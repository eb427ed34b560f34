package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/replypath/replypath/internal/agent"
	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/internal/version"
)

// options are what flags and environment set.
type options struct {
	agent               agent.Config
	logLevel, logFormat string
	dnsNames            bool
	started             bool // the arguments were good
}

const longHelp = `replypath-agent watches this node's kernel for replies that do not come back, and
answers the replypath CLI.

It needs CAP_BPF and CAP_PERFMON to trace, CAP_NET_ADMIN to read filter rules, and
CAP_SYS_ADMIN and CAP_SYS_PTRACE to look into other network namespaces. It changes
nothing on the host.

Each flag can also be set in the environment: --metrics-listen is REPLYPATH_METRICS_LISTEN.`

type environment func(name string) (string, bool)

func newCommand(o *options, env environment, start func() error) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "replypath-agent",
		Short:         "Watch this node for replies that do not come back",
		Long:          longHelp,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := setFromEnvironment(cmd.Flags(), env); err != nil {
				return err
			}
			o.started = true
			if o.dnsNames {
				o.agent.DNSNames = metrics.MaxSeries
			}
			return start()
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&o.agent.Listen, "listen", []string{agent.DefaultListen}, "addresses to serve gRPC on: unix:///path, or tcp://host:port with TLS")
	f.StringVar(&o.agent.MetricsListen, "metrics-listen", agent.DefaultMetricsListen, "address to serve /metrics, /healthz and /readyz on; empty: do not")
	f.StringVar(&o.agent.TLS.Cert, "tls-cert", "", "server certificate (PEM), for tcp://")
	f.StringVar(&o.agent.TLS.Key, "tls-key", "", "its private key (PEM)")
	f.StringVar(&o.agent.TLS.ClientCA, "tls-client-ca", "", "certificates that clients must be signed by (PEM)")
	f.StringVar(&o.agent.Node, "node-name", "", "name of this node in findings (default: its host name)")
	f.DurationVar(&o.agent.MaxAge, "max-age", agent.DefaultMaxAge, "how long findings and paths are kept")
	f.IntVar(&o.agent.MaxBytes, "max-bytes", agent.DefaultMaxBytes, "memory for kept findings and paths, in bytes")
	f.IntVar(&o.agent.RingBytes, "ring-bytes", agent.DefaultRingBytes, "ring buffer between kernel and agent, in bytes, a power of two")
	f.StringVar(&o.agent.BTF, "btf", "", "file with the BTF of this kernel, for kernels that do not show their own")
	f.StringVar(&o.agent.Tier, "tier", "auto", "hooks to use: base (tracepoints) or auto (kernel functions too, where the kernel lets them be followed)")
	f.Var((*agent.PortList)(&o.agent.DNSPorts), "dns-port", "a port that DNS is spoken on, beside 53 and those that 53 is redirected to; may be given more than once")
	f.BoolVar(&o.dnsNames, "metrics-dns-names", false, "also count DNS queries by name, the first 64 names")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	return cmd
}

// setFromEnvironment sets the flags that the command line does not from REPLYPATH_ variables.
func setFromEnvironment(flags *pflag.FlagSet, lookup environment) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "REPLYPATH_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || f.Changed || f.Name == "help" || f.Name == "version" {
			return
		}
		if err := f.Value.Set(value); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
		}
	})
	return errors.Join(errs...)
}
