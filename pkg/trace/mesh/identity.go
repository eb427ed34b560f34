package mesh

import "strings"

// Identity names a proxy in a mesh by its parts. It is never made by splitting
// text, nor compared by joined text: names may hold dots.
type Identity struct {
	Mesh      string
	Name      string // of the proxy, without the namespace
	Namespace string // of Kubernetes; "" elsewhere
}

// Joined is the identifier that Kuma makes of it: "mesh.name", or
// "mesh.name.namespace" on Kubernetes.
func (i Identity) Joined() string {
	joined := i.Mesh + "." + i.Name
	if i.Namespace != "" {
		joined += "." + i.Namespace
	}
	return joined
}

// AsRead is what Kuma takes the joined identifier for: it splits at the first
// dot and, on Kubernetes, the rest at its last one.
func (i Identity) AsRead() Identity {
	mesh, rest, _ := strings.Cut(i.Joined(), ".")
	read := Identity{Mesh: mesh, Name: rest}
	if at := strings.LastIndexByte(rest, '.'); i.Namespace != "" && at >= 0 {
		read.Name, read.Namespace = rest[:at], rest[at+1:]
	}
	return read
}

// Other is another identity with the same joined identifier: the one that Kuma
// takes it for or, where it reads it well, the one that it might be meant for.
// False when there is no other of non-empty names.
func (i Identity) Other() (Identity, bool) {
	if read := i.AsRead(); read != i {
		return read, read.Mesh != "" && read.Name != "" && read.Joined() == i.Joined()
	}
	first, rest, dotted := strings.Cut(i.Name, ".")
	if !dotted || first == "" || rest == "" || i.Mesh == "" {
		return Identity{}, false
	}
	return Identity{Mesh: i.Mesh + "." + first, Name: rest, Namespace: i.Namespace}, true
}

// mostLabel is the length of a DNS label (RFC 1035, section 2.3.4).
const mostLabel = 63

// Label is a label, as Kubernetes takes RFC 1035, that resembles a name; "" when nothing is left of it.
func Label(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9' && b.Len() > 0:
			b.WriteRune(r)
		case b.Len() > 0:
			b.WriteByte('-')
		}
		if b.Len() == mostLabel {
			break
		}
	}
	return strings.TrimRight(b.String(), "-")
}
