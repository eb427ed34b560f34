package netfilter

import (
	"encoding/binary"
	"fmt"
)

// ctZone is NFT_CT_ZONE of enum nft_ct_keys.
const ctZone = 17

// setZone puts the packet into a zone of connection tracking: the target CT, or
// nftables' `ct zone set`. Zones keep connections apart that have the same addresses.
type setZone struct {
	text string
	zone uint16
	from register // 0: zone is it
}

func (e setZone) run(m *machine) {
	if !m.sure || m.match != yes {
		return
	}
	if e.from != 0 {
		b := m.load(e.from, 2)
		if !b.whole() {
			return
		}
		e.zone = binary.NativeEndian.Uint16(b.data)
	}
	m.packet.zone = e.zone
}

func (e setZone) write(w *writer) { passive{e.text}.write(w) }

// Flags of struct xt_ct_target_info: the zone is the packet's mark.
const ctZoneMark = 1 << 4

// decodeZone reads the zone of the target CT; false when it sets none, or the mark's.
func decodeZone(data []byte) (expr, bool) {
	r := &reader{data: data}
	flags, zone := r.u16(), r.u16()
	if r.short || flags&ctZoneMark != 0 || zone == 0 {
		return nil, false
	}
	return setZone{text: fmt.Sprintf("-j CT --zone %d", zone), zone: zone}, true
}
