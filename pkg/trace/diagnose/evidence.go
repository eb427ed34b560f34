package diagnose

import (
	"fmt"
	"syscall"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// seen tells what the kernel showed of the case, in the order of time.
func seen(c *trace.Case) []trace.Evidence {
	var out []trace.Evidence
	add := func(t time.Time, format string, args ...any) {
		out = append(out, trace.Evidence{Time: t, Text: fmt.Sprintf(format, args...)})
	}
	ev := &c.Event
	if c.Asked {
		add(ev.Time, "asked before there is traffic: what would %s do with the %s %s -> %s%s?", name(c.Place), packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, comingBy(c))
		return out
	}
	if a := &c.Arrival; a.Hook == trace.HookReceive && !ev.Carried.Known() {
		add(a.Time, "%s %s -> %s came in on %s of %s", packetName(a), a.Tuple.Src, a.Tuple.Dst, a.Device.Name, name(c.Place))
	}
	if m := &c.Miss; m.Hook != trace.HookUnknown && m.Table == tableLocal {
		add(m.Time, "the way %s -> %s was looked for in %s", m.Tuple.Src.Addr(), m.Tuple.Dst.Addr(), name(c.Place))
	} else if m.Hook != trace.HookUnknown {
		add(m.Time, "route lookup %s -> %s failed in %s (%s, table %s)", m.Tuple.Src.Addr(), m.Tuple.Dst.Addr(),
			name(c.Place), missText(m.Errno), showTable(m.Table))
	}
	switch c.Symptom {
	case trace.SymptomDrop:
		add(ev.Time, "%s dropped the %s %s -> %s (%s)", name(c.Place), packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, dropText(ev))
		if c.Verdict.Known() {
			add(ev.Time, "the kernel's own verdict: dropped by %s at hook %s", judge(c.Verdict), c.Verdict.Hook)
		}
	case trace.SymptomSilence:
		add(ev.Time, "no answer left %s within 200ms", name(c.Place))
	case trace.SymptomRefused:
		answer := "a reset"
		if ev.Tuple.Protocol == trace.UDP {
			answer = "ICMP port unreachable"
		}
		add(ev.Time, "%s answered with %s: no socket took the %s", name(c.Place), answer, packetName(ev))
	case trace.SymptomDeaf:
		add(ev.Time, "%s has %s on %s, and did not answer ARP requests from %s", name(c.Place), ev.Tuple.Dst.Addr(), ev.Device.Name, ev.Tuple.Src.Addr())
	case trace.SymptomTooBig:
		if told := &c.TooBig; told.Hook != trace.HookUnknown && told.Hook != trace.HookDrop {
			add(told.Time, "%s said that a packet %s -> %s is too big (ICMP)", name(c.TooBigPlace), told.Tuple.Src, told.Tuple.Dst)
		}
		if ev.Hook == trace.HookDrop {
			add(ev.Time, "%s dropped an ICMP error that says so (%s)", name(c.Place), dropText(ev))
		} else {
			add(ev.Time, "%s said so again: bigger packets still came", name(c.Place))
		}
	case trace.SymptomAstray:
		add(ev.Time, "%s sent the SYN-ACK %s -> %s by %s", name(c.Place), ev.Tuple.Src, ev.Tuple.Dst, ev.Device.Name)
	case trace.SymptomMisaddressed:
		add(ev.Time, "the answer came back as %s -> %s, and the client had asked %s", ev.Tuple.Src, ev.Tuple.Dst, c.Path.Server)
	case trace.SymptomMisled:
		add(ev.Time, "the %s %s -> %s left %s by %s and was lost", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, name(c.Place), ev.Device.Name)
	case trace.SymptomVanished:
		add(ev.Time, "the answer %s -> %s left %s by %s and was lost", ev.Tuple.Src, ev.Tuple.Dst, name(c.Place), ev.Device.Name)
	case trace.SymptomUnsent:
		way := fmt.Sprintf("leads off lo, by %s", ev.Device.Name)
		if ev.Errno != 0 {
			way = "failed: " + missText(ev.Errno)
		} else if ev.Device.Name == "" {
			way = "leads off lo"
		}
		add(ev.Time, "the route lookup of a socket in %s, %s -> %s, %s", name(c.Place), ev.Tuple.Src.Addr(), ev.Tuple.Dst, way)
	case trace.SymptomSwallowed:
		add(ev.Time, "the %s %s -> %s was not seen again after that, and the request was repeated", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst)
	case trace.SymptomUnmatched:
		if ev.Tuple.Protocol == trace.UDP {
			add(ev.Time, "a datagram of the live exchange was taken by no socket: nobody knew it by the addresses that it came with")
			break
		}
		add(ev.Time, "a packet of the live connection was refused with a reset: nobody knew it by the addresses that it came with")
	case trace.SymptomLoop:
		if n := len(Circle(c)); n > 0 {
			add(ev.Time, "the same packet came by again and again, with %d hops left to live", ev.TTL)
		}
		if ev.ICMPType != 0 {
			add(ev.Time, "the packet's hop limit ran out (ICMP time exceeded)")
		}
	}
	return out
}

// comingBy tells by which device the packet would come in.
func comingBy(c *trace.Case) string {
	switch {
	case c.Event.InIndex == 0:
		return ""
	case c.Arrival.Device.Name != "":
		return ", in by " + c.Arrival.Device.Name
	}
	return fmt.Sprintf(", in by device %d", c.Event.InIndex)
}

// tense chooses the words for what happened, or would happen.
func tense(c *trace.Case, happened, would string) string {
	if c.Asked {
		return would
	}
	return happened
}

func packetName(ev *trace.Event) string {
	switch {
	case ev.Carried.Known():
		return fmt.Sprintf("tunnel packet (%s) with the %s", ev.Carried.Kind, carriedName(&ev.Carried))
	case ev.Flags.IsSYN() || ev.Flags.IsSYNACK():
		return ev.Flags.String()
	}
	if ev.Tuple.Protocol == trace.UDP {
		return "datagram"
	}
	return "packet"
}

// dropText is the kernel's own word for a drop.
func dropText(ev *trace.Event) string {
	reason := ev.Reason
	if reason == "" {
		reason = "no reason given"
	}
	if ev.Symbol != "" {
		reason += " in " + ev.Symbol
	}
	if ev.Device.Name != "" {
		reason += ", device " + ev.Device.Name
	}
	return reason
}

// judge names who gave a verdict.
func judge(v trace.Verdict) string {
	switch v.By {
	case trace.ByChain:
		return fmt.Sprintf("chain %s of nftables table %s", v.Chain, v.Table)
	case trace.ByTable:
		return fmt.Sprintf("table %s of iptables-legacy", v.Table)
	case trace.ByConntrack:
		return "connection tracking"
	}
	return "netfilter"
}

// missText says why a route lookup failed.
func missText(e syscall.Errno) string {
	switch e {
	case syscall.EAGAIN, syscall.ENETUNREACH:
		return "no match"
	case syscall.EINVAL:
		return "blackhole"
	case syscall.EHOSTUNREACH:
		return "unreachable"
	case syscall.EACCES:
		return "prohibited"
	}
	return e.Error()
}

// state is one line of what the host said when it was asked.
func state(s *trace.HostState, format string, args ...any) trace.Evidence {
	return trace.Evidence{Time: s.ReadAt, Text: fmt.Sprintf(format, args...)}
}
