package redirect

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// CNIDir is where container runtimes look for CNI configuration.
const CNIDir = "/etc/cni/net.d"

// setup reads the node's CNI configuration.
func setup(dir string) trace.RedirectSetup {
	s := trace.RedirectSetup{}
	if dir == "" {
		return s
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.CNIDir = dir
		return s
	case err != nil:
		return s
	}
	s.CNIDir = dir
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if ext != ".conf" && ext != ".conflist" && ext != ".json" {
			continue
		}
		s.CNISeen = true
		path := filepath.Join(dir, e.Name())
		for _, plugin := range pluginsOf(path) {
			if mesh.OfPlugin(plugin) != nil {
				s.CNI, s.CNIPlugin = append(s.CNI, path), plugin
			}
		}
	}
	return s
}

// mostConfig bounds a configuration file.
const mostConfig = 1 << 20

// pluginsOf lists the types of plugins that a CNI configuration names.
func pluginsOf(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	type plugin struct {
		Type string `json:"type"`
	}
	var config struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if err := json.NewDecoder(bufio.NewReader(io.LimitReader(f, mostConfig))).Decode(&config); err != nil {
		return nil
	}
	out := []string{config.Type}
	for _, p := range config.Plugins {
		out = append(out, p.Type)
	}
	return out
}

// kernelFeatures are functions of the kernel that redirection takes, and the modules that have them.
var kernelFeatures = []struct{ function, module string }{
	{"nf_nat_redirect_ipv4", "nf_nat"},
	{"nf_conntrack_in", "nf_conntrack"},
}

// missingFeatures finds out whether the kernel can redirect: what is built in or loaded
// is among its symbols; what can be loaded is among its modules.
func missingFeatures() (missing []string, asked bool) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, false
	}
	defer f.Close()
	found := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		for _, k := range kernelFeatures {
			if fields[2] == k.function {
				found[k.function] = true
			}
		}
		if len(found) == len(kernelFeatures) {
			return nil, true
		}
	}
	for _, k := range kernelFeatures {
		if !found[k.function] {
			missing = append(missing, k.module)
		}
	}
	return missing, lines.Err() == nil
}

// resolvers reads the name servers of the application: those of the process
// that was named, of the namespace's own resolv.conf (ip-netns(8)), or of this
// very process where it is in the namespace. A file that is the node's own says
// nothing about another namespace.
func (i *Inspector) resolvers(o *Options) []netip.Addr {
	const own = "/etc/resolv.conf"
	var path string
	switch {
	case o.PID > 0:
		path = filepath.Join("/proc", strconv.Itoa(o.PID), "root", own)
	case o.Place.Name != "":
		path = filepath.Join("/etc/netns", o.Place.Name, "resolv.conf")
	case o.Place.PID > 0:
		path = filepath.Join("/proc", strconv.Itoa(o.Place.PID), "root", own)
	}
	if i.places.Host().Netns == o.Place.Netns {
		path = own
	} else if path == "" || sameFile(path, own) {
		return nil
	}
	return nameServers(path)
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// nameServers reads a resolv.conf(5).
func nameServers(path string) []netip.Addr {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []netip.Addr
	lines := bufio.NewScanner(io.LimitReader(f, mostConfig))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !slices.Contains(out, a.WithZone("").Unmap()) {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	return out
}
