package redirect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// Describe says in a few lines what is redirected where, and what is not.
func Describe(r *trace.Redirection) []string {
	var out []string
	for i := range r.Families {
		f := &r.Families[i]
		out = append(out, describeFamily(r, f)...)
		for _, l := range f.Legs {
			if p := l.Probe; p.Done && p.Arrived {
				by := "the proxy"
				if p.Own {
					by = "a listener of our own"
				}
				out = append(out, fmt.Sprintf("probe: an %s connection of uid %d to %s was brought back to port %d (%s took it)", name(f.Six), l.UID, l.Packet.Dst.Addr(), l.Target.Port(), by))
			} else if p.Done {
				out = append(out, fmt.Sprintf("probe: an %s connection of uid %d to %s failed %d times: %s", name(f.Six), l.UID, l.Packet.Dst.Addr(), p.Tries, p.Failure))
			}
		}
	}
	if p := r.Proxy; p.Root {
		out = append(out, fmt.Sprintf("%s (pid %d) listens where traffic is redirected to and runs as root, which the rules do not let go: it is taken for uid %d; if it calls others as root, --proxy-uid 0 tells what becomes of that",
			p.Process.Comm, p.Process.PID, p.UID))
	}
	if !r.Loopback.Up {
		out = append(out, "lo is down")
	}
	return out
}

func describeFamily(r *trace.Redirection, f *trace.RedirectFamily) []string {
	var parts, out []string
	var doubts []string
	for _, role := range []trace.RedirectRole{trace.RoleOutbound, trace.RoleInbound, trace.RoleDNS, trace.RoleDNSTCP} {
		l := f.Leg(role)
		if l == nil {
			continue
		}
		if l.Taken {
			parts = append(parts, fmt.Sprintf("%s to port %d", role, l.Target.Port()))
		}
		if l.Zone != 0 {
			parts = append(parts, fmt.Sprintf("(conntrack zone %d)", l.Zone))
		}
		for _, d := range l.Doubts {
			if !slices.Contains(doubts, d) {
				doubts = append(doubts, d)
			}
		}
	}
	if !f.Six && f.DNSPort == 0 && !f.KnowsDNS {
		for _, s := range r.Strays {
			if s.Role == trace.RoleDNS {
				out = append(out, fmt.Sprintf("somebody listens on port %d, where a mesh's DNS does; no rule is about DNS", s.Local.Port()))
				break
			}
		}
	}
	if len(parts) == 0 {
		return out
	}
	whose := name(f.Six)
	if r.Mesh != "" {
		whose = r.Mesh + "'s rules, " + whose
	}
	line := fmt.Sprintf("%s (%s): %s", whose, backend(f), strings.Join(parts, ", "))
	if e := exclusions(f); e != "" {
		line += "; not " + e
	}
	out = append(out, line)
	for _, d := range doubts {
		out = append(out, fmt.Sprintf("%s: what %s does cannot be told from outside", name(f.Six), d))
	}
	if tcp, udp := f.Leg(trace.RoleDNSTCP), f.Leg(trace.RoleDNS); udp != nil && udp.Taken && tcp != nil && tcp.Taken && len(udp.Sockets) > 0 && len(tcp.Sockets) == 0 {
		out = append(out, fmt.Sprintf("%s: nobody takes DNS by TCP on port %d: an answer that does not fit a datagram is lost", name(f.Six), tcp.Target.Port()))
	}
	return out
}

func backend(f *trace.RedirectFamily) string {
	for _, l := range f.Legs {
		if l.Taken {
			return l.Backend
		}
	}
	return ""
}

// exclusions lists what goes past on purpose.
func exclusions(f *trace.RedirectFamily) string {
	var parts []string
	add := func(what string, list []string) {
		if len(list) > 0 {
			parts = append(parts, what+" "+strings.Join(list, " "))
		}
	}
	add("uid", texts(f.UIDs))
	add("gid", texts(f.GIDs))
	add("inbound ports", texts(f.Excluded.InboundPorts))
	add("outbound ports", texts(f.Excluded.OutboundPorts))
	add("destinations", texts(f.Excluded.Destinations))
	add("devices", f.Excluded.Devices)
	return strings.Join(parts, ", ")
}

func texts[T any](list []T) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = fmt.Sprint(list[i])
	}
	return out
}

// Paths are the sample packets, as paths that nothing has gone yet.
func Paths(r *trace.Redirection) []trace.Path {
	var out []trace.Path
	for i := range r.Families {
		f := &r.Families[i]
		if f.Unread {
			continue
		}
		for _, l := range f.Legs {
			hop := trace.Hop{Place: r.Place, Tuple: l.Packet}
			if l.Taken {
				hop.Tuple.Dst = l.Target
			}
			out = append(out, trace.Path{Protocol: l.Packet.Protocol, Client: l.Packet.Src, Server: l.Packet.Dst, Connection: l.Packet, Request: []trace.Hop{hop}})
		}
	}
	return out
}
