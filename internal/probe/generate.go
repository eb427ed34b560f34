package probe

// One object per family of hooks; all share bpf/event.h and bpf/maps.h. The
// compiler is pinned, and the objects are committed, so that building the Go
// code needs no clang. Both endians of today's kernels are little.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type event_conntrack -type event -type conntrack -type tuple -type hook -type event_flag -type loss drop ../../bpf/drop.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel packet ../../bpf/packet.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel route ../../bpf/route.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel tcp ../../bpf/tcp.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel neighbor ../../bpf/neighbor.bpf.c -- -O2 -g -Wall -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel icmp ../../bpf/icmp.bpf.c -- -O2 -g -Wall -Werror
