package netstate

// extraSections lists what only some questions need.
func (r *reading) extraSections() []section {
	var extra []section
	if r.q.Attached != 0 {
		extra = append(extra, section{"programs", r.readAttachments})
	}
	if r.q.Limits {
		extra = append(extra, section{"connection tracking", r.readTracking})
	}
	if r.q.Tunnels {
		extra = append(extra, section{"tunnels", r.readTunnels})
	}
	if r.q.Receivers {
		extra = append(extra, section{"sockets", r.readReceivers})
	}
	if r.q.Switched != 0 {
		extra = append(extra, section{"Open vSwitch", r.readSwitch})
	}
	return extra
}
