package stream

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSocketPath is how long a unix socket's path may be: sun_path without its
// final zero (unix(7)), in bytes.
const maxSocketPath = 107

// Endpoint is where an agent listens.
type Endpoint struct {
	Network string // "unix" or "tcp"
	Address string // absolute path, or host:port
}

// ParseEndpoint reads "unix:///run/replypath/agent.sock" or "tcp://host:port".
func ParseEndpoint(text string) (Endpoint, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case ok && scheme == "unix":
		return unixEndpoint(text, rest)
	case ok && scheme == "tcp":
		_, port, err := net.SplitHostPort(rest)
		if err != nil {
			return Endpoint{}, fmt.Errorf("parse address %q: expected tcp://HOST:PORT", text)
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return Endpoint{}, fmt.Errorf("parse address %q: port %q is no number from 0 to 65535", text, port)
		}
		return Endpoint{Network: "tcp", Address: rest}, nil
	}
	return Endpoint{}, fmt.Errorf("parse address %q: expected unix:///PATH or tcp://HOST:PORT", text)
}

func unixEndpoint(text, path string) (Endpoint, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/") {
		return Endpoint{}, fmt.Errorf("parse address %q: expected unix:// and the absolute path of a socket", text)
	}
	path = filepath.Clean(path)
	if len(path) > maxSocketPath {
		return Endpoint{}, fmt.Errorf("parse address %q: the path is longer than %d bytes", text, maxSocketPath)
	}
	return Endpoint{Network: "unix", Address: path}, nil
}

// String returns the form that ParseEndpoint reads.
func (e Endpoint) String() string { return e.Network + "://" + e.Address }
