package probe

import "github.com/replypath/replypath/pkg/trace"

// tunnelKinds are the names of the ABI's kinds.
var tunnelKinds = map[dropTunnelKind]string{
	dropTunnelKindTUNNEL_VXLAN: "vxlan", dropTunnelKindTUNNEL_GENEVE: "geneve", dropTunnelKindTUNNEL_GRE: "gre", dropTunnelKindTUNNEL_IP: "ip",
}

// carried decodes what a tunnel's packet carries.
func carried(t *dropTunnel) trace.Carried {
	return trace.Carried{
		Kind: tunnelKinds[dropTunnelKind(t.Kind)], ID: t.Id, Tuple: tuple(&t.Packet, false),
		Flags: trace.TCPFlags(t.TcpFlags), Seq: t.Seq, Ack: t.Ack,
	}
}
