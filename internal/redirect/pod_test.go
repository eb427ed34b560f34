package redirect

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParsePod(t *testing.T) {
	const uid = "0a1b2c3d-1111-2222-3333-0123456789ab"
	for text, want := range map[string]Pod{"shop/web-0": {Namespace: "shop", Name: "web-0"}, "web-0": {Name: "web-0"}, uid: {UID: uid}} {
		if got, err := ParsePod(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "a/", "/b", "a/b/c"} {
		if p, err := ParsePod(text); err == nil {
			t.Errorf("%q: %+v", text, p)
		}
	}
}

// TestPodProcess finds pods as containerd and CRI-O, and both cgroup drivers, leave them.
func TestPodProcess(t *testing.T) {
	proc, root := t.TempDir(), t.TempDir()
	file := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a, b := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	file(proc+"/1/cgroup", "0::/init.scope\n")
	file(proc+"/20/cgroup", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b2c3d_1111_2222_3333_0123456789ab.slice/cri-containerd-"+a+".scope\n")
	file(root+"/run/containerd/io.containerd.runtime.v2.task/k8s.io/"+a+"/config.json",
		`{"annotations":{"io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop"}}`)
	file(proc+"/30/cgroup", "4:memory:/kubepods/burstable/podffffffff-1111-2222-3333-0123456789ab/"+b+"\n0::/kubepods/burstable/podffffffff-1111-2222-3333-0123456789ab/"+b+"\n")
	file(root+"/run/containers/storage/overlay-containers/"+b+"/userdata/config.json",
		`{"annotations":{"io.kubernetes.pod.name":"web-0","io.kubernetes.pod.namespace":"test"}}`)
	file(proc+"/25/cgroup", "0::/kubepods.slice/kubepods-podffffffff_1111_2222_3333_0123456789ab.slice/crio-conmon-"+b+".scope\n")
	// In its cgroup, and yet in the node's network namespace.
	link := func(pid, ns string) {
		t.Helper()
		if err := os.MkdirAll(proc+"/"+pid+"/ns", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(ns, proc+"/"+pid+"/ns/net"); err != nil {
			t.Fatal(err)
		}
	}
	file(proc+"/18/cgroup", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b2c3d_1111_2222_3333_0123456789ab.slice/cri-containerd-"+a+".scope\n")
	link("1", "net:[1]")
	link("18", "net:[1]")
	link("20", "net:[2]")
	// With a service manager of its own, in another container.
	file(proc+"/50/cgroup", "0::/kubepods.slice/kubepods-pod11111111_1111_2222_3333_0123456789ab.slice/cri-containerd-"+strings.Repeat("d4", 32)+".scope/system.slice/app.service\n")
	file(root+"/run/containerd/io.containerd.runtime.v2.task/k8s.io/"+strings.Repeat("d4", 32)+"/config.json",
		`{"annotations":{"io.kubernetes.cri.sandbox-name":"systemd-0","io.kubernetes.cri.sandbox-namespace":"shop"}}`)
	file(proc+"/40/cgroup", "0::/kubepods/pod01234567-1111-2222-3333-0123456789ab/"+strings.Repeat("c3", 32)+"\n")
	file(proc+"/40/environ", "PATH=/bin\x00HOSTNAME=bare-1\x00")
	file(proc+"/40/root/var/run/secrets/kubernetes.io/serviceaccount/namespace", "ops\n")
	for text, want := range map[string]int{"shop/web-0": 20, "test/web-0": 30, "ops/bare-1": 40, "bare-1": 40, "shop/systemd-0": 50, "ffffffff-1111-2222-3333-0123456789ab": 30} {
		p, _ := ParsePod(text)
		if pid, err := p.process(proc, root); pid != want || err != nil {
			t.Errorf("%s: %d, %v", text, pid, err)
		}
	}
	if _, err := (Pod{Name: "web-0"}).process(proc, root); err == nil || errors.Is(err, ErrNoPod) {
		t.Errorf("two of that name: %v", err)
	}
	if _, err := (Pod{Name: "web-1"}).process(proc, root); !errors.Is(err, ErrNoPod) || !strings.Contains(err.Error(), "5 are of pods") {
		t.Errorf("none of that name: %v", err)
	}
}
