package redirect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Pod names a pod: by namespace and name, by name alone, or by UID.
type Pod struct{ Namespace, Name, UID string }

// ParsePod reads "namespace/name", "name" or a UID.
func ParsePod(text string) (Pod, error) {
	namespace, name, both := strings.Cut(text, "/")
	switch {
	case text == "" || both && (namespace == "" || name == "" || strings.Contains(name, "/")):
		return Pod{}, fmt.Errorf("a pod is named NAMESPACE/NAME, NAME or by its UID, not %q", text)
	case both:
		return Pod{Namespace: namespace, Name: name}, nil
	case podUID.MatchString(text):
		return Pod{UID: text}, nil
	}
	return Pod{Name: text}, nil
}

// String writes it as it is read.
func (p Pod) String() string {
	switch {
	case p.Name == "":
		return p.UID
	case p.Namespace == "":
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// matches reports whether p is what is known of another.
func (p Pod) matches(known Pod) bool {
	if p.UID != "" {
		return p.UID == known.UID
	}
	return p.Name == known.Name && (p.Namespace == "" || p.Namespace == known.Namespace)
}

var (
	podUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	// A process's cgroup names pod and container, whichever driver and runtime made it: systemd writes _ for -.
	podCgroup       = regexp.MustCompile(`pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})`)
	containerCgroup = regexp.MustCompile(`([0-9a-f]{64})(?:\.scope)?(?:/|$)`)
	// Who watches over a container is not in it (CRI-O).
	monitorCgroup = regexp.MustCompile(`[/-]conmon-[0-9a-f]{64}`)
)

// bundles are where container runtimes keep a container's configuration, by its id: containerd, k3s, CRI-O.
var bundles = []string{
	"/run/containerd/io.containerd.runtime.v2.task/k8s.io/%s/config.json",
	"/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/%s/config.json",
	"/run/containers/storage/overlay-containers/%s/userdata/config.json",
	"/var/run/containers/storage/overlay-containers/%s/userdata/config.json",
}

// podAnnotations are where their configuration says which pod it is of: namespace, name, UID.
var podAnnotations = [][3]string{
	{"io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-uid"},
	{"io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.pod.uid"},
}

// ErrNoPod says that no process of the pod was found on this node.
var ErrNoPod = errors.New("no such pod here")

// Process finds a process of the pod on this node, that tells its network
// namespace: by its cgroup, the runtime's configuration, or the container's environment.
func (p Pod) Process() (int, error) { return p.process("/proc", "") }

// process looks in a proc file system; the runtime's files are below root.
func (p Pod) process(proc, root string) (int, error) {
	dirs, err := os.ReadDir(proc)
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	found := map[Pod]int{}
	outside := map[Pod]bool{} // found is in the node's own network namespace
	node, _ := os.Readlink(filepath.Join(proc, "1/ns/net"))
	contained, named, unread := 0, 0, 0
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, d.Name())
		known, ok, err := podOf(dir, root)
		if err != nil {
			unread++
		}
		if !ok {
			continue
		}
		contained++
		if known.Name != "" {
			named++
		}
		if !p.matches(known) {
			continue
		}
		own, _ := os.Readlink(filepath.Join(dir, "ns/net"))
		nodes := own != "" && own == node // as all of the pod are, or a runtime's helper
		if first, ok := found[known]; !ok || outside[known] && !nodes || outside[known] == nodes && pid < first {
			found[known], outside[known] = pid, nodes
		}
	}
	switch len(found) {
	case 1:
		for _, pid := range found {
			return pid, nil
		}
	case 0:
		return 0, fmt.Errorf("%w: %s: looked at the cgroups of %d processes (%d could not be read): %d are of pods, and of %d their pod's name is known, from the container runtime's configuration (containerd, CRI-O) or their environment",
			ErrNoPod, p, len(dirs), unread, contained, named)
	}
	return 0, fmt.Errorf("%d pods here are called %s: name the namespace too", len(found), p)
}

// podOf tells which pod a process belongs to; false when it is of none.
func podOf(dir, root string) (Pod, bool, error) {
	cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return Pod{}, false, err
	}
	var known Pod
	container := ""
	for line := range strings.Lines(string(cgroup)) {
		line = strings.TrimSpace(line)
		if m := podCgroup.FindStringSubmatch(line); m != nil && !monitorCgroup.MatchString(line) {
			known.UID = strings.ReplaceAll(m[1], "_", "-")
			if c := containerCgroup.FindStringSubmatch(line); c != nil {
				container = c[1]
			}
		}
	}
	if known.UID == "" {
		return known, false, nil
	}
	if named, ok := byBundle(container, root); ok {
		named.UID = known.UID // of a static pod the two may differ
		return named, true, nil
	}
	named := byEnvironment(dir)
	named.UID = known.UID
	return named, true, nil
}

// byBundle asks what the runtime was told about a container.
func byBundle(container, root string) (Pod, bool) {
	if container == "" {
		return Pod{}, false
	}
	for _, bundle := range bundles {
		f, err := os.Open(root + fmt.Sprintf(bundle, container))
		if err != nil {
			continue
		}
		var config struct {
			Annotations map[string]string `json:"annotations"`
		}
		err = json.NewDecoder(io.LimitReader(f, mostConfig)).Decode(&config)
		f.Close()
		if err != nil {
			continue
		}
		for _, a := range podAnnotations {
			if name := config.Annotations[a[1]]; name != "" {
				return Pod{Namespace: config.Annotations[a[0]], Name: name, UID: config.Annotations[a[2]]}, true
			}
		}
	}
	return Pod{}, false
}

// byEnvironment takes the name that the kubelet gave the container as its host's, or what the pod's
// author passed on, and the namespace of its service account.
func byEnvironment(dir string) Pod {
	var p Pod
	environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
	values := map[string]string{}
	for _, v := range bytes.Split(environ, []byte{0}) {
		key, value, _ := strings.Cut(string(v), "=")
		values[key] = value
	}
	for _, key := range []string{"POD_NAME", "HOSTNAME"} {
		if p.Name == "" {
			p.Name = values[key]
		}
	}
	p.Namespace = values["POD_NAMESPACE"]
	if p.Namespace == "" {
		b, _ := os.ReadFile(filepath.Join(dir, "root/var/run/secrets/kubernetes.io/serviceaccount/namespace"))
		p.Namespace = strings.TrimSpace(string(b))
	}
	return p
}
