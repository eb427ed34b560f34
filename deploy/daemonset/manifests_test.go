// Package daemonset checks the Kubernetes manifests in this directory.
package daemonset

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/replypath/replypath/internal/agent"
	"github.com/replypath/replypath/internal/metrics"
)

// decode reads one object from the document of that kind in a file. Fields that
// the API does not know are errors: they would be ignored, or refused on apply.
func decode[T any](t *testing.T, file, kind string) T {
	t.Helper()
	var object T
	for _, document := range documents(t, file) {
		var meta struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal(document, &meta); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if meta.Kind != kind {
			continue
		}
		if err := yaml.UnmarshalStrict(document, &object); err != nil {
			t.Fatalf("%s: %s: %v", file, kind, err)
		}
		return object
	}
	t.Fatalf("%s holds no %s", file, kind)
	return object
}

func documents(t *testing.T, file string) [][]byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(content, []byte("\n---\n"))
}

func agentContainer(t *testing.T) (core.PodSpec, core.Container) {
	t.Helper()
	pod := decode[apps.DaemonSet](t, "daemonset.yaml", "DaemonSet").Spec.Template.Spec
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatalf("pod has %d containers and %d init containers, want the agent alone", len(pod.Containers), len(pod.InitContainers))
	}
	return pod, pod.Containers[0]
}

func TestAgentIsNotPrivileged(t *testing.T) {
	pod, container := agentContainer(t)
	security := container.SecurityContext
	no := false
	for what, got := range map[string]*bool{
		"privileged":               security.Privileged,
		"allowPrivilegeEscalation": security.AllowPrivilegeEscalation,
	} {
		if diff := cmp.Diff(&no, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	if security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
		t.Error("the root file system is writable")
	}
	if got := pod.SecurityContext.SeccompProfile; got == nil || got.Type != core.SeccompProfileTypeRuntimeDefault {
		t.Errorf("seccomp profile is %v, want RuntimeDefault", got)
	}
	if diff := cmp.Diff([]core.Capability{"ALL"}, security.Capabilities.Drop); diff != "" {
		t.Errorf("dropped capabilities (-want +got):\n%s", diff)
	}
}

// The README tells administrators what they grant; it has to be all.
func TestCapabilitiesAreDocumented(t *testing.T) {
	_, container := agentContainer(t)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []core.Capability
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z_]+) \|`).FindAllSubmatch(readme, -1) {
		documented = append(documented, core.Capability(row[1]))
	}
	if diff := cmp.Diff(documented, container.SecurityContext.Capabilities.Add); diff != "" {
		t.Errorf("added capabilities differ from README.md (-documented +added):\n%s", diff)
	}
}

func TestAgentSeesTheNode(t *testing.T) {
	pod, container := agentContainer(t)
	if !pod.HostNetwork || !pod.HostPID {
		t.Errorf("hostNetwork is %t and hostPID %t, want both", pod.HostNetwork, pod.HostPID)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class is %q, want system-node-critical", pod.PriorityClassName)
	}
	if diff := cmp.Diff([]core.Toleration{{Operator: core.TolerationOpExists}}, pod.Tolerations); diff != "" {
		t.Errorf("tolerations (-want +got):\n%s", diff)
	}

	paths := map[string]string{}
	for _, volume := range pod.Volumes {
		if volume.HostPath == nil {
			t.Errorf("volume %s is not on the node", volume.Name)
			continue
		}
		paths[volume.Name] = volume.HostPath.Path
	}
	for _, mount := range container.VolumeMounts {
		if paths[mount.Name] != mount.MountPath {
			t.Errorf("%s of the node is mounted as %s: the agent and those who read its answers would call it differently", paths[mount.Name], mount.MountPath)
		}
	}
	netns := slices.IndexFunc(container.VolumeMounts, func(mount core.VolumeMount) bool { return mount.MountPath == "/run/netns" })
	if netns < 0 {
		t.Fatal("/run/netns is not mounted")
	}
	if got := container.VolumeMounts[netns].MountPropagation; got == nil || *got != core.MountPropagationHostToContainer {
		t.Error("namespaces made after the agent started would not appear under /run/netns")
	}
}

func TestProbesAskTheAgent(t *testing.T) {
	_, container := agentContainer(t)
	host, port, err := net.SplitHostPort(agent.DefaultMetricsListen)
	if err != nil {
		t.Fatal(err)
	}
	handler := metrics.Handler(prometheus.NewRegistry(), func() error { return errors.New("starting") })
	for name, probe := range map[string]struct {
		got    *core.Probe
		status int // of an agent that has not attached its programs yet
	}{
		"liveness":  {container.LivenessProbe, http.StatusOK},
		"readiness": {container.ReadinessProbe, http.StatusServiceUnavailable},
	} {
		get := probe.got.HTTPGet
		if get.Host != host || get.Port.String() != port {
			t.Errorf("%s probe asks %s:%s, the agent listens on %s", name, get.Host, get.Port.String(), agent.DefaultMetricsListen)
		}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, get.Path, nil))
		if answer.Code != probe.status {
			t.Errorf("%s probe: GET %s of an agent that is starting: status %d, want %d", name, get.Path, answer.Code, probe.status)
		}
	}
}

func TestSocketIsOnTheNode(t *testing.T) {
	_, container := agentContainer(t)
	directory := filepath.Dir(strings.TrimPrefix(agent.DefaultListen, "unix://"))
	if !slices.ContainsFunc(container.VolumeMounts, func(mount core.VolumeMount) bool { return mount.MountPath == directory }) {
		t.Errorf("%s is not mounted: the agent could not make its socket, and nobody on the node could find it", directory)
	}
}

func TestMemoryStaysBelowTheLimit(t *testing.T) {
	_, container := agentContainer(t)
	if got := container.Resources.Limits.Memory().String(); got != "256Mi" {
		t.Errorf("memory limit is %s, want 256Mi", got)
	}
	if _, limited := container.Resources.Limits[core.ResourceCPU]; limited {
		t.Error("CPU is limited: a throttled agent loses events")
	}
}

func TestRoleOnlyReads(t *testing.T) {
	for _, rule := range decode[rbac.ClusterRole](t, "rbac.yaml", "ClusterRole").Rules {
		if diff := cmp.Diff([]string{"get", "list", "watch"}, rule.Verbs); diff != "" {
			t.Errorf("verbs for %v (-want +got):\n%s", rule.Resources, diff)
		}
		for _, resource := range rule.Resources {
			if resource == "*" || resource == "secrets" || strings.Contains(resource, "/") {
				t.Errorf("role may read %s", resource)
			}
		}
	}
}

func TestNamesFitTogether(t *testing.T) {
	namespace := decode[core.Namespace](t, "namespace.yaml", "Namespace")
	account := decode[core.ServiceAccount](t, "rbac.yaml", "ServiceAccount")
	role := decode[rbac.ClusterRole](t, "rbac.yaml", "ClusterRole")
	binding := decode[rbac.ClusterRoleBinding](t, "rbac.yaml", "ClusterRoleBinding")
	daemonset := decode[apps.DaemonSet](t, "daemonset.yaml", "DaemonSet")

	if account.Namespace != namespace.Name || daemonset.Namespace != namespace.Name {
		t.Errorf("service account in %q and daemon set in %q, want %q", account.Namespace, daemonset.Namespace, namespace.Name)
	}
	subjects := []rbac.Subject{{Kind: "ServiceAccount", Name: account.Name, Namespace: account.Namespace}}
	if diff := cmp.Diff(subjects, binding.Subjects); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}
	if binding.RoleRef.Name != role.Name {
		t.Errorf("binding is to role %q, want %q", binding.RoleRef.Name, role.Name)
	}
	if got := daemonset.Spec.Template.Spec.ServiceAccountName; got != account.Name {
		t.Errorf("pods run as %q, want %q", got, account.Name)
	}
	if diff := cmp.Diff(daemonset.Spec.Selector.MatchLabels["app.kubernetes.io/name"], daemonset.Spec.Template.Labels["app.kubernetes.io/name"]); diff != "" {
		t.Errorf("selector and labels (-selector +label):\n%s", diff)
	}
}

func TestKustomizationListsEveryManifest(t *testing.T) {
	var kustomization struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Resources  []string `json:"resources"`
		Images     []struct {
			Name    string `json:"name"`
			NewName string `json:"newName"`
			NewTag  string `json:"newTag"`
		} `json:"images"`
	}
	if err := yaml.UnmarshalStrict(documents(t, "kustomization.yaml")[0], &kustomization); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var manifests []string
	for _, entry := range entries {
		if name := entry.Name(); strings.HasSuffix(name, ".yaml") && name != "kustomization.yaml" {
			manifests = append(manifests, name)
		}
	}
	slices.Sort(kustomization.Resources)
	if diff := cmp.Diff(manifests, kustomization.Resources); diff != "" {
		t.Errorf("resources (-files +listed):\n%s", diff)
	}
	_, container := agentContainer(t)
	image, _, _ := strings.Cut(container.Image, ":")
	if len(kustomization.Images) != 1 || kustomization.Images[0].Name != image {
		t.Errorf("images are %v, want one that replaces %s", kustomization.Images, image)
	}
}
