package meshname

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

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
	names, unread := parse(command, environment, func(path string) ([]byte, error) { return readOf(dir, path) })
	err = errors.Join(err, unread)
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
	return io.ReadAll(io.LimitReader(f, mostText))
}

// readOf reads a file as a process would: below its root, and from its working directory.
func readOf(dir, path string) ([]byte, error) {
	from, how := dir+"/cwd", unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK}
	if filepath.IsAbs(path) {
		from, how.Resolve = dir+"/root", unix.RESOLVE_IN_ROOT
	}
	at, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", from, err)
	}
	defer unix.Close(at)
	fd, err := unix.Openat2(at, path, &how)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("read %s: no regular file", path), err)
	}
	return io.ReadAll(io.LimitReader(f, mostText))
}

func first(list []byte) string {
	head, _, _ := bytes.Cut(list, []byte{0})
	return string(head)
}

// isDataplane reports whether a command line is kuma-dp's.
func isDataplane(command []byte) bool {
	return filepath.Base(first(command)) == "kuma-dp"
}

// parse reads the names from a command line and an environment, both as /proc
// has them: texts that end with a NUL. A flag goes before the environment, and the
// resource that a proxy is started with, which read opens, before both: kuma-dp takes either.
func parse(command, environment []byte, read func(path string) ([]byte, error)) ([]trace.MeshName, error) {
	flags, variables := parseFlags(split(command))
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
	names, err := resource(pick, variables, read)
	if out.Name == "" && len(names) > 0 && names[0].Name != "" {
		return names, err
	}
	// Variables are for a resource: here for one that could not be read.
	if v := variables["mesh"]; out.Mesh == "" && v != "" && len(names) == 0 {
		out.Mesh, out.MeshFrom = v, "--dataplane-var"
	}
	if v := variables["name"]; out.Name == "" && v != "" && len(names) == 0 {
		out.Name, out.NameFrom = v, "--dataplane-var"
	}
	if out.Mesh == "" && out.Name == "" {
		return names, err
	}
	// On Kubernetes the name is the pod's and its namespace's, joined: both are there by themselves too.
	if namespace := env["POD_NAMESPACE"]; namespace != "" {
		if name, ok := strings.CutSuffix(out.Name, "."+namespace); ok && name != "" {
			out.Name, out.Namespace = name, namespace
		}
	} else if name, namespace, ok := cutLast(out.Name); ok && env["KUBERNETES_SERVICE_HOST"] != "" {
		out.Name, out.Namespace = name, namespace // a namespace's name holds no dot
	}
	return append([]trace.MeshName{out}, names...), err
}

// resource reads the names of the resource that a proxy is started with.
func resource(pick func(flag, variable string) (string, string), variables map[string]string, read func(path string) ([]byte, error)) ([]trace.MeshName, error) {
	path, _ := pick("dataplane-file", "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH")
	text, from := pick("dataplane", "KUMA_DATAPLANE_RUNTIME_RESOURCE")
	switch path {
	case "":
		return Resources([]byte(text), variables, from)
	case "-":
		return nil, errors.New("its resource came by standard input: name it with --file")
	}
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	return Resources(b, variables, path)
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

// shortFlags are those of one letter that matter here.
var shortFlags = map[string]string{"d": "dataplane-file", "v": "dataplane-var"}

// parseFlags reads --flag value, --flag=value, -f value and --dataplane-var name=value,name=value.
func parseFlags(args []string) (flags, variables map[string]string) {
	flags, variables = map[string]string{}, map[string]string{}
	for i := 1; i < len(args) && args[i] != "--"; i++ {
		flag, long := strings.CutPrefix(args[i], "--")
		if !long && !strings.HasPrefix(flag, "-") {
			continue
		}
		name, value, joined := strings.Cut(strings.TrimPrefix(flag, "-"), "=")
		if !long {
			if name == "" {
				continue
			}
			if len(name) > 1 { // -vname=value
				name, value, joined = name[:1], flag[2:], true
			}
			name = shortFlags[name]
		}
		if !joined && i+1 < len(args) && (args[i+1] == "-" || !strings.HasPrefix(args[i+1], "-")) {
			value = args[i+1]
			i++
		}
		if name == "dataplane-var" {
			for _, v := range strings.Split(value, ",") {
				if key, value, ok := strings.Cut(v, "="); ok {
					variables[key] = value
				}
			}
			continue
		}
		flags[name] = value
	}
	return flags, variables
}
