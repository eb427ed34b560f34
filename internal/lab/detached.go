package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// What a detached server finds in its environment. The first also marks the
// process as the network's own, for whoever takes the network down.
const (
	envNetwork   = "REPLYPATH_LAB"           // the network's id
	envListeners = "REPLYPATH_LAB_LISTENERS" // how many sockets it inherits, from descriptor 3 on
	envResolvers = "REPLYPATH_LAB_RESOLVERS" // which of them answer DNS, and how
)

// Detach leaves the network standing after this process: its services are
// handed, with their open sockets, to a new process of this executable, called
// with the arguments "lab serve", which must call Serve. The network stays
// until DownAll, or Down here. After an error it has no services any more, and
// all that is left to do is Down.
func (n *Network) Detach() error {
	files, resolvers, at, err := n.sockets()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	// exec makes the sockets blocking, for us too: nobody may be about to accept then.
	n.stopServices()
	if err == nil && len(files) > 0 {
		err = n.startServer(files, resolvers, at)
	}
	if err != nil {
		return fmt.Errorf("detach lab %s: %w", n.lab.Name, err)
	}
	for _, h := range n.order {
		h.close()
	}
	return nil
}

// sockets returns duplicates of all listening sockets, which of them answer DNS, and the host of one of them.
func (n *Network) sockets() (files []*os.File, resolvers map[int]*resolverServer, at string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	resolvers = make(map[int]*resolverServer)
	for name, servers := range n.servers {
		for _, s := range servers {
			file, err := s.file()
			if err != nil {
				return files, resolvers, at, fmt.Errorf("duplicate socket: %w", err)
			}
			if r, ok := s.(*resolverServer); ok {
				resolvers[len(files)] = r
			}
			files, at = append(files, file), name
		}
	}
	return files, resolvers, at, nil
}

// startServer starts the process that takes the services over.
func (n *Network) startServer(files []*os.File, resolvers map[int]*resolverServer, at string) error {
	behaviours, err := json.Marshal(resolvers)
	if err != nil {
		return fmt.Errorf("describe resolvers: %w", err)
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	command := exec.Command(executable, "lab", "serve")
	command.Dir = "/"
	command.Env = append(os.Environ(), envNetwork+"="+n.id, envListeners+"="+strconv.Itoa(len(files)), envResolvers+"="+string(behaviours))
	command.ExtraFiles = files
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The child lives in the namespace of the thread that starts it, where Down looks for it.
	if err := enter(n.hosts[at].ns, command.Start); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	go command.Wait()
	return nil
}

// Serve is the whole of a detached server: it answers on the sockets that
// Detach handed to this process, until the context ends or the network's
// namespaces are gone.
func Serve(ctx context.Context) error {
	id := os.Getenv(envNetwork)
	if what, ok := os.LookupEnv(envProxy); ok {
		return serveProxy(ctx, id, what)
	}
	count, err := strconv.Atoi(os.Getenv(envListeners))
	if _, ok := parseName(id + "-x"); !ok || err != nil || count < 1 || count > 64 {
		return errors.New("serve lab: not started by `replypath lab up`")
	}
	var resolvers map[int]*resolverServer
	if err := json.Unmarshal([]byte(os.Getenv(envResolvers)), &resolvers); err != nil {
		return fmt.Errorf("serve lab: read resolvers: %w", err)
	}
	for i := range count {
		file := os.NewFile(uintptr(3+i), "listener")
		running, err := takeOver(file, id, resolvers[i])
		file.Close()
		if err != nil {
			return fmt.Errorf("serve lab: take socket %d over: %w", i, err)
		}
		defer running.stop()
	}
	for pause(ctx, 2*time.Second) && stands(id) {
	}
	return nil
}

// takeOver answers on a socket that was another process's; resolver is nil where it echoes.
func takeOver(file *os.File, name string, resolver *resolverServer) (server, error) {
	if conn, err := net.FilePacketConn(file); err == nil {
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			return nil, fmt.Errorf("it is %s", conn.LocalAddr().Network())
		}
		if resolver != nil {
			return startResolver(resolver.Resolver, resolver.Netns, udp, nil), nil
		}
		return startUDP(udp, 0), nil
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("it is %s", listener.Addr().Network())
	}
	if resolver != nil {
		return startResolver(resolver.Resolver, resolver.Netns, nil, tcp), nil
	}
	return start(tcp, name), nil
}

// stands reports whether the network still has a namespace.
func stands(id string) bool {
	found, err := filepath.Glob(filepath.Join(runDir, id+"-*"))
	return err == nil && len(found) > 0
}
