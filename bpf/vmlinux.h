/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The kernel types that replypath reads, and of each the fields that it reads:
 * CO-RE finds them by name in the running kernel's BTF, so neither order nor
 * size matters here. */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__ /* libbpf's headers take the kernel's names of registers then */

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u16 __le16;
typedef __u32 __le32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef _Bool bool;

enum { false = 0, true = 1 };

/* UAPI maps of bpf.h that the helpers' prototypes and our maps need. */
enum bpf_map_type {
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum {
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};
enum { BPF_RB_AVAIL_DATA = 0 };

/* What dynptrs are read by; opaque. */
struct bpf_dynptr {
	__u64 __opaque[2];
} __attribute__((aligned(8)));
struct __sk_buff {
	__u32 len;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct rtnl_link_ops {
	const char *kind;
};

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
	const struct rtnl_link_ops *rtnl_link_ops;
};

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be16 u6_addr16[8];
		__be32 u6_addr32[4];
	} in6_u;
};

struct sk_buff;
struct dst_entry {
	struct net_device *dev;
	int (*input)(struct sk_buff *);
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct request_sock {
	struct sock_common __req_common;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	unsigned int len;
	unsigned int data_len;
	__u32 mark;
	int skb_iif;
	__u8 pkt_type : 3;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	unsigned char *head;
	unsigned char *data;
};

union nf_inet_addr {
	__u32 all[4];
};
union nf_conntrack_man_proto {
	__be16 all;
};
struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
	u16 l3num;
};
struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
		u8 protonum;
	} dst;
};
struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};
struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
};

struct nf_hook_state {
	u8 hook; /* unsigned int before 5.12: its low byte comes first */
	u8 pf;
	struct net_device *in;
	struct net_device *out;
	struct net *net;
};
struct xt_action_param {
	const struct nf_hook_state *state;
};
struct nft_pktinfo {
	struct sk_buff *skb;
	const struct nf_hook_state *state;
};
/* Before 5.12. */
struct nft_pktinfo___xt {
	struct xt_action_param xt;
};
struct nft_table {
	char *name;
};
struct nft_chain {
	struct nft_table *table;
	char *name;
};
struct xt_table {
	char name[32];
};

struct flowi_common {
	int flowic_oif;
	int flowic_iif;
	__u32 flowic_mark;
	__u8 flowic_proto;
};
union flowi_uli {
	struct {
		__be16 dport;
		__be16 sport;
	} ports;
};
struct flowi4 {
	struct flowi_common __fl_common;
	__be32 saddr;
	__be32 daddr;
	union flowi_uli uli;
};
struct flowi6 {
	struct flowi_common __fl_common;
	struct in6_addr daddr;
	struct in6_addr saddr;
	union flowi_uli uli;
};
struct fib_nh_common {
	struct net_device *nhc_dev;
	unsigned char nhc_scope;
};
struct fib6_table {
	__u32 tb6_id;
};
struct fib6_result {
	u32 fib6_flags;
	u8 fib6_type;
};

struct neigh_table {
	int family;
};
struct neighbour {
	struct neigh_table *tbl;
	__u8 nud_state;
	struct net_device *dev;
	u8 primary_key[0];
};

struct upid {
	int nr;
};
struct pid {
	struct upid numbers[1];
};
struct signal_struct {
	struct pid *pids[4];
};
struct mm_struct;
struct nsproxy {
	struct net *net_ns;
};
struct task_struct {
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct task_struct *group_leader;
	char comm[16];
};

/* Of the module openvswitch (net/openvswitch/datapath.h). */
struct dp_upcall_info {
	__u8 cmd;
};

#pragma clang attribute pop

/* Registers at a kprobe. This is user space's view of them, which never changes. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs;
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#endif

#endif
