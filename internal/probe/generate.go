package probe

// One object per family of hooks; all share bpf/event.h and bpf/maps.h. The
// compiler is pinned, and the objects are committed, so that building the Go
// code needs no clang. Programs at tracepoints are the same on all little-endian
// architectures; those at kprobes read registers, and are compiled for each.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type event_conntrack -type event_verdict -type event_tunnel -type event_dns -type event_dns_long -type event_hop -type dns_flag -type tunnel -type tunnel_kind -type event -type conntrack -type tuple -type hook -type event_flag -type ip_flag -type loss drop ../../bpf/drop.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type budget packet ../../bpf/packet.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel route ../../bpf/route.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel tcp ../../bpf/tcp.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel neighbor ../../bpf/neighbor.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel icmp ../../bpf/icmp.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -type function verdict ../../bpf/verdict.bpf.c -- -O2 -g -Wall -Werror
