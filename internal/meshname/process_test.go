package meshname

import (
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		command, environment string
		want                 trace.MeshName
	}{
		{"kuma-dp\x00run\x00--mesh=m\x00--name=n\x00", "", trace.MeshName{Mesh: "m", Name: "n", MeshFrom: "--mesh", NameFrom: "--name"}},
		{"kuma-dp\x00run\x00--mesh\x00m\x00--dataplane-var\x00name=n\x00", "KUMA_DATAPLANE_MESH=other\x00", trace.MeshName{Mesh: "m", Name: "n", MeshFrom: "--mesh", NameFrom: "--name"}},
		{"kuma-dp\x00run\x00", "KUMA_DATAPLANE_MESH=m\x00KUMA_DATAPLANE_NAME=a.b.c\x00POD_NAMESPACE=c\x00",
			trace.MeshName{Mesh: "m", Name: "a.b", Namespace: "c", MeshFrom: "KUMA_DATAPLANE_MESH", NameFrom: "KUMA_DATAPLANE_NAME"}},
		{"kuma-dp\x00run\x00", "KUMA_DATAPLANE_MESH=m\x00KUMA_DATAPLANE_NAME=a.c\x00KUBERNETES_SERVICE_HOST=10.0.0.1\x00",
			trace.MeshName{Mesh: "m", Name: "a", Namespace: "c", MeshFrom: "KUMA_DATAPLANE_MESH", NameFrom: "KUMA_DATAPLANE_NAME"}},
	} {
		got := Parse([]byte(tt.command), []byte(tt.environment))
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%q %q: %+v, want %+v", tt.command, tt.environment, got, tt.want)
		}
	}
	if got := Parse([]byte("kuma-dp\x00version\x00"), nil); got != nil {
		t.Errorf("names from nothing: %+v", got)
	}
}

// FuzzParse: names are parts of what was given, never made up.
func FuzzParse(f *testing.F) {
	f.Add([]byte("kuma-dp\x00run\x00--mesh=m\x00--name\x00n\x00"), []byte("POD_NAMESPACE=c\x00KUMA_DATAPLANE_NAME=a.c\x00"))
	f.Add([]byte("kuma-dp\x00--\x00--mesh"), []byte("=\x00=="))
	f.Fuzz(func(t *testing.T, command, environment []byte) {
		for _, n := range Parse(command, environment) {
			if n.Mesh == "" && n.Name == "" {
				t.Error("no name")
			}
			if n.Namespace != "" && n.Name == "" {
				t.Errorf("a namespace without a name: %+v", n)
			}
		}
	})
}
