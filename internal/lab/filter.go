package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Chain is an nftables chain; its table is made with it.
type Chain struct {
	Family   nftables.TableFamily // 0: inet
	Table    string
	Name     string
	Hook     trace.NetfilterHook // "": a chain that others jump to
	Type     nftables.ChainType  // "": filter
	Priority nftables.ChainPriority
	Device   string // of an ingress chain
	Drop     bool   // the policy is drop instead of accept
	Rules    []FilterRule
}

// FilterRule is an nftables rule: all matches must hold for the verdict to be reached.
type FilterRule struct {
	Comment string
	Matches [][]expr.Any
	Verdict []expr.Any
}

// rule puts a rule together; every rule counts.
func rule(comment string, verdict []expr.Any, matches ...[]expr.Any) FilterRule {
	return FilterRule{Comment: comment, Matches: matches, Verdict: verdict}
}

// expressions returns the rule as the kernel takes it. A table of one IP version
// knows which it is: nft 1.0.6 ends on an assertion when it is asked there.
func (r FilterRule) expressions(family nftables.TableFamily) []expr.Any {
	var all []expr.Any
	for _, m := range r.Matches {
		if asked, ok := m[0].(*expr.Meta); ok && asked.Key == expr.MetaKeyNFPROTO && (family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6) {
			m = m[2:]
		}
		all = append(all, m...)
	}
	all = append(all, &expr.Counter{})
	return append(all, r.Verdict...)
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func accept() []expr.Any              { return verdict(expr.VerdictAccept, "") }
func drop() []expr.Any                { return verdict(expr.VerdictDrop, "") }
func jump(chain string) []expr.Any    { return verdict(expr.VerdictJump, chain) }
func masquerade() []expr.Any          { return []expr.Any{&expr.Masq{}} }
func toPort(port uint16) []expr.Any   { return transportPort(unix.IPPROTO_TCP, 2, port) }
func fromPort(port uint16) []expr.Any { return transportPort(unix.IPPROTO_TCP, 0, port) }

// transportPort matches a port at an offset of the transport header.
func transportPort(protocol byte, offset uint32, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// toUDPPort and fromUDPPort match a UDP port.
func toUDPPort(port uint16) []expr.Any   { return transportPort(unix.IPPROTO_UDP, 2, port) }
func fromUDPPort(port uint16) []expr.Any { return transportPort(unix.IPPROTO_UDP, 0, port) }

// toAddress matches the destination address.
func toAddress(a netip.Addr) []expr.Any {
	if a.Is6() {
		return networkField(unix.NFPROTO_IPV6, 24, a)
	}
	return networkField(unix.NFPROTO_IPV4, 16, a)
}

// fromAddress matches the source address.
func fromAddress(a netip.Addr) []expr.Any {
	if a.Is6() {
		return networkField(unix.NFPROTO_IPV6, 8, a)
	}
	return networkField(unix.NFPROTO_IPV4, 12, a)
}

// networkField matches an address at an offset of the network header.
func networkField(family byte, offset uint32, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// established matches packets of connections that conntrack has seen both sides of, and what belongs to them.
func established() []expr.Any { return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// invalid matches packets that conntrack knows no connection for.
func invalid() []expr.Any { return ctState(expr.CtStateBitINVALID) }

// ctState matches packets in one of some states of connection tracking.
func ctState(bits uint32) []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(bits)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// icmpv6 matches ICMPv6, without which IPv6 finds no neighbours.
func icmpv6() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
	}
}

// dnat rewrites the destination.
func dnat(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// ipFamily is the nftables family for tables of one IP version.
func ipFamily(f Family) nftables.TableFamily {
	if f == IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// hooks are the kernel's numbers of the hooks.
var hooks = map[trace.NetfilterHook]*nftables.ChainHook{
	trace.Prerouting: nftables.ChainHookPrerouting, trace.Input: nftables.ChainHookInput, trace.Forward: nftables.ChainHookForward,
	trace.Output: nftables.ChainHookOutput, trace.Postrouting: nftables.ChainHookPostrouting, trace.Ingress: nftables.ChainHookIngress,
}

// addChains makes chains and their tables, in one transaction.
func (h *host) addChains(chains []Chain) error {
	if len(chains) == 0 {
		return nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns)))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", h.netns, err)
	}
	made := make([]*nftables.Chain, len(chains))
	for i, c := range chains {
		made[i] = conn.AddChain(c.declaration(conn))
	}
	for i, c := range chains {
		for _, r := range c.Rules {
			added := &nftables.Rule{Table: made[i].Table, Chain: made[i], Exprs: r.expressions(made[i].Table.Family)}
			if r.Comment != "" {
				added.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Comment)
			}
			conn.AddRule(added)
		}
	}
	return wrap("add nftables chains", conn.Flush())
}

// declaration returns the chain, empty, in its table.
func (c Chain) declaration(conn *nftables.Conn) *nftables.Chain {
	family := c.Family
	if family == 0 {
		family = nftables.TableFamilyINet
	}
	chain := &nftables.Chain{Name: c.Name, Table: conn.AddTable(&nftables.Table{Family: family, Name: c.Table})}
	if c.Hook == "" {
		return chain
	}
	policy := nftables.ChainPolicyAccept
	if c.Drop {
		policy = nftables.ChainPolicyDrop
	}
	chain.Type = c.Type
	if chain.Type == "" {
		chain.Type = nftables.ChainTypeFilter
	}
	chain.Hooknum, chain.Priority, chain.Policy, chain.Device = hooks[c.Hook], &c.Priority, &policy, c.Device
	return chain
}
