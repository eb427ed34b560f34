package mesh

import (
	"strings"
	"testing"
)

func TestIdentity(t *testing.T) {
	for _, tt := range []struct {
		is, other Identity
		misread   bool
	}{
		{Identity{Mesh: "default", Name: "dp-1"}, Identity{}, false},
		{Identity{Mesh: "aa.a", Name: "dp-1"}, Identity{Mesh: "aa", Name: "a.dp-1"}, true},
		{Identity{Mesh: "a.b.c", Name: "d"}, Identity{Mesh: "a", Name: "b.c.d"}, true},
		{Identity{Mesh: "default", Name: "web.1"}, Identity{Mesh: "default.web", Name: "1"}, false},
		{Identity{Mesh: "default", Name: "web", Namespace: "shop"}, Identity{}, false},
		{Identity{Mesh: "aa.a", Name: "web", Namespace: "shop"}, Identity{Mesh: "aa", Name: "a.web", Namespace: "shop"}, true},
		{Identity{Mesh: "aa", Name: "a.web", Namespace: "shop"}, Identity{Mesh: "aa.a", Name: "web", Namespace: "shop"}, false},
	} {
		if got := tt.is.AsRead() != tt.is; got != tt.misread {
			t.Errorf("%+v: misread %t", tt.is, got)
		}
		other, ok := tt.is.Other()
		if ok != (tt.other != Identity{}) || other != tt.other {
			t.Errorf("%+v: other %+v %t, want %+v", tt.is, other, ok, tt.other)
		}
	}
}

func TestLabel(t *testing.T) {
	for name, want := range map[string]string{
		"aa.a": "aa-a", "Shop_1": "shop-1", "1st": "st", "web-": "web", "...": "", "ok": "ok", "é.b": "b", strings.Repeat("a", 70): strings.Repeat("a", 63),
	} {
		if got := Label(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{"", "a.b", "A", "1a", "-a", "a-", "a_b", strings.Repeat("a", 64)} {
		if isLabel(bad) {
			t.Errorf("%q is a label", bad)
		}
	}
}

func TestOfChain(t *testing.T) {
	for chain, want := range map[string]string{
		"KUMA_MESH_INBOUND": "Kuma", "kuma-mesh-outbound": "Kuma", "MESH_OUTPUT": "Kuma", "ISTIO_IN_REDIRECT": "Istio", "PROXY_INIT_OUTPUT": "Linkerd",
	} {
		if m := OfChain(chain); m == nil || m.Name != want {
			t.Errorf("%s: %v, want %s", chain, m, want)
		}
	}
	if m := OfChain("KUBE-SERVICES"); m != nil {
		t.Errorf("kube-proxy's chain is %s's", m.Name)
	}
}

// FuzzIdentity: names that are labels have one reading; any other identity that
// is told has the same joined identifier; nothing is lost by joining two that
// are not told to be ambiguous.
func FuzzIdentity(f *testing.F) {
	f.Add("aa.a", "dp-1", "")
	f.Add("default", "web", "shop")
	f.Add("", ".", "..")
	f.Fuzz(func(t *testing.T, mesh, name, namespace string) {
		i := Identity{Mesh: mesh, Name: name, Namespace: namespace}
		other, ok := i.Other()
		if ok && (other == i || other.Joined() != i.Joined()) {
			t.Errorf("%+v: other %+v", i, other)
		}
		if isLabel(mesh) && i.AsRead() != i && !strings.Contains(namespace, ".") {
			t.Errorf("%+v is misread as %+v", i, i.AsRead())
		}
		if isLabel(mesh) && isLabel(name) && ok && !strings.Contains(namespace, ".") {
			t.Errorf("%+v has another reading: %+v", i, other)
		}
		if l := Label(name); l != "" && !isLabel(l) {
			t.Errorf("label %q of %q is none", l, name)
		}
		if m := OfChain(name); m != nil && m.Name == "" {
			t.Error("a mesh without name")
		}
	})
}

// isLabel reports whether a name is a label as Kubernetes takes RFC 1035:
// lower-case letters, digits and hyphens, a letter first, no hyphen last.
func isLabel(name string) bool {
	if name == "" || len(name) > mostLabel {
		return false
	}
	for i, r := range []byte(name) {
		switch {
		case r >= 'a' && r <= 'z':
		case (r >= '0' && r <= '9') && i > 0:
		case r == '-' && i > 0 && i < len(name)-1:
		default:
			return false
		}
	}
	return true
}
