package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
)

// Network is a lab that has been built.
type Network struct {
	lab   Lab
	id    string // rplab-LAB-XXXX
	hosts map[string]*host
	order []*host

	mu      sync.Mutex
	servers map[string][]server // by host
	outcome Outcome
	down    bool
}

// prefix starts the name of every lab's namespaces.
const prefix = "rplab-"

// Up builds the lab's network, starts its services and puts its faults in. What
// it does to each host goes to log, one line each; log may be nil. On an error,
// and when the context ends, everything is undone.
//
// The services run in this process: they end with it, unless Detach is called.
func Up(ctx context.Context, l Lab, log io.Writer) (*Network, error) {
	if log == nil {
		log = io.Discard
	}
	n := &Network{lab: l, hosts: map[string]*host{}, servers: map[string][]server{}}
	if err := n.build(ctx, log); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", l.Name, err), n.Down())
	}
	return n, nil
}

// build runs the steps of Up.
func (n *Network) build(ctx context.Context, log io.Writer) error {
	steps := []func(context.Context) error{n.createHosts, n.connect, n.startSwitches, n.configure, n.settle, n.serve}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for _, changes := range [][]Change{n.lab.Setting, n.lab.Faults} {
		for _, c := range changes {
			if err := ctx.Err(); err != nil {
				return err
			}
			fmt.Fprintf(log, "%s: %s\n", n.hosts[c.Host].netns, c.Text)
			if err := c.apply(n); err != nil {
				return fmt.Errorf("on %s: %s: %w", c.Host, c.Text, err)
			}
		}
	}
	return ctx.Err()
}

// createHosts makes one namespace per host, under an id that nobody else uses.
func (n *Network) createHosts(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		raw := make([]byte, 2)
		rand.Read(raw) // never fails (crypto/rand)
		n.id = prefix + n.lab.Name + "-" + hex.EncodeToString(raw)
		err := n.createHost(n.lab.Topology.Hosts[0])
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) || attempt == 20 {
			return err
		}
	}
	for _, spec := range n.lab.Topology.Hosts[1:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.createHost(spec); err != nil {
			return err
		}
	}
	return nil
}

// createHost makes the namespace of one host.
func (n *Network) createHost(spec Host) error {
	h, err := newHost(spec, n.id+"-"+spec.Name, n.lab.Topology.Family)
	if err != nil {
		return err
	}
	n.hosts[spec.Name] = h
	n.order = append(n.order, h)
	return nil
}

// Lab returns what was built.
func (n *Network) Lab() Lab { return n.lab }

// Namespaces returns the name under /run/netns of each host.
func (n *Network) Namespaces() map[string]string {
	names := make(map[string]string, len(n.hosts))
	for name, h := range n.hosts {
		names[name] = h.netns
	}
	return names
}

// Down removes the network: services, namespaces and what is in them. It may be called again.
func (n *Network) Down() error {
	n.mu.Lock()
	if n.down {
		n.mu.Unlock()
		return nil
	}
	n.down = true
	n.mu.Unlock()

	n.stopServices()
	names := make([]string, 0, len(n.order))
	for _, h := range n.order {
		names = append(names, h.netns)
	}
	err := removeNetwork(n.id, names)
	for _, h := range n.order {
		h.close()
	}
	return err
}

// stopServices ends all services that run in this process.
func (n *Network) stopServices() {
	n.mu.Lock()
	servers := slices.Concat(slices.Collect(maps.Values(n.servers))...)
	clear(n.servers)
	n.mu.Unlock()
	for _, s := range servers {
		s.stop()
	}
}
