// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) on processes that share their memory with others, that are dying, or
 * whose caller is killed.
 *
 * DPUT_SEED and DPUT_ITERATIONS in the environment choose other moments, and
 * more or less of them. With DPUT_DISPOSABLE, the file system of the current
 * directory is frozen for a moment.
 */

#include "kselftest_harness.h"
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include "dput_util.h"

#ifndef __NR_process_mrelease
#define __NR_process_mrelease	448
#endif

#define SRC		(ARENA + 64 * page_size())
#define DST		(ARENA + (1UL << 28) + 7 * page_size())

/* What this program does when a test executes it: "exit", or "pause" until it is killed */
#define EXECUTED	"DPUT_PROCESS_EXECUTED"

static void __attribute__((constructor)) prepare(void)
{
	char *executed = getenv(EXECUTED);

	while (executed && !strcmp(executed, "pause"))
		pause();
	if (executed)
		_exit(0);
	cgroup_prepare();
}

static long env_number(const char *name, long def)
{
	char *s = getenv(name);
	long n = s ? atol(s) : 0;

	return n > 0 ? n : def;
}

/* How often, where @def is a number for a slow machine */
static long iterations(long def)
{
	long n = def * env_number("DPUT_ITERATIONS", 100) / 100;

	return n > 0 ? n : 1;
}

/* Two processes with one address space */

static int share_wait[2], share_tell[2];
static char share_stack[65536] __aligned(16);

/* What the second one does: call when told, and tell what came of it. */
static int share_main(void *arg)
{
	struct { unsigned long src, dst, len; int src_fd, dst_fd; } call;
	struct peer me;

	peer_self(&me);
	peer_admit(&me);
	if (write(share_tell[1], "", 1) != 1)
		return 1;
	while (read(share_wait[0], &call, sizeof(call)) == sizeof(call)) {
		int err = 0;

		if (sys_dput(call.src_fd, call.src, call.dst_fd, call.dst, call.len, 0))
			err = errno;
		if (write(share_tell[1], &err, sizeof(err)) != sizeof(err))
			break;
	}
	return 0;
}

FIXTURE(shared_mm)
{
	struct peer me, other;
	unsigned long ps;
	size_t len;
	pid_t pid;
	int pidfd;
};

FIXTURE_SETUP(shared_mm)
{
	char byte;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->ps = page_size();
	self->len = 8 * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->other));
	ASSERT_EQ(0, peer_map(&self->me, SRC, self->len, RW));
	ASSERT_EQ(0, peer_map(&self->me, DST, self->len, RW));
	ASSERT_EQ(0, peer_map(&self->other, SRC, self->len, RW));
	ASSERT_EQ(0, peer_map(&self->other, DST, self->len, RW));
	ASSERT_EQ(0, peer_fill(&self->me, SRC, self->len, 1));
	ASSERT_EQ(0, peer_fill(&self->me, DST, self->len, 2));
	ASSERT_EQ(0, peer_fill(&self->other, SRC, self->len, 3));
	ASSERT_EQ(0, peer_fill(&self->other, DST, self->len, 4));
	ASSERT_EQ(0, pipe(share_wait));
	ASSERT_EQ(0, pipe(share_tell));
	/* Another process, but no other memory. */
	self->pid = clone(share_main, share_stack + sizeof(share_stack),
			  CLONE_VM | SIGCHLD, NULL);
	ASSERT_LT(0, self->pid);
	self->pidfd = sys_pidfd_open(self->pid, 0);
	ASSERT_LE(0, self->pidfd);
	/* Each is copied from and to by one that is not its ancestor. */
	peer_admit(&self->me);
	peer_admit(&self->other);
	ASSERT_EQ(1, read(share_tell[0], &byte, 1));
}

FIXTURE_TEARDOWN(shared_mm)
{
	kill(self->pid, SIGKILL);
	waitpid(self->pid, NULL, 0);
	peer_stop(&self->other);
}

/* Whoever of the two is named, and whoever of them calls. */
static int call_by(bool second, int src_fd, unsigned long src, int dst_fd,
		   unsigned long dst, size_t len)
{
	struct { unsigned long src, dst, len; int src_fd, dst_fd; } call = {
		.src = src, .dst = dst, .len = len, .src_fd = src_fd, .dst_fd = dst_fd,
	};
	int err = -1;

	if (!second)
		return sys_dput(src_fd, src, dst_fd, dst, len, 0) ? errno : 0;
	if (write(share_wait[1], &call, sizeof(call)) != sizeof(call) ||
	    read(share_tell[0], &err, sizeof(err)) != sizeof(err))
		return -1;
	return err;
}

TEST_F(shared_mm, is_one_address_space)
{
	int me = sys_pidfd_open(getpid(), 0), by, s, d;
	unsigned long ps = self->ps;
	struct snapshot before;

	/* The second process has its own table of descriptors, a copy of ours. */
	for (by = 0; by < 2; by++) {
		int fds[] = { PIDFD_SELF, me, self->pidfd };

		if (by) {
			/* Those two were opened after the process was made. */
			fds[1] = PIDFD_SELF;
			fds[2] = PIDFD_SELF;
		}
		for (s = 0; s < 3; s++) {
			for (d = 0; d < 3; d++) {
				ASSERT_EQ(0, snapshot_take(&before, &self->me));
				EXPECT_EQ(EINVAL, call_by(by, fds[s], SRC, fds[d], SRC, self->len));
				EXPECT_EQ(EINVAL, call_by(by, fds[s], SRC, fds[d], SRC + ps,
							  2 * ps));
				EXPECT_EQ(EINVAL, call_by(by, fds[s], SRC + 8, fds[d], SRC + 8, 8));
				EXPECT_TRUE(snapshot_same(&before, &self->me));

				ASSERT_EQ(0, peer_fill(&self->me, DST, self->len, 2));
				EXPECT_EQ(0, call_by(by, fds[s], SRC + 8, fds[d], DST + 8,
						     self->len - 8));
				EXPECT_EQ(0, memcmp((void *)SRC + 8, (void *)DST + 8,
						    self->len - 8));
				/* Two places, and not one */
				ASSERT_EQ(0, peer_fill(&self->me, DST, self->len, 5));
				EXPECT_EQ(-1, peer_verify(&self->me, SRC, self->len, 1));
			}
		}
	}
	/* With a third process on the other side */
	EXPECT_EQ(0, call_by(0, self->pidfd, SRC, self->other.pidfd, DST, self->len));
	EXPECT_EQ(-1, peer_verify(&self->other, DST, self->len, 1));
	EXPECT_EQ(0, call_by(0, self->other.pidfd, SRC, self->pidfd, DST, self->len));
	EXPECT_EQ(-1, peer_verify(&self->me, DST, self->len, 3));
	EXPECT_EQ(0, call_by(1, self->other.pidfd, DST, PIDFD_SELF, DST, self->len));
	EXPECT_EQ(-1, peer_verify(&self->me, DST, self->len, 1));
}

/* The same by a third party */
static long op_call_both(void *arg)
{
	pid_t *pids = arg;
	int a = sys_pidfd_open(pids[0], 0), b = sys_pidfd_open(pids[1], 0);
	size_t len = 8 * page_size();
	int errs = 0;

	errs += !sys_dput(a, SRC, b, SRC, len, 0) || errno != EINVAL;
	errs += !sys_dput(b, SRC + 8, a, SRC + 8, 8, 0) || errno != EINVAL;
	errs += !!sys_dput(a, SRC, b, DST, len, 0);
	close(a);
	close(b);
	return errs;
}

TEST_F(shared_mm, seen_by_others)
{
	pid_t pids[] = { getpid(), self->pid };

	EXPECT_EQ(0, peer_call(&self->other, op_call_both, pids, sizeof(pids)));
	EXPECT_EQ(-1, peer_verify(&self->me, DST, self->len, 1));
	EXPECT_EQ(-1, peer_verify(&self->me, SRC, self->len, 1));
}

/* A vfork() child: the parent waits in the kernel meanwhile. */
TEST_F(shared_mm, vfork_child)
{
	unsigned long src = SRC, dst = DST;
	volatile int err[4] = { -1, -1, -1, -1 };
	int other = self->other.pidfd;
	size_t len = self->len;
	int status;
	pid_t pid;

	pid = vfork();
	if (!pid) {
		int parent = sys_pidfd_open(getppid(), 0);

		err[0] = sys_dput(parent, src, PIDFD_SELF, src, len, 0) ? errno : 0;
		err[1] = sys_dput(parent, src, PIDFD_SELF, dst, len, 0) ? errno : 0;
		err[2] = sys_dput(PIDFD_SELF, src, other, dst, len, 0) ? errno : 0;
		err[3] = sys_dput(other, src, parent, dst, len / 2, 0) ? errno : 0;
		_exit(0);
	}
	ASSERT_LT(0, pid);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(EINVAL, err[0]);
	EXPECT_EQ(0, err[1]);
	EXPECT_EQ(0, err[2]);
	EXPECT_EQ(0, err[3]);
	EXPECT_EQ(-1, peer_verify(&self->other, DST, len, 1));
	EXPECT_EQ(-1, peer_verify(&self->me, DST, len / 2, 3));
	EXPECT_EQ(0, memcmp((void *)SRC + len / 2, (void *)DST + len / 2, len / 2));
	EXPECT_EQ(-1, peer_verify(&self->me, SRC, len, 1));
}

/* A process that goes on when its main thread has ended, by what it calls itself */

struct self_calls {
	bool leader_ends;
	int self, process, thread_group;	/* what came of it, or -1 */
	bool copied;
};

static struct self_calls *self_calls;

static bool put_by(struct peer *me, int fd, unsigned int seed, int *err)
{
	size_t len = 4 * page_size();

	peer_fill(me, SRC, len, seed);
	*err = sys_dput(fd, SRC, fd, DST, len, 0) ? errno : 0;
	return *err || peer_verify(me, DST, len, seed) == -1;
}

static void *call_itself(void *arg)
{
	char line[256] = "", *state = NULL;
	struct self_calls *c = self_calls;
	struct peer me;

	while (c->leader_ends && (!state || state[2] != 'Z')) {
		if (setting_read("/proc/self/stat", line, sizeof(line)))
			_exit(1);
		state = strrchr(line, ')');
	}
	peer_self(&me);
	c->copied = put_by(&me, PIDFD_SELF, 1, &c->self);
	c->copied &= put_by(&me, PIDFD_SELF_PROCESS, 2, &c->process);
	c->copied &= put_by(&me, PIDFD_SELF_THREAD_GROUP, 3, &c->thread_group);
	_exit(0);
}

TEST(calls_itself_by_second_thread)
{
	pthread_t thread;
	struct peer me;
	int status, i;
	pid_t pid;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, 4 * page_size(), RW));
	self_calls = mmap(NULL, page_size(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(self_calls != MAP_FAILED);
	for (i = 0; i < 2; i++) {
		*self_calls = (struct self_calls){ i, -1, -1, -1 };
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (pthread_create(&thread, NULL, call_itself, NULL))
				_exit(1);
			if (i)
				syscall(__NR_exit, 0);
			for (;;)
				pause();
		}
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, status);
		EXPECT_EQ(0, self_calls->self);
		/* These two are the main thread, which has no memory any more. */
		EXPECT_EQ(i ? ESRCH : 0, self_calls->process);
		EXPECT_EQ(i ? ESRCH : 0, self_calls->thread_group);
		EXPECT_TRUE(self_calls->copied);
	}
}

/*
 * A copy that MADV_WIPEONFORK keeps from the child is as good as new there: it can be
 * cut, of which a kernel with CONFIG_DEBUG_VM would complain if it were not.
 */
TEST(wiped_by_fork)
{
	size_t ps = page_size(), len = 16 * ps, i;
	char *copy = (char *)DST;
	int status, bad = 0;
	struct peer me;
	pid_t pid;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 1));
	ASSERT_EQ(0, sys_dput(PIDFD_SELF, SRC, PIDFD_SELF, DST, len, 0));
	ASSERT_EQ(0, madvise(copy, len, MADV_WIPEONFORK));
	pid = fork();
	if (!pid) {
		if (munmap(copy + 4 * ps, 4 * ps))
			_exit(1);
		for (i = 0; i < len; i++)
			bad |= (i < 4 * ps || i >= 8 * ps) && copy[i];
		copy[0] = 1;
		_exit(bad);
	}
	ASSERT_LT(0, pid);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(-1, peer_verify(&me, DST, len, 1));
	EXPECT_EQ(-1, peer_verify(&me, SRC, len, 1));
	munmap(copy, len);
	munmap((void *)SRC, len);
}

/* Dying processes */

/* A thread's ID, and what it does */
struct job {
	int tid;
	unsigned long dst;
	char byte;
	int dst_fd;
	int err;
};

/* Is it waiting for something, and for nobody to wake it up but that? */
static bool thread_waits(pid_t pid, pid_t tid)
{
	char path[64], buf[256], *state;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return false;
	buf[n] = 0;
	state = strrchr(buf, ')');
	return state && !strncmp(state, ") D", 3);
}

static void *store(void *arg)
{
	struct job *job = arg;

	__atomic_store_n(&job->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	*(volatile char *)job->dst = job->byte;
	return NULL;
}

static void *put(void *arg)
{
	struct job *job = arg;

	__atomic_store_n(&job->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	job->err = sys_dput(PIDFD_SELF, SRC, job->dst_fd, job->dst, 4 * page_size(), 0) ?
		   errno : 0;
	return NULL;
}

static int may_change;

static void *change(void *arg)
{
	struct job *job = arg;

	__atomic_store_n(&job->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (!__atomic_load_n(&may_change, __ATOMIC_ACQUIRE))
		sched_yield();
	madvise((void *)job->dst, page_size(), MADV_DONTDUMP);
	return NULL;
}

/* Start a thread with a copy of @job; its ID. */
static long start_thread(struct job *copy, const struct job *job, void *(*fn)(void *))
{
	pthread_t thread;

	*copy = *job;
	if (pthread_create(&thread, NULL, fn, copy))
		return -1;
	while (!__atomic_load_n(&copy->tid, __ATOMIC_ACQUIRE))
		sched_yield();
	return copy->tid;
}

static long op_store(void *arg)
{
	static struct job job;

	return start_thread(&job, arg, store);
}

static long op_change(void *arg)
{
	static struct job job;

	return start_thread(&job, arg, change);
}

static long op_may_change(void *arg)
{
	__atomic_store_n(&may_change, 1, __ATOMIC_RELEASE);
	return 0;
}

/*
 * Thaw a file system when told, or after a minute, or when the caller has gone.
 * The exit status says if it was told.
 */
static pid_t start_thawing(int fd, int tell[2])
{
	struct pollfd wait;
	bool told;
	pid_t pid;
	char c;

	if (pipe(tell))
		return -1;
	pid = fork();
	if (pid)
		return pid;
	/* A test that is late is killed with its process group, and with its parent. */
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, 0);
	close(tell[1]);
	wait.fd = tell[0];
	wait.events = POLLIN;
	told = poll(&wait, 1, 60000) == 1 && read(tell[0], &c, 1) == 1;
	_exit(ioctl(fd, FITHAW, 0) || !told);
}

/* Freeze the file system of @fd until start_thawing() thaws it. NULL, or why not */
static const char *freeze(int fd, int tell[2], pid_t *thaw)
{
	if (ioctl(fd, FIFREEZE, 0))
		return strerror(errno);
	*thaw = start_thawing(fd, tell);
	if (*thaw < 0)
		ioctl(fd, FITHAW, 0);
	return NULL;
}

/* Processes that execute another program */

static char *exec_argv[] = { "process", NULL };

/* Where execve() stops for a tracer the new memory is complete, and nobody runs in it. */
TEST(stopped_in_execve)
{
	char *envp[] = { EXECUTED "=exit", NULL };
	size_t len = 2 * page_size();
	int status, pidfd;
	struct peer me;
	pid_t pid;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		execve("/proc/self/exe", exec_argv, envp);
		_exit(1);
	}
	pidfd = sys_pidfd_open(pid, 0);
	ASSERT_LE(0, pidfd);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(0, ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACEEXEC));
	ASSERT_EQ(0, ptrace(PTRACE_CONT, pid, NULL, NULL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(SIGTRAP | PTRACE_EVENT_EXEC << 8, status >> 8);

	EXPECT_EQ(0, sys_dput(PIDFD_SELF, SRC, pidfd, SRC, len, 0) ? errno : 0);
	EXPECT_EQ(0, sys_dput(pidfd, SRC, PIDFD_SELF, DST, len, 0) ? errno : 0);
	EXPECT_EQ(-1, peer_verify(&me, DST, len, 1));

	ASSERT_EQ(0, ptrace(PTRACE_DETACH, pid, NULL, NULL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	close(pidfd);
}

/* A process with a second thread, which executes this program when told */

struct execer {
	int tell;		/* to have it execute */
	int done;		/* its end of file says that the old memory is gone */
	pid_t pid, tid;
	int pidfd;
};

static void *wait_for_ever(void *arg)
{
	pid_t tid = syscall(SYS_gettid);

	if (write(*(int *)arg, &tid, sizeof(tid)) != sizeof(tid))
		_exit(1);
	for (;;)
		pause();
	return NULL;
}

static int start_execer(struct execer *e)
{
	int go[2], ids[2], done[2];
	char *envp[] = { EXECUTED "=pause", NULL };
	pthread_t thread;
	char c;

	if (pipe2(go, O_CLOEXEC) || pipe2(ids, O_CLOEXEC) || pipe2(done, O_CLOEXEC))
		return -1;
	e->pid = fork();
	if (e->pid < 0)
		return -1;
	if (!e->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!pthread_create(&thread, NULL, wait_for_ever, &ids[1]) &&
		    read(go[0], &c, 1) == 1)
			execve("/proc/self/exe", exec_argv, envp);
		_exit(1);
	}
	close(done[1]);
	e->tell = go[1];
	e->done = done[0];
	e->pidfd = sys_pidfd_open(e->pid, 0);
	if (e->pidfd < 0 || read(ids[0], &e->tid, sizeof(e->tid)) != sizeof(e->tid))
		return -1;
	return 0;
}

/* By a file: nobody runs in it. -1, or the first byte of the pattern that is wrong */
static long verify_stopped(pid_t pid, unsigned long addr, size_t len, unsigned int seed)
{
	char path[32], *got = malloc(2 * len), *want = got + len;
	long ret = -2;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	pattern(want, len, 0, seed);
	if (pread(fd, got, len, addr) == (ssize_t)len)
		for (ret = 0; ret < (long)len && got[ret] == want[ret]; ret++)
			;
	close(fd);
	free(got);
	return ret == (long)len ? -1 : ret;
}

/*
 * While execve() waits for another thread to go, which a tracer stops on its way,
 * nothing can be copied from or to the process, and then it is another program.
 */
TEST(in_execve)
{
	size_t len = 4 * page_size(), half = page_size() / 2;
	struct snapshot before;
	char *maps, *now;
	struct execer e;
	struct peer me;
	int status, err;
	char c;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_map(&me, DST, len, RW));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 1));
	ASSERT_EQ(0, peer_fill(&me, DST, len, 2));
	ASSERT_EQ(0, start_execer(&e));
	if (ptrace(PTRACE_SEIZE, e.tid, NULL, PTRACE_O_TRACEEXIT))
		SKIP(return, "ptrace: %s", strerror(errno));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 3));
	/* Not so far */
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, SRC, e.pidfd, SRC, len, 0));

	ASSERT_EQ(1, write(e.tell, "", 1));
	ASSERT_EQ(e.tid, waitpid(e.tid, &status, __WALL));
	ASSERT_EQ(SIGTRAP | PTRACE_EVENT_EXIT << 8, status >> 8);
	ASSERT_EQ(0, snapshot_take(&before, &me));
	maps = proc_maps(e.pid, 0, MAPS_END);
#define EXPECT_EAGAIN(...) do {							\
	EXPECT_EQ(-1, sys_dput(__VA_ARGS__));					\
	EXPECT_EQ(EAGAIN, errno);						\
} while (0)
	EXPECT_EAGAIN(PIDFD_SELF, SRC, e.pidfd, DST, len, 0);
	EXPECT_EAGAIN(PIDFD_SELF, SRC + half, e.pidfd, DST + half, half / 2, 0);
	EXPECT_EAGAIN(e.pidfd, SRC, PIDFD_SELF, DST, len, 0);
	EXPECT_EAGAIN(e.pidfd, SRC + half, PIDFD_SELF, DST + half, half / 2, 0);
	EXPECT_EAGAIN(e.pidfd, SRC, e.pidfd, DST, len, 0);
	EXPECT_TRUE(snapshot_same(&before, &me));
	now = proc_maps(e.pid, 0, MAPS_END);
	EXPECT_STREQ(maps, now);
	EXPECT_EQ(-1, verify_stopped(e.pid, SRC, len, 3));
	EXPECT_EQ(-1, verify_stopped(e.pid, DST, len, 2));
	free(maps);
	free(now);

	ASSERT_EQ(0, ptrace(PTRACE_CONT, e.tid, NULL, NULL));
	ASSERT_EQ(e.tid, waitpid(e.tid, &status, __WALL));
	ASSERT_EQ(0, read(e.done, &c, 1));
	/* The new memory is there, but execve() need not be over. */
	do
		err = sys_dput(PIDFD_SELF, SRC, e.pidfd, DST, len, 0) ? errno : 0;
	while (err == EAGAIN && !sched_yield());
	EXPECT_EQ(0, err);
	EXPECT_EQ(-1, verify_stopped(e.pid, DST, len, 3));
	EXPECT_EQ(-1, sys_dput(e.pidfd, SRC, PIDFD_SELF, DST, len, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, sys_dput(e.pidfd, DST, PIDFD_SELF, DST, len, 0));
	EXPECT_EQ(-1, peer_verify(&me, DST, len, 3));
	kill(e.pid, SIGKILL);
	ASSERT_EQ(e.pid, waitpid(e.pid, NULL, 0));
}

/* Where the one that leaves waits to be told, and what says that it has left */
static int leave_wait[2], leave_done[2];

static int leave_main(void *arg)
{
	char *envp[] = { EXECUTED "=pause", NULL };
	char c;

	/* The test may end before it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(leave_wait[0], &c, 1) == 1)
		execve("/proc/self/exe", exec_argv, envp);
	return 1;
}

static void *put_partial(void *arg)
{
	struct job *job = arg;
	size_t half = page_size() / 2;

	job->err = sys_dput(PIDFD_SELF, SRC + half, job->dst_fd, DST + half, 3 * half, 0) ?
		   errno : 0;
	return NULL;
}

/*
 * The call waits for a page fault, and meanwhile the destination, which was one of
 * two processes with one address space, executes another program: its limits and
 * capabilities are those of somebody else now.
 */
TEST(leaves_by_execve)
{
	size_t ps = page_size(), len = 2 * ps;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { SRC, ps }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_zeropage zero = { .range = { SRC, ps } };
	struct pollfd fault = { .events = POLLIN };
	struct job job = { .err = -1 };
	struct uffd_msg msg;
	pthread_t thread;
	struct peer me;
	pid_t pid;
	int uffd;
	char c;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		SKIP(return, "userfaultfd: %s", strerror(errno));
	fault.fd = uffd;
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_map(&me, DST, len, RW));
	ASSERT_EQ(0, peer_fill(&me, DST, len, 1));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	ASSERT_EQ(0, pipe2(leave_wait, O_CLOEXEC));
	ASSERT_EQ(0, pipe2(leave_done, O_CLOEXEC));
	pid = clone(leave_main, share_stack + sizeof(share_stack), CLONE_VM | SIGCHLD, NULL);
	ASSERT_LT(0, pid);
	close(leave_done[1]);
	job.dst_fd = sys_pidfd_open(pid, 0);
	ASSERT_LE(0, job.dst_fd);

	ASSERT_EQ(0, pthread_create(&thread, NULL, put_partial, &job));
	ASSERT_EQ(1, poll(&fault, 1, 60000));
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));
	ASSERT_EQ(UFFD_EVENT_PAGEFAULT, msg.event);
	ASSERT_EQ(1, write(leave_wait[1], "", 1));
	/* Closed by execve(), and it says so when that is about to return. */
	ASSERT_EQ(0, read(leave_done[0], &c, 1));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(EAGAIN, job.err);
	EXPECT_EQ(-1, peer_verify(&me, DST, len, 1));
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	close(job.dst_fd);
	close(uffd);
}

/*
 * A partial page, in the source or in the destination, that a userfaultfd has yet
 * to supply: the call waits for it.
 */
#define SUPPLIED_PAGES	33
#define SUPPLIED_LEN	((SUPPLIED_PAGES - 1) * page_size() + 100)

FIXTURE(supplied)
{
	struct peer me;
	unsigned long ps, edge;
	char *page;		/* what is supplied */
	int uffd;
};

FIXTURE_VARIANT(supplied)
{
	bool in_dst;
};

FIXTURE_VARIANT_ADD(supplied, source) {};
FIXTURE_VARIANT_ADD(supplied, destination) { .in_dst = true };

FIXTURE_SETUP(supplied)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	size_t len;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0)
		SKIP(return, "userfaultfd: %s", strerror(errno));
	self->ps = page_size();
	len = SUPPLIED_PAGES * self->ps;
	self->edge = (variant->in_dst ? DST : SRC) + len - self->ps;
	self->page = malloc(self->ps);
	ASSERT_TRUE(!!self->page);
	pattern(self->page, self->ps, 0, 3);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_map(&self->me, DST, len, RW));
	ASSERT_EQ(0, peer_fill(&self->me, SRC, len, 1));
	ASSERT_EQ(0, peer_fill(&self->me, DST, len, 2));
	ASSERT_EQ(0, madvise((void *)self->edge, self->ps, MADV_DONTNEED));
	reg.range.start = self->edge;
	reg.range.len = self->ps;
	ASSERT_EQ(0, ioctl(self->uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, ioctl(self->uffd, UFFDIO_REGISTER, &reg));
}

FIXTURE_TEARDOWN(supplied)
{
	close(self->uffd);
	free(self->page);
}

/* Until somebody waits for the page; false if it is another one, or nobody does */
static bool page_wanted(FIXTURE_DATA(supplied) *self)
{
	struct pollfd fault = { .fd = self->uffd, .events = POLLIN };
	struct uffd_msg fmsg;

	return poll(&fault, 1, 60000) == 1 &&
	       read(self->uffd, &fmsg, sizeof(fmsg)) == sizeof(fmsg) &&
	       fmsg.event == UFFD_EVENT_PAGEFAULT &&
	       (fmsg.arg.pagefault.address & -self->ps) == self->edge;
}

static int supply_page(FIXTURE_DATA(supplied) *self)
{
	struct uffdio_copy copy = {
		.dst = self->edge, .src = (unsigned long)self->page, .len = self->ps,
	};

	return ioctl(self->uffd, UFFDIO_COPY, &copy);
}

/* After the call, within this process, with the page supplied */
static void expect_supplied(struct __test_metadata *_metadata, FIXTURE_DATA(supplied) *self,
			    bool in_dst)
{
	size_t ps = self->ps, whole = SUPPLIED_LEN - 100;
	char *want = malloc(SUPPLIED_PAGES * ps);

	/* The bytes of the range, and those behind it */
	pattern(want, whole + ps, 0, 1);
	if (!in_dst)
		memcpy(want + whole, self->page, 100);
	EXPECT_EQ(0, memcmp(want, (void *)DST, SUPPLIED_LEN));
	pattern(want, whole + ps, 0, 2);
	if (in_dst)
		memcpy(want + whole, self->page, ps);
	EXPECT_EQ(0, memcmp(want + SUPPLIED_LEN, (void *)DST + SUPPLIED_LEN, ps - 100));
	free(want);
}

/* A thread that calls, once or more often, with signals that do not kill */
struct caller {
	long calls;		/* at least so many, ... */
	long ticks;		/* ... with so many signals meanwhile */
	int err;
	int ended;
};

static volatile sig_atomic_t ticks;

static void tick(int sig)
{
	ticks++;
}

static void *put_supplied(void *arg)
{
	struct caller *c = arg;
	sigset_t set;
	long n;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	ticks = 0;
	for (n = 0; !c->err && (n < c->calls || ticks < c->ticks); n++) {
		/* All of it is to be copied anew each time. */
		if (n)
			munmap((void *)DST, SUPPLIED_LEN - 100);
		c->err = sys_dput(PIDFD_SELF, SRC, PIDFD_SELF, DST, SUPPLIED_LEN, 0) ? errno : 0;
	}
	__atomic_store_n(&c->ended, 1, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F(supplied, waited_for)
{
	struct caller c = { .calls = 1 };
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, put_supplied, &c));
	EXPECT_TRUE(page_wanted(self));
	EXPECT_EQ(0, __atomic_load_n(&c.ended, __ATOMIC_ACQUIRE));
	ASSERT_EQ(0, supply_page(self));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, c.err);
	expect_supplied(_metadata, self, variant->in_dst);
}

static bool signal_pending(int sig)
{
	char line[128] = "";
	unsigned long long set = 0;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "ShdPnd: %llx", &set) == 1)
			break;
	if (f)
		fclose(f);
	return set >> (sig - 1) & 1;
}

/* A signal that does not kill is for later, whether the call waits or not. */
TEST_F(supplied, not_interrupted)
{
	struct itimerval each_ms = { { 0, 1000 }, { 0, 1000 } }, off = {};
	struct sigaction act = { .sa_handler = tick };
	struct caller c = { .calls = 500, .ticks = 200 };
	pthread_t thread;
	sigset_t set;
	int i;

	/* For the thread alone */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	ASSERT_EQ(0, pthread_sigmask(SIG_BLOCK, &set, NULL));
	ASSERT_EQ(0, sigaction(SIGALRM, &act, NULL));
	ASSERT_EQ(0, pthread_create(&thread, NULL, put_supplied, &c));
	EXPECT_TRUE(page_wanted(self));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &each_ms, NULL));
	while (!signal_pending(SIGALRM) && !__atomic_load_n(&c.ended, __ATOMIC_ACQUIRE))
		sched_yield();
	/* If it woke up because of that, it would come to an end. */
	for (i = 0; i < 100; i++)
		sched_yield();
	EXPECT_TRUE(signal_pending(SIGALRM));
	EXPECT_EQ(0, __atomic_load_n(&c.ended, __ATOMIC_ACQUIRE));
	ASSERT_EQ(0, supply_page(self));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &off, NULL));
	EXPECT_EQ(0, c.err)
		TH_LOG("%s", strerror(c.err));
	EXPECT_LE(c.ticks, ticks);
	expect_supplied(_metadata, self, variant->in_dst);
}

/* One that kills is not, and nothing has happened then. */
TEST_F(supplied, caller_killed)
{
	struct pollfd end = { .events = POLLIN };
	struct peer other;
	int fds[2], status;
	pid_t pid;

	/* A third process calls. What the other one has inherited is all there. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	ASSERT_EQ(0, peer_start(&other));
	peer_admit(&other);
	fds[0] = sys_pidfd_open(getpid(), 0);
	ASSERT_LE(0, fds[0]);
	fds[1] = other.pidfd;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sys_dput(fds[variant->in_dst], SRC, fds[!variant->in_dst], DST, SUPPLIED_LEN, 0);
		_exit(errno);
	}
	EXPECT_TRUE(page_wanted(self));
	end.fd = sys_pidfd_open(pid, 0);
	ASSERT_LE(0, end.fd);
	EXPECT_EQ(0, poll(&end, 1, 0));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(1, poll(&end, 1, 30000))
		TH_LOG("it cannot be killed");
	ASSERT_EQ(0, supply_page(self));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	if (variant->in_dst) {
		EXPECT_EQ(-1, peer_verify(&self->me, DST, SUPPLIED_LEN - 100, 2));
		EXPECT_EQ(0, memcmp(self->page, (void *)self->edge, self->ps));
	} else {
		EXPECT_EQ(-1, peer_verify(&other, DST, SUPPLIED_PAGES * self->ps, 2));
	}
	close(end.fd);
	close(fds[0]);
	peer_stop(&other);
}

/*
 * A page fault in the destination's old memory waits, with its mapping locked,
 * for what the source does later. The call has to wait, too, but must not keep
 * the source from doing it, nor anybody from adding a probe: every fork() would
 * wait for that.
 */
TEST(waits_alone)
{
	size_t ps = page_size(), len = 4 * ps;
	struct peer me, other;
	struct job job = { .dst = DST };
	char probed[] = "./dput-XXXXXX";
	int fd, status, tell[2], probe = -1, probe_err = 0;
	bool uprobes = uprobe_supported();
	const char *why;
	pthread_t thread;
	pid_t thaw;
	long tid;
	void *p;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it freezes a file system: DPUT_DISPOSABLE is not set");
	fd = file_open(DISK);
	if (fd < 0)
		SKIP(return, "no file in the current directory: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_LE(0, mkstemp(probed));
	peer_self(&me);
	ASSERT_EQ(0, peer_start(&other));
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 1));
	ASSERT_EQ(0, peer_map(&me, SRC + 8 * ps, ps, RW));
	ASSERT_EQ(DST, peer_mmap(&other, DST, len, RW, MAP_SHARED | MAP_FIXED, fd));
	/* A fault that has to read the page in drops the mapping's lock. */
	ASSERT_EQ(0, peer_read(&other, DST, &job.byte, 1));
	job.dst_fd = other.pidfd;

	why = freeze(fd, tell, &thaw);
	if (why) {
		unlink(probed);
		peer_stop(&other);
		SKIP(return, "FIFREEZE: %s", why);
	}
	ASSERT_LT(0, thaw);

	/* As in the image: it may be stored into that. */
	pattern(&job.byte, 1, 0, 1);
	tid = peer_call(&other, op_store, &job, sizeof(job));
	EXPECT_LT(0, tid);
	while (tid > 0 && !thread_waits(other.pid, tid))
		sched_yield();
	/* Nobody waits for that to read bytes there, as by process_vm_readv(). */
	EXPECT_EQ(0, peer_dput(&other, DST + 1, &me, SRC + 8 * ps + 1, 100, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, put, &job));
	while (!__atomic_load_n(&job.tid, __ATOMIC_ACQUIRE) ||
	       !thread_waits(getpid(), job.tid))
		sched_yield();

	/* This takes the source's mmap_lock. */
	p = mmap(NULL, ps, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT_TRUE(p != MAP_FAILED);
	if (uprobes) {
		/* Nobody has it mapped. */
		probe = uprobe_open(probed, 0);
		probe_err = errno;
		close(probe);
	}
	EXPECT_EQ(1, write(tell[1], "", 1));
	EXPECT_EQ(thaw, waitpid(thaw, &status, 0));
	EXPECT_EQ(0, status);
	unlink(probed);
	/* What is said before may have to wait for the thaw: it may go to a file there. */
	if (uprobes) {
		EXPECT_LE(0, probe)
			TH_LOG("uprobe: %s", strerror(probe_err));
	} else {
		TH_LOG("not tried here: uprobes");
	}

	pthread_join(thread, NULL);
	EXPECT_EQ(0, job.err);
	EXPECT_EQ(-1, peer_verify(&other, DST, len, 1));
	peer_stop(&other);
}

/* Whoever waits for such a fault can be killed, and the old memory stays. */
TEST(killed_while_a_fault_waits)
{
	size_t ps = page_size(), len = 4 * ps;
	struct pollfd end = { .events = POLLIN };
	struct job job = { .dst = DST };
	int fd, ended, status, self_fd, tell[2];
	struct peer me, other;
	pid_t thaw, caller;
	const char *why;
	long tid;
	char c = 0;
	void *p;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it freezes a file system: DPUT_DISPOSABLE is not set");
	fd = file_open(DISK);
	if (fd < 0)
		SKIP(return, "no file in the current directory: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, len));
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	peer_self(&me);
	self_fd = sys_pidfd_open(getpid(), 0);
	ASSERT_LE(0, self_fd);
	ASSERT_EQ(0, peer_start(&other));
	peer_admit(&other);
	ASSERT_EQ(0, peer_map(&me, SRC, len, RW));
	ASSERT_EQ(0, peer_fill(&me, SRC, len, 1));
	ASSERT_EQ(DST, peer_mmap(&other, DST, len, RW, MAP_SHARED | MAP_FIXED, fd));
	ASSERT_EQ(0, peer_read(&other, DST, &c, 1));

	why = freeze(fd, tell, &thaw);
	if (why) {
		peer_stop(&other);
		SKIP(return, "FIFREEZE: %s", why);
	}
	ASSERT_LT(0, thaw);

	job.byte = 5;
	tid = peer_call(&other, op_store, &job, sizeof(job));
	EXPECT_LT(0, tid);
	while (tid > 0 && !thread_waits(other.pid, tid))
		sched_yield();
	caller = fork();
	ASSERT_LE(0, caller);
	if (!caller) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(tell[1]);
		sys_dput(self_fd, SRC, other.pidfd, DST, len, 0);
		_exit(errno);
	}
	end.fd = sys_pidfd_open(caller, 0);
	ASSERT_LE(0, end.fd);
	while (!thread_waits(caller, caller) && !poll(&end, 1, 0))
		sched_yield();
	/* It keeps this mm locked only for as long as the fault may soon end. */
	p = mmap(NULL, ps, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT_TRUE(p != MAP_FAILED);
	while (!thread_waits(caller, caller) && !poll(&end, 1, 0))
		sched_yield();
	EXPECT_EQ(0, poll(&end, 1, 0));
	EXPECT_EQ(0, kill(caller, SIGKILL));
	ended = poll(&end, 1, 30000);

	EXPECT_EQ(1, write(tell[1], "", 1));
	EXPECT_EQ(thaw, waitpid(thaw, &status, 0));
	EXPECT_EQ(0, status);
	/* Not to be said where the file system may have to take it */
	EXPECT_EQ(1, ended)
		TH_LOG("it cannot be killed");
	EXPECT_EQ(caller, waitpid(caller, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	/* The thread ends when it has stored. */
	while (tid > 0 && !syscall(SYS_tgkill, other.pid, tid, 0))
		sched_yield();
	EXPECT_EQ(1, pread(fd, &c, 1, 0));
	EXPECT_EQ(5, c);
	EXPECT_EQ(0, peer_read(&other, DST + 1, &c, 1));
	EXPECT_EQ(0, c);
	peer_stop(&other);
}

/*
 * Whoever adds a probe waits for a third process, and the call for the probe. That
 * can be killed.
 */
TEST(killed_while_a_probe_waits)
{
	size_t ps = page_size();
	struct job job = { .dst = DST };
	char probed[] = "./dput-XXXXXX";
	int fd, code, status, tell[2], go[2];
	struct pollfd end = { .events = POLLIN };
	pid_t thaw, caller, prober;
	int waiting, ended, probed_early, seen = -1, *calls;
	const char *why;
	struct peer other;
	long tid, changer;
	char c;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it freezes a file system: DPUT_DISPOSABLE is not set");
	if (!uprobe_supported())
		SKIP(return, "no uprobes");
	fd = file_open(DISK);
	if (fd < 0)
		SKIP(return, "no file in the current directory: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, ps));
	code = mkstemp(probed);
	ASSERT_LE(0, code);
	for (size_t i = 0; i < ps; i++)
		ASSERT_EQ(1, write(code, "", 1));
	ASSERT_EQ(0, peer_start(&other));
	ASSERT_EQ(DST, peer_mmap(&other, DST, ps, RW, MAP_SHARED | MAP_FIXED, fd));
	ASSERT_EQ(0, peer_read(&other, DST, &job.byte, 1));
	ASSERT_EQ(SRC, peer_mmap(&other, SRC, ps, PROT_READ, MAP_PRIVATE | MAP_FIXED, code));

	calls = mmap(NULL, ps, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(calls != MAP_FAILED);
	/* No fork() comes back while the probe waits. */
	ASSERT_EQ(0, pipe(go));
	caller = fork();
	ASSERT_LE(0, caller);
	if (!caller) {
		close(go[1]);
		if (mmap((void *)SRC, ps, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			 -1, 0) == MAP_FAILED || read(go[0], &c, 1) != 1)
			_exit(1);
		while (!sys_dput(PIDFD_SELF, SRC, PIDFD_SELF, DST, ps, 0))
			__atomic_add_fetch(calls, 1, __ATOMIC_RELAXED);
		_exit(2);
	}
	end.fd = sys_pidfd_open(caller, 0);
	ASSERT_LE(0, end.fd);
	why = freeze(fd, tell, &thaw);
	if (why) {
		kill(caller, SIGKILL);
		unlink(probed);
		peer_stop(&other);
		SKIP(return, "FIFREEZE: %s", why);
	}
	ASSERT_LT(0, thaw);

	/*
	 * A page fault, with the mapping's lock, and with the mm's what waits for
	 * that. Or the fault has the mm's: then no thread could be started any more.
	 */
	changer = peer_call(&other, op_change, &job, sizeof(job));
	EXPECT_LT(0, changer);
	tid = peer_call(&other, op_store, &job, sizeof(job));
	EXPECT_LT(0, tid);
	while (tid > 0 && !thread_waits(other.pid, tid))
		sched_yield();
	EXPECT_EQ(0, peer_call(&other, op_may_change, NULL, 0));
	while (changer > 0 && !thread_waits(other.pid, changer))
		sched_yield();
	EXPECT_EQ(1, write(go[1], "", 1));
	while (!__atomic_load_n(calls, __ATOMIC_RELAXED) && !poll(&end, 1, 0))
		sched_yield();
	prober = fork();
	if (!prober) {
		close(tell[1]);
		_exit(uprobe_open(probed, 0) < 0);
	}
	EXPECT_LT(0, prober);
	/* Either may wait for something else for a moment. */
	for (waiting = 0; waiting < 100; waiting++) {
		int now = __atomic_load_n(calls, __ATOMIC_RELAXED);

		if (!thread_waits(prober, prober) || now != seen)
			waiting = -1;
		seen = now;
		sched_yield();
	}
	EXPECT_EQ(0, kill(caller, SIGKILL));
	ended = poll(&end, 1, 30000);
	probed_early = waitpid(prober, NULL, WNOHANG);

	EXPECT_EQ(1, write(tell[1], "", 1));
	EXPECT_EQ(thaw, waitpid(thaw, &status, 0));
	EXPECT_EQ(0, status);
	/* Not to be said where the file system may have to take it */
	EXPECT_EQ(1, ended)
		TH_LOG("it cannot be killed");
	EXPECT_EQ(0, probed_early)
		TH_LOG("the probe does not wait");
	EXPECT_EQ(prober, waitpid(prober, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(caller, waitpid(caller, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	unlink(probed);
	peer_stop(&other);
}

FIXTURE(dying)
{
	struct peer me, a;
	unsigned long ps;
	char group[192];
	bool entered;
};

FIXTURE_SETUP(dying)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->ps = page_size();
	peer_self(&self->me);
}

FIXTURE_TEARDOWN(dying)
{
	if (self->group[0])
		cgroup_delete(self->group);
}

/*
 * A killed process that cannot go yet: its tracer keeps it. The OOM reaper, or
 * process_mrelease(), takes its memory away meanwhile. Then there are holes
 * that read as zeroes.
 */
TEST_F(dying, reaped)
{
	size_t npages = 64, len = npages * self->ps;
	struct snapshot before;
	int status;

	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_map(&self->me, DST, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, npages, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(&self->me, DST, npages, 0, 1, 2));
	ASSERT_EQ(0, peer_start(&self->a));
	/* Pages of its own */
	ASSERT_EQ(0, peer_stamp(&self->a, SRC, npages, 0, 1, 3));
	if (ptrace(PTRACE_SEIZE, self->a.pid, NULL, PTRACE_O_TRACEEXIT))
		SKIP(return, "ptrace: %s", strerror(errno));
	ASSERT_EQ(0, kill(self->a.pid, SIGKILL));
	ASSERT_EQ(self->a.pid, waitpid(self->a.pid, &status, __WALL));
	ASSERT_EQ(SIGTRAP | PTRACE_EVENT_EXIT << 8, status >> 8);

	/* It has been killed, and all of its memory is there. */
	EXPECT_EQ(0, peer_dput(&self->a, SRC, &self->me, DST, len, 0));
	EXPECT_EQ(-1, peer_check(&self->me, DST, npages, 0, 1, 3));
	EXPECT_EQ(0, peer_dput(&self->me, SRC, &self->a, DST, len, 0));

	if (syscall(__NR_process_mrelease, self->a.pidfd, 0))
		SKIP_REST(goto out, "process_mrelease: %s", strerror(errno));
	ASSERT_EQ(0, snapshot_take(&before, &self->me));
	EXPECT_EQ(-1, peer_dput(&self->a, SRC, &self->me, DST, len, 0));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_EQ(-1, peer_dput(&self->a, SRC + 8, &self->me, DST + 8, 8, 0));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_EQ(-1, peer_dput(&self->me, SRC, &self->a, DST, len, 0));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_EQ(-1, peer_dput(&self->me, SRC + 8, &self->a, DST + 8, 8, 0));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_EQ(-1, peer_dput(&self->a, SRC, &self->a, DST, len, DPUT_HOLES));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_TRUE(snapshot_same(&before, &self->me));
out:
	ptrace(PTRACE_CONT, self->a.pid, NULL, NULL);
	peer_kill(&self->a);
}

/* Take memory until it is too much. */
static void *eat(void *arg)
{
	unsigned long ps = page_size(), i;
	size_t len = 1UL << 30;
	volatile char *p;

	p = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (i = 0; p != MAP_FAILED && i < len; i += ps)
		p[i] = 1;
	return NULL;
}

static long op_eat(void *arg)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, eat, NULL) ? -1 : 0;
}

/* The OOM killer of its own group ends it while it is copied from and to. */
TEST_F(dying, oom_killed)
{
	size_t npages = 256, len = npages * self->ps;
	long i, n = iterations(8), good = 0, killed = 0, ret;
	const char *why = cgroup_enter();
	char max[24];
	int status;

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, cgroup_new("dying", self->group, sizeof(self->group)));
	snprintf(max, sizeof(max), "%zu", 16 * len);
	ASSERT_EQ(0, cgroup_write(self->group, "memory.max", max));
	cgroup_write(self->group, "memory.swap.max", "0");
	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, npages, 0, 1, 1));
	for (i = 0; i < n; i++) {
		bool get = i % 2;

		ASSERT_EQ(0, peer_start(&self->a));
		ASSERT_EQ(0, cgroup_move(self->group, self->a.pid));
		/* Its own pages, charged to its group */
		ASSERT_EQ(0, peer_stamp(&self->a, SRC, npages, 0, 1, 1));
		ASSERT_EQ(0, peer_call(&self->a, op_eat, NULL, 0));
		for (;;) {
			ret = get ? peer_dput(&self->a, SRC, &self->me, DST, len, 0) :
				    peer_dput(&self->me, SRC, &self->a, DST, len, 0);
			if (ret && errno == ESRCH)
				break;
			if (ret) {
				ASSERT_EQ(ENOMEM, errno);
				continue;
			}
			good++;
			if (get) {
				ASSERT_EQ(-1, peer_check(&self->me, DST, npages, 0, 1, 1));
				ASSERT_EQ(0, peer_stamp(&self->me, DST, npages, 0, 1, 2));
			}
		}
		ASSERT_EQ(self->a.pid, waitpid(self->a.pid, &status, 0));
		killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
		close(self->a.sock);
		close(self->a.pidfd);
		EXPECT_EQ(-1, peer_check(&self->me, SRC, npages, 0, 1, 1));
	}
	EXPECT_LT(0, good);
	EXPECT_EQ(n, killed);
	EXPECT_LE(n, cgroup_number(self->group, "memory.events", "oom_kill"));
}

/*
 * The caller is killed in the middle of it. What its destination has then is one
 * of the images, whole, or nothing; and its ends are of one image each.
 */
#define KILL_PAGES	2048
#define RAGGED		24

FIXTURE(killed)
{
	struct peer me, src, dst;
	unsigned long ps;
	size_t len;
};

FIXTURE_VARIANT(killed)
{
	bool from_caller;	/* or else between two others */
};

FIXTURE_VARIANT_ADD(killed, put) { .from_caller = true };
FIXTURE_VARIANT_ADD(killed, third_party) {};

FIXTURE_SETUP(killed)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->ps = page_size();
	self->len = KILL_PAGES * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->dst));
	/* Two images one after the other; inherited by whoever is forked */
	ASSERT_EQ(0, peer_map(&self->me, SRC, 2 * self->len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, KILL_PAGES, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC + self->len, KILL_PAGES, 0, 1, 2));
	ASSERT_EQ(0, peer_start(&self->src));
	/* It is another child that copies. */
	peer_admit(&self->src);
	peer_admit(&self->dst);
}

FIXTURE_TEARDOWN(killed)
{
	peer_kill(&self->src);
	peer_kill(&self->dst);
}

static void __noreturn copy_for_ever(int src, int dst, size_t len, int fd)
{
	char byte = 0;
	long i;

	for (i = 0;; i++) {
		if (sys_dput(src, SRC + i % 2 * len + RAGGED, dst, DST + RAGGED,
			     len - 2 * RAGGED, 0))
			_exit(errno);
		if (!i && write(fd, &byte, 1) != 1)
			_exit(255);
	}
}

/* Copy all of it, and then one page of that again and again. */
static void __noreturn copy_page_for_ever(int src, int dst, size_t len, int fd)
{
	const size_t ps = page_size(), off = KILL_PAGES / 2 * ps;
	char byte = 0;

	if (sys_dput(src, SRC, dst, DST, len, 0) || write(fd, &byte, 1) != 1)
		_exit(255);
	for (;;)
		if (sys_dput(src, SRC + off, dst, DST + off, ps, 0))
			_exit(errno);
}

typedef void (*copy_fn)(int src, int dst, size_t len, int fd);

/* Kill what a child does for ever @nsec after it has begun; -1 if it ended by itself. */
static int kill_while(copy_fn fn, int src, int dst, size_t len, long nsec)
{
	struct timespec ts = { .tv_nsec = nsec };
	int status, fds[2], began;
	char byte;
	pid_t pid;

	if (pipe(fds))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn(src, dst, len, fds[1]);
		_exit(255);
	}
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return -1;
	}
	began = read(fds[0], &byte, 1);
	close(fds[0]);
	nanosleep(&ts, NULL);
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		return -1;
	if (began == 1 && WIFSIGNALED(status))
		return 0;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	return -1;
}

static int mapping_sizes_kb(pid_t pid, long *sum)
{
	char *maps = proc_maps(pid, 0, MAPS_END), *c, *next;
	unsigned long s, e;

	*sum = 0;
	for (c = maps; *c; c = next) {
		next = strchr(c, '\n') + 1;
		if (sscanf(c, "%lx-%lx", &s, &e) != 2)
			return -1;
		*sum += (e - s) >> 10;
	}
	free(maps);
	return 0;
}

/* Which of the images has this word? 0 is none of them. */
static int image_at(struct peer *p, size_t off)
{
	uint64_t got;
	int i;

	if (peer_read(p, DST + off, &got, sizeof(got)))
		return -1;
	for (i = 1; i <= 2; i++)
		if (got == *(uint64_t *)(SRC + (i - 1) * KILL_PAGES * page_size() + off))
			return i;
	return 0;
}

TEST_F(killed, at_any_moment)
{
	unsigned int state = env_number("DPUT_SEED", 1);
	long i, n = iterations(60), most = 50 * n, sizes, seen[3] = {};
	unsigned long last = KILL_PAGES - 1, ps = self->ps;
	unsigned long within = 20000000;	/* ns */
	int mapped, image;

	/* Until one has been killed in the middle, and one at its end, too */
	for (i = 0; i < n || ((!seen[0] || seen[0] == i) && i < most); i++) {
		peer_munmap(&self->dst, DST, self->len);
		ASSERT_EQ(0, peer_map(&self->dst, DST, self->len, RW));
		ASSERT_EQ(0, kill_while(copy_for_ever, variant->from_caller ? PIDFD_SELF :
					self->src.pidfd, self->dst.pidfd, self->len,
					rand_r(&state) % within))
			TH_LOG("dput: %s", strerror(errno));

		/* Whole pages: of one image, or unmapped */
		mapped = proc_mapped(self->dst.pid, DST + ps, self->len - 2 * ps);
		ASSERT_LE(0, mapped);
		/* A word of the first page that is stamped, and so on */
		image = image_at(&self->dst, ps / 2 - 8);
		ASSERT_LT(0, image);
		EXPECT_EQ(image, image_at(&self->dst, last * ps));
		if (mapped) {
			EXPECT_EQ(-1, peer_check(&self->dst, DST, last, 1, 1, image));
		}
		seen[mapped ? image : 0]++;
		/* Some calls take longer than others. */
		if (mapped)
			within -= within / 16;
		else if (within < 1000000000)
			within += within / 8;
		/* What is beyond the ends was never written. */
		EXPECT_EQ(0, image_at(&self->dst, 0));
		EXPECT_EQ(0, image_at(&self->dst, KILL_PAGES * ps - 8));
		/* The sources are as they were. */
		ASSERT_EQ(-1, peer_check(&self->src, SRC, KILL_PAGES, 0, 1, 1));
		ASSERT_EQ(-1, peer_check(&self->me, SRC, KILL_PAGES, 0, 1, 1));
		/* And so are the books. */
		ASSERT_EQ(0, mapping_sizes_kb(self->dst.pid, &sizes));
		EXPECT_EQ(sizes, proc_status_kb(self->dst.pid, "VmSize"));
	}
	TH_LOG("%ld times unmapped, %ld the first image, %ld the second", seen[0], seen[1],
	       seen[2]);
	EXPECT_LT(0, seen[0]);
	EXPECT_LT(0, seen[1] + seen[2]);
}

/* Nor is anything else lost of a copy of which a page is being put again. */
TEST_F(killed, one_page)
{
	unsigned int state = env_number("DPUT_SEED", 1);
	long i, n = iterations(60), sizes;

	for (i = 0; i < n; i++) {
		ASSERT_EQ(0, kill_while(copy_page_for_ever, variant->from_caller ?
					PIDFD_SELF : self->src.pidfd, self->dst.pidfd,
					self->len, rand_r(&state) % 2000000))
			TH_LOG("dput: %s", strerror(errno));

		ASSERT_EQ(1, proc_mapped(self->dst.pid, DST, self->len));
		ASSERT_EQ(-1, peer_check(&self->dst, DST, KILL_PAGES, 0, 1, 1));
		ASSERT_EQ(0, mapping_sizes_kb(self->dst.pid, &sizes));
		EXPECT_EQ(sizes, proc_status_kb(self->dst.pid, "VmSize"));
	}
}

#if __SIZEOF_LONG__ == 8

#define HIGH_PAGES	256

/* Far from what page tables reach so far on s390, or the first context on powerpc */
static unsigned long high;

/* It is asked for by a child: the process that forks must not have it yet. */
static bool find_high(void)
{
	static const unsigned char bits[] = { 49, 43 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bits); i++) {
		pid_t pid;
		int status;

		high = DST + (1UL << bits[i]);
		pid = fork();
		if (!pid)
			_exit(mmap((void *)high, page_size(), RW, MAP_PRIVATE | MAP_ANONYMOUS |
				   MAP_FIXED_NOREPLACE, -1, 0) != (void *)high);
		if (pid > 0 && waitpid(pid, &status, 0) == pid && !status)
			return true;
	}
	return false;
}

struct forker {
	bool stop;
	long forks;
};

/* Fork until told to stop: each child has all that was put there, or nothing. */
static int fork_until(volatile struct forker *f)
{
	size_t len = HIGH_PAGES * page_size();
	unsigned char vec[HIGH_PAGES];
	struct peer me;
	bool last;
	pid_t pid;
	int status;

	do {
		last = f->stop;
		f->forks++;
		pid = fork();
		if (!pid) {
			if (mincore((void *)high, len, vec))
				_exit(last);
			peer_self(&me);
			_exit(peer_check(&me, high, HIGH_PAGES, 0, 1, 1) != -1);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			return 1;
	} while (!last);
	return 0;
}

/*
 * A process forks while another one gives it memory where it had none: fork() copies
 * what it knows of its address space before it locks that.
 */
TEST(forks_meanwhile)
{
	size_t ps = page_size(), len = HIGH_PAGES * ps, i;
	long round, rounds = iterations(20);
	volatile struct forker *f;
	struct peer src;
	int status, pidfd;
	pid_t pid;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (!find_high())
		SKIP(return, "no address is so high");
	ASSERT_EQ(0, peer_start(&src));
	ASSERT_EQ(0, peer_map(&src, high, len, RW));
	/* Many mappings take long to look at, and a small process forks often. */
	ASSERT_EQ(0, peer_stamp(&src, high, HIGH_PAGES, 0, 1, 1));
	for (i = 0; i < len; i += 2 * ps)
		ASSERT_EQ(0, peer_mprotect(&src, high + i, ps, PROT_READ));
	f = mmap(NULL, ps, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f);
	for (round = 0; round < rounds; round++) {
		f->stop = false;
		f->forks = 0;
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(fork_until(f));
		pidfd = sys_pidfd_open(pid, 0);
		while (f->forks <= round % 4)
			sched_yield();
		EXPECT_EQ(0, sys_dput(src.pidfd, high, pidfd, high, len, 0));
		f->stop = true;
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_EQ(0, status);
		close(pidfd);
	}
	peer_stop(&src);
}

/* What the threads of a process do to its address space while it forks */
struct mapper {
	char *low, *busy;
	size_t len, busy_len;
	bool mapping, stop;
};

/* The lock is held, most of the time. */
static void *hold_lock(void *arg)
{
	volatile struct mapper *m = arg;

	while (!m->stop) {
		mprotect(m->busy, m->busy_len, PROT_READ);
		mprotect(m->busy, m->busy_len, RW);
	}
	return NULL;
}

/* Once only: memory moves to where page tables did not reach. */
static void *move_up(void *arg)
{
	volatile struct mapper *m = arg;

	m->mapping = true;
	return mremap(m->low, m->len, m->len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)high);
}

static bool all_are(const char *from, size_t len, char byte)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (from[i] != byte)
			return false;
	return true;
}

/* Exits with 0, or with 1 if the child has not what it should, or 2 for anything else. */
static void fork_while_moving(unsigned int delay)
{
	size_t len = 16 * page_size();
	struct mapper m = { .len = len, .busy_len = 4096 * page_size() };
	unsigned char vec[16];
	pthread_t holder, mover;
	void *moved;
	char *other;
	int status;
	pid_t pid;

	/* What is written to instead of high, if levels of page tables are missing */
	other = mmap((void *)DST, len, RW, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m.low = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m.busy = mmap(NULL, m.busy_len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (other == MAP_FAILED || m.low == MAP_FAILED || m.busy == MAP_FAILED)
		_exit(2);
	memset(other, 'o', len);
	memset(m.low, 'h', len);
	if (pthread_create(&holder, NULL, hold_lock, &m) ||
	    pthread_create(&mover, NULL, move_up, &m))
		_exit(2);
	while (!*(volatile bool *)&m.mapping)
		sched_yield();
	while (delay--)
		asm volatile("" ::: "memory");
	pid = fork();
	if (!pid) {
		if (!all_are(other, len, 'o'))
			_exit(1);
		if (!mincore((void *)high, len, vec))
			_exit(!all_are((char *)high, len, 'h'));
		_exit(!all_are(m.low, len, 'h'));
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		_exit(2);
	*(volatile bool *)&m.stop = true;
	pthread_join(mover, &moved);
	_exit(moved == MAP_FAILED ? 2 : !!status);
}

/* The same without dput(): a process has something so high for the first time. */
TEST(forks_while_moving)
{
	unsigned int state = env_number("DPUT_SEED", 1);
	long round, rounds = iterations(40);
	int status;
	pid_t pid;

	if (!find_high())
		SKIP(return, "no address is so high");
	for (round = 0; round < rounds; round++) {
		unsigned int delay = rand_r(&state) % 100000;

		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			fork_while_moving(delay);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_EQ(0, status);
	}
}

#else

TEST(forks_meanwhile)
{
	SKIP(return, "no address is so high");
}

TEST(forks_while_moving)
{
	SKIP(return, "no address is so high");
}

#endif

TEST_HARNESS_MAIN
