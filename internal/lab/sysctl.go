package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
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
// It is done often: without the poller's registration, which os.File brings.
func writeSysctl(s Sysctl) error {
	file, err := unix.Open(s.path(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set %s=%s: %w", s.Name, s.Value, err)
	}
	_, err = unix.Write(file, []byte(s.Value))
	return wrap("set "+s.Name+"="+s.Value, errors.Join(err, unix.Close(file)))
}

// path is the setting's file.
func (s Sysctl) path() string { return "/proc/sys/" + strings.ReplaceAll(s.Name, ".", "/") }

// writeBaseline sets the baseline. A kernel without IPv6 can still run the IPv4 labs.
func writeBaseline(f Family) error {
	for _, s := range departures.find() {
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

// departures are the settings of the baseline that a new namespace does not have by itself.
var departures departing

type departing struct {
	once     sync.Once
	settings []Sysctl
}

// find has them from the calling thread's namespace, which is new and the first of this process;
// the others begin as it did. Each is set before the next is read, as some reset others.
func (d *departing) find() []Sysctl {
	d.once.Do(func() {
		for _, s := range baseline() {
			value, err := os.ReadFile(s.path())
			if err == nil && strings.TrimSpace(string(value)) == s.Value {
				continue
			}
			d.settings = append(d.settings, s)
			writeSysctl(s) // reported by whoever sets it for good
		}
	})
	return d.settings
}
