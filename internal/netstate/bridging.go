package netstate

import (
	"context"
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Bridging is what a bridge, or a port of one, lets pass.
type Bridging struct {
	Filtering bool // a bridge: frames belong to VLANs
	Blocked   bool // a port: it forwards nothing, as its state is not "forwarding"
	Isolated  bool // a port: nothing passes to other ports that are isolated
	Hairpin   bool // a port: frames may leave by it that came by it
	VLANs     []BridgeVLAN
}

// BridgeVLAN is a VLAN that a port (or the bridge itself) is a member of.
type BridgeVLAN struct {
	ID       int
	PVID     bool // of untagged frames that come in
	Untagged bool // frames leave without a tag
}

// Enters returns the VLAN of a frame that comes in with a tag; 0: none. False: it is dropped.
func (b *Bridging) Enters(filtering bool, tag int) (int, bool) {
	if !filtering {
		return tag, true
	}
	i := slices.IndexFunc(b.VLANs, func(v BridgeVLAN) bool { return v.ID == tag || tag == 0 && v.PVID })
	if i < 0 {
		return 0, false
	}
	return b.VLANs[i].ID, true
}

// Leaves returns the tag with which a frame of a VLAN leaves. False: it does not.
func (b *Bridging) Leaves(filtering bool, vlan int) (int, bool) {
	if !filtering {
		return vlan, true
	}
	i := slices.IndexFunc(b.VLANs, func(v BridgeVLAN) bool { return v.ID == vlan })
	if i < 0 {
		return 0, false
	}
	if b.VLANs[i].Untagged {
		return 0, true
	}
	return vlan, true
}

// Attributes of a bridge's port (include/uapi/linux/if_link.h), and the state of one that forwards (if_bridge.h).
const (
	portState       = 1  // IFLA_BRPORT_STATE
	portMode        = 4  // IFLA_BRPORT_MODE: hairpin
	portIsolated    = 33 // IFLA_BRPORT_ISOLATED
	stateForwarding = 3  // BR_STATE_FORWARDING
)

// readBridging adds what the bridges of the calling thread's namespace let pass.
func (t *Topology) readBridging(ns trace.Netns, h *netlink.Handle, links []netlink.Link) error {
	filtering, bridges := false, false
	for _, l := range links {
		b, ok := l.(*netlink.Bridge)
		bridges = bridges || ok
		if ok && b.VlanFiltering != nil && *b.VlanFiltering {
			filtering = true
			t.Links[Port{ns, uint32(b.Index)}].Bridging.Filtering = true
		}
	}
	if !bridges {
		return nil
	}
	err := t.readPorts(ns)
	if !filtering {
		return err
	}
	vlans, failed := h.BridgeVlanList()
	for index, members := range vlans {
		l := t.Links[Port{ns, uint32(index)}]
		if l == nil {
			continue
		}
		for _, v := range members {
			l.Bridging.VLANs = append(l.Bridging.VLANs, BridgeVLAN{ID: int(v.Vid), PVID: v.PortVID(), Untagged: v.EngressUntag()})
		}
	}
	return errors.Join(err, failed)
}

// readPorts reads the state of bridges' ports.
func (t *Topology) readPorts(ns trace.Netns) error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	rtnl, err := dialSocket(unix.NETLINK_ROUTE, true)
	if err != nil {
		return err
	}
	defer rtnl.Close()
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	return rtnl.exchange(ctx, request, func(b []byte) bool {
		if len(b) < unix.SizeofIfInfomsg {
			return true
		}
		l := t.Links[Port{ns, uint32Of(b[4:])}]
		for kind, value := range attributes(b[unix.SizeofIfInfomsg:]) {
			if kind != unix.IFLA_PROTINFO || l == nil {
				continue
			}
			for key, value := range attributes(value) {
				switch key {
				case portState:
					l.Bridging.Blocked = uint8Of(value) != stateForwarding
				case portMode:
					l.Bridging.Hairpin = uint8Of(value) != 0
				case portIsolated:
					l.Bridging.Isolated = uint8Of(value) != 0
				}
			}
		}
		return true
	})
}
