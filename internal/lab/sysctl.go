package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// baseline are the settings that labs rely on. A new namespace may inherit the
// host's (net.core.devconf_inherit_init_net), so that each is set explicitly,
// before there are devices. Forwarding comes first: it resets others.
func baseline() []Sysctl {
	var all []Sysctl
	for _, scope := range []string{"all", "default", "lo"} {
		for _, s := range []Sysctl{
			{"forwarding", "0"}, {"rp_filter", "0"}, {"log_martians", "0"}, {"accept_local", "0"},
			{"accept_redirects", "0"}, {"send_redirects", "1"}, {"arp_ignore", "0"}, {"arp_announce", "0"},
			{"arp_filter", "0"}, {"proxy_arp", "0"}, {"route_localnet", "0"}, {"src_valid_mark", "0"},
		} {
			all = append(all, Sysctl{"net.ipv4.conf." + scope + "." + s.Name, s.Value})
		}
		for _, s := range []Sysctl{
			{"disable_ipv6", "0"}, {"forwarding", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}, {"accept_redirects", "0"},
		} {
			all = append(all, Sysctl{"net.ipv6.conf." + scope + "." + s.Name, s.Value})
		}
	}
	return all
}

// forwarding returns the sysctl that lets a namespace forward packets of the family.
func forwarding(f Family) string {
	if f == IPv6 {
		return "net.ipv6.conf.all.forwarding"
	}
	return "net.ipv4.ip_forward"
}

// writeSysctl sets a kernel setting of the calling thread's network namespace.
func writeSysctl(s Sysctl) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(s.Name, ".", "/"))
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set %s=%s: %w", s.Name, s.Value, err)
	}
	_, err = file.WriteString(s.Value)
	return wrap("set "+s.Name+"="+s.Value, errors.Join(err, file.Close()))
}

// writeBaseline sets the baseline. A kernel without IPv6 can still run the IPv4 labs.
func writeBaseline(f Family) error {
	for _, s := range baseline() {
		err := writeSysctl(s)
		if f == IPv4 && strings.HasPrefix(s.Name, "net.ipv6.") && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
