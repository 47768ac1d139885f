// SPDX-License-Identifier: GPL-2.0
#include "bench.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <x86intrin.h>

bool exact;
size_t most;
const char *const kind_name[] = { "4k", "64k", "thp" };

/*
 * With icount the time stamp counter is the number of instructions that were
 * executed, and reading it is exact; the kernel's clock is scaled from it.
 */
uint64_t now(void)
{
	struct timespec ts;

	if (exact)
		return __rdtsc();
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

void settle(void)
{
	usleep(50000);
}

/* ---- Areas ---- */

#define SRC_BASE	0x100000000000UL
#define DST_BASE	0x200000000000UL

void *fresh_src(void)
{
	static unsigned long nr;

	return (void *)(SRC_BASE + nr++ * 4 * GIB);
}

unsigned long fresh_dst(void)
{
	static unsigned long nr;

	return DST_BASE + nr++ * 4 * GIB;
}

void *map(void *at, size_t len, enum kind kind)
{
	char *p = mmap(at, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p != at)
		err(2, "mmap");
	if (madvise(p, len, kind == SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE))
		err(2, "madvise");
	return p;
}

void *map_file(void *at, size_t len, int fd, int flags)
{
	void *p = mmap(at, len, PROT_READ | PROT_WRITE,
		       flags | MAP_FIXED_NOREPLACE, fd, 0);

	if (p != at)
		err(2, "mmap");
	return p;
}

int new_memfd(size_t len)
{
	int fd = memfd_create("bench", 0);

	if (fd < 0 || ftruncate(fd, len))
		err(2, "memfd");
	return fd;
}

void unmap(void *at, size_t len)
{
	if (munmap(at, len))
		err(2, "munmap");
}

void touch(void *at, size_t len, size_t step)
{
	volatile char *p = at;
	size_t i;

	for (i = 0; i < len; i += step)
		p[i] = i >> 12 | 1;
}

void populate(void *at, size_t len)
{
	if (madvise(at, len, MADV_POPULATE_WRITE))
		err(2, "MADV_POPULATE_WRITE");
}

void fill(void *at, size_t len)
{
	populate(at, len);
	touch(at, len, PAGE);
}

static void touch_read(void *at, size_t len, size_t step)
{
	volatile char *p = at;
	size_t i;

	for (i = 0; i < len; i += step)
		(void)p[i];
}

static void set_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		err(2, "%s", path);
	close(fd);
}

#define THP_DIR	"/sys/kernel/mm/transparent_hugepage/"

void set_mthp(bool on)
{
	set_file(THP_DIR "hugepages-64kB/enabled", on ? "madvise" : "never");
	set_file(THP_DIR "hugepages-2048kB/enabled", on ? "never" : "inherit");
}

/* ---- Stalls ---- */

static struct {
	pthread_t thread;
	char *at;
	size_t len;
	uint64_t max;
	atomic_bool stop;
} staller;

static void *stall_thread(void *unused)
{
	const struct timespec ts = { .tv_nsec = 100000 };
	size_t i = 0;

	(void)unused;
	while (!staller.stop) {
		uint64_t start = now(), took;

		staller.at[i] = 1;
		took = now() - start;
		if (took > staller.max)
			staller.max = took;
		i = (i + PAGE) % staller.len;
		nanosleep(&ts, NULL);
	}
	return NULL;
}

void stall_start(void *at, size_t len)
{
	const struct sched_param param = { .sched_priority = 60 };
	int e;

	staller.at = at;
	staller.len = len;
	staller.max = 0;
	staller.stop = false;
	e = pthread_create(&staller.thread, NULL, stall_thread, NULL);
	if (!e)
		e = pthread_setschedparam(staller.thread, SCHED_FIFO, &param);
	if (e)
		errx(2, "cannot start a thread: %s", strerror(e));
	/* It runs before the call does. */
	usleep(1000);
}

uint64_t stall_end(void)
{
	staller.stop = true;
	pthread_join(staller.thread, NULL);
	return staller.max;
}

/* ---- The peer ---- */

struct peer peer;

struct peer_cmd {
	enum peer_op op;
	unsigned long addr;
	size_t len;
	unsigned long arg;
};

static void read_all(int fd, char *at, size_t len)
{
	while (len) {
		ssize_t got = read(fd, at, len);

		if (got <= 0)
			err(2, "pipe");
		at += got;
		len -= got;
	}
}

/* Map what the parent has in a memfd, and copy from it. */
static void copy_shared(void *to, size_t len, int parents_fd)
{
	char name[64];
	void *from;
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/fd/%d", getppid(), parents_fd);
	fd = open(name, O_RDWR);
	if (fd < 0)
		err(2, "%s", name);
	from = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	if (from == MAP_FAILED)
		err(2, "mmap");
	memcpy(to, from, len);
	munmap(from, len);
	close(fd);
}

/* Look at all of it, as one does who saves it. */
static uint64_t sum(const uint64_t *at, size_t len)
{
	uint64_t s = 0;
	size_t i;

	for (i = 0; i < len / sizeof(*at); i++)
		s = s * 3 + at[i];
	return s;
}

static void __attribute__((noreturn)) peer_main(int sock, int in)
{
	uint64_t result = 0;
	struct peer_cmd cmd;
	uint64_t answer;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(sock, &cmd, sizeof(cmd)) == sizeof(cmd)) {
		void *at = (void *)cmd.addr;
		uint64_t start = now();

		switch (cmd.op) {
		case P_MAP:
			map(at, cmd.len, cmd.arg);
			break;
		case P_UNMAP:
			unmap(at, cmd.len);
			break;
		case P_TOUCH:
			touch(at, cmd.len, cmd.arg);
			break;
		case P_FILL:
			fill(at, cmd.len);
			break;
		case P_READ:
			touch_read(at, cmd.len, cmd.arg);
			break;
		case P_PIPE:
			read_all(in, at, cmd.len);
			break;
		case P_SHARED:
			copy_shared(at, cmd.len, cmd.arg);
			break;
		case P_SUM:
			result = sum(at, cmd.len);
			break;
		case P_STALL:
			stall_start(at, cmd.len);
			break;
		case P_STALLED:
			break;
		case P_EXIT:
			_exit(0);
		}
		asm volatile("" : : "r"(result));
		answer = cmd.op == P_STALLED ? stall_end() : now() - start;
		if (write(sock, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(1);
}

void peer_start(struct peer *p)
{
	int sv[2], in[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) ||
	    pipe2(in, O_CLOEXEC))
		err(2, "socketpair");
	/* As much as a process without rights may have. */
	fcntl(in[1], F_SETPIPE_SZ, MIB);
	p->pid = fork();
	if (p->pid < 0)
		err(2, "fork");
	if (!p->pid) {
		close(sv[0]);
		close(in[1]);
		peer_main(sv[1], in[0]);
	}
	close(sv[1]);
	close(in[0]);
	p->pipe = in[1];
	p->sock = sv[0];
	p->fd = syscall(SYS_pidfd_open, p->pid, 0);
	if (p->fd < 0)
		err(2, "pidfd_open");
}

void peer_begin(struct peer *p, enum peer_op op, unsigned long addr,
		size_t len, unsigned long arg)
{
	struct peer_cmd cmd = { op, addr, len, arg };

	if (write(p->sock, &cmd, sizeof(cmd)) != sizeof(cmd))
		errx(2, "the peer is gone");
}

uint64_t peer_end(struct peer *p)
{
	uint64_t answer;

	if (read(p->sock, &answer, sizeof(answer)) != sizeof(answer))
		errx(2, "the peer is gone");
	return answer;
}

bool peer_ended(struct peer *p)
{
	struct pollfd pollfd = { .fd = p->sock, .events = POLLIN };

	return poll(&pollfd, 1, 0) == 1;
}

uint64_t peer_do(struct peer *p, enum peer_op op, unsigned long addr,
		 size_t len, unsigned long arg)
{
	peer_begin(p, op, addr, len, arg);
	return peer_end(p);
}

void peer_stop(struct peer *p)
{
	peer_begin(p, P_EXIT, 0, 0, 0);
	reap(p->pid);
	close(p->fd);
	close(p->pipe);
	close(p->sock);
}

/* ---- Calls ---- */

void dput_to(struct peer *p, unsigned long dst, void *src, size_t len)
{
	if (syscall(__NR_dput, PIDFD_SELF, src, p->fd, dst, len, 0))
		err(2, "dput");
}

void dput_self(void *dst, void *src, size_t len)
{
	if (syscall(__NR_dput, PIDFD_SELF, src, PIDFD_SELF, dst, len, 0))
		err(2, "dput");
}

void writev_to(struct peer *p, unsigned long dst, void *src, size_t len)
{
	struct iovec from = { src, len }, to = { (void *)dst, len };
	ssize_t done = process_vm_writev(p->pid, &from, 1, &to, 1, 0);

	if (done != (ssize_t)len)
		err(2, "process_vm_writev: %zd of %zu", done, len);
}

/* Without what the C library does around it. */
pid_t fork_raw(void)
{
	pid_t pid = syscall(SYS_fork);

	if (pid < 0)
		err(2, "fork");
	if (!pid)
		syscall(SYS_exit_group, 0);
	return pid;
}

void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		errx(2, "a child failed");
}

void fork_share(const char *without, const char *with, uint64_t x, void *src,
		size_t len)
{
	pid_t pid;

	if (madvise(src, len, MADV_DONTFORK))
		err(2, "MADV_DONTFORK");
	settle();
	MEASURE(without, x, pid = fork_raw());
	reap(pid);
	if (madvise(src, len, MADV_DOFORK))
		err(2, "MADV_DOFORK");
	settle();
	MEASURE(with, x, pid = fork_raw());
	reap(pid);
}
