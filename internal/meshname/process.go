package meshname

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// mostText bounds what is read of a process's command line and environment.
const mostText = 1 << 20

// Processes finds the names that kuma-dp processes were given. inside tells
// which processes are asked. The error says which could not be read.
func Processes(inside func(pid int) bool) ([]trace.MeshName, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []trace.MeshName
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !inside(pid) {
			continue
		}
		names, err := process(pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("read process %d: %w", pid, err))
		}
		found = append(found, names...)
	}
	return found, errors.Join(errs...)
}

// process finds the names that one process was given, if it is a kuma-dp.
func process(pid int) ([]trace.MeshName, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	command, err := readSome(dir + "/cmdline")
	if err != nil || !isDataplane(command) {
		return nil, err
	}
	environment, err := readSome(dir + "/environ")
	names := Parse(command, environment)
	for i := range names {
		names[i].Process = trace.Process{PID: uint32(pid), Comm: filepath.Base(first(command))}
	}
	return names, err
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 0, 4096)
	chunk := make([]byte, 4096)
	for len(b) < mostText {
		n, err := f.Read(chunk)
		b = append(b, chunk[:n]...)
		if err != nil || n == 0 {
			break
		}
	}
	return b, nil
}

func first(list []byte) string {
	head, _, _ := bytes.Cut(list, []byte{0})
	return string(head)
}

// isDataplane reports whether a command line is kuma-dp's.
func isDataplane(command []byte) bool {
	return filepath.Base(first(command)) == "kuma-dp"
}

// Parse reads the names from a command line and an environment, both as /proc
// has them: texts that end with a NUL. A flag goes before the environment.
func Parse(command, environment []byte) []trace.MeshName {
	flags := parseFlags(split(command))
	env := map[string]string{}
	for _, v := range split(environment) {
		if key, value, ok := strings.Cut(v, "="); ok {
			env[key] = value
		}
	}
	pick := func(flag, variable string) (string, string) {
		if v, ok := flags[flag]; ok {
			return v, "--" + flag
		}
		return env[variable], variable
	}
	out := trace.MeshName{}
	out.Mesh, out.MeshFrom = pick("mesh", "KUMA_DATAPLANE_MESH")
	out.Name, out.NameFrom = pick("name", "KUMA_DATAPLANE_NAME")
	if out.Mesh == "" && out.Name == "" {
		return nil
	}
	// On Kubernetes the name is the pod's and its namespace's, joined: both are there by themselves too.
	if namespace := env["POD_NAMESPACE"]; namespace != "" {
		if name, ok := strings.CutSuffix(out.Name, "."+namespace); ok && name != "" {
			out.Name, out.Namespace = name, namespace
		}
	} else if name, namespace, ok := cutLast(out.Name); ok && env["KUBERNETES_SERVICE_HOST"] != "" {
		out.Name, out.Namespace = name, namespace // a namespace's name holds no dot
	}
	return []trace.MeshName{out}
}

func cutLast(s string) (before, after string, ok bool) {
	at := strings.LastIndexByte(s, '.')
	if at <= 0 || at == len(s)-1 {
		return s, "", false
	}
	return s[:at], s[at+1:], true
}

func split(list []byte) []string {
	var out []string
	for _, b := range bytes.Split(list, []byte{0}) {
		if len(b) > 0 {
			out = append(out, string(b))
		}
	}
	return out
}

// parseFlags reads --flag value, --flag=value and --dataplane-var name=value.
func parseFlags(args []string) map[string]string {
	out := map[string]string{}
	for i := 1; i < len(args); i++ {
		flag, ok := strings.CutPrefix(args[i], "--")
		if !ok {
			continue
		}
		if flag == "" {
			break
		}
		name, value, joined := strings.Cut(flag, "=")
		if !joined && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			value = args[i+1]
			i++
		}
		if name == "dataplane-var" {
			key, v, _ := strings.Cut(value, "=")
			if _, set := out[key]; !set && (key == "name" || key == "mesh") {
				out[key] = v
			}
			continue
		}
		out[name] = value
	}
	return out
}
