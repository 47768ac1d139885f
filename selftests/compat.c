// SPDX-License-Identifier: GPL-2.0
/* dput(2) with 32-bit processes on a 64-bit kernel (x86). */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "dput_util.h"

#ifdef __x86_64__

/* In i386's table */
#define NR32_MMAP2	192
#define NR32_MUNMAP	91
#define NR32_PRCTL	172
#define NR32_SECCOMP	354
#define NR32_PIDFD_OPEN	434

/* Free in every process here. The upper one is negative if taken for signed. */
#define LOW		0x50000000UL
#define HIGH		0xa0000000UL
#define NR		8

/* Where the address space of a 32-bit process ends, and with ADDR_LIMIT_3GB */
#define END32		0xffffe000UL
#define END32_3GB	0xc0000000UL

struct helper {
	pid_t pid;
	int pidfd;
	int to, from;
};

/* As in compat_helper.c */
struct request {
	unsigned int nr;
	unsigned int arg[6];
};

static char helper_path[256];

static int helper_start(struct helper *h, unsigned long persona)
{
	int to[2], from[2];

	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
		return -1;
	h->pid = fork();
	if (!h->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Yama is to let one helper copy from and to another; this outlives execve(). */
		prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
		personality(persona);
		dup2(to[0], 0);
		dup2(from[1], 1);
		execl(helper_path, helper_path, NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	h->to = to[1];
	h->from = from[0];
	h->pidfd = sys_pidfd_open(h->pid, 0);
	return h->pidfd < 0 ? -1 : 0;
}

static void helper_stop(struct helper *h)
{
	if (h->pid <= 0)
		return;
	close(h->to);
	close(h->from);
	close(h->pidfd);
	waitpid(h->pid, NULL, 0);
}

/* 0 or a number, or -1 and errno */
static int helper_call(struct helper *h, unsigned int nr, unsigned int a, unsigned int b,
		       unsigned int c, unsigned int d, unsigned int e, unsigned int f)
{
	struct request r = { nr, { a, b, c, d, e, f } };
	int ret;

	if (write(h->to, &r, sizeof(r)) != sizeof(r) ||
	    read(h->from, &ret, sizeof(ret)) != sizeof(ret)) {
		errno = EPIPE;
		return -1;
	}
	if (ret < 0 && ret >= -4095) {
		errno = -ret;
		return -1;
	}
	return ret;
}

static int helper_dput(struct helper *h, int src_fd, unsigned int src, int dst_fd,
		       unsigned int dst, unsigned int len, unsigned int flags)
{
	return helper_call(h, __NR_dput, src_fd, src, dst_fd, dst, len, flags);
}

static int helper_map(struct helper *h, unsigned long addr, size_t len)
{
	unsigned int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	int ret = helper_call(h, NR32_MMAP2, addr, len, RW, flags, -1, 0);

	/* It may look like an error number's sign, but it is an address. */
	return (unsigned int)ret == addr ? 0 : -1;
}

static int helper_pidfd(struct helper *h, pid_t pid)
{
	return helper_call(h, NR32_PIDFD_OPEN, pid, 0, 0, 0, 0, 0);
}

static long fill(pid_t pid, unsigned long addr, size_t len, unsigned int seed)
{
	char *buf = malloc(len);
	struct iovec l = { buf, len }, r = { (void *)addr, len };
	ssize_t n;

	pattern(buf, len, 0, seed);
	n = process_vm_writev(pid, &l, 1, &r, 1, 0);
	free(buf);
	return n == (ssize_t)len ? 0 : -1;
}

static bool has(pid_t pid, unsigned long addr, size_t len, unsigned int seed)
{
	char *buf = malloc(2 * len);
	struct iovec l = { buf, len }, r = { (void *)addr, len };
	bool same;

	pattern(buf + len, len, 0, seed);
	same = process_vm_readv(pid, &l, 1, &r, 1, 0) == (ssize_t)len &&
	       !memcmp(buf, buf + len, len);
	free(buf);
	return same;
}

FIXTURE(compat)
{
	struct helper a, b;
	struct peer me;
	unsigned long ps;
	size_t len;
};

FIXTURE_SETUP(compat)
{
	ssize_t n;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	n = readlink("/proc/self/exe", helper_path, sizeof(helper_path) - 16);
	ASSERT_LT(0, n);
	strcpy(helper_path + n, "_helper");
	if (access(helper_path, X_OK))
		SKIP(return, "no %s: the compiler cannot make 32-bit programs", helper_path);
	self->ps = page_size();
	self->len = NR * self->ps;
	peer_self(&self->me);
	peer_admit(&self->me);
	/* A helper that cannot be executed has ended. */
	signal(SIGPIPE, SIG_IGN);
	ASSERT_EQ(0, helper_start(&self->a, 0));
	ASSERT_EQ(0, helper_start(&self->b, 0));
	if (helper_map(&self->a, LOW, self->len) && errno == EPIPE)
		SKIP(return, "the kernel does not run 32-bit programs");
	ASSERT_EQ(0, helper_map(&self->a, HIGH, self->len));
	ASSERT_EQ(0, helper_map(&self->b, LOW, self->len));
	ASSERT_EQ(0, helper_map(&self->b, HIGH, self->len));
	ASSERT_EQ(0, fill(self->a.pid, LOW, self->len, 1));
	ASSERT_EQ(0, fill(self->a.pid, HIGH, self->len, 2));
	ASSERT_EQ(0, fill(self->b.pid, LOW, self->len, 3));
	ASSERT_EQ(0, fill(self->b.pid, HIGH, self->len, 4));
	ASSERT_EQ(0, peer_map(&self->me, LOW, self->len, RW));
	ASSERT_EQ(0, peer_map(&self->me, HIGH, self->len, RW));
	ASSERT_EQ(0, peer_map(&self->me, ARENA, self->len, RW));
	ASSERT_EQ(0, peer_fill(&self->me, LOW, self->len, 5));
	ASSERT_EQ(0, peer_fill(&self->me, HIGH, self->len, 6));
	ASSERT_EQ(0, peer_fill(&self->me, ARENA, self->len, 7));
}

FIXTURE_TEARDOWN(compat)
{
	helper_stop(&self->a);
	helper_stop(&self->b);
}

/* A copy that later writes to either side do not change */
#define EXPECT_COPY(_spid, _src, _seed, _dpid, _dst, _len) do {			\
	EXPECT_TRUE(has(_dpid, _dst, _len, _seed));				\
	EXPECT_EQ(0, fill(_dpid, _dst, _len, 99));				\
	EXPECT_TRUE(has(_spid, _src, _len, _seed));				\
} while (0)

TEST_F(compat, target)
{
	pid_t me = getpid();

	/* The caller is a 64-bit process. */
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, ARENA, self->a.pidfd, HIGH, self->len, 0));
	EXPECT_COPY(me, ARENA, 7, self->a.pid, HIGH, self->len);
	EXPECT_EQ(0, sys_dput(self->a.pidfd, LOW, PIDFD_SELF, ARENA, self->len, 0));
	EXPECT_COPY(self->a.pid, LOW, 1, me, ARENA, self->len);
	EXPECT_EQ(0, sys_dput(self->a.pidfd, LOW, self->b.pidfd, HIGH, self->len, 0));
	EXPECT_COPY(self->a.pid, LOW, 1, self->b.pid, HIGH, self->len);
	EXPECT_EQ(0, sys_dput(self->a.pidfd, LOW, self->a.pidfd, HIGH, self->len, 0));
	EXPECT_COPY(self->a.pid, LOW, 1, self->a.pid, HIGH, self->len);
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, LOW + 8, self->b.pidfd, HIGH + 8, self->len - 16, 0));
	EXPECT_TRUE(has(me, LOW, self->len, 5));
}

TEST_F(compat, caller)
{
	int b = helper_pidfd(&self->a, self->b.pid), me = helper_pidfd(&self->a, getpid());

	ASSERT_LT(0, b);
	ASSERT_LT(0, me);
	EXPECT_EQ(0, helper_dput(&self->a, PIDFD_SELF, LOW, PIDFD_SELF, HIGH, self->len, 0));
	EXPECT_COPY(self->a.pid, LOW, 1, self->a.pid, HIGH, self->len);
	EXPECT_EQ(0, helper_dput(&self->a, b, HIGH, PIDFD_SELF, LOW, self->len, 0));
	EXPECT_COPY(self->b.pid, HIGH, 4, self->a.pid, LOW, self->len);
	/* From and to a 64-bit process, below 4 GiB */
	EXPECT_EQ(0, helper_dput(&self->a, me, HIGH, PIDFD_SELF, LOW, self->len, 0));
	EXPECT_COPY(getpid(), HIGH, 6, self->a.pid, LOW, self->len);
	EXPECT_EQ(0, helper_dput(&self->a, b, LOW, me, HIGH, self->len, 0));
	EXPECT_COPY(self->b.pid, LOW, 3, getpid(), HIGH, self->len);
	EXPECT_EQ(0, helper_dput(&self->a, me, LOW, b, HIGH, self->len, DPUT_HOLES));
	EXPECT_COPY(getpid(), LOW, 5, self->b.pid, HIGH, self->len);
	/* Each argument arrives as it was given. */
	EXPECT_EQ(0, helper_dput(&self->a, PIDFD_SELF, LOW + 5, b, HIGH + 5, 0, 0));
	EXPECT_EQ(-1, helper_dput(&self->a, -1, LOW, b, HIGH, self->len, 0));
	EXPECT_EQ(EBADF, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, b, LOW, -1, HIGH, self->len, 0));
	EXPECT_EQ(EBADF, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, b, LOW, b, HIGH + 1, self->len, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, b, LOW, b, LOW + self->ps, self->len, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, b, LOW, b, HIGH, self->len, 1U << 31));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, me, LOW, b, HIGH, self->len, DPUT_NOREPLACE));
	EXPECT_EQ(EEXIST, errno);
}

/* Numbers above 2 GiB are not negative, and a range that wraps in 32 bits is outside. */
TEST_F(compat, large_numbers)
{
	int b = helper_pidfd(&self->a, self->b.pid);

	ASSERT_LT(0, b);
	EXPECT_EQ(0, helper_dput(&self->a, PIDFD_SELF, 0x40000000, b, 0x40000000,
				 0x90000000, DPUT_HOLES));
	EXPECT_COPY(self->a.pid, LOW, 1, self->b.pid, LOW, self->len);
	EXPECT_COPY(self->a.pid, HIGH, 2, self->b.pid, HIGH, self->len);
	EXPECT_EQ(-1, helper_dput(&self->a, PIDFD_SELF, HIGH, b, LOW, 0xfffff000, DPUT_HOLES));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, helper_dput(&self->a, PIDFD_SELF, 0xfffff000, b, LOW, self->len,
				  DPUT_HOLES));
	EXPECT_EQ(EFAULT, errno);
}

/* What is outside is the other process' to say, and not the caller's. */
TEST_F(compat, outside)
{
	const unsigned long ends[] = { END32, END32_3GB };
	struct helper small, *h[] = { &self->a, &small };
	int i;

	ASSERT_EQ(0, helper_start(&small, ADDR_LIMIT_3GB));
	ASSERT_EQ(0, helper_map(&small, LOW, self->len));
	for (i = 0; i < 2; i++) {
		unsigned long end = ends[i], dst[] = {
			ARENA, 1UL << 32, LOW + (1UL << 32), end, end - self->ps,
		};
		int fd = h[i]->pidfd;
		char *maps = proc_maps(h[i]->pid, 0, -1), *after;
		size_t j;

		for (j = 0; j < ARRAY_SIZE(dst); j++) {
			EXPECT_EQ(-1, sys_dput(PIDFD_SELF, ARENA, fd, dst[j], 2 * self->ps, 0));
			EXPECT_EQ(EFAULT, errno);
			EXPECT_EQ(-1, sys_dput(fd, dst[j], PIDFD_SELF, ARENA, 2 * self->ps,
					       DPUT_HOLES));
			EXPECT_EQ(EFAULT, errno);
			EXPECT_EQ(-1, sys_dput(PIDFD_SELF, ARENA + 8, fd,
					       dst[j] + self->ps + 8, 8, 0));
			EXPECT_EQ(EFAULT, errno);
		}
		after = proc_maps(h[i]->pid, 0, -1);
		EXPECT_STREQ(maps, after);
		free(maps);
		free(after);
		/* The last page is inside; the stack may be there. */
		if (sys_dput(PIDFD_SELF, ARENA, fd, end - self->ps, self->ps, DPUT_NOREPLACE)) {
			EXPECT_EQ(EEXIST, errno);
		} else {
			EXPECT_TRUE(proc_mapped(h[i]->pid, end - self->ps, self->ps));
		}
	}
	EXPECT_TRUE(has(getpid(), ARENA, self->len, 7));
	helper_stop(&small);
}

/* The 32-bit entry can be reached from 64-bit code: the upper halves do not count. */
static int int80_dput(unsigned long src_fd, unsigned long src, unsigned long dst_fd,
		      unsigned long dst, unsigned long len)
{
	long ret;

	/* The sixth argument is in %ebp; stay away from the red zone. */
	asm volatile("lea -128(%%rsp), %%rsp\n\t"
		     "push %%rbp\n\t"
		     "xor %%ebp, %%ebp\n\t"
		     "int $0x80\n\t"
		     "pop %%rbp\n\t"
		     "lea 128(%%rsp), %%rsp"
		     : "=a" (ret)
		     : "a" ((1UL << 40) + __NR_dput), "b" (src_fd), "c" (src), "d" (dst_fd),
		       "S" (dst), "D" (len)
		     : "memory", "cc", "r8", "r9", "r10", "r11");
	if ((int)ret < 0) {
		errno = -(int)ret;
		return -1;
	}
	return 0;
}

TEST_F(compat, entry_from_64_bit_code)
{
	unsigned long dirt = 0xdeadbeefUL << 32;

	EXPECT_EQ(0, int80_dput((unsigned int)PIDFD_SELF | dirt, LOW | dirt,
				self->a.pidfd | dirt, HIGH | dirt, self->len | dirt))
		TH_LOG("int $0x80: %s", strerror(errno));
	EXPECT_COPY(getpid(), LOW, 5, self->a.pid, HIGH, self->len);
	EXPECT_EQ(-1, int80_dput(PIDFD_SELF, LOW, PIDFD_SELF, LOW, self->len));
	EXPECT_EQ(EINVAL, errno);
}

#else

TEST(compat)
{
	SKIP(return, "only for x86-64");
}

#endif /* __x86_64__ */

TEST_HARNESS_MAIN
