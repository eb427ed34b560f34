package trace

// MeshName is what something in a mesh is called, in parts, and where that was found.
type MeshName struct {
	Mesh      string // "" not known
	Name      string // of the proxy; "" not known
	Namespace string // of Kubernetes; "" elsewhere
	Service   string
	// MeshFrom and the like are the flag, variable or file that said so.
	MeshFrom, NameFrom, ServiceFrom string
	Process                         Process // zero for names that the user asked about
}
