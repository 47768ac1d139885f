// SPDX-License-Identifier: GPL-2.0
/* Helpers of the dput(2) tests. */

#include "dput_util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/io_uring.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>

unsigned long page_size(void)
{
	static unsigned long size;

	if (!size)
		size = sysconf(_SC_PAGESIZE);
	return size;
}

int sys_dput(int src_fd, unsigned long src, int dst_fd, unsigned long dst,
	     size_t len, unsigned int flags)
{
	return dput(src_fd, (const void *)src, dst_fd, (void *)dst, len, flags);
}

int peer_dput(struct peer *src, unsigned long saddr, struct peer *dst,
	      unsigned long daddr, size_t len, unsigned int flags)
{
	return sys_dput(src->pidfd, saddr, dst->pidfd, daddr, len, flags);
}

bool dput_supported(void)
{
	return sys_dput(PIDFD_SELF, ARENA, PIDFD_SELF, ARENA_END, 0, 0) == 0 ||
	       errno != ENOSYS;
}

int sys_pidfd_open(pid_t pid, unsigned int flags)
{
	return syscall(__NR_pidfd_open, pid, flags);
}

/*
 * In 32 bits, the program itself, its heap or libraries may be in the way, as the
 * kernel or the limit of the stack's size will have it. Not in 64 bits.
 */
static void __attribute__((constructor)) arena_look(void)
{
	char *maps = proc_maps(getpid(), ARENA, ARENA_END), *c;

	if (!*maps) {
		free(maps);
		return;
	}
	printf("TAP version 13\n1..0 # SKIP the tests need addresses that are in use here\n");
	for (c = strtok(maps, "\n"); c; c = strtok(NULL, "\n"))
		printf("# %s\n", c);
	printf("# Link the program with -no-pie, or with -pie; and look at ulimit -s.\n");
	fflush(stdout);
	/* Of kselftest.h: skipped */
	exit(4);
}

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Accesses that may fault */

static __thread sigjmp_buf access_env;
static __thread volatile sig_atomic_t access_armed;

static void access_fault(int sig)
{
	if (access_armed)
		siglongjmp(access_env, sig);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void access_init(void)
{
	struct sigaction sa = {
		.sa_handler = access_fault,
		.sa_flags = SA_NODEFER,
	};
	static bool done;

	if (done)
		return;
	sigemptyset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	done = true;
}

/* Run the following block; leave it with a non-zero value on a fault. */
#define access_begin()	({ access_init(); access_armed = 1;	\
			   sigsetjmp(access_env, 0); })
#define access_end()	(access_armed = 0)

bool access_run(void (*fn)(void *arg), void *arg)
{
	if (access_begin()) {
		access_end();
		return false;
	}
	fn(arg);
	access_end();
	return true;
}

/* Processes */

struct peer_msg {
	peer_fn fn;
	long ret;
	int err;
	size_t len;
	char data[PEER_ARG_MAX] __aligned(16);
};

#define PEER_MSG_HEAD	offsetof(struct peer_msg, data)

static struct peer_msg msg;
static int server_sock = -1;

static long op_exit(void *arg)
{
	_exit(*(int *)arg);
}

static void __noreturn peer_serve(int sock)
{
	server_sock = sock;
	for (;;) {
		ssize_t n = recv(sock, &msg, sizeof(msg), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < (ssize_t)PEER_MSG_HEAD)
			_exit(0);
		errno = 0;
		msg.ret = msg.fn(msg.data);
		msg.err = errno;
		if (send(sock, &msg, PEER_MSG_HEAD + msg.len, 0) < 0)
			_exit(1);
	}
}

void peer_self(struct peer *p)
{
	p->pid = getpid();
	p->pidfd = PIDFD_SELF;
	p->sock = -1;
}

int peer_start(struct peer *p)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv))
		return -1;
	fflush(stdout);
	fflush(stderr);
	p->pid = fork();
	if (p->pid < 0)
		return -1;
	if (!p->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sv[0]);
		peer_serve(sv[1]);
	}
	close(sv[1]);
	p->sock = sv[0];
	p->pidfd = sys_pidfd_open(p->pid, 0);
	return p->pidfd < 0 ? -1 : 0;
}

static long op_fork(void *arg)
{
	int *sock = arg;
	pid_t pid;

	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(server_sock);
		peer_serve(*sock);
	}
	close(*sock);
	return pid;
}

static long op_recv_fd(void *arg)
{
	char cbuf[CMSG_SPACE(sizeof(int))] __aligned(16), byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = cbuf, .msg_controllen = sizeof(cbuf),
	};
	struct cmsghdr *cm;

	if (recvmsg(server_sock, &mh, 0) != 1)
		return -1;
	cm = CMSG_FIRSTHDR(&mh);
	if (!cm)
		return -1;
	memcpy(arg, CMSG_DATA(cm), sizeof(int));
	return 0;
}

static int send_fd(int sock, int fd)
{
	char cbuf[CMSG_SPACE(sizeof(int))] __aligned(16) = {}, byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = cbuf, .msg_controllen = sizeof(cbuf),
	};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);

	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &fd, sizeof(int));
	return sendmsg(sock, &mh, 0) == 1 ? 0 : -1;
}

/* A child of @p, which inherits its memory. */
int peer_fork(struct peer *p, struct peer *child)
{
	struct peer_msg head = { .fn = op_recv_fd, .len = sizeof(int) };
	int sv[2], fd;

	if (p->sock < 0)
		return peer_start(child);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv))
		return -1;
	/* The descriptor follows the request, before its answer. */
	if (send(p->sock, &head, PEER_MSG_HEAD + sizeof(int), 0) < 0 ||
	    send_fd(p->sock, sv[1]) ||
	    recv(p->sock, &msg, sizeof(msg), 0) < 0 || msg.ret)
		return -1;
	memcpy(&fd, msg.data, sizeof(fd));
	close(sv[1]);
	child->pid = peer_call(p, op_fork, &fd, sizeof(fd));
	if (child->pid < 0)
		return -1;
	child->sock = sv[0];
	child->pidfd = sys_pidfd_open(child->pid, 0);
	return child->pidfd < 0 ? -1 : 0;
}

static void peer_close(struct peer *p)
{
	close(p->sock);
	close(p->pidfd);
	p->sock = -1;
	p->pid = 0;
}

static long op_reap(void *arg)
{
	return waitpid(*(pid_t *)arg, NULL, 0);
}

/* Wait until @p is gone, so that it no longer shares any memory. */
static void peer_gone(struct peer *p)
{
	struct pollfd pfd = { .fd = p->pidfd, .events = POLLIN };

	/* The child of another peer is reaped by that, or is left to init. */
	if (waitpid(p->pid, NULL, 0) < 0)
		poll(&pfd, 1, -1);
	peer_close(p);
}

void peer_stop(struct peer *p)
{
	int code = 0;

	if (p->pid <= 0 || p->sock < 0)
		return;
	peer_call(p, op_exit, &code, sizeof(code));
	peer_gone(p);
}

void peer_kill(struct peer *p)
{
	if (p->pid <= 0 || p->sock < 0)
		return;
	kill(p->pid, SIGKILL);
	peer_gone(p);
}

void peer_stop_child(struct peer *parent, struct peer *p)
{
	pid_t pid = p->pid;
	int code = 0;

	peer_call(p, op_exit, &code, sizeof(code));
	peer_call(parent, op_reap, &pid, sizeof(pid));
	peer_close(p);
}

long peer_call(struct peer *p, peer_fn fn, void *arg, size_t len)
{
	if (p->sock < 0) {
		errno = 0;
		return fn(arg);
	}
	if (len > PEER_ARG_MAX) {
		errno = E2BIG;
		return -1;
	}
	msg.fn = fn;
	msg.len = len;
	memcpy(msg.data, arg, len);
	if (send(p->sock, &msg, PEER_MSG_HEAD + len, MSG_NOSIGNAL) < 0)
		return -1;
	if (recv(p->sock, &msg, sizeof(msg), 0) < (ssize_t)PEER_MSG_HEAD) {
		if (fn != op_exit)
			printf("# process %d died\n", p->pid);
		errno = EPIPE;
		return -1;
	}
	memcpy(arg, msg.data, len);
	errno = msg.err;
	return msg.ret;
}

/* What a peer can be asked to do */

struct map_arg {
	unsigned long addr, len, to;
	int prot, flags, fd;
};

static long op_mmap(void *arg)
{
	struct map_arg *a = arg;

	return (long)mmap((void *)a->addr, a->len, a->prot, a->flags, a->fd, 0);
}

static long op_munmap(void *arg)
{
	struct map_arg *a = arg;

	return munmap((void *)a->addr, a->len);
}

static long op_mprotect(void *arg)
{
	struct map_arg *a = arg;

	return mprotect((void *)a->addr, a->len, a->prot);
}

static long op_madvise(void *arg)
{
	struct map_arg *a = arg;

	return madvise((void *)a->addr, a->len, a->flags);
}

static long op_mseal(void *arg)
{
	struct map_arg *a = arg;

	return syscall(__NR_mseal, a->addr, a->len, 0);
}

static long op_mremap(void *arg)
{
	struct map_arg *a = arg;

	return (long)mremap((void *)a->addr, a->len, a->len,
			    MREMAP_MAYMOVE | MREMAP_FIXED, a->to);
}

static long op_setuid(void *arg)
{
	uid_t uid = *(uid_t *)arg;

	if (syscall(SYS_setresgid, uid, uid, uid) ||
	    syscall(SYS_setresuid, uid, uid, uid))
		return -1;
	/* A change of credentials clears it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return 0;
}

long peer_mmap(struct peer *p, unsigned long addr, size_t len, int prot,
	       int flags, int fd)
{
	struct map_arg a = { addr, len, 0, prot, flags, fd };

	return peer_call(p, op_mmap, &a, sizeof(a));
}

long peer_map(struct peer *p, unsigned long addr, size_t len, int prot)
{
	long ret = peer_mmap(p, addr, len, prot, MAP_PRIVATE | MAP_ANONYMOUS |
			     MAP_FIXED_NOREPLACE, -1);

	return ret == (long)addr ? 0 : -1;
}

long peer_munmap(struct peer *p, unsigned long addr, size_t len)
{
	struct map_arg a = { .addr = addr, .len = len };

	return peer_call(p, op_munmap, &a, sizeof(a));
}

long peer_mprotect(struct peer *p, unsigned long addr, size_t len, int prot)
{
	struct map_arg a = { .addr = addr, .len = len, .prot = prot };

	return peer_call(p, op_mprotect, &a, sizeof(a));
}

long peer_madvise(struct peer *p, unsigned long addr, size_t len, int advice)
{
	struct map_arg a = { .addr = addr, .len = len, .flags = advice };

	return peer_call(p, op_madvise, &a, sizeof(a));
}

long peer_mseal(struct peer *p, unsigned long addr, size_t len)
{
	struct map_arg a = { .addr = addr, .len = len };

	return peer_call(p, op_mseal, &a, sizeof(a));
}

long peer_mremap(struct peer *p, unsigned long from, size_t len,
		 unsigned long to)
{
	struct map_arg a = { .addr = from, .len = len, .to = to };
	long ret = peer_call(p, op_mremap, &a, sizeof(a));

	return ret == (long)to ? 0 : -1;
}

long peer_setuid(struct peer *p, uid_t uid)
{
	return peer_call(p, op_setuid, &uid, sizeof(uid));
}

static long op_admit(void *arg)
{
	return prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
}

void peer_admit(struct peer *p)
{
	/* It fails where there is no Yama. */
	peer_call(p, op_admit, NULL, 0);
}

struct rw_arg {
	unsigned long addr, len;
	char data[];
};

#define RW_MAX		(PEER_ARG_MAX - sizeof(struct rw_arg))

static long op_read(void *arg)
{
	struct rw_arg *a = arg;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -1;
	}
	memcpy(a->data, (void *)a->addr, a->len);
	access_end();
	return 0;
}

static long op_write(void *arg)
{
	struct rw_arg *a = arg;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -1;
	}
	memcpy((void *)a->addr, a->data, a->len);
	access_end();
	return 0;
}

static long peer_rw(struct peer *p, unsigned long addr, void *buf, size_t len,
		    bool write)
{
	static union {
		struct rw_arg a;
		char space[PEER_ARG_MAX];
	} u;
	size_t n;

	for (; len; len -= n, addr += n, buf = (char *)buf + n) {
		n = len < RW_MAX ? len : RW_MAX;
		u.a.addr = addr;
		u.a.len = n;
		if (write)
			memcpy(u.a.data, buf, n);
		if (peer_call(p, write ? op_write : op_read, &u,
			      sizeof(struct rw_arg) + n))
			return -1;
		if (!write)
			memcpy(buf, u.a.data, n);
	}
	return 0;
}

long peer_read(struct peer *p, unsigned long addr, void *buf, size_t len)
{
	return peer_rw(p, addr, buf, len, false);
}

long peer_write(struct peer *p, unsigned long addr, const void *buf, size_t len)
{
	return peer_rw(p, addr, (void *)buf, len, true);
}

bool peer_readable(struct peer *p, unsigned long addr)
{
	char c;

	return !peer_read(p, addr, &c, 1);
}

static long op_writable(void *arg)
{
	volatile char *c = (void *)*(unsigned long *)arg;

	if (access_begin()) {
		access_end();
		return 0;
	}
	*c = *c;
	access_end();
	return 1;
}

bool peer_writable(struct peer *p, unsigned long addr)
{
	return peer_call(p, op_writable, &addr, sizeof(addr)) == 1;
}

/* Patterns */

static inline unsigned char pattern_byte(size_t off, unsigned int seed)
{
	return seed * 101 + off + (off >> 8) * 7 + (off >> 12) * 31;
}

void pattern(void *buf, size_t len, size_t off, unsigned int seed)
{
	unsigned char *c = buf;
	size_t i;

	for (i = 0; i < len; i++)
		c[i] = pattern_byte(off + i, seed);
}

struct pat_arg {
	unsigned long addr, len, first, step;
	unsigned int seed;
};

static long op_fill(void *arg)
{
	struct pat_arg *a = arg;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -1;
	}
	pattern((void *)a->addr, a->len, 0, a->seed);
	access_end();
	return 0;
}

static long op_verify(void *arg)
{
	struct pat_arg *a = arg;
	volatile unsigned char *c = (void *)a->addr;
	size_t i;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -2;
	}
	for (i = 0; i < a->len; i++)
		if (c[i] != pattern_byte(i, a->seed))
			break;
	access_end();
	return i < a->len ? (long)i : -1;
}

long peer_fill(struct peer *p, unsigned long addr, size_t len,
	       unsigned int seed)
{
	struct pat_arg a = { .addr = addr, .len = len, .seed = seed };

	return peer_call(p, op_fill, &a, sizeof(a));
}

long peer_verify(struct peer *p, unsigned long addr, size_t len,
		 unsigned int seed)
{
	struct pat_arg a = { .addr = addr, .len = len, .seed = seed };
	long ret = peer_call(p, op_verify, &a, sizeof(a));

	return ret == -1 && errno == EPIPE ? -2 : ret;
}

static inline uint64_t stamp_word(size_t page, int i, unsigned int seed)
{
	return ((uint64_t)seed << 48) + ((uint64_t)page << 8) + i + 1;
}

/* Words of a page: the first two, and the last one of each half */
#define NR_STAMPS	4

static size_t stamp_at(int i)
{
	return i < 2 ? i : page_size() / 16 * (i - 1) - 1;
}

static long op_stamp(void *arg)
{
	struct pat_arg *a = arg;
	size_t pg, i;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -1;
	}
	for (pg = a->first; pg < a->len; pg += a->step) {
		volatile uint64_t *w = (void *)(a->addr + pg * page_size());

		for (i = 0; i < NR_STAMPS; i++)
			w[stamp_at(i)] = stamp_word(pg, i, a->seed);
	}
	access_end();
	return 0;
}

static long op_check(void *arg)
{
	struct pat_arg *a = arg;
	size_t pg, i;

	if (access_begin()) {
		access_end();
		errno = EFAULT;
		return -2;
	}
	for (pg = a->first; pg < a->len; pg += a->step) {
		volatile uint64_t *w = (void *)(a->addr + pg * page_size());

		for (i = 0; i < NR_STAMPS; i++) {
			if (w[stamp_at(i)] == stamp_word(pg, i, a->seed))
				continue;
			access_end();
			return pg;
		}
	}
	access_end();
	return -1;
}

long peer_stamp(struct peer *p, unsigned long addr, size_t npages,
		size_t first, size_t step, unsigned int seed)
{
	struct pat_arg a = { addr, npages, first, step, seed };

	return peer_call(p, op_stamp, &a, sizeof(a));
}

long peer_check(struct peer *p, unsigned long addr, size_t npages,
		size_t first, size_t step, unsigned int seed)
{
	struct pat_arg a = { addr, npages, first, step, seed };
	long ret = peer_call(p, op_check, &a, sizeof(a));

	return ret == -1 && errno == EPIPE ? -2 : ret;
}

/* /proc */

static FILE *proc_open(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "r");
}

/* The lines of maps that overlap a range; to be freed. */
char *proc_maps(pid_t pid, unsigned long start, unsigned long end)
{
	FILE *f = proc_open(pid, "maps");
	unsigned long s, e;
	char line[512];
	size_t size = 0;
	char *text;
	FILE *out;

	out = open_memstream(&text, &size);
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &s, &e) == 2 && s < end && e > start)
			fputs(line, out);
	fclose(out);
	if (f)
		fclose(f);
	return text;
}

long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int proc_count_vmas(pid_t pid, unsigned long start, unsigned long end)
{
	char *maps = proc_maps(pid, start, end), *c;
	int n = 0;

	for (c = maps; (c = strchr(c, '\n')); c++)
		n++;
	free(maps);
	return n;
}

int proc_mapped(pid_t pid, unsigned long addr, size_t len)
{
	char *maps = proc_maps(pid, addr, addr + len), *c, *next;
	unsigned long s, e, sum = 0;

	for (c = maps; *c; c = next) {
		next = strchr(c, '\n') + 1;
		if (sscanf(c, "%lx-%lx", &s, &e) != 2)
			continue;
		if (s < addr)
			s = addr;
		if (e > addr + len)
			e = addr + len;
		sum += e - s;
	}
	free(maps);
	return sum == len ? 1 : sum ? -1 : 0;
}

int proc_find(pid_t pid, const char *name, unsigned long *start,
	      unsigned long *end)
{
	FILE *f = proc_open(pid, "maps");
	char line[512];
	int ret = -1;

	while (f && ret && fgets(line, sizeof(line), f))
		if (strstr(line, name) &&
		    sscanf(line, "%lx-%lx", start, end) == 2)
			ret = 0;
	if (f)
		fclose(f);
	return ret;
}

const char *proc_perms(pid_t pid, unsigned long addr)
{
	char *maps = proc_maps(pid, addr, addr + 1);
	static char perms[8];

	if (sscanf(maps, "%*x-%*x %7s", perms) != 1)
		perms[0] = '\0';
	free(maps);
	return perms;
}

long proc_smaps_kb(pid_t pid, unsigned long start, unsigned long end,
		   const char *field)
{
	FILE *f = proc_open(pid, "smaps");
	size_t n = strlen(field);
	unsigned long s, e;
	bool in = false;
	char line[512];
	long sum = 0;

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &s, &e) == 2)
			in = s < end && e > start;
		else if (in && !strncmp(line, field, n) && line[n] == ':')
			sum += atol(line + n + 1);
	}
	fclose(f);
	return sum;
}

bool proc_vmflag(pid_t pid, unsigned long addr, const char *flag)
{
	FILE *f = proc_open(pid, "smaps");
	bool in = false, ret = false;
	unsigned long s, e;
	char line[512], want[8];

	snprintf(want, sizeof(want), " %s", flag);
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &s, &e) == 2)
			in = s <= addr && e > addr;
		else if (in && !strncmp(line, "VmFlags:", 8))
			ret = strstr(line, want);
	}
	if (f)
		fclose(f);
	return ret;
}

long proc_status_kb(pid_t pid, const char *field)
{
	FILE *f = proc_open(pid, "status");
	size_t n = strlen(field);
	char line[256];
	long ret = -1;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, field, n) && line[n] == ':')
			ret = atol(line + n + 1);
	if (f)
		fclose(f);
	return ret;
}

static uint64_t read_u64(const char *path, uint64_t index)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t v = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &v, sizeof(v), index * sizeof(v)) != sizeof(v))
		v = 0;
	close(fd);
	return v;
}

uint64_t proc_pagemap(pid_t pid, unsigned long addr)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	return read_u64(path, addr / page_size());
}

bool soft_dirty_supported(void)
{
	char *p = mmap(NULL, page_size(), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool tracked;

	if (p == MAP_FAILED)
		return false;
	*p = 1;
	tracked = proc_pagemap(getpid(), (unsigned long)p) & PM_SOFT_DIRTY;
	/* Where it is not configured, some architectures say "dirty" for ever. */
	if (setting_write("/proc/self/clear_refs", "4") ||
	    proc_pagemap(getpid(), (unsigned long)p) & PM_SOFT_DIRTY)
		tracked = false;
	munmap(p, page_size());
	return tracked;
}

unsigned long proc_pfn(pid_t pid, unsigned long addr)
{
	uint64_t entry = proc_pagemap(pid, addr);

	return entry & PM_PRESENT ? entry & PM_PFN_MASK : 0;
}

uint64_t kpageflags(unsigned long pfn)
{
	return read_u64("/proc/kpageflags", pfn);
}

long kpagecount(unsigned long pfn)
{
	return read_u64("/proc/kpagecount", pfn);
}

/* Snapshots */

struct hash_arg {
	unsigned long addr, len;
	uint64_t hash;
};

static uint64_t hash_step(uint64_t h, uint64_t w)
{
	return (h ^ w) * 0x100000001b3ULL;
}

static void hash_page(volatile uint64_t *w, uint64_t *h)
{
	size_t i;

	if (access_begin()) {
		/* A guard page, or beyond the end of a file */
		*h = hash_step(*h, -1);
	} else {
		for (i = 0; i < page_size() / sizeof(*w); i++)
			*h = hash_step(*h, w[i]);
	}
	access_end();
}

static long op_hash(void *arg)
{
	struct hash_arg *a = arg;
	unsigned long addr;

	for (addr = a->addr; addr < a->addr + a->len; addr += page_size())
		hash_page((void *)addr, &a->hash);
	return 0;
}

int snapshot_take(struct snapshot *s, struct peer *p)
{
	char *c, *next, r;
	unsigned long start, end;

	s->maps = proc_maps(p->pid, ARENA, ARENA_END);
	s->hash = 0xcbf29ce484222325ULL;
	for (c = s->maps; *c; c = next) {
		struct hash_arg a;

		next = strchr(c, '\n') + 1;
		if (sscanf(c, "%lx-%lx %c", &start, &end, &r) != 3 || r != 'r')
			continue;
		a = (struct hash_arg){ start, end - start, s->hash };
		if (peer_call(p, op_hash, &a, sizeof(a)))
			return -1;
		s->hash = a.hash;
	}
	return 0;
}

/* As comments of KTAP */
static void print_lines(const char *text)
{
	int n;

	for (; *text; text += n + !!text[n]) {
		n = strcspn(text, "\n");
		printf("#   %.*s\n", n, text);
	}
}

bool snapshot_same(struct snapshot *s, struct peer *p)
{
	struct snapshot now;
	bool same;

	if (snapshot_take(&now, p))
		return false;
	same = !strcmp(s->maps, now.maps);
	if (!same) {
		printf("# mappings of %d before:\n", p->pid);
		print_lines(s->maps);
		printf("# and now:\n");
		print_lines(now.maps);
	}
	if (same && s->hash != now.hash) {
		printf("# contents of %d differ\n", p->pid);
		same = false;
	}
	free(now.maps);
	free(s->maps);
	s->maps = NULL;
	return same;
}

/* Settings */

int setting_read(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return -1;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return 0;
}

/* Shared with all children: what they change, the first process has to undo. */
#define MAX_SETTINGS	32

static struct setting {
	char path[128];
	char val[64];
	bool changed;
} *saved;

static struct setting *setting_find(const char *path)
{
	struct setting *s;

	for (s = saved; s && s->path[0]; s++)
		if (!strcmp(s->path, path))
			return s;
	return NULL;
}

int setting_write(const char *path, const char *val)
{
	struct setting *s = setting_find(path);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	if (s)
		s->changed = true;
	n = write(fd, val, strlen(val));
	close(fd);
	return n == (ssize_t)strlen(val) ? 0 : -1;
}

static void *share(size_t size)
{
	void *p = mmap(NULL, size, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		_exit(1);
	}
	return p;
}

/*
 * Who ends a test ends the first process, which is all that a terminal reaches: the
 * harness has each test in a process group of its own, of a child or of that one's
 * child. These two die with their parents, and peers do with theirs.
 */
#define MAX_CHILDREN	64	/* of the first process, at a time */

static struct {
	unsigned int nr;
	pid_t pid[MAX_CHILDREN];
} *children;			/* shared with all of them */

static pid_t forking;
static int generation;

static void before_fork(void)
{
	forking = getpid();
}

static void child_begins(void)
{
	unsigned int nr;

	/* Deeper than that, tests know better who is to outlive whom. */
	if (++generation > 2)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* 0: it is in another PID namespace. */
	if (getppid() && getppid() != forking)
		_exit(1);
	if (generation > 1)
		return;
	nr = __atomic_fetch_add(&children->nr, 1, __ATOMIC_RELAXED);
	children->pid[nr % MAX_CHILDREN] = getpid();
}

static void __attribute__((constructor)) die_together(void)
{
	children = share(sizeof(*children));
	pthread_atfork(before_fork, NULL, child_begins);
}

/* Kill all descendants, and wait until they are gone. */
static void end_children(void)
{
	siginfo_t info;
	int i, try;
	pid_t pid;

	/* Those of whom the parent is gone become children of this process. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* One may have just begun. If the kernel hangs, not for ever */
	for (try = 0; try < 1000; try++) {
		for (i = 0; i < MAX_CHILDREN; i++) {
			pid = children->pid[i];
			/* Or it is somebody else's by now. */
			if (pid <= 0 || waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT))
				continue;
			kill(-pid, SIGKILL);
			kill(pid, SIGKILL);
		}
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0)
			break;
		poll(NULL, 0, 10);
	}
}

static pid_t first_process;
static void (*undo_more[4])(void);

static void setting_restore_all(void);
static void cgroup_remove(void);
static void swap_remove(void);

static void __attribute__((destructor)) undo(void)
{
	size_t i;

	if (getpid() != first_process)
		return;
	for (i = 0; i < ARRAY_SIZE(undo_more) && undo_more[i]; i++)
		undo_more[i]();
	swap_remove();
	cgroup_remove();
	setting_restore_all();
}

/*
 * No exit(): whatever was interrupted may hold the locks of stdio or of malloc(), which
 * undo() does without. It prints numbers and strings into buffers, but that takes none.
 */
static void on_end(int sig)
{
	if (getpid() == first_process) {
		end_children();
		undo();
	}
	_exit(128 + sig);
}

/* What was done to the system is undone, also after a signal. */
static void undo_when_ended(void)
{
	struct sigaction sa = { .sa_handler = on_end };

	first_process = getpid();
	sigfillset(&sa.sa_mask);
	sigaction(SIGHUP, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGQUIT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

void undo_also(void (*fn)(void))
{
	size_t i = 0;

	undo_when_ended();
	while (undo_more[i])
		i++;
	undo_more[i] = fn;
}

void setting_save(const char *path)
{
	char buf[128], *start, *end;
	struct setting *s;

	undo_when_ended();
	if (!saved)
		saved = share((MAX_SETTINGS + 1) * sizeof(*saved));
	for (s = saved; s->path[0]; s++)
		;
	if (s == saved + MAX_SETTINGS || setting_read(path, buf, sizeof(buf)))
		return;
	/* "always [madvise] never" */
	start = strchr(buf, '[');
	end = start ? strchr(start, ']') : NULL;
	if (end)
		*end = '\0';
	snprintf(s->val, sizeof(s->val), "%.60s", end ? start + 1 : buf);
	snprintf(s->path, sizeof(s->path), "%.120s", path);
}

int setting_restore(const char *path)
{
	struct setting *s = setting_find(path);

	if (!s)
		return -1;
	return s->changed ? setting_write(path, s->val) : 0;
}

/* Only those that were changed: some are not the same for being written what they say. */
static void setting_restore_all(void)
{
	struct setting *s;

	for (s = saved; s && s->path[0]; s++)
		setting_restore(s->path);
}

bool nothing_runs(void)
{
	char args[4096], *s;
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	n = fd < 0 ? 0 : read(fd, args, sizeof(args) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return false;
	args[n] = '\0';
	for (s = args + strlen(args) + 1; s < args + n; s += strlen(s) + 1)
		if (s[0] == '-' && s[1] && !s[1 + strspn(s + 1, "dhl")] && strpbrk(s, "hl"))
			return true;
	return false;
}

/* A cgroup */

#define CGROUP_MEMORY	"cgroup.subtree_control"

static char cgroup_root[128], cgroup_dir[160];
static bool cgroup_mounted, cgroup_enabled, cgroup_entered;
/* Those that tests have made, shared with them: a test that is killed removes none. */
#define MAX_GROUPS	16
static char (*cgroup_made)[192];
static const char *cgroup_error = "no cgroup was made";

int cgroup_write(const char *dir, const char *file, const char *val)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return setting_write(path, val);
}

static const char *cgroup_make(void)
{
	char line[512], dir[256], type[64], path[256];
	FILE *f = fopen("/proc/self/mounts", "r");

	while (f && !cgroup_root[0] && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*s %255s %63s", dir, type) == 2 &&
		    !strcmp(type, "cgroup2"))
			snprintf(cgroup_root, sizeof(cgroup_root), "%.100s", dir);
	if (f)
		fclose(f);
	if (!cgroup_root[0]) {
		snprintf(path, sizeof(path), "/tmp/dput-cgroup-XXXXXX");
		mkdir("/tmp", 01777);
		if (!mkdtemp(path))
			return "cannot make a directory in /tmp";
		if (mount("none", path, "cgroup2", 0, NULL)) {
			rmdir(path);
			return "cannot mount a cgroup2 hierarchy";
		}
		snprintf(cgroup_root, sizeof(cgroup_root), "%.100s", path);
		cgroup_mounted = true;
	}
	snprintf(path, sizeof(path), "%s/" CGROUP_MEMORY, cgroup_root);
	if (setting_read(path, line, sizeof(line)))
		return "cannot read " CGROUP_MEMORY;
	if (!strstr(line, "memory")) {
		if (cgroup_write(cgroup_root, CGROUP_MEMORY, "+memory"))
			return "no memory controller";
		cgroup_enabled = true;
	}
	snprintf(cgroup_dir, sizeof(cgroup_dir), "%s/dput-%d", cgroup_root,
		 getpid());
	if (mkdir(cgroup_dir, 0755))
		return "cannot make a cgroup: needs root";
	return NULL;
}

void cgroup_prepare(void)
{
	if (nothing_runs())
		return;
	undo_when_ended();
	cgroup_made = share(MAX_GROUPS * sizeof(*cgroup_made));
	cgroup_error = cgroup_make();
}

const char *cgroup_missing(void)
{
	return cgroup_error;
}

const char *cgroup_enter(void)
{
	char pid[16];

	if (cgroup_error)
		return cgroup_error;
	cgroup_entered = true;
	snprintf(pid, sizeof(pid), "%d", getpid());
	return cgroup_write(cgroup_dir, "cgroup.procs", pid) ?
		"cannot enter the cgroup" : NULL;
}

int cgroup_reclaim(const char *amount)
{
	return cgroup_write(cgroup_dir, "memory.reclaim", amount);
}

const char *cgroup_reclaim_given_up(void)
{
	unsigned long ps = page_size(), left = 1, i;
	const unsigned long len = 64 * ps;
	char *p;
	int try;

	if (cgroup_error)
		return cgroup_error;
	p = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return "cannot map memory";
	madvise(p, len, MADV_NOHUGEPAGE);
	for (try = 0; left && try < 20; try++) {
		/*
		 * Anew: MADV_FREE passes over what is still in another CPU's batch.
		 * Dropping caches drains that, and the one of what is given up.
		 */
		memset(p, 1, len);
		setting_write("/proc/sys/vm/drop_caches", "1");
		if (!(proc_pagemap(getpid(), (unsigned long)p) & PM_PRESENT)) {
			munmap(p, len);
			return "cannot see what is reclaimed";
		}
		if (madvise(p, len, MADV_FREE)) {
			munmap(p, len);
			return "no MADV_FREE";
		}
		setting_write("/proc/sys/vm/drop_caches", "1");
		/* It fails where it gets less than asked for. */
		cgroup_reclaim("64M");
		/* Not to be read: that would keep it. */
		for (i = 0, left = 0; i < len; i += ps)
			left += !!(proc_pagemap(getpid(), (unsigned long)p + i) & PM_PRESENT);
	}
	munmap(p, len);
	return left ? "nothing could be reclaimed" : NULL;
}

/* Remove one, and kill who is still in it: of a test that was cut short. */
static void cgroup_end(const char *dir)
{
	int try;

	cgroup_write(dir, "cgroup.kill", "1");
	for (try = 0; rmdir(dir) && errno == EBUSY && try < 500; try++)
		poll(NULL, 0, 10);
}

int cgroup_new(const char *name, char *dir, size_t size)
{
	int i;

	if (cgroup_error)
		return -1;
	snprintf(dir, size, "%s-%s", cgroup_dir, name);
	for (i = 0; i < MAX_GROUPS && cgroup_made[i][0] && strcmp(cgroup_made[i], dir); i++)
		;
	if (i < MAX_GROUPS)
		snprintf(cgroup_made[i], sizeof(*cgroup_made), "%s", dir);
	/* A test that was cut short may have left it. */
	cgroup_end(dir);
	return mkdir(dir, 0755);
}

void cgroup_delete(const char *dir)
{
	rmdir(dir);
}

int cgroup_move(const char *dir, pid_t pid)
{
	char s[16];

	snprintf(s, sizeof(s), "%d", pid);
	return cgroup_write(dir ?: cgroup_root, "cgroup.procs", s);
}

long cgroup_number(const char *dir, const char *file, const char *key)
{
	char path[256], line[256];
	size_t n = key ? strlen(key) : 0;
	long ret = -1;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir ?: cgroup_dir, file);
	f = fopen(path, "r");
	while (f && ret < 0 && fgets(line, sizeof(line), f))
		if (!key || (!strncmp(line, key, n) && line[n] == ' '))
			ret = atol(line + n);
	if (f)
		fclose(f);
	return ret;
}

static void cgroup_remove(void)
{
	int i;

	for (i = 0; cgroup_made && i < MAX_GROUPS && cgroup_made[i][0]; i++)
		cgroup_end(cgroup_made[i]);
	/* This process may be in it, too. */
	if (cgroup_dir[0] && (!cgroup_entered || !cgroup_move(NULL, getpid())))
		cgroup_end(cgroup_dir);
	if (cgroup_enabled)
		cgroup_write(cgroup_root, CGROUP_MEMORY, "-memory");
	if (cgroup_mounted) {
		umount2(cgroup_root, MNT_DETACH);
		rmdir(cgroup_root);
	}
}

/* A swap device, of zram, with a node of its own */

#define ZRAM		"/sys/class/zram-control/"
#define DISK_SIZE	(256UL << 20)

#ifndef SWAP_FLAG_PREFER
#define SWAP_FLAG_PREFER	0x8000
#endif

static const char *swap_error = "no swap device was made";
static char swap_path[64];
static int zram = -1;
static bool zram_added, swap_node;

/* Is it without swapping, or is there something about the device or file? */
const char *swap_refused(const char *path)
{
	static char why[64];

	if (!swapon(path, 0) && !swapoff(path))
		return NULL;
	if (errno == ENOSYS)
		return "the kernel cannot swap";
	snprintf(why, sizeof(why), "swapon: %s", strerror(errno));
	return why;
}

static int zram_write(const char *file, const char *val)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/block/zram%d/%s", zram, file);
	return setting_write(path, val);
}

static const char *swap_make(void)
{
	unsigned int major, minor;
	char buf[64], path[64];

	if (geteuid())
		return "needs root";
	if (!setting_read(ZRAM "hot_add", buf, sizeof(buf))) {
		zram = atoi(buf);
		zram_added = true;
	} else {
		if (setting_read("/sys/block/zram0/disksize", buf, sizeof(buf)))
			return "no zram";
		if (atol(buf))
			return "zram0 is in use";
		zram = 0;
	}
	snprintf(path, sizeof(path), "/sys/block/zram%d/dev", zram);
	if (setting_read(path, buf, sizeof(buf)) ||
	    sscanf(buf, "%u:%u", &major, &minor) != 2)
		return "the zram device has no number";
	snprintf(swap_path, sizeof(swap_path), "/dev/zram%d", zram);
	if (access(swap_path, F_OK)) {
		mkdir("/tmp", 01777);
		snprintf(swap_path, sizeof(swap_path), "/tmp/dput-swap-%d", getpid());
		if (mknod(swap_path, S_IFBLK | 0600, makedev(major, minor)))
			return "cannot make a device node";
		swap_node = true;
	}
	snprintf(buf, sizeof(buf), "%lu", DISK_SIZE);
	if (zram_write("disksize", buf))
		return "cannot set the size of the zram device";
	if (swap_format(swap_path, DISK_SIZE))
		return "cannot write to the zram device";
	return swap_refused(swap_path);
}

void swap_prepare(void)
{
	if (nothing_runs())
		return;
	undo_when_ended();
	swap_error = swap_make();
}

const char *swap_missing(void)
{
	return swap_error;
}

static void swap_remove(void)
{
	char buf[16];

	if (swap_path[0]) {
		swapoff(swap_path);
		if (swap_node)
			unlink(swap_path);
	}
	if (zram < 0)
		return;
	zram_write("reset", "1");
	snprintf(buf, sizeof(buf), "%d", zram);
	if (zram_added)
		setting_write(ZRAM "hot_remove", buf);
}

int swap_on(void)
{
	int ret = swapon(swap_path, SWAP_FLAG_PREFER | 0x7fff);

	/* A test that was killed by its time limit has left it on. */
	if (ret && errno == EBUSY && !swap_off())
		ret = swapon(swap_path, SWAP_FLAG_PREFER | 0x7fff);
	return ret;
}

int swap_off(void)
{
	return swapoff(swap_path);
}

#define THP_MAX		(64UL << 20)

size_t thp_size(void)
{
	char buf[32];
	size_t size;

	if (setting_read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
			 buf, sizeof(buf)))
		return 0;
	size = strtoul(buf, NULL, 0);
	return size <= THP_MAX ? size : 0;
}

size_t mthp_size(void)
{
	return 16 * page_size();
}

void mthp_setting(char *path, size_t size)
{
	snprintf(path, size,
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/enabled",
		 mthp_size() >> 10);
}

bool is_huge(pid_t pid, unsigned long addr, size_t len)
{
	return proc_smaps_kb(pid, addr, addr + len, "AnonHugePages") ==
	       (long)(len >> 10);
}

#define THP		"/sys/kernel/mm/transparent_hugepage/"

static void thp_setting(char *path, size_t size)
{
	snprintf(path, size, THP "hugepages-%zukB/enabled", thp_size() >> 10);
}

void khugepaged_rest(void)
{
	char now[32];

	/* Each write to it makes khugepaged look at everything at once. */
	if (!setting_read(KHUGEPAGED_SLEEP, now, sizeof(now)) && strcmp(now, "600000"))
		setting_write(KHUGEPAGED_SLEEP, "600000");
}

void folios_save(void)
{
	char path[128];

	setting_save(THP "enabled");
	setting_save(THP "defrag");
	setting_save(KHUGEPAGED_SLEEP);
	setting_save(THP "use_zero_page");
	mthp_setting(path, sizeof(path));
	setting_save(path);
	thp_setting(path, sizeof(path));
	setting_save(path);
}

const char *folios_enable(size_t size)
{
	bool pmd = size == thp_size();
	char path[128];

	if (!size)
		return "no transparent huge pages, or too big ones";
	if (setting_write(THP "enabled", "madvise"))
		return "cannot change the settings of huge pages: needs root";
	setting_write(THP "defrag", "always");
	khugepaged_rest();
	thp_setting(path, sizeof(path));
	if (setting_write(path, pmd ? "inherit" : "never") && !pmd && thp_size())
		return "no sizes of huge pages to choose from";
	mthp_setting(path, sizeof(path));
	if (setting_write(path, pmd ? "never" : "madvise") && !pmd)
		return "no small huge pages";
	return NULL;
}

bool folios_are(pid_t pid, unsigned long addr, size_t len, size_t size)
{
	unsigned long ps = page_size(), a, pfn;
	uint64_t flags;

	if (size == thp_size())
		return is_huge(pid, addr, len);
	for (a = addr; a < addr + len; a += ps) {
		pfn = proc_pfn(pid, a);
		flags = kpageflags(pfn);
		if (!pfn || !(flags & KPF_THP) ||
		    !(flags & (a % size ? KPF_COMPOUND_TAIL : KPF_COMPOUND_HEAD)))
			return false;
	}
	return true;
}

const char *folios_map(struct peer *p, unsigned long addr, size_t len, size_t size)
{
	int try;

	for (try = 0; try < 100; try++) {
		if (try)
			usleep(100000);
		peer_munmap(p, addr, len);
		if (peer_map(p, addr, len, RW) ||
		    peer_madvise(p, addr, len, MADV_HUGEPAGE) ||
		    peer_stamp(p, addr, len / page_size(), 0, 1, 1))
			return "cannot map memory";
		if (folios_are(p->pid, addr, len, size))
			return NULL;
		if (size == thp_size() && !peer_madvise(p, addr, len, MADV_COLLAPSE) &&
		    folios_are(p->pid, addr, len, size))
			return NULL;
	}
	return "got no huge pages";
}

static bool all_zero_huge(struct peer *p, unsigned long addr, size_t len)
{
	const uint64_t want = KPF_ZERO_PAGE | KPF_THP;
	unsigned long a;

	for (a = addr; a < addr + len; a += page_size())
		if (!peer_readable(p, a) || (kpageflags(proc_pfn(p->pid, a)) & want) != want)
			return false;
	return true;
}

const char *folios_map_zero(struct peer *p, unsigned long addr, size_t len)
{
	int try;

	setting_write(THP "use_zero_page", "1");
	for (try = 0; try < 100; try++) {
		if (try)
			usleep(100000);
		peer_munmap(p, addr, len);
		if (peer_map(p, addr, len, RW) || peer_madvise(p, addr, len, MADV_HUGEPAGE))
			return "cannot map memory";
		if (all_zero_huge(p, addr, len))
			return NULL;
	}
	return "got no huge zero page";
}

static int file_open_there(char *name)
{
	int fd = mkstemp(name);

	if (fd >= 0)
		unlink(name);
	return fd;
}

int file_open(enum file_where where)
{
	char tmp[] = "/tmp/dput-XXXXXX", shm[] = "/dev/shm/dput-XXXXXX", cwd[] = "./dput-XXXXXX";
	struct statfs fs;
	int fd;

	if (where == MEMFD)
		return memfd_create("dput", 0);
	if (where == DISK)
		return file_open_there(cwd);
	fd = file_open_there(tmp);
	if (fd >= 0 && !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC)
		return fd;
	if (fd >= 0)
		close(fd);
	fd = file_open_there(shm);
	if (fd < 0 || (!fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC))
		return fd;
	close(fd);
	errno = ENODEV;
	return -1;
}

bool file_on_disk(int fd)
{
	struct stat st;

	/* Of what has no device, the number is of major 0. */
	return !fstat(fd, &st) && major(st.st_dev);
}

size_t pages_swapped(struct peer *p, unsigned long addr, size_t npages)
{
	size_t i, n = 0;

	for (i = 0; i < npages; i++)
		n += !!(proc_pagemap(p->pid, addr + i * page_size()) & PM_SWAP);
	return n;
}

/*
 * A page that is still in a CPU's batch, on its way to the LRU lists, cannot be
 * taken from them. Dropping caches drains every CPU's.
 */
bool pages_out(struct peer *p, unsigned long addr, size_t npages)
{
	int i;

	for (i = 0; i < 1000; i++) {
		peer_madvise(p, addr, npages * page_size(), MADV_PAGEOUT);
		if (pages_swapped(p, addr, npages) == npages)
			return true;
		setting_write("/proc/sys/vm/drop_caches", "1");
		usleep(10000);
	}
	return false;
}

int swap_format(const char *path, size_t size)
{
	unsigned long ps = page_size();
	char *page = calloc(1, ps);
	unsigned int *info = (unsigned int *)(page + 1024);
	int fd, ret = -1;

	info[0] = 1;			/* version */
	info[1] = size / ps - 1;	/* last page */
	memcpy(page + ps - 10, "SWAPSPACE2", 10);
	fd = open(path, O_WRONLY);
	if (fd >= 0 && write(fd, page, ps) == (ssize_t)ps)
		ret = fsync(fd);
	if (fd >= 0)
		close(fd);
	free(page);
	return ret;
}

static const char *ksm_error;

static void ksm_look(void)
{
	char buf[32];

	if (setting_read(KSM "pages_shared", buf, sizeof(buf)))
		ksm_error = "no KSM";
	else if (!getenv("DPUT_DISPOSABLE"))
		/* Of whose memory it may merge, nothing tells before it has. */
		ksm_error = "KSM is everybody's: DPUT_DISPOSABLE is not set";
}

const char *ksm_missing(void)
{
	return ksm_error;
}

void ksm_save(void)
{
	ksm_look();
	setting_save(KSM "pages_to_scan");
	setting_save(KSM "sleep_millisecs");
	setting_save(KSM "smart_scan");
	setting_save(KSM "use_zero_pages");
	setting_save(KSM "run");
}

long ksm_full_scans(void)
{
	char buf[32];

	return setting_read(KSM "full_scans", buf, sizeof(buf)) ? -1 : atol(buf);
}

/* Two scans find pages that do not change, the third one merges all of them. */
int ksm_scan(void)
{
	long from = ksm_full_scans(), now;
	char run[16];

	setting_write(KSM "pages_to_scan", "1000");
	setting_write(KSM "sleep_millisecs", "0");
	setting_write(KSM "smart_scan", "0");
	if (from < 0 || setting_write(KSM "run", "1"))
		return -1;
	while ((now = ksm_full_scans()) < from + 4) {
		/* Somebody else has stopped it. */
		if (now < 0 || setting_read(KSM "run", run, sizeof(run)) || strcmp(run, "1"))
			return -1;
		usleep(1000);
	}
	return setting_write(KSM "run", "0");
}

static volatile sig_atomic_t mce_count;
static volatile unsigned long mce_addr;
static volatile int mce_code;
static sigjmp_buf mce_env;
static volatile bool mce_armed;

static void on_mce(int sig, siginfo_t *info, void *context)
{
	mce_count++;
	mce_code = info->si_code;
	mce_addr = (unsigned long)info->si_addr;
	if (mce_armed)
		siglongjmp(mce_env, 1);
}

static long op_mce_early(void *arg)
{
	struct sigaction sa = { .sa_sigaction = on_mce,
				.sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER };

	mce_count = 0;
	sigaction(SIGBUS, &sa, NULL);
	return prctl(PR_MCE_KILL, PR_MCE_KILL_SET,
		     *(bool *)arg ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0);
}

long peer_mce_early(struct peer *p, bool early)
{
	return peer_call(p, op_mce_early, &early, sizeof(early));
}

static long op_mce_seen(void *arg)
{
	struct mce *m = arg;

	m->addr = mce_addr;
	m->code = mce_code;
	m->count = mce_count;
	mce_count = 0;
	return 0;
}

long peer_mce_seen(struct peer *p, struct mce *m)
{
	return peer_call(p, op_mce_seen, m, sizeof(*m));
}

static long op_mce_probe(void *arg)
{
	struct mce *m = arg;

	mce_count = 0;
	if (!sigsetjmp(mce_env, 1)) {
		mce_armed = true;
		(void)*(volatile char *)m->addr;
	}
	mce_armed = false;
	return op_mce_seen(arg);
}

long peer_mce_probe(struct peer *p, struct mce *m)
{
	return peer_call(p, op_mce_probe, m, sizeof(*m));
}

/* The type of perf's events for uprobes, or -1 */
static int uprobe_type(void)
{
	char type[16];

	if (setting_read("/sys/bus/event_source/devices/uprobe/type", type, sizeof(type)))
		return -1;
	return atoi(type);
}

bool uprobe_supported(void)
{
	return uprobe_type() >= 0;
}

int uprobe_open(const char *path, unsigned long offset)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr), .config1 = (unsigned long)path, .config2 = offset,
	};
	int type = uprobe_type();

	if (type < 0)
		return -1;
	attr.type = type;
	return syscall(__NR_perf_event_open, &attr, -1, 0, -1, 0);
}

int pin_memory(unsigned long addr, size_t len)
{
	struct iovec iov = { .iov_base = (void *)addr, .iov_len = len };
	struct io_uring_params params = {};
	int fd;

	fd = syscall(__NR_io_uring_setup, 1, &params);
	if (fd < 0)
		return -1;
	if (syscall(__NR_io_uring_register, fd, IORING_REGISTER_BUFFERS, &iov, 1)) {
		close(fd);
		return -1;
	}
	return fd;
}

void slab_shrink(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", name);
	setting_write(path, "1");
}

/* The number after @name and a space at the start of a line, or -1 */
static long number_after(const char *path, const char *name)
{
	FILE *f = fopen(path, "r");
	size_t n = strlen(name);
	char line[512];
	long ret = -1;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, n) && line[n] == ' ')
			ret = atol(line + n);
	if (f)
		fclose(f);
	return ret;
}

int memory_nodes(int *nodes)
{
	char buf[128], *s = buf, *end;
	long first, last;
	int n = 0;

	/* "0-1,4" */
	if (setting_read("/sys/devices/system/node/has_memory", buf, sizeof(buf)))
		return 0;
	while (n < 2) {
		first = strtol(s, &end, 10);
		if (end == s)
			break;
		last = *end == '-' ? strtol(end + 1, &end, 10) : first;
		for (; first <= last && n < 2; first++)
			nodes[n++] = first;
		s = end + (*end == ',');
	}
	return n;
}

pid_t start_migrating(pid_t pid, unsigned long addr, size_t nr)
{
	void **pages = calloc(nr, sizeof(*pages));
	int *to = calloc(nr, sizeof(*to)), *status = calloc(nr, sizeof(*status));
	int nodes[2];
	pid_t child = -1;
	size_t i;

	if (memory_nodes(nodes) == 2 && pages && to && status)
		child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (i = 0; i < nr; i++) {
			pages[i] = (void *)(addr + i * page_size());
			to[i] = nodes[0];
		}
		for (;;) {
			syscall(__NR_move_pages, pid, nr, pages, to, status,
				MPOL_MF_MOVE_ALL);
			for (i = 0; i < nr; i++)
				to[i] = nodes[0] + nodes[1] - to[i];
		}
	}
	free(pages);
	free(to);
	free(status);
	return child;
}

long vmstat(const char *name)
{
	return number_after("/proc/vmstat", name);
}

long slab_objects(const char *name)
{
	long ret = number_after("/proc/slabinfo", name);
	char line[512], path[128];

	if (ret >= 0)
		return ret;
	/* It may have been merged with another one. */
	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/objects", name);
	if (setting_read(path, line, sizeof(line)))
		return -1;
	return atol(line);
}

static const char * const slabs[NR_SLABS] = { "anon_vma", "anon_vma_chain", "vm_area_struct" };

static int slabs_read_once(long *objects)
{
	int i;

	/* Objects are freed by RCU; this waits for it. */
	syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	for (i = 0; i < NR_SLABS; i++) {
		slab_shrink(slabs[i]);
		objects[i] = slab_objects(slabs[i]);
		if (objects[i] < 0)
			return -1;
	}
	return 0;
}

/*
 * The kernel counts what is free after it has counted everything: a slab that comes
 * in between makes that too few in use. So read until it is the same three times.
 */
int slabs_read(long *objects)
{
	long last[NR_SLABS];
	int try, same = 0;

	if (slabs_read_once(objects))
		return -1;
	for (try = 0; try < 600 && same < 2; try++) {
		usleep(20000);
		memcpy(last, objects, sizeof(last));
		if (slabs_read_once(objects))
			return -1;
		same = memcmp(last, objects, sizeof(last)) ? 0 : same + 1;
	}
	return 0;
}

bool slabs_within(const long *before, long limit)
{
	long after[NR_SLABS] = {};
	int i, try;

	for (try = 0; try < 300; try++) {
		if (slabs_read(after))
			continue;
		for (i = 0; i < NR_SLABS && after[i] - before[i] <= limit; i++)
			;
		if (i == NR_SLABS)
			return true;
		usleep(100000);
	}
	for (i = 0; i < NR_SLABS; i++)
		printf("# %s: %ld objects, and then %ld\n", slabs[i], before[i], after[i]);
	return false;
}
