package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// Switch is an Open vSwitch with its userspace datapath, that a host runs for
// itself: a database, a daemon and two bridges, as Antrea sets them up where the
// kernel has no datapath. br-phy has the uplink and the host's own address;
// br-int has gw0 (port 2, the host's way to its pods), tun0 (port 1, Geneve) and
// the pods' ports (from 3 on), and does what Flows say.
type Switch struct {
	Uplink    string
	Pods      []string // devices of the host
	Flows     []string // of br-int, as ovs-ofctl(8) takes them; {HOST/DEVICE} stands for a MAC address
	Peers     []Peer   // other ends of the tunnel
	Neighbors []Neighbor
	// Kernel: the datapath is the kernel's. There is one bridge then, br-int, with
	// the ports of Pods (from 3 on) and gw0 (port 2).
	Kernel bool
}

// Peer is another tunnel endpoint on the uplink's LAN.
type Peer struct {
	Host    string
	Address netip.Addr
}

// Neighbor is a static entry of the neighbour table.
type Neighbor struct {
	Device  string
	Address netip.Addr
	MAC     string
}

// Names of a switch's own devices.
const (
	uplinkBridge = "br-phy"
	podBridge    = "br-int"
	podGateway   = "gw0"
)

// What Missing says.
const (
	noSwitch = "Open vSwitch (Debian's openvswitch-switch)"
	noTUN    = "the kernel's tun devices (modprobe tun)"
	noKernel = "the kernel's Open vSwitch datapath (modprobe openvswitch)"
)

// switchSchema describes the switch's database.
const switchSchema = "/usr/share/openvswitch/vswitch.ovsschema"

// switchPrograms are what a switch is made of.
var switchPrograms = []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"}

// Weight is how much a machine has to do for a lab, in ordinary labs: each Open vSwitch
// has a database, a daemon that polls, and a dozen commands that teach it.
func (l Lab) Weight() int64 {
	weight := int64(1)
	for _, h := range l.Topology.Hosts {
		if h.Switch != nil {
			weight += 2
		}
	}
	return weight
}

// Missing says what the lab needs and this machine does not have; "" when it can be built.
func (l Lab) Missing() string {
	for _, c := range slices.Concat(l.Setting, l.Faults) {
		if c.needs == "" {
			continue
		}
		if _, err := findProgram(c.needs); err != nil {
			return "the program " + c.needs
		}
	}
	if !slices.ContainsFunc(l.Topology.Hosts, func(h Host) bool { return h.Switch != nil }) {
		return ""
	}
	if !haveSwitch() {
		return noSwitch
	}
	if slices.ContainsFunc(l.Topology.Hosts, func(h Host) bool { return h.Switch != nil && h.Switch.Kernel }) {
		if _, err := os.Stat("/sys/module/openvswitch"); err != nil {
			return noKernel
		}
		return ""
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return noTUN
	}
	return ""
}

func haveSwitch() bool {
	for _, program := range switchPrograms {
		if _, err := findProgram(program); err != nil {
			return false
		}
	}
	_, err := os.Stat(switchSchema)
	return err == nil
}

// findProgram looks in sbin too, that is not in everybody's PATH.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// stateDir is where labs keep the files of what they start: one directory for each network.
const stateDir = "/run/replypath-lab"

// removeState removes the files of a network.
func removeState(id string) error {
	err := os.RemoveAll(filepath.Join(stateDir, id))
	_ = os.Remove(stateDir) // as long as others have theirs in it, it stays
	return wrap("remove files of "+id, err)
}

// removeStray removes the files of networks that have no namespace any more. A
// network has its namespaces before its files, and loses them after.
func removeStray(networks map[string][]string) error {
	dirs, err := os.ReadDir(stateDir)
	if err != nil {
		return nil // there is none
	}
	var failed error
	for _, d := range dirs {
		if _, ours := parseName(d.Name() + "-x"); ours && networks[d.Name()] == nil {
			failed = errors.Join(failed, removeState(d.Name()))
		}
	}
	return failed
}

// startSwitches starts the switches of all hosts, and then teaches each its flows.
func (n *Network) startSwitches(ctx context.Context) error {
	for _, step := range []func(*host, context.Context) error{n.startSwitch, n.teachSwitch} {
		for _, h := range n.order {
			if h.spec.Switch == nil {
				continue
			}
			if err := step(h, ctx); err != nil {
				return fmt.Errorf("start Open vSwitch of %s: %w", h.netns, err)
			}
		}
	}
	return nil
}

// startSwitch starts the database and the daemon, and makes the bridges.
func (n *Network) startSwitch(h *host, ctx context.Context) error {
	if missing := n.lab.Missing(); missing != "" {
		return errors.New("there is no " + missing)
	}
	h.state = filepath.Join(stateDir, n.id, h.spec.Name)
	if err := os.MkdirAll(h.state, 0o700); err != nil {
		return err
	}
	database, socket := filepath.Join(h.state, "conf.db"), filepath.Join(h.state, "db.sock")
	if err := h.call(ctx, "ovsdb-tool", "create", database, switchSchema); err != nil {
		return err
	}
	quiet := []string{"--no-chdir", "-vconsole:off", "-vsyslog:off"}
	if err := n.spawn(h, "ovsdb-server", append(quiet, database, "--remote=punix:"+socket,
		"--unixctl="+filepath.Join(h.state, "db.ctl"))...); err != nil {
		return err
	}
	if err := await(ctx, socket); err != nil {
		return err
	}
	daemon := append(quiet, "unix:"+socket, "--unixctl="+h.control(), "--log-file="+filepath.Join(h.state, "vswitchd.log"))
	if !h.spec.Switch.Kernel {
		daemon = append(daemon, "--disable-system")
	}
	if err := n.spawn(h, "ovs-vswitchd", daemon...); err != nil {
		return err
	}
	if err := h.call(ctx, "ovs-vsctl", append([]string{"--db=unix:" + socket, "--retry", "--timeout=20"}, bridges(h.spec)...)...); err != nil {
		return err
	}
	devices := []string{uplinkBridge, podGateway}
	if h.spec.Switch.Kernel {
		devices = devices[1:]
	}
	for _, device := range devices {
		if err := h.setUp(device); err != nil {
			return err
		}
	}
	return nil
}

// bridges are the commands that make the bridges and their ports.
func bridges(spec Host) []string {
	if spec.Switch.Kernel {
		return kernelBridge(spec)
	}
	remote := "options:remote_ip=flow"
	words := strings.Fields("-- add-br " + uplinkBridge + " -- set bridge " + uplinkBridge + " datapath_type=netdev fail-mode=standalone other-config:hwaddr=" + mac(spec.Name, uplinkBridge) +
		" -- add-port " + uplinkBridge + " " + spec.Switch.Uplink +
		" -- add-br " + podBridge + " -- set bridge " + podBridge + " datapath_type=netdev fail-mode=secure" +
		" -- add-port " + podBridge + " tun0 -- set interface tun0 type=geneve " + remote + " options:key=flow ofport_request=1" +
		" -- add-port " + podBridge + " " + podGateway + ` -- set interface ` + podGateway + ` type=internal ofport_request=2`)
	return append(append(words, `mac="`+mac(spec.Name, podGateway)+`"`), podPorts(spec)...)
}

// kernelBridge makes the one bridge of a switch in the kernel.
func kernelBridge(spec Host) []string {
	words := strings.Fields("-- add-br " + podBridge + " -- set bridge " + podBridge + " fail-mode=secure" +
		" -- add-port " + podBridge + " " + podGateway + " -- set interface " + podGateway + " type=internal ofport_request=2")
	return append(append(words, `mac="`+mac(spec.Name, podGateway)+`"`), podPorts(spec)...)
}

func podPorts(spec Host) (words []string) {
	for i, pod := range spec.Switch.Pods {
		words = append(words, strings.Fields(fmt.Sprintf("-- add-port %s %s -- set interface %s ofport_request=%d", podBridge, pod, pod, 3+i))...)
	}
	return words
}

// mac is a MAC address of a switch's device: the same in every run, so that
// flows can name it, and not that of the uplink below it, so that the kernel
// leaves to the switch what arrives there.
func mac(name, device string) string {
	sum := byte(0)
	for _, c := range []byte(name) {
		sum = sum*31 + c
	}
	return fmt.Sprintf("0a:00:00:00:%02x:%02x", sum, len(device))
}

// teachSwitch loads the flows, and tells the switch and the host whom it need not ask.
func (n *Network) teachSwitch(h *host, ctx context.Context) error {
	s := h.spec.Switch
	flows := []string{"add-flow", "unix:" + filepath.Join(h.state, podBridge+".mgmt"), ""}
	for _, f := range s.Flows {
		flow, err := n.withMACs(f)
		if err != nil {
			return err
		}
		flows[2] = flow
		if err := h.call(ctx, "ovs-ofctl", flows...); err != nil {
			return err
		}
	}
	for _, p := range s.Peers {
		// Else the first packet to it would be lost while the switch asks for its MAC.
		if err := h.call(ctx, "ovs-appctl", "-t", h.control(), "tnl/neigh/set", uplinkBridge, p.Address.String(), mac(p.Host, uplinkBridge)); err != nil {
			return err
		}
	}
	for _, e := range s.Neighbors {
		if err := h.addNeighbor(e); err != nil {
			return err
		}
	}
	return nil
}

// withMACs puts MAC addresses in a flow where it names devices.
func (n *Network) withMACs(flow string) (string, error) {
	for {
		before, rest, ok := strings.Cut(flow, "{")
		if !ok {
			return flow, nil
		}
		place, after, _ := strings.Cut(rest, "}")
		name, device, _ := strings.Cut(place, "/")
		h := n.hosts[name]
		if h == nil {
			return "", fmt.Errorf("flow names %s: no such host", place)
		}
		l, err := h.link(device)
		if err != nil {
			return "", err
		}
		flow = before + l.Attrs().HardwareAddr.String() + after
	}
}

// control is where the daemon takes commands.
func (h *host) control() string { return filepath.Join(h.state, "vswitchd.ctl") }

// environment keeps a switch's programs to the lab's own directory; the first
// entry marks them as the network's own, for whoever takes it down.
func (h *host) environment(extra ...string) []string {
	own := append(os.Environ(), extra...)
	for _, name := range []string{"OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"} {
		own = append(own, name+"="+h.state)
	}
	return own
}

// call runs one of the switch's tools to its end.
func (h *host) call(ctx context.Context, program string, args ...string) error {
	path, err := findProgram(program)
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, path, args...)
	command.Env = h.environment()
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// spawn starts one of the switch's daemons, in the host's namespace, where Down looks for it.
func (n *Network) spawn(h *host, program string, args ...string) error {
	path, err := findProgram(program)
	if err != nil {
		return err
	}
	command := exec.Command(path, args...)
	command.Dir = "/"
	command.Env = h.environment(envNetwork + "=" + n.id)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is ours to heed, and then to end it
	if err := enter(h.ns, command.Start); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	ended := make(chan struct{})
	go func() {
		command.Wait()
		close(ended)
	}()
	if h.daemons == nil {
		h.daemons = make(map[string]daemon)
	}
	h.daemons[program] = daemon{command.Process, ended}
	return nil
}

// daemon is a program of a switch that runs.
type daemon struct {
	process *os.Process
	ended   <-chan struct{}
}

// killDaemon kills a switch's daemon; its datapath in the kernel stays as it is.
func killDaemon(name string) Change {
	return on(name, "kill -9 $(pidof ovs-vswitchd)", func(h *host) error {
		d, ok := h.daemons["ovs-vswitchd"]
		if !ok {
			return errors.New("there is no ovs-vswitchd")
		}
		if err := d.process.Kill(); err != nil {
			return fmt.Errorf("kill ovs-vswitchd: %w", err)
		}
		<-d.ended
		return nil
	})
}

// await waits until a socket is there.
func await(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if !pause(ctx, 5*time.Millisecond) {
			return fmt.Errorf("wait for %s: %w", path, ctx.Err())
		}
	}
}

// addNeighbor adds a static neighbour.
func (h *host) addNeighbor(e Neighbor) error {
	l, err := h.link(e.Device)
	if err != nil {
		return err
	}
	address, err := net.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	return wrap("add neighbour "+e.Address.String(), h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: e.Address.AsSlice(), HardwareAddr: address,
	}))
}
