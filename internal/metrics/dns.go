package metrics

import (
	"maps"
	"slices"
	"sort"

	"github.com/prometheus/client_golang/prometheus"
)

// dnsBuckets are the upper bounds of the latencies of DNS, in seconds. Resolvers ask
// again after five: what a lost packet costs shows right above that.
var dnsBuckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4.5, 5.5, 10}

// DNS are the counters of DNS queries.
type DNS struct {
	Queries    uint64
	Responses  map[string]uint64 // by rcode
	Unanswered map[string]uint64 // by stage
	Names      map[string]uint64 // queries by name; empty unless asked for
	latencies  []uint64          // one for each bucket, not cumulated
	sum        float64
	count      uint64
}

// NewDNS returns counters at zero.
func NewDNS() DNS {
	return DNS{
		Responses: make(map[string]uint64), Unanswered: make(map[string]uint64), Names: make(map[string]uint64),
		latencies: make([]uint64, len(dnsBuckets)),
	}
}

// Observe counts a latency in seconds.
func (d *DNS) Observe(seconds float64) {
	if i := sort.SearchFloat64s(dnsBuckets, seconds); i < len(d.latencies) {
		d.latencies[i]++
	}
	d.sum += seconds
	d.count++
}

// Clone returns a copy.
func (d *DNS) Clone() DNS {
	c := *d
	c.Responses, c.Unanswered, c.Names = maps.Clone(d.Responses), maps.Clone(d.Unanswered), maps.Clone(d.Names)
	c.latencies = slices.Clone(d.latencies)
	return c
}

func (d *DNS) histogram(desc *prometheus.Desc) prometheus.Metric {
	buckets := make(map[float64]uint64, len(dnsBuckets))
	total := uint64(0)
	for i, bound := range dnsBuckets {
		if i < len(d.latencies) {
			total += d.latencies[i]
		}
		buckets[bound] = total
	}
	return prometheus.MustNewConstHistogram(desc, d.count, d.sum, buckets)
}
