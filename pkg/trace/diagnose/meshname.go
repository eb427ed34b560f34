package diagnose

import (
	"fmt"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// MeshName returns what is ambiguous in the names of something in a mesh.
func MeshName(n *trace.MeshName, place trace.Place, at time.Time) []trace.Finding {
	var out []trace.Finding
	add := func(f trace.Finding) {
		f.ID, f.Where.Place = meshNameAmbiguous.ID, place
		for i := range f.Evidence {
			f.Evidence[i].Time = at
		}
		f.Evidence = append(f.Evidence, trace.Evidence{Time: at, Text: foundIn(n)})
		out = append(out, f)
	}
	switch {
	case strings.Contains(n.Mesh, "."):
		add(dottedMesh(n))
	case strings.Contains(n.Name, ".") && n.Name != "":
		add(dottedProxy(n))
	}
	for _, other := range []struct{ what, name string }{{"Kubernetes namespace", n.Namespace}, {"service", n.Service}} {
		if strings.Contains(other.name, ".") {
			add(dottedPart(other.what, other.name))
		}
	}
	return out
}

// foundIn says where the names are from.
func foundIn(n *trace.MeshName) string {
	var parts []string
	for _, p := range []struct{ what, value, from string }{
		{"mesh", n.Mesh, n.MeshFrom}, {"proxy", n.Name, n.NameFrom}, {"namespace", n.Namespace, ""}, {"service", n.Service, n.ServiceFrom},
	} {
		if p.value == "" {
			continue
		}
		text := fmt.Sprintf("%s %s", p.what, printable(p.value))
		if p.from != "" {
			text += " (" + p.from + ")"
		}
		parts = append(parts, text)
	}
	if n.Process.PID != 0 {
		return fmt.Sprintf("%s, pid %d: %s", printable(n.Process.Comm), n.Process.PID, strings.Join(parts, ", "))
	}
	return "asked: " + strings.Join(parts, ", ")
}

// ruleOfLabels says what a name has to be.
const ruleOfLabels = "Names have to be RFC 1035 labels: at most 63 lower-case letters, digits and hyphens, a letter first, no hyphen last, no dot."

func dottedMesh(n *trace.MeshName) trace.Finding {
	is := mesh.Identity{Mesh: n.Mesh, Name: n.Name, Namespace: n.Namespace}
	if is.Name == "" {
		is.Name = "PROXY"
	}
	read := is.AsRead()
	better := mesh.Label(n.Mesh)
	if better == "" {
		better = "mesh-1"
	}
	f := trace.Finding{
		Severity: trace.Error, Confidence: trace.Certain, Fault: "mesh " + n.Mesh,
		Summary: fmt.Sprintf("the mesh name %s holds a dot: %s is read as another proxy", printable(n.Mesh), printable(is.Joined())),
		Cause: fmt.Sprintf("Kuma joins %s to %s and splits it at the first dot: it asks for %s. The proxy is %s. The control plane answers that there is no such resource, or that the id does not match, "+
			"and the proxy never gets ready. %s", showIdentity(is), printable(is.Joined()), showIdentity(read), showIdentity(is), ruleOfLabels),
		Fix: []string{
			fmt.Sprintf("# call the mesh %s (create it by that name, move its policies and proxies there, remove the old one)", better),
			fmt.Sprintf("# Kubernetes: label and annotation kuma.io/mesh=%s on namespaces and pods; elsewhere: kuma-dp run --mesh=%s, and mesh: %s in its Dataplane", better, better, better),
		},
		Verify: []string{fmt.Sprintf("replypath validate names --mesh %s --proxy %s", better, quote(is.Name))},
	}
	f.Evidence = []trace.Evidence{{Text: fmt.Sprintf("%s can be read as %s, or as %s", printable(is.Joined()), showIdentity(is), showIdentity(read))}}
	if n.Process.PID != 0 {
		f.Verify = append(f.Verify, fmt.Sprintf("replypath validate names --pid %d", n.Process.PID))
	}
	return f
}

func dottedProxy(n *trace.MeshName) trace.Finding {
	is := mesh.Identity{Mesh: n.Mesh, Name: n.Name, Namespace: n.Namespace}
	if is.Mesh == "" {
		is.Mesh = "default"
	}
	other, _ := is.Other()
	better := mesh.Label(n.Name)
	if better == "" {
		better = "proxy-1"
	}
	return trace.Finding{
		Severity: trace.Warning, Confidence: trace.Likely, Fault: "proxy " + n.Name,
		Summary: fmt.Sprintf("the proxy name %s holds a dot: %s has two readings", printable(n.Name), printable(is.Joined())),
		Cause: fmt.Sprintf("%s and %s are both joined to %s. Split at the first dot it is the first; whoever splits elsewhere (at the last dot, for a namespace of Kubernetes) takes it for another, and newer versions of Kuma refuse the name. %s",
			showIdentity(is), showIdentity(other), printable(is.Joined()), ruleOfLabels),
		Fix: []string{fmt.Sprintf("# call the proxy %s: kuma-dp run --name=%s, and name: %s in its Dataplane; on Kubernetes, where the name is the pod's and its namespace's, name both: --proxy POD --namespace NAMESPACE",
			better, better, better)},
		Verify:   []string{fmt.Sprintf("replypath validate names --mesh %s --proxy %s", quote(is.Mesh), better)},
		Evidence: []trace.Evidence{{Text: fmt.Sprintf("%s can be read as %s, or as %s", printable(is.Joined()), showIdentity(is), showIdentity(other))}},
	}
}

func dottedPart(what, value string) trace.Finding {
	head, rest, _ := strings.Cut(value, ".")
	return trace.Finding{
		Severity: trace.Warning, Confidence: trace.Likely, Fault: what + " " + value,
		Summary: fmt.Sprintf("the %s name %s holds a dot, and joined identifiers cannot be split again", what, printable(value)),
		Cause: fmt.Sprintf("Identifiers are joined with dots (name.namespace, mesh.name, service.mesh). One with %s in it can be read with %s alone too, and %s as the next part. %s",
			printable(value), printable(head), printable(rest), ruleOfLabels),
		Fix:      []string{fmt.Sprintf("# call the %s %s", what, mesh.Label(value))},
		Verify:   []string{"replypath validate names --" + map[bool]string{true: "service", false: "namespace"}[what == "service"] + " " + quote(mesh.Label(value))},
		Evidence: []trace.Evidence{{Text: fmt.Sprintf("%q: the parts %q and %q", value, head, rest)}},
	}
}

// showIdentity writes an identity by its parts.
func showIdentity(i mesh.Identity) string {
	text := fmt.Sprintf("mesh %s, proxy %s", printable(i.Mesh), printable(i.Name))
	if i.Namespace != "" {
		text += fmt.Sprintf(" in namespace %s", printable(i.Namespace))
	}
	return text
}
