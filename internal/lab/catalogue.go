package lab

// complete fills in what a lab of the catalogue leaves out: its name starts
// with its topology's, a healthy one connects, a broken one times out, and the
// client tries two or four times.
func complete(labs []Lab) []Lab {
	for i := range labs {
		l := &labs[i]
		l.Name = l.Topology.Name + "-" + l.Name
		client := &l.Topology.Client
		client.Connects = 2
		if client.Timeout == 0 {
			client.Timeout = connectTimeout
		}
		if l.Finding == "neighbor-unresolved" || l.Finding == "tunnel-mismatch" {
			client.Timeout = neighborTimeout
		}
		if l.Healthy() {
			client.Connects = 4
			l.Outcome = Connected
		}
		if l.Outcome == NotRun {
			l.Outcome = Timeout
		}
	}
	return labs
}
