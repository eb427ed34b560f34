package redirect

import (
	"slices"
	"strings"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// dangling finds chains that would divert packets but have no part in it.
func (h *half) dangling() {
	for _, c := range h.mentions.Chains {
		if len(c.Reached) == 0 && !c.Base {
			h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
				Family: c.Family, Ports: c.Ports, Role: roleOf(c.Name, c.Ports)})
		}
	}
	h.unmatched()
	h.shadowed()
	for _, c := range h.rules.Chains() {
		if mesh.OfChain(c.Name) != nil && !slices.ContainsFunc(h.mentions.Chains, func(d netfilter.DivertingChain) bool { return d.Name == c.Name && d.Table == c.Table }) {
			h.family.IdleChains = append(h.family.IdleChains, c.Name)
		}
	}
	// Chains that packets come through, of a mesh, where nothing takes them and nothing lets them go.
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || l.Excused {
			continue
		}
		for _, chain := range l.Chains {
			if mesh.OfChain(chain) == nil {
				continue
			}
			at := h.rules.Chain(chain)
			h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: chain, Table: at.Table, Backend: at.Backend,
				Family: at.Family, Role: role, Hooked: true})
		}
	}
}

// shadowed finds rules that divert, before which another lets all the traffic go.
func (h *half) shadowed() {
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || !l.Excused || len(l.Doubts) > 0 {
			continue
		}
		var known []uint16 // ports of other roles
		if role == trace.RoleOutbound {
			for i := range h.family.Legs {
				if o := &h.family.Legs[i]; o.Taken {
					known = append(known, o.Target.Port())
				}
			}
			for _, m := range mesh.Known {
				known = append(append(known, m.Inbound...), m.DNS...)
			}
		}
		for _, c := range h.mentions.Chains {
			ports := slices.DeleteFunc(slices.Clone(c.Ports), func(p uint16) bool { return slices.Contains(known, p) })
			if c.Name == l.Chain && c.Table == l.Table && len(ports) > 0 {
				h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
					Family: c.Family, Ports: ports, Role: role, Shadowed: true})
				break
			}
		}
	}
}

// unmatched finds a mesh's chains that rules lead to, none of which fits what the chain is for.
func (h *half) unmatched() {
	h.ofNoDevice()
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || l.Excused || len(l.Doubts) > 0 || len(l.Chains) > 0 {
			continue
		}
		hook := map[bool]trace.NetfilterHook{true: trace.Prerouting, false: trace.Output}[role == trace.RoleInbound]
		for _, c := range h.mentions.Chains {
			if !c.Base && slices.Contains(c.Reached, hook) && mesh.OfChain(c.Name) != nil && roleOf(c.Name, c.Ports) == role {
				h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
					Family: c.Family, Ports: c.Ports, Role: role, Unmatched: true})
				break
			}
		}
	}
}

// ofNoDevice finds chains of nobody's mesh that are to divert what comes in, and rules that ask for a device which
// is not here: where what applications send is redirected, and somebody listens for the other.
func (h *half) ofNoDevice() {
	l := h.family.Leg(trace.RoleInbound)
	there := func(name string) bool {
		return slices.ContainsFunc(h.links, func(l link) bool { return l.Name == name })
	}
	if l == nil || l.Taken || l.Excused || len(l.Doubts) > 0 || !h.family.Takes(trace.RoleOutbound) || !slices.ContainsFunc(h.mentions.In, func(d string) bool { return !there(d) }) {
		return
	}
	heard := func(p uint16) bool {
		return slices.ContainsFunc(h.sockets, func(s trace.Socket) bool { return s.Protocol == trace.TCP && s.Local.Port() == p })
	}
	var found *trace.RedirectChain
	for _, c := range h.mentions.Chains {
		if mesh.OfChain(c.Name) == nil && slices.Equal(c.Reached, []trace.NetfilterHook{trace.Prerouting}) && slices.ContainsFunc(c.Ports, heard) && (found == nil || found.Base) {
			found = &trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend, Family: c.Family, Ports: c.Ports, Role: trace.RoleInbound, Unmatched: true, Base: c.Base}
		}
	}
	if found != nil {
		h.family.Dangling = append(h.family.Dangling, *found)
	}
}

// roleOf tells what a chain is for: by its name, or else by its ports.
func roleOf(chain string, ports []uint16) trace.RedirectRole {
	if m := mesh.OfChain(chain); m != nil {
		if m.IsInbound(chain) {
			return trace.RoleInbound
		}
		return trace.RoleOutbound
	}
	for _, m := range mesh.Known {
		for _, p := range ports {
			switch {
			case slices.Contains(m.Inbound, p):
				return trace.RoleInbound
			case slices.Contains(m.DNS, p):
				return trace.RoleDNS
			case slices.Contains(m.Outbound, p):
				return trace.RoleOutbound
			}
		}
	}
	if strings.Contains(strings.ToLower(chain), "in") && !strings.Contains(strings.ToLower(chain), "out") {
		return trace.RoleInbound
	}
	return trace.RoleOutbound
}

// strays finds sockets at a proxy's well-known ports to which nothing is redirected.
func (n *inspection) strays() {
	meshes := mesh.Known[:2] // of none by name: the ports that most have
	if m := mesh.Named(n.r.Mesh); m != nil {
		meshes = []mesh.Mesh{*m}
	}
	for _, m := range meshes {
		n.stray(trace.RoleOutbound, trace.TCP, m.Outbound)
		n.stray(trace.RoleInbound, trace.TCP, m.Inbound)
		n.stray(trace.RoleDNS, trace.UDP, m.DNS)
	}
	named := make([]trace.Socket, len(n.r.Strays))
	for i := range named {
		named[i] = n.r.Strays[i].Socket
	}
	netstate.NameOwners(n.ctx, named)
	for i := range named {
		n.r.Strays[i].Socket = named[i]
	}
}

func (n *inspection) stray(role trace.RedirectRole, protocol trace.Protocol, ports []uint16) {
	at := func(s trace.Socket) int { return slices.Index(ports, s.Local.Port()) }
	sockets := slices.Clone(n.sockets)
	slices.SortStableFunc(sockets, func(a, b trace.Socket) int { return at(a) - at(b) })
	for _, s := range sockets {
		if s.Protocol != protocol || at(s) < 0 {
			continue
		}
		if slices.ContainsFunc(n.r.Strays, func(t trace.RedirectStray) bool { return t.Inode == s.Inode }) {
			continue
		}
		n.r.Strays = append(n.r.Strays, trace.RedirectStray{Role: role, Socket: s})
	}
}
