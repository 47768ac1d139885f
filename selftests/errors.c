// SPDX-License-Identifier: GPL-2.0
/* What dput(2) refuses, and that it then leaves everything as it was. */

#include "kselftest_harness.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define SRC	(ARENA + 64 * page_size())
#define DST	(ARENA + (1UL << 24) + 7 * page_size())
#define NR	8

#define ANON	(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)
/*
 * What no process has, and as much of it as does not wrap. Where the kernel may
 * have an address space of its own, there is only the last page.
 */
#if __SIZEOF_LONG__ == 4
#define ONLY_LAST_PAGE	1
#elif defined(__s390x__)
#define ONLY_LAST_PAGE	1
#else
#define ONLY_LAST_PAGE	0
#endif
#define KERNEL_ADDR	(ONLY_LAST_PAGE ? -page_size() : -1UL << (__SIZEOF_LONG__ * 6 - 1))
#define KERNEL_LEN	(ONLY_LAST_PAGE ? page_size() - 8 : NR * page_size())

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"

static void __attribute__((constructor)) save_settings(void)
{
	setting_save(MAX_MAP_COUNT);
}

/*
 * SRC and DST, NR pages each with one more on either side, are private
 * anonymous memory with a pattern, both in the caller and in a child.
 */
FIXTURE(errors)
{
	struct peer me, child;
	unsigned long ps;
	size_t len;
};

static int fill_both(struct peer *p)
{
	unsigned long ps = page_size();

	if (peer_map(p, SRC - ps, (NR + 2) * ps, RW) ||
	    peer_map(p, DST - ps, (NR + 2) * ps, RW) ||
	    peer_fill(p, SRC - ps, (NR + 2) * ps, 1) ||
	    peer_fill(p, DST - ps, (NR + 2) * ps, 2))
		return -1;
	return 0;
}

FIXTURE_SETUP(errors)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->ps = page_size();
	self->len = NR * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	ASSERT_EQ(0, fill_both(&self->me));
	ASSERT_EQ(0, fill_both(&self->child));
}

FIXTURE_TEARDOWN(errors)
{
	setting_restore(MAX_MAP_COUNT);
	peer_stop(&self->child);
}

/* The call, of which either error may come, and the address spaces after it */
#define EXPECT_EITHER(_err1, _err2, _sfd, _src, _dfd, _dst, _len, _flags) do {	\
	struct snapshot _me, _child;						\
	int _ret, _e;								\
										\
	ASSERT_EQ(0, snapshot_take(&_me, &self->me));				\
	ASSERT_EQ(0, snapshot_take(&_child, &self->child));			\
	errno = 0;								\
	_ret = sys_dput(_sfd, _src, _dfd, _dst, _len, _flags);			\
	_e = errno;								\
	EXPECT_EQ(-1, _ret);							\
	if (_e != (_err2)) {							\
		EXPECT_EQ(_err1, _e);						\
	}									\
	EXPECT_TRUE(snapshot_same(&_me, &self->me));				\
	EXPECT_TRUE(snapshot_same(&_child, &self->child));			\
} while (0)

#define EXPECT_ERR(_err, _sfd, _src, _dfd, _dst, _len, _flags)			\
	EXPECT_EITHER(_err, _err, _sfd, _src, _dfd, _dst, _len, _flags)

/* From the caller to the child, the other way, and within each */
#define EXPECT_ERR_ALL(_err, _src, _dst, _len, _flags) do {			\
	int _self = PIDFD_SELF, _other = self->child.pidfd;			\
										\
	EXPECT_ERR(_err, _self, _src, _other, _dst, _len, _flags);		\
	EXPECT_ERR(_err, _other, _src, _self, _dst, _len, _flags);		\
	EXPECT_ERR(_err, _self, _src, _self, _dst, _len, _flags);		\
	EXPECT_ERR(_err, _other, _src, _other, _dst, _len, _flags);		\
} while (0)

/* That the arguments are right but for what a test is about */
#define EXPECT_OK(_sfd, _src, _dfd, _dst, _len, _flags)				\
	EXPECT_EQ(0, sys_dput(_sfd, _src, _dfd, _dst, _len, _flags))		\
		TH_LOG("dput: %s", strerror(errno))

TEST_F(errors, ebadf)
{
	int other = self->child.pidfd, null, proc, closed;
	int i, bad[5];

	null = open("/dev/null", O_RDWR);
	proc = open("/", O_RDONLY | O_DIRECTORY);
	closed = dup(null);
	ASSERT_LE(0, closed);
	close(closed);
	bad[0] = -1;
	bad[1] = null;
	bad[2] = proc;
	bad[3] = closed;
	bad[4] = INT32_MIN;
	for (i = 0; i < 5; i++) {
		EXPECT_ERR(EBADF, bad[i], SRC, other, DST, self->len, 0);
		EXPECT_ERR(EBADF, other, SRC, bad[i], DST, self->len, 0);
		EXPECT_ERR(EBADF, bad[i], SRC, bad[i], DST, self->len, 0);
		EXPECT_ERR(EBADF, bad[i], SRC, other, DST, 0, 0);
		EXPECT_ERR(EBADF, other, SRC, bad[i], DST, 0, 0);
	}
	EXPECT_OK(other, SRC, PIDFD_SELF, DST, self->len, 0);
}

TEST_F(errors, esrch_reaped)
{
	struct peer gone;
	int fd;

	ASSERT_EQ(0, peer_start(&gone));
	fd = dup(gone.pidfd);
	EXPECT_OK(fd, ARENA, PIDFD_SELF, DST, 0, 0);
	peer_kill(&gone);
	EXPECT_ERR(ESRCH, fd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR(ESRCH, PIDFD_SELF, SRC, fd, DST, self->len, 0);
	EXPECT_ERR(ESRCH, fd, SRC, fd, DST, self->len, 0);
}

TEST_F(errors, esrch_zombie)
{
	struct peer gone;
	siginfo_t si;

	ASSERT_EQ(0, peer_start(&gone));
	ASSERT_EQ(0, kill(gone.pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, gone.pid, &si, WEXITED | WNOWAIT));
	EXPECT_ERR(ESRCH, gone.pidfd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR(ESRCH, PIDFD_SELF, SRC, gone.pidfd, DST, self->len, 0);
	peer_kill(&gone);
}

/* A kernel thread has no user memory. */
TEST_F(errors, esrch_kthread)
{
	char comm[32];
	int fd;

	if (geteuid())
		SKIP(return, "needs root");
	if (setting_read("/proc/2/comm", comm, sizeof(comm)) ||
	    strcmp(comm, "kthreadd"))
		SKIP(return, "no kernel thread in this pid namespace");
	fd = sys_pidfd_open(2, 0);
	ASSERT_LE(0, fd);
	EXPECT_ERR(ESRCH, fd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR(ESRCH, PIDFD_SELF, SRC, fd, DST, self->len, 0);
}

static void *wait_for_ever(void *arg)
{
	for (;;)
		pause();
	return NULL;
}

static long op_thread(void *arg)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, wait_for_ever, NULL))
		return -1;
	return 0;
}

/* A thread that is not the main one, or whose main thread is gone */
TEST_F(errors, esrch_thread)
{
	char path[64], line[128], state = 0;
	long tid = 0;
	struct dirent *d;
	pid_t pid;
	DIR *dir;
	int fd;

	ASSERT_EQ(0, peer_call(&self->child, op_thread, NULL, 0));
	snprintf(path, sizeof(path), "/proc/%d/task", self->child.pid);
	dir = opendir(path);
	ASSERT_TRUE(!!dir);
	while ((d = readdir(dir)))
		if (atol(d->d_name) > 0 && atol(d->d_name) != self->child.pid)
			tid = atol(d->d_name);
	closedir(dir);
	ASSERT_LT(0, tid);
	fd = sys_pidfd_open(tid, PIDFD_THREAD);
	if (fd < 0)
		SKIP(return, "no pidfds of threads: %s", strerror(errno));
	EXPECT_ERR(ESRCH, fd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR(ESRCH, PIDFD_SELF, SRC, fd, DST, self->len, 0);
	close(fd);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		op_thread(NULL);
		syscall(__NR_exit, 0);
	}
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	while (state != 'Z') {
		ASSERT_EQ(0, setting_read(path, line, sizeof(line)));
		ASSERT_TRUE(!!strrchr(line, ')'));
		state = strrchr(line, ')')[2];
	}
	fd = sys_pidfd_open(pid, 0);
	ASSERT_LE(0, fd);
	EXPECT_ERR(ESRCH, fd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR(ESRCH, PIDFD_SELF, SRC, fd, DST, self->len, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(fd);
}

/* Calls made by another process than the test */
struct dput_arg {
	int src_fd;
	unsigned long src;
	int dst_fd;
	unsigned long dst;
	size_t len;
	unsigned int flags;
};

static long op_dput(void *arg)
{
	struct dput_arg *a = arg;

	return sys_dput(a->src_fd, a->src, a->dst_fd, a->dst, a->len, a->flags);
}

static long op_undumpable(void *arg)
{
	return prctl(PR_SET_DUMPABLE, 0);
}

#define EXPECT_ERR_BY(_peer, _err, ...) do {					\
	struct dput_arg _a = { __VA_ARGS__ };					\
	struct snapshot _me, _child;						\
	long _ret;								\
	int _e;									\
										\
	ASSERT_EQ(0, snapshot_take(&_me, &self->me));				\
	ASSERT_EQ(0, snapshot_take(&_child, &self->child));			\
	_ret = peer_call(_peer, op_dput, &_a, sizeof(_a));			\
	_e = errno;								\
	EXPECT_EQ(-1, _ret);							\
	EXPECT_EQ(_err, _e);							\
	EXPECT_TRUE(snapshot_same(&_me, &self->me));				\
	EXPECT_TRUE(snapshot_same(&_child, &self->child));			\
} while (0)

TEST_F(errors, eperm_other_user)
{
	struct peer caller;
	int fd = self->child.pidfd;

	if (geteuid())
		SKIP(return, "needs root");
	/* It inherits the child's pidfd, and the caller's memory. */
	ASSERT_EQ(0, peer_start(&caller));
	ASSERT_EQ(0, peer_setuid(&caller, 65534));
	EXPECT_ERR_BY(&caller, EPERM, fd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR_BY(&caller, EPERM, PIDFD_SELF, SRC, fd, DST, self->len, 0);
	EXPECT_ERR_BY(&caller, EPERM, fd, SRC, fd, DST, self->len, 0);
	EXPECT_ERR_BY(&caller, EPERM, fd, SRC, PIDFD_SELF, DST, 0, 0);
	peer_stop(&caller);
}

/* It has access to itself, whoever it is. */
TEST_F(errors, self_needs_no_permission)
{
	struct dput_arg arg = { PIDFD_SELF, SRC, PIDFD_SELF, DST, self->len, 0 };
	struct peer caller;

	ASSERT_EQ(0, peer_start(&caller));
	ASSERT_EQ(0, peer_call(&caller, op_undumpable, NULL, 0));
	if (!geteuid())
		ASSERT_EQ(0, peer_setuid(&caller, 65534));
	EXPECT_EQ(0, peer_call(&caller, op_dput, &arg, sizeof(arg)));
	peer_stop(&caller);
}

TEST_F(errors, eperm_undumpable)
{
	struct peer target, caller;

	ASSERT_EQ(0, peer_start(&target));
	ASSERT_EQ(0, peer_start(&caller));
	if (!geteuid()) {
		ASSERT_EQ(0, peer_setuid(&target, 65534));
		ASSERT_EQ(0, peer_setuid(&caller, 65534));
	}
	ASSERT_EQ(0, peer_call(&target, op_undumpable, NULL, 0));
	EXPECT_ERR_BY(&caller, EPERM, target.pidfd, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_ERR_BY(&caller, EPERM, PIDFD_SELF, SRC, target.pidfd, DST, self->len, 0);
	peer_stop(&caller);
	peer_stop(&target);
}

TEST_F(errors, eperm_sealed)
{
	int other = self->child.pidfd, i;

	if (peer_mseal(&self->child, DST + 3 * self->ps, self->ps))
		SKIP(return, "mseal: %s", strerror(errno));
	/* At the start, in the middle, at the end */
	for (i = 1; i < 4; i++) {
		EXPECT_ERR(EPERM, PIDFD_SELF, SRC + i * self->ps,
			   other, DST + i * self->ps, 3 * self->ps, 0);
		EXPECT_ERR(EPERM, other, SRC + i * self->ps,
			   other, DST + i * self->ps, 3 * self->ps, 0);
	}
	EXPECT_ERR(EPERM, PIDFD_SELF, SRC, other, DST, self->len, 0);
	EXPECT_ERR(EPERM, PIDFD_SELF, SRC, other, DST, self->len, DPUT_HOLES);
	EXPECT_OK(PIDFD_SELF, SRC, other, DST, 3 * self->ps, 0);
	EXPECT_OK(PIDFD_SELF, SRC, other, DST + 4 * self->ps, 3 * self->ps, 0);
	/* Its memory may be read. */
	EXPECT_OK(other, DST, PIDFD_SELF, DST, self->len, 0);
	/* And what may be written can be, byte by byte. */
	EXPECT_OK(PIDFD_SELF, SRC + 3 * self->ps + 8, other, DST + 3 * self->ps + 8, 100, 0);
	EXPECT_OK(PIDFD_SELF, SRC + 2 * self->ps, other, DST + 2 * self->ps, self->ps + 100, 0);
	EXPECT_ERR(EPERM, PIDFD_SELF, SRC + 2 * self->ps, other, DST + 2 * self->ps,
		   2 * self->ps + 100, 0);
	ASSERT_EQ(0, peer_mprotect(&self->child, DST + 2 * self->ps, self->ps, PROT_READ));
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 2 * self->ps + 8, other, DST + 2 * self->ps + 8,
		   100, 0);
}

TEST_F(errors, eperm_mmap_min_addr)
{
	struct peer caller;
	char buf[32];
	unsigned long min;

	if (geteuid())
		SKIP(return, "needs root");
	if (setting_read("/proc/sys/vm/mmap_min_addr", buf, sizeof(buf)))
		SKIP(return, "no vm.mmap_min_addr");
	min = strtoul(buf, NULL, 0);
	if (min < self->ps)
		SKIP(return, "vm.mmap_min_addr is %lu", min);
	ASSERT_EQ(0, peer_start(&caller));
	ASSERT_EQ(0, peer_setuid(&caller, 65534));
	EXPECT_ERR_BY(&caller, EPERM, PIDFD_SELF, SRC, PIDFD_SELF, 0, self->ps, 0);
	EXPECT_ERR_BY(&caller, EPERM, PIDFD_SELF, SRC, PIDFD_SELF,
		      min - self->ps, 2 * self->ps, 0);
	peer_stop(&caller);
	/* CAP_SYS_RAWIO lets its owner map that, not others. */
	EXPECT_ERR(EPERM, PIDFD_SELF, SRC, self->child.pidfd, 0, self->ps, 0);
	EXPECT_ERR(EPERM, PIDFD_SELF, SRC, self->child.pidfd, min - self->ps, 2 * self->ps, 0);
}

TEST_F(errors, einval_congruence)
{
	EXPECT_ERR_ALL(EINVAL, SRC, DST + 1, self->len, 0);
	EXPECT_ERR_ALL(EINVAL, SRC + 1, DST, self->len - 1, 0);
	EXPECT_ERR_ALL(EINVAL, SRC + 8, DST + self->ps / 2, 16, 0);
	EXPECT_ERR_ALL(EINVAL, SRC + self->ps - 1, DST, 1, 0);
	EXPECT_ERR_ALL(EINVAL, SRC, DST + 1, 0, 0);
}

TEST_F(errors, einval_flags)
{
	int bit;

	for (bit = 2; bit < 32; bit++) {
		EXPECT_ERR(EINVAL, PIDFD_SELF, SRC, self->child.pidfd, DST,
			   self->len, 1U << bit);
		EXPECT_ERR(EINVAL, PIDFD_SELF, SRC, self->child.pidfd, DST,
			   0, 1U << bit | DPUT_HOLES);
	}
	EXPECT_ERR_ALL(EINVAL, SRC, DST, self->len, ~0U);
}

TEST_F(errors, einval_wrap)
{
	unsigned long ps = self->ps, last = -ps;
	int fd = self->child.pidfd;

	/* Such a range is outside the address space, too. */
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, last, fd, DST, 2 * ps, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, SRC, fd, last, 2 * ps, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, SRC, fd, DST, -ps, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, SRC, fd, DST, SIZE_MAX, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, SRC, PIDFD_SELF, DST, SIZE_MAX, 0);
	/* The end wraps when it is rounded, or to 0. */
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, last, fd, DST, ps - 1, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, last, fd, DST, ps, 0);
	EXPECT_EITHER(EINVAL, EFAULT, PIDFD_SELF, last + 1, fd, DST + 1, ps - 2, 0);
}

TEST_F(errors, einval_overlap)
{
	unsigned long ps = self->ps;
	int me = sys_pidfd_open(getpid(), 0), other = self->child.pidfd;
	int fds[][2] = {
		{ PIDFD_SELF, PIDFD_SELF }, { me, PIDFD_SELF }, { PIDFD_SELF, me },
		{ me, me }, { other, other },
	};
	int i;

	ASSERT_LE(0, me);
	for (i = 0; i < 5; i++) {
		int s = fds[i][0], d = fds[i][1];

		EXPECT_ERR(EINVAL, s, SRC, d, SRC, self->len, 0);
		EXPECT_ERR(EINVAL, s, SRC, d, SRC + ps, 2 * ps, 0);
		EXPECT_ERR(EINVAL, s, SRC + ps, d, SRC, 2 * ps, 0);
		EXPECT_ERR(EINVAL, s, SRC, d, SRC + ps, self->len - ps, 0);
		EXPECT_ERR(EINVAL, s, SRC + 8, d, SRC + 8, 8, 0);
		/* The bytes do not overlap, the pages do. */
		EXPECT_ERR(EINVAL, s, SRC + 100, d, SRC + ps + 100, ps, 0);
		EXPECT_ERR(EINVAL, s, SRC + ps + 100, d, SRC + 100, ps, 0);
		EXPECT_ERR(EINVAL, s, SRC + 100, d, SRC + 2 * ps + 100, 2 * ps, 0);
	}
	/* Neighbours do not overlap. */
	EXPECT_OK(PIDFD_SELF, SRC, PIDFD_SELF, SRC + 2 * ps, 2 * ps, 0);
	EXPECT_OK(PIDFD_SELF, SRC + 100, PIDFD_SELF, SRC + 5 * ps + 100, 2 * ps, 0);
	EXPECT_OK(other, SRC + 2 * ps, me, SRC + 2 * ps, 2 * ps, 0);
	EXPECT_EQ(-1, peer_verify(&self->me, SRC - ps, 3 * ps, 1));
}

TEST_F(errors, efault_outside)
{
	EXPECT_ERR_ALL(EFAULT, KERNEL_ADDR, DST, KERNEL_LEN, 0);
	EXPECT_ERR_ALL(EFAULT, SRC, KERNEL_ADDR, KERNEL_LEN, 0);
	EXPECT_ERR_ALL(EFAULT, KERNEL_ADDR + 1, DST + 1, 1, 0);
	EXPECT_ERR_ALL(EFAULT, SRC + 1, KERNEL_ADDR + 1, 1, 0);
	EXPECT_ERR_ALL(EFAULT, KERNEL_ADDR, DST, KERNEL_LEN, DPUT_HOLES);
	EXPECT_ERR_ALL(EFAULT, SRC, KERNEL_ADDR, KERNEL_LEN, DPUT_HOLES | DPUT_NOREPLACE);
	/* It starts inside and ends outside; the destination's end may wrap. */
	EXPECT_EITHER(EFAULT, ONLY_LAST_PAGE ? EINVAL : EFAULT,
		      PIDFD_SELF, SRC, self->child.pidfd, DST, KERNEL_ADDR - SRC, DPUT_HOLES);
}

TEST_F(errors, efault_partial_source_unreadable)
{
	unsigned long ps = self->ps;

	ASSERT_EQ(0, mprotect((void *)SRC, ps, PROT_NONE));
	ASSERT_EQ(0, mprotect((void *)SRC + 5 * ps, ps, PROT_NONE));
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, self->child.pidfd, DST + 8, 3 * ps, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, PIDFD_SELF, DST + 8, 3 * ps, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, self->child.pidfd, DST + 8, 8, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + ps, self->child.pidfd, DST + ps, 4 * ps + 1, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, self->child.pidfd, DST + 8, 3 * ps, DPUT_HOLES);
	/* As whole pages, they can be copied. */
	EXPECT_OK(PIDFD_SELF, SRC, self->child.pidfd, DST, 6 * ps, 0);
}

TEST_F(errors, efault_partial_destination_readonly)
{
	unsigned long ps = self->ps;
	int other = self->child.pidfd;

	ASSERT_EQ(0, peer_mprotect(&self->child, DST, ps, PROT_READ));
	ASSERT_EQ(0, peer_mprotect(&self->child, DST + 5 * ps, ps, PROT_NONE));
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, other, DST + 8, 3 * ps, 0);
	EXPECT_ERR(EFAULT, other, SRC + 8, other, DST + 8, 3 * ps, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + 8, other, DST + 8, 8, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC + ps, other, DST + ps, 4 * ps + 1, 0);
	/* As whole pages, they can be replaced. */
	EXPECT_OK(PIDFD_SELF, SRC, other, DST, 6 * ps, 0);
}

static long op_comb(void *arg);

/* Among many mappings it does not matter which one it is: nothing has begun. */
TEST_F(errors, first_middle_last_of_many)
{
	unsigned long nr = 300, ps = self->ps, src = ARENA + (1UL << 30), dst = src + (1UL << 28);
	unsigned long arg[] = { src, nr }, at[] = { 0, nr / 2, nr - 1 };
	int other = self->child.pidfd, i;

	ASSERT_EQ(0, peer_call(&self->me, op_comb, arg, sizeof(arg)));
	arg[0] = dst;
	ASSERT_EQ(0, peer_call(&self->child, op_comb, arg, sizeof(arg)));
	for (i = 0; i < 3; i++) {
		unsigned long page = src + at[i] * ps;

		ASSERT_EQ(0, peer_madvise(&self->me, page, ps, MADV_DONTFORK));
		EXPECT_ERR(EOPNOTSUPP, PIDFD_SELF, src, other, dst, nr * ps, 0);
		ASSERT_EQ(0, peer_madvise(&self->me, page, ps, MADV_DOFORK));
		ASSERT_EQ(0, peer_mprotect(&self->me, page, ps, PROT_READ | PROT_EXEC));
		EXPECT_ERR(EACCES, PIDFD_SELF, src, other, dst, nr * ps, 0);
		ASSERT_EQ(0, peer_munmap(&self->me, page, ps));
		EXPECT_ERR(EFAULT, PIDFD_SELF, src, other, dst, nr * ps, 0);
		ASSERT_EQ(0, peer_map(&self->me, page, ps, RW));
	}
	/* What is sealed stays so. */
	for (i = 3; i-- > 0;) {
		if (peer_mseal(&self->child, dst + at[i] * ps, ps)) {
			TH_LOG("mseal: %s", strerror(errno));
			break;
		}
		EXPECT_ERR(EPERM, PIDFD_SELF, src, other, dst, nr * ps, 0);
	}
	EXPECT_OK(PIDFD_SELF, src + ps, other, dst + ps, (nr / 2 - 1) * ps, 0);
}

/* Ragged ends in memory that cannot be got hold of, though its flags permit it */
static void expect_no_edge(struct __test_metadata *_metadata, FIXTURE_DATA(errors) *self,
			   int page)
{
	unsigned long ps = self->ps, src = SRC + page * ps, dst = DST + page * ps;
	int other = self->child.pidfd;

	/* The page as the last one of the range, as the first one, and alone */
	EXPECT_ERR(EFAULT, PIDFD_SELF, SRC, other, DST, page * ps + 8, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, src + 8, other, dst + 8, 2 * ps, 0);
	EXPECT_ERR(EFAULT, PIDFD_SELF, src + 8, other, dst + 8, 8, DPUT_HOLES);
	/* And as the destination */
	EXPECT_ERR(EFAULT, other, SRC, PIDFD_SELF, SRC, page * ps + 8, 0);
	EXPECT_ERR(EFAULT, other, src + 8, PIDFD_SELF, src + 8, 2 * ps, 0);
	EXPECT_ERR(EFAULT, other, src + 8, PIDFD_SELF, src + 8, 8, 0);
}

TEST_F(errors, efault_partial_guard_region)
{
	if (madvise((void *)SRC + 3 * self->ps, self->ps, MADV_GUARD_INSTALL))
		SKIP(return, "MADV_GUARD_INSTALL: %s", strerror(errno));
	expect_no_edge(_metadata, self, 3);
}

TEST_F(errors, efault_partial_beyond_file)
{
	unsigned long addr = SRC + 3 * self->ps;
	int fd = memfd_create("dput", 0);

	ASSERT_LE(0, fd);
	ASSERT_EQ(addr, peer_mmap(&self->me, addr, self->ps, RW, MAP_PRIVATE | MAP_FIXED, fd));
	expect_no_edge(_metadata, self, 3);
}

TEST_F(errors, efault_partial_secretmem)
{
	unsigned long addr = SRC + 3 * self->ps;
	int fd = syscall(__NR_memfd_secret, 0);

	if (fd < 0)
		SKIP(return, "memfd_secret: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, self->ps));
	ASSERT_EQ(addr, peer_mmap(&self->me, addr, self->ps, RW, MAP_SHARED | MAP_FIXED, fd));
	expect_no_edge(_metadata, self, 3);
}

TEST_F(errors, eacces_executable)
{
	unsigned long ps = self->ps, addr = SRC + 3 * ps;
	int other = self->child.pidfd;

	ASSERT_EQ(0, mprotect((void *)addr, ps, PROT_READ | PROT_EXEC));
	EXPECT_ERR(EACCES, PIDFD_SELF, SRC, other, DST, self->len, 0);
	EXPECT_ERR(EACCES, PIDFD_SELF, addr, other, DST, ps, 0);
	EXPECT_ERR(EACCES, PIDFD_SELF, addr - 8, other, DST - 8, ps + 16, 0);
	/* A partial page that would have to be mapped */
	ASSERT_EQ(0, peer_munmap(&self->child, DST, ps));
	EXPECT_ERR(EACCES, PIDFD_SELF, addr + 8, other, DST + 8, 8, 0);
	EXPECT_ERR(EACCES, PIDFD_SELF, addr + 8, other, DST + 8, 8, DPUT_NOREPLACE);
	/* And one that is mapped: no mapping is made. */
	EXPECT_OK(PIDFD_SELF, addr + 8, other, DST + ps + 8, 8, 0);
	EXPECT_STREQ("rw-p", proc_perms(self->child.pid, DST + ps));
	/* Within one address space, it is as with mremap(). */
	EXPECT_OK(PIDFD_SELF, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_STREQ("r-xp", proc_perms(getpid(), DST + 3 * ps));
	EXPECT_EQ(0, memcmp((void *)SRC, (void *)DST, self->len));
	/* But no new executable page is made for a part of one. */
	ASSERT_EQ(0, munmap((void *)DST, ps));
	EXPECT_ERR(EACCES, PIDFD_SELF, addr + 8, PIDFD_SELF, DST + 8, 8, 0);
}

#ifndef PR_SET_MDWE
#define PR_SET_MDWE		65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

/* What is writable and executable from before the rule is not copied any more. */
TEST_F(errors, eacces_mdwe)
{
	unsigned long ps = self->ps, addr = SRC + 3 * ps;

	ASSERT_EQ(0, mprotect((void *)addr, ps, RW | PROT_EXEC));
	EXPECT_OK(PIDFD_SELF, addr, PIDFD_SELF, DST, ps, 0);
	EXPECT_STREQ("rwxp", proc_perms(getpid(), DST));
	ASSERT_EQ(0, munmap((void *)DST, ps));
	if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0))
		SKIP_REST(return, "PR_SET_MDWE: %s", strerror(errno));
	EXPECT_ERR(EACCES, PIDFD_SELF, addr, PIDFD_SELF, DST, ps, 0);
	EXPECT_ERR(EACCES, PIDFD_SELF, SRC, PIDFD_SELF, DST, self->len, DPUT_HOLES);
	/* What is one or the other is. */
	ASSERT_EQ(0, mprotect((void *)addr, ps, PROT_READ | PROT_EXEC));
	EXPECT_OK(PIDFD_SELF, SRC, PIDFD_SELF, DST, self->len, 0);
	EXPECT_STREQ("r-xp", proc_perms(getpid(), DST + 3 * ps));
}

/* Limits: those of the destination */

static int set_limit(pid_t pid, int resource, rlim_t cur, struct rlimit *old)
{
	struct rlimit new;

	if (prlimit(pid, resource, NULL, old))
		return -1;
	new = *old;
	new.rlim_cur = cur;
	return prlimit(pid, resource, &new, NULL);
}

TEST_F(errors, enomem_rlimit_as)
{
	unsigned long size, hole = ARENA + (1UL << 30);
	int other = self->child.pidfd;
	struct rlimit old;

	size = proc_status_kb(self->child.pid, "VmSize") * 1024;
	ASSERT_EQ(0, set_limit(self->child.pid, RLIMIT_AS, size + self->len - 1, &old));
	EXPECT_ERR(ENOMEM, PIDFD_SELF, SRC, other, hole, self->len, 0);
	EXPECT_ERR(ENOMEM, PIDFD_SELF, SRC + 8, other, hole + 8, self->len - 16, 0);
	EXPECT_ERR(ENOMEM, other, SRC, other, hole, self->len, 0);
	/* One that replaces what is there needs no more. */
	EXPECT_OK(PIDFD_SELF, SRC, other, DST, self->len, 0);
	EXPECT_OK(PIDFD_SELF, SRC, other, hole, self->len - self->ps, 0);
	/* Nor does one that only makes it writable. */
	ASSERT_EQ(0, peer_mprotect(&self->child, DST, self->len, PROT_READ));
	EXPECT_OK(PIDFD_SELF, SRC, other, DST, self->len, 0);
	ASSERT_EQ(0, prlimit(self->child.pid, RLIMIT_AS, &old, NULL));
	EXPECT_OK(PIDFD_SELF, SRC, other, hole, self->len, 0);
}

TEST_F(errors, enomem_rlimit_data)
{
	unsigned long size, hole = ARENA + (1UL << 30);
	int other = self->child.pidfd;
	struct rlimit old;

	size = proc_status_kb(self->child.pid, "VmData") * 1024;
	ASSERT_EQ(0, set_limit(self->child.pid, RLIMIT_DATA, size, &old));
	EXPECT_ERR(ENOMEM, PIDFD_SELF, SRC, other, hole, self->len, 0);
	EXPECT_ERR(ENOMEM, PIDFD_SELF, SRC + 8, other, hole + 8, 16, 0);
	/* It is the writable private memory that counts. */
	ASSERT_EQ(0, mprotect((void *)SRC, self->len, PROT_READ));
	EXPECT_OK(PIDFD_SELF, SRC, other, hole, self->len, 0);
	ASSERT_EQ(0, prlimit(self->child.pid, RLIMIT_DATA, &old, NULL));
}

/* The caller's own do not matter, nor the source's. */
TEST_F(errors, limits_of_others)
{
	unsigned long hole = ARENA + (1UL << 30);
	const int res[] = { RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK };
	struct rlimit old_me[3], old_third[3];
	struct peer third;
	int i;

	ASSERT_EQ(0, peer_start(&third));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, set_limit(getpid(), res[i], self->ps, &old_me[i]));
		ASSERT_EQ(0, set_limit(third.pid, res[i], self->ps, &old_third[i]));
	}
	EXPECT_OK(PIDFD_SELF, SRC, self->child.pidfd, hole, self->len, 0);
	EXPECT_OK(PIDFD_SELF, SRC + 8, self->child.pidfd, hole + self->len + 8, 8, 0);
	EXPECT_OK(third.pidfd, SRC, self->child.pidfd, hole + (1UL << 21), self->len, 0);
	/* But they do as soon as it is the destination. */
	EXPECT_EQ(-1, sys_dput(self->child.pidfd, SRC, PIDFD_SELF, hole, self->len, 0));
	EXPECT_EQ(ENOMEM, errno);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, prlimit(getpid(), res[i], &old_me[i], NULL));
	EXPECT_EQ(0, proc_mapped(getpid(), hole, self->len));
	EXPECT_EQ(-1, peer_verify(&self->child, DST - self->ps, self->len + 2 * self->ps, 2));
	peer_stop(&third);
}

static long op_comb(void *arg)
{
	unsigned long *a = arg, ps = page_size(), i;

	if (mmap((void *)a[0], a[1] * ps, RW, ANON, -1, 0) != (void *)a[0])
		return -1;
	for (i = 1; i < a[1]; i += 2)
		if (mprotect((void *)a[0] + i * ps, ps, PROT_READ))
			return -1;
	return 0;
}

TEST_F(errors, enomem_max_map_count)
{
	unsigned long nr = 400, src = ARENA + (1UL << 30), dst = src + (1UL << 28);
	unsigned long arg[] = { src, nr };
	char val[32];

	if (geteuid())
		SKIP(return, "needs root");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it limits the whole system: DPUT_DISPOSABLE is not set");
	ASSERT_EQ(0, peer_call(&self->me, op_comb, arg, sizeof(arg)));
	snprintf(val, sizeof(val), "%d",
		 proc_count_vmas(self->child.pid, 0, -1) + (int)nr / 2);
	ASSERT_EQ(0, setting_write(MAX_MAP_COUNT, val));
	EXPECT_ERR(ENOMEM, PIDFD_SELF, src, self->child.pidfd, dst, nr * self->ps, 0);
	/* The caller's own number is beyond it already. */
	EXPECT_OK(PIDFD_SELF, src, self->child.pidfd, dst, nr / 4 * self->ps, 0);
	setting_restore(MAX_MAP_COUNT);
	EXPECT_OK(PIDFD_SELF, src, self->child.pidfd, dst, nr * self->ps, 0);
	EXPECT_EQ(nr, proc_count_vmas(self->child.pid, dst, dst + nr * self->ps));
}

static long op_mlockall(void *arg)
{
	return mlockall(MCL_FUTURE);
}

TEST_F(errors, enomem_mcl_future)
{
	unsigned long hole = ARENA + (1UL << 30);
	struct dput_arg arg = { PIDFD_SELF, SRC, PIDFD_SELF, hole, 2 * self->ps, 0 };
	struct peer caller, able;
	struct rlimit old;

	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_EQ(0, peer_start(&caller));
	ASSERT_EQ(0, set_limit(caller.pid, RLIMIT_MEMLOCK, 4 * self->ps, &old));
	ASSERT_EQ(0, peer_setuid(&caller, 65534));
	ASSERT_EQ(0, peer_call(&caller, op_mlockall, NULL, 0));
	arg.len = self->len;
	EXPECT_EQ(-1, peer_call(&caller, op_dput, &arg, sizeof(arg)));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(0, proc_mapped(caller.pid, hole, self->len));
	/* It is not the caller, this time root, whose CAP_IPC_LOCK counts. */
	EXPECT_ERR(ENOMEM, PIDFD_SELF, SRC, caller.pidfd, hole, self->len, 0);
	EXPECT_EQ(0, proc_mapped(caller.pid, hole, self->len));
	/* Within its limit, and locked */
	arg.len = 2 * self->ps;
	EXPECT_EQ(0, peer_call(&caller, op_dput, &arg, sizeof(arg)))
		TH_LOG("dput: %s", strerror(errno));
	EXPECT_EQ(2 * self->ps / 1024, proc_status_kb(caller.pid, "VmLck"));
	peer_stop(&caller);
	/* Who has it is not bound by the limit. */
	ASSERT_EQ(0, peer_start(&able));
	ASSERT_EQ(0, set_limit(able.pid, RLIMIT_MEMLOCK, self->ps, &old));
	ASSERT_EQ(0, peer_call(&able, op_mlockall, NULL, 0));
	EXPECT_OK(PIDFD_SELF, SRC, able.pidfd, hole, self->len, 0);
	EXPECT_LE(self->len / 1024, proc_status_kb(able.pid, "VmLck"));
	peer_stop(&able);
}

/* Nothing is copied, but the arguments are looked at. */
TEST_F(errors, len_zero)
{
	int other = self->child.pidfd;
	struct snapshot me, child;

	ASSERT_EQ(0, snapshot_take(&me, &self->me));
	ASSERT_EQ(0, snapshot_take(&child, &self->child));
	EXPECT_OK(PIDFD_SELF, SRC, other, DST, 0, 0);
	EXPECT_OK(PIDFD_SELF, SRC + 8, other, DST + 8, 0, 0);
	EXPECT_OK(other, SRC, PIDFD_SELF, DST, 0, DPUT_HOLES | DPUT_NOREPLACE);
	EXPECT_OK(PIDFD_SELF, SRC, PIDFD_SELF, DST, 0, 0);
	/* In a hole there is nothing either. */
	EXPECT_OK(PIDFD_SELF, ARENA + (1UL << 30), other, DST, 0, 0);
	EXPECT_TRUE(snapshot_same(&me, &self->me));
	EXPECT_TRUE(snapshot_same(&child, &self->child));
	EXPECT_ERR(EINVAL, PIDFD_SELF, SRC, other, DST + 1, 0, 0);
	EXPECT_ERR(EINVAL, PIDFD_SELF, SRC, other, DST, 0, 1U << 8);
	EXPECT_ERR(EBADF, -1, SRC, other, DST, 0, 0);
	EXPECT_ERR(EBADF, PIDFD_SELF, SRC, -1, DST, 0, 0);
}

TEST_HARNESS_MAIN
