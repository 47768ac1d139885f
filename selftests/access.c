// SPDX-License-Identifier: GPL-2.0
/*
 * Who may use dput(2) on whom: as with ptrace(2). What a single user may not do
 * to another one, or to an undumpable process, is in errors.c.
 *
 * With DPUT_DISPOSABLE in the environment, the last test sets Yama's
 * ptrace_scope to 3, which cannot be undone before the machine is booted again.
 */

#include "kselftest_harness.h"
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "dput_util.h"

#define SRC		ARENA
#define DST		(ARENA + (1UL << 24))
#define NR		4

#define YAMA		"/proc/sys/kernel/yama/ptrace_scope"

static void __attribute__((constructor)) save_settings(void)
{
	setting_save(YAMA);
}

struct call {
	pid_t src, dst;		/* 0 is the caller */
	unsigned long from;
	size_t len;
};

static int open_process(pid_t pid)
{
	return pid ? sys_pidfd_open(pid, 0) : PIDFD_SELF;
}

static long op_call(void *arg)
{
	struct call *c = arg;
	int src = open_process(c->src), dst = open_process(c->dst), ret, err;

	ret = sys_dput(src, c->from, dst, DST + c->from % page_size(), c->len, 0);
	err = errno;
	if (src >= 0)
		close(src);
	if (dst >= 0)
		close(dst);
	errno = err;
	return ret;
}

/* What became of one call: 1 if it was made, 0 if it was refused, or -1 */
static int copied(struct peer *caller, struct peer *src, struct peer *dst)
{
	struct call c = {
		.src = src == caller ? 0 : src->pid,
		.dst = dst == caller ? 0 : dst->pid,
		.from = SRC,
		.len = NR * page_size(),
	};
	size_t len = c.len;
	long ret;

	if (peer_fill(src, SRC, len, 1) || peer_fill(dst, DST, len, 2))
		return -1;
	ret = peer_call(caller, op_call, &c, sizeof(c));
	if (!ret && peer_verify(dst, DST, len, 1) == -1)
		return 1;
	if (ret == -1 && errno == EPERM && peer_verify(dst, DST, len, 2) == -1)
		return 0;
	printf("# %d, %d to %d: %ld, %s\n", caller->pid, src->pid, dst->pid, ret,
	       strerror(errno));
	return -1;
}

/* The same for reading and for writing, or -1 */
static int may(struct peer *caller, struct peer *other)
{
	int get = copied(caller, other, caller);
	int put = copied(caller, caller, other);

	return get == put ? get : -1;
}

static long op_dumpable(void *arg)
{
	return prctl(PR_SET_DUMPABLE, 1);
}

/* Another user, to whom nobody else's rights apply */
static int become(struct peer *p, uid_t uid)
{
	/* To change the user makes it undumpable. */
	if (peer_setuid(p, uid) || peer_call(p, op_dumpable, NULL, 0))
		return -1;
	return 0;
}

static long op_user_namespace(void *arg)
{
	return unshare(CLONE_NEWUSER);
}

static long op_drop_capabilities(void *arg)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};

	return syscall(SYS_capset, &head, data);
}

static long op_ptracer(void *arg)
{
	return prctl(PR_SET_PTRACER, (unsigned long)*(pid_t *)arg, 0, 0, 0);
}

FIXTURE(access)
{
	struct peer root, user, child, sibling, stranger;
};

#define USER	65534
#define OTHER	65533

FIXTURE_SETUP(access)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	peer_self(&self->root);
	ASSERT_EQ(0, peer_map(&self->root, SRC, NR * page_size(), RW));
	ASSERT_EQ(0, peer_map(&self->root, DST, NR * page_size(), RW));
	/* A user's process and a child of it, another one, and another user's */
	ASSERT_EQ(0, peer_start(&self->user));
	ASSERT_EQ(0, become(&self->user, USER));
	ASSERT_EQ(0, peer_fork(&self->user, &self->child));
	ASSERT_EQ(0, peer_start(&self->sibling));
	ASSERT_EQ(0, become(&self->sibling, USER));
	ASSERT_EQ(0, peer_start(&self->stranger));
	ASSERT_EQ(0, become(&self->stranger, OTHER));
}

FIXTURE_TEARDOWN(access)
{
	peer_kill(&self->child);
	peer_kill(&self->user);
	peer_kill(&self->sibling);
	peer_kill(&self->stranger);
}

static bool yama_scope(const char *scope)
{
	char now[16];

	if (!setting_read(YAMA, now, sizeof(now)) && strcmp(now, scope))
		setting_write(YAMA, scope);
	/* Without Yama it is as with a scope of 0. */
	return setting_read(YAMA, now, sizeof(now)) ? *scope == '0' : !strcmp(now, scope);
}

#define NO_SCOPE	"no Yama, or its scope cannot be changed any more"

TEST_F(access, users)
{
	if (!yama_scope("0"))
		SKIP(return, NO_SCOPE);
	EXPECT_EQ(1, may(&self->user, &self->child));
	EXPECT_EQ(1, may(&self->child, &self->user));
	EXPECT_EQ(1, may(&self->user, &self->sibling));
	EXPECT_EQ(0, may(&self->user, &self->stranger));
	EXPECT_EQ(0, may(&self->stranger, &self->child));
	EXPECT_EQ(0, may(&self->user, &self->root));
	/* As a third party, it needs the right to both. */
	EXPECT_EQ(1, copied(&self->user, &self->child, &self->sibling));
	EXPECT_EQ(0, copied(&self->user, &self->child, &self->stranger));
	EXPECT_EQ(0, copied(&self->user, &self->stranger, &self->child));
	/* CAP_SYS_PTRACE */
	EXPECT_EQ(1, may(&self->root, &self->user));
	EXPECT_EQ(1, copied(&self->root, &self->user, &self->stranger));
}

/*
 * In a user namespace, a user has all capabilities, but over nobody outside; and
 * who made it has them there.
 */
TEST_F(access, user_namespaces)
{
	struct peer second, inside, plain;

	if (!yama_scope("0"))
		SKIP(return, NO_SCOPE);
	ASSERT_EQ(0, peer_fork(&self->user, &second));
	if (peer_call(&self->child, op_user_namespace, NULL, 0) ||
	    peer_call(&second, op_user_namespace, NULL, 0))
		SKIP(return, "unshare: %s", strerror(errno));
	/* They are all the same user's. */
	EXPECT_EQ(0, may(&self->child, &self->user));
	EXPECT_EQ(0, may(&self->child, &self->sibling));
	EXPECT_EQ(0, may(&self->child, &self->root));
	EXPECT_EQ(0, may(&self->child, &second));
	EXPECT_EQ(0, may(&second, &self->child));
	EXPECT_EQ(1, may(&self->user, &self->child));
	EXPECT_EQ(1, may(&self->sibling, &self->child));
	EXPECT_EQ(1, copied(&self->user, &self->child, &second));
	EXPECT_EQ(0, copied(&self->child, &self->child, &second));
	EXPECT_EQ(0, copied(&self->child, &second, &self->child));
	EXPECT_EQ(1, may(&self->root, &self->child));
	EXPECT_EQ(0, may(&self->stranger, &self->child));
	/* Within one */
	ASSERT_EQ(0, peer_fork(&self->child, &inside));
	ASSERT_EQ(0, peer_fork(&self->child, &plain));
	ASSERT_EQ(0, peer_call(&plain, op_drop_capabilities, NULL, 0));
	EXPECT_EQ(1, may(&self->child, &inside));
	EXPECT_EQ(1, may(&inside, &self->child));
	EXPECT_EQ(1, may(&inside, &plain));
	EXPECT_EQ(0, may(&plain, &inside));
	peer_kill(&plain);
	peer_kill(&inside);
	peer_kill(&second);
}

/* Yama's scopes: only descendants, or who was named; only CAP_SYS_PTRACE; nobody */
TEST_F(access, yama_1)
{
	pid_t pid = self->user.pid;

	if (!yama_scope("1"))
		SKIP(return, NO_SCOPE);
	EXPECT_EQ(1, may(&self->user, &self->child));
	EXPECT_EQ(0, may(&self->child, &self->user));
	EXPECT_EQ(0, may(&self->user, &self->sibling));
	EXPECT_EQ(0, copied(&self->user, &self->child, &self->sibling));
	EXPECT_EQ(1, copied(&self->user, &self->child, &self->user));
	EXPECT_EQ(1, may(&self->root, &self->sibling));
	ASSERT_EQ(0, peer_call(&self->sibling, op_ptracer, &pid, sizeof(pid)));
	EXPECT_EQ(1, may(&self->user, &self->sibling));
	EXPECT_EQ(0, may(&self->sibling, &self->user));
	setting_restore(YAMA);
}

TEST_F(access, yama_2)
{
	if (!yama_scope("2"))
		SKIP(return, NO_SCOPE);
	EXPECT_EQ(0, may(&self->user, &self->child));
	EXPECT_EQ(0, may(&self->user, &self->sibling));
	EXPECT_EQ(1, may(&self->root, &self->child));
	/* Itself is no other process. */
	EXPECT_EQ(1, copied(&self->user, &self->user, &self->user));
	setting_restore(YAMA);
}

/* A filter sees this call like every other one. */
static long op_filter(void *arg)
{
	struct sock_filter insns[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_dput, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EDOM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(insns), .filter = insns };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog);
}

TEST_F(access, seccomp)
{
	struct call c = { .from = SRC, .len = NR * page_size() };

	if (!yama_scope("0"))
		SKIP(return, NO_SCOPE);
	ASSERT_EQ(0, peer_call(&self->user, op_call, &c, sizeof(c)));
	if (peer_call(&self->user, op_filter, NULL, 0))
		SKIP(return, "seccomp: %s", strerror(errno));
	ASSERT_EQ(0, peer_fill(&self->user, DST, NR * page_size(), 2));
	EXPECT_EQ(-1, peer_call(&self->user, op_call, &c, sizeof(c)));
	EXPECT_EQ(EDOM, errno);
	EXPECT_EQ(-1, peer_verify(&self->user, DST, NR * page_size(), 2));
	/* It does not keep others from copying to and from it. */
	EXPECT_EQ(1, may(&self->sibling, &self->user));
}

/* How often this process has called a function of the kernel's, from now on; or -1 */
static int count_calls(const char *function)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr), .config1 = (unsigned long)function,
	};
	char type[16];

	if (setting_read("/sys/bus/event_source/devices/kprobe/type", type, sizeof(type)))
		return -1;
	attr.type = atoi(type);
	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
}

/* How often security modules are asked whether the caller may have a file. */
TEST_F(access, files)
{
	size_t len = NR * page_size();
	unsigned long files = DST + (1UL << 24);
	struct peer other, third;
	uint64_t before, after;
	int fd, counter;

	fd = file_open(MEMFD);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(files, peer_mmap(&self->root, files, len, RW, MAP_PRIVATE | MAP_FIXED, fd));
	/* Two mappings of it, one of which has been written to */
	ASSERT_EQ(0, peer_fill(&self->root, files, len / 2, 3));
	ASSERT_EQ(0, peer_mprotect(&self->root, files, len / 2, PROT_READ));
	ASSERT_EQ(0, peer_start(&other));
	ASSERT_EQ(0, peer_start(&third));
	counter = count_calls("security_file_receive");
	if (counter < 0)
		SKIP(goto out, "no events for kernel functions: %s", strerror(errno));

#define ASKED(src, saddr, dst, nr) do {						\
	ASSERT_EQ(sizeof(before), read(counter, &before, sizeof(before)));	\
	ASSERT_EQ(0, peer_dput(src, saddr, dst, DST, len, 0));			\
	ASSERT_EQ(sizeof(after), read(counter, &after, sizeof(after)));		\
	EXPECT_EQ(nr, after - before);						\
} while (0)
	ASKED(&other, files, &self->root, 1);
	EXPECT_EQ(-1, peer_verify(&self->root, DST, len / 2, 3));
	ASKED(&other, files, &third, 1);
	EXPECT_EQ(-1, peer_verify(&third, DST, len / 2, 3));
	/* Over an older copy, too */
	ASKED(&other, files, &third, 1);
	/* It is the caller's already, or no file at all, or nobody gets it. */
	ASKED(&self->root, files, &other, 0);
	ASKED(&other, SRC, &self->root, 0);
	ASKED(&other, files, &other, 0);
	ASKED(&self->root, files, &self->root, 0);
	close(counter);
out:
	peer_stop(&other);
	peer_stop(&third);
	close(fd);
}

#define LABEL	"/proc/self/attr/current"

/*
 * One that says no: Smack, to who has no rule for the file's label. That of a
 * memfd is its maker's.
 */
TEST_F(access, files_refused)
{
	size_t page = page_size(), len = NR * page;
	unsigned long files = DST + (1UL << 24);
	struct peer *dsts[] = { &self->user, &self->child };
	struct call c = {};
	struct peer other;
	char label[64];
	int fd, i, edge;

	if (!yama_scope("0"))
		SKIP(return, NO_SCOPE);
	if (access("/sys/fs/smackfs", F_OK) || setting_read(LABEL, label, sizeof(label)))
		SKIP(return, "no security module that could refuse: Smack");
	ASSERT_EQ(0, setting_write(LABEL, "dput"));
	fd = file_open(MEMFD);
	ASSERT_EQ(0, setting_write(LABEL, label));
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(files, peer_mmap(&self->root, files, len, RW, MAP_PRIVATE | MAP_FIXED, fd));
	close(fd);
	ASSERT_EQ(0, peer_start(&other));
	ASSERT_EQ(0, become(&other, USER));
	ASSERT_EQ(0, peer_fill(&other, files, len - page, 3));

	/* To itself or to another process; whole pages or with an edge at either end */
	for (i = 0; i < 4; i++) {
		edge = i & 1 ? 16 : 0;
		c.src = other.pid;
		c.dst = i & 2 ? self->child.pid : 0;
		c.from = files + edge;
		c.len = len - 2 * edge;
		ASSERT_EQ(0, peer_fill(dsts[i / 2], DST, len, 2));
		EXPECT_EQ(-1, peer_call(&self->user, op_call, &c, sizeof(c)));
		EXPECT_EQ(EACCES, errno);
		EXPECT_EQ(-1, peer_verify(dsts[i / 2], DST, len, 2));
	}
	/* Over an older copy, which is made by who may override that */
	ASSERT_EQ(0, peer_dput(&other, files, &self->user, DST, len, 0));
	ASSERT_EQ(0, peer_fill(&other, files, page, 4));
	c.src = other.pid;
	c.dst = 0;
	c.from = files;
	c.len = len;
	EXPECT_EQ(-1, peer_call(&self->user, op_call, &c, sizeof(c)));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, peer_verify(&self->user, DST, len - page, 3));
	EXPECT_EQ(-1, peer_verify(&other, files, page, 4));
	/* What it has already is nothing that it receives. */
	c.src = 0;
	c.dst = self->user.pid;
	EXPECT_EQ(0, peer_call(&other, op_call, &c, sizeof(c)));
	EXPECT_EQ(-1, peer_verify(&self->user, DST, page, 4));
	peer_stop(&other);
}

/* The last one: there is no way back. */
TEST_F(access, yama_3)
{
	char now[16];

	if (setting_read(YAMA, now, sizeof(now)))
		SKIP(return, "no Yama");
	if (!getenv("DPUT_DISPOSABLE") && strcmp(now, "3"))
		SKIP(return, "it would last: DPUT_DISPOSABLE is not set");
	if (!yama_scope("3"))
		SKIP(return, NO_SCOPE);
	EXPECT_EQ(0, may(&self->root, &self->child));
	EXPECT_EQ(0, may(&self->user, &self->child));
	EXPECT_EQ(1, copied(&self->root, &self->root, &self->root));
	EXPECT_EQ(1, copied(&self->user, &self->user, &self->user));
}

TEST_HARNESS_MAIN
