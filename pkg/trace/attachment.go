package trace

// AttachPoint is where a program or filter of tc or XDP sees the packets of a device.
type AttachPoint string

// The attach points, in the order in which a packet meets them: in, then out.
const (
	XDPNative  AttachPoint = "xdp"        // in the driver, before there is a packet buffer
	XDPGeneric AttachPoint = "xdpgeneric" // in the stack, for drivers that have no XDP
	TCXIngress AttachPoint = "tcx ingress"
	TCIngress  AttachPoint = "tc ingress"
	TCXEgress  AttachPoint = "tcx egress"
	TCEgress   AttachPoint = "tc egress"
)

// Attachment is a BPF program or a tc filter at a device that may drop packets.
type Attachment struct {
	Point  AttachPoint
	Device Device

	// Of a BPF program; 0 and "" for other filters.
	Program uint32 // its id
	Name    string
	Tag     string // hash of its instructions, as bpftool shows it
	Link    uint32 // id of the BPF link that holds it; 0: attached without one

	// Of a tc filter.
	Kind     string // "bpf", "flower", "u32", "matchall", "basic", …
	Chain    uint32
	Priority uint16
	Protocol uint16 // ETH_P_*; 3 is all
	Handle   uint32
	Action   string // the kind of the action that drops: "gact", "police"; "" for a program
	Dropped  uint64 // packets that the action dropped
	Counted  bool   // it counts them
}
