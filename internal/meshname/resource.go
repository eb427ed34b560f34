package meshname

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	kubeyaml "sigs.k8s.io/yaml"

	"github.com/replypath/replypath/pkg/trace"
)

// object is what of a resource says how something in a mesh is called: as Kuma
// writes it for itself (type, mesh and name at the top), and as Kubernetes does.
type object struct {
	Type     string `json:"type"`
	Kind     string `json:"kind"`
	Mesh     string `json:"mesh"`
	Name     string `json:"name"`
	Metadata meta   `json:"metadata"`
	dataplane
	Spec struct {
		dataplane
		Template struct {
			Metadata meta `json:"metadata"`
		} `json:"template"`
	} `json:"spec"`
	Items []object `json:"items"`
}

type meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type dataplane struct {
	Networking struct {
		Inbound, Outbound []tagged
		Gateway           tagged
	} `json:"networking"`
}

type tagged struct {
	Tags    map[string]string `json:"tags"`
	Service string            `json:"service"` // as old versions write it for outbound
}

// Names in labels, annotations and tags.
const (
	meshLabel  = "kuma.io/mesh"
	serviceTag = "kuma.io/service"
)

// Resources reads the names in a file of resources, YAML or JSON, after its variables were put
// in as kuma-dp does it. from is what the file is called.
func Resources(text []byte, variables map[string]string, from string) ([]trace.MeshName, error) {
	var out []trace.MeshName
	for _, document := range documents(render(text, variables)) {
		var o object
		if err := kubeyaml.Unmarshal(document, &o); err != nil {
			return out, fmt.Errorf("read resource in %s: %w", from, err)
		}
		out = append(out, o.names(from)...)
	}
	return out, nil
}

// documents splits a file of YAML.
func documents(text []byte) [][]byte {
	var out [][]byte
	var one bytes.Buffer
	lines := bufio.NewReader(bytes.NewReader(text))
	for {
		line, err := lines.ReadBytes('\n')
		if bytes.Equal(bytes.TrimRight(line, " \t\r\n"), []byte("---")) {
			out = append(out, bytes.Clone(one.Bytes()))
			one.Reset()
		} else {
			one.Write(line)
		}
		if errors.Is(err, io.EOF) {
			return append(out, one.Bytes())
		}
	}
}

// variable is one of the template language that kuma-dp takes (mustache(5)).
var variable = regexp.MustCompile(`\{\{\{?\s*&?\s*([\w.-]+)\s*\}?\}\}`)

// render puts variables in. One that is not given is empty, as it is for kuma-dp.
func render(text []byte, variables map[string]string) []byte {
	return variable.ReplaceAllFunc(text, func(b []byte) []byte {
		return []byte(variables[string(variable.FindSubmatch(b)[1])])
	})
}

// names lists what a resource names: itself, and the services of its tags.
func (o *object) names(from string) []trace.MeshName {
	var out []trace.MeshName
	for i := range o.Items {
		out = append(out, o.Items[i].names(from)...)
	}
	if n := o.self(from); n.Mesh != "" || n.Name != "" {
		out = append(out, n)
	}
	seen := map[string]bool{}
	for _, d := range []*dataplane{&o.dataplane, &o.Spec.dataplane} {
		n := &d.Networking
		for _, t := range append(append([]tagged{n.Gateway}, n.Inbound...), n.Outbound...) {
			for _, service := range []string{t.Tags[serviceTag], t.Service} {
				if service != "" && !seen[service] {
					seen[service] = true
					out = append(out, trace.MeshName{Service: service, ServiceFrom: serviceTag + " in " + from})
				}
			}
		}
	}
	return out
}

// self is what a resource calls itself, and its mesh.
func (o *object) self(from string) trace.MeshName {
	kind, name := o.Type, o.Name
	if o.Kind != "" {
		kind, name = o.Kind, o.Metadata.Name
	}
	if kind == "Mesh" {
		return trace.MeshName{Mesh: name, MeshFrom: from}
	}
	n := trace.MeshName{Mesh: o.Mesh, MeshFrom: from, NameFrom: from}
	for _, m := range []*meta{&o.Spec.Template.Metadata, &o.Metadata} {
		for _, given := range []string{m.Labels[meshLabel], m.Annotations[meshLabel]} {
			if given != "" && n.Mesh == "" {
				n.Mesh, n.MeshFrom = given, meshLabel+" in "+from
			}
		}
	}
	if o.Kind != "" && kind == "Dataplane" { // the control plane made it: of the pod and its namespace
		n.Name, n.Namespace = name, o.Metadata.Namespace
	} else if o.Kind == "" && strings.HasPrefix(kind, "Dataplane") {
		n.Name = name
	} else if kind == "Pod" && n.Mesh != "" {
		n.Name, n.Namespace = name, o.Metadata.Namespace
	}
	return n
}
