package trace

// MeshName is what something in a mesh is called, in parts, and where that was found.
type MeshName struct {
	Mesh      string // "" not known
	Name      string // of the proxy; "" not known
	Namespace string // of Kubernetes; "" elsewhere
	Service   string
	// MeshFrom and NameFrom are the flag or variable that said so.
	MeshFrom, NameFrom string
	Process            Process // zero for names that the user asked about
}
