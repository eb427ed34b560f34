package meshname

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func nothing(string) ([]byte, error) { return nil, fs.ErrNotExist }

func parsed(command, environment []byte) []trace.MeshName {
	names, _ := parse(command, environment, func(path string) ([]byte, error) { return []byte(path), nil })
	return names
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		command, environment string
		want                 trace.MeshName
	}{
		{"kuma-dp\x00run\x00--mesh=m\x00--name=n\x00", "", trace.MeshName{Mesh: "m", Name: "n", MeshFrom: "--mesh", NameFrom: "--name"}},
		{"kuma-dp\x00run\x00--mesh\x00m\x00--dataplane-var\x00name=n\x00", "KUMA_DATAPLANE_MESH=other\x00", trace.MeshName{Mesh: "m", Name: "n", MeshFrom: "--mesh", NameFrom: "--dataplane-var"}},
		{"kuma-dp\x00run\x00", "KUMA_DATAPLANE_MESH=m\x00KUMA_DATAPLANE_NAME=a.b.c\x00POD_NAMESPACE=c\x00",
			trace.MeshName{Mesh: "m", Name: "a.b", Namespace: "c", MeshFrom: "KUMA_DATAPLANE_MESH", NameFrom: "KUMA_DATAPLANE_NAME"}},
		{"kuma-dp\x00run\x00", "KUMA_DATAPLANE_MESH=m\x00KUMA_DATAPLANE_NAME=a.c\x00KUBERNETES_SERVICE_HOST=10.0.0.1\x00",
			trace.MeshName{Mesh: "m", Name: "a", Namespace: "c", MeshFrom: "KUMA_DATAPLANE_MESH", NameFrom: "KUMA_DATAPLANE_NAME"}},
	} {
		got, _ := parse([]byte(tt.command), []byte(tt.environment), nothing)
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%q %q: %+v, want %+v", tt.command, tt.environment, got, tt.want)
		}
	}
	if got, _ := parse([]byte("kuma-dp\x00version\x00"), nil, nothing); got != nil {
		t.Errorf("names from nothing: %+v", got)
	}
}

// FuzzParse: names are parts of what was given, never made up.
func FuzzParse(f *testing.F) {
	f.Add([]byte("kuma-dp\x00run\x00--mesh=m\x00--name\x00n\x00"), []byte("POD_NAMESPACE=c\x00KUMA_DATAPLANE_NAME=a.c\x00"))
	f.Add([]byte("kuma-dp\x00-d\x00{mesh: m, name: '{{n}}', networking: {outbound: [{tags: {kuma.io/service: s}}]}}\x00-vn=a"), []byte("KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH=-"))
	f.Add([]byte("kuma-dp\x00--\x00--mesh"), []byte("=\x00=="))
	f.Fuzz(func(t *testing.T, command, environment []byte) {
		for _, n := range parsed(command, environment) {
			if n.Mesh == "" && n.Name == "" && n.Service == "" {
				t.Error("no name")
			}
			if n.Namespace != "" && n.Name == "" {
				t.Errorf("a namespace without a name: %+v", n)
			}
		}
	})
}

// universal is a resource as kumactl and kuma-dp take it, with variables.
const universal = `# a template
type: Dataplane
mesh: {{ mesh }}
name: {{{name}}}
networking:
  address: {{address}}
  inbound:
  - port: 11011
    servicePort: 11012
    tags: {kuma.io/service: backend.v2, kuma.io/protocol: http}
  outbound:
  - port: 33033
    tags: {kuma.io/service: redis}
`

// TestResources reads the names that resources give, of a file and of a process that was started with one.
func TestResources(t *testing.T) {
	const kubernetes = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kuma.io/mesh: aa.a}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {annotations: {kuma.io/mesh: bb}}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: kuma.io/v1alpha1, kind: Mesh, metadata: {name: cc.c}}
- {apiVersion: kuma.io/v1alpha1, kind: Dataplane, mesh: dd, metadata: {name: web.1, namespace: shop}, spec: {networking: {gateway: {tags: {kuma.io/service: kong}}}}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a.b}}
`
	show := func(names []trace.MeshName) string {
		var out []string
		for _, n := range names {
			out = append(out, strings.Join([]string{n.Mesh, n.Name, n.Namespace, n.Service}, "/"))
		}
		return strings.Join(out, " ")
	}
	for _, tt := range []struct{ text, want string }{
		{kubernetes, "aa.a/// bb/// cc.c/// dd/web.1/shop/ ///kong"},
		{universal, "m/dp.1// ///backend.v2 ///redis"},
		{`{"type":"Mesh","name":"aa.a"}`, "aa.a///"},
		{"", ""}, {"---\n---\n", ""},
	} {
		names, err := Resources([]byte(tt.text), map[string]string{"mesh": "m", "name": "dp.1", "address": "::1"}, "FILE")
		if got := show(names); got != tt.want || err != nil {
			t.Errorf("%q: %s, %v, want %s", tt.text, got, err, tt.want)
		}
	}
	if _, err := Resources([]byte("\tno: [yaml"), nil, "FILE"); err == nil || !strings.Contains(err.Error(), "FILE") {
		t.Errorf("no YAML: %v", err)
	}

	file := func(path string) ([]byte, error) {
		if path != "/etc/dp.yaml" {
			return nil, fs.ErrNotExist
		}
		return []byte(universal), nil
	}
	for _, tt := range []struct{ command, environment, want string }{
		{"kuma-dp run --dataplane-file=/etc/dp.yaml --dataplane-var name=dp-1,mesh=aa.a -v address=::1", "", "aa.a/dp-1// ///backend.v2 ///redis"},
		{"kuma-dp run -d /etc/dp.yaml -vname=dp-1 -v=mesh=m", "", "m/dp-1// ///backend.v2 ///redis"},
		{"kuma-dp run -v mesh=m", "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH=/etc/dp.yaml", "m/// ///backend.v2 ///redis"},
		{"kuma-dp run", "KUMA_DATAPLANE_RUNTIME_RESOURCE={type: Dataplane, mesh: m, name: n1}", "m/n1//"},
		{"kuma-dp run --name=z --dataplane-file /etc/none", "", "/z//"},
	} {
		names, err := parse([]byte(strings.ReplaceAll(tt.command, " ", "\x00")), []byte(tt.environment), file)
		if got := show(names); got != tt.want || (err != nil) != strings.Contains(tt.command, "none") {
			t.Errorf("%s: %s, %v, want %s", tt.command, got, err, tt.want)
		}
	}
	if _, err := parse([]byte("kuma-dp\x00run\x00-d\x00-\x00"), nil, file); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a resource from standard input: %v", err)
	}
	names, _ := Resources([]byte(universal), nil, "FILE")
	if !slices.ContainsFunc(names, func(n trace.MeshName) bool { return n.ServiceFrom == "kuma.io/service in FILE" }) {
		t.Errorf("nothing says where names are from: %+v", names)
	}
}
