// SPDX-License-Identifier: GPL-2.0
/*
 * Who may use dput(2) on whom: as with ptrace(2). What a single user may not do
 * to another one, or to an undumpable process, is in errors.c.
 *
 * With DPUT_DISPOSABLE in the environment, tests change Yama's ptrace_scope, and the
 * last one sets it to 3, which cannot be undone before the machine is booted again.
 */

#include "kselftest_harness.h"
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
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

static const char *no_scope;

static bool yama_scope(const char *scope)
{
	char now[16];

	/* Without Yama it is as with a scope of 0. */
	no_scope = "no Yama";
	if (setting_read(YAMA, now, sizeof(now)))
		return *scope == '0';
	if (!strcmp(now, scope))
		return true;
	/* Meanwhile, others might do what they may not, or not do what they may. */
	no_scope = "Yama has another scope: DPUT_DISPOSABLE is not set";
	if (!getenv("DPUT_DISPOSABLE"))
		return false;
	no_scope = "Yama's scope cannot be changed any more";
	return !setting_write(YAMA, scope);
}

TEST_F(access, users)
{
	if (!yama_scope("0"))
		SKIP(return, "%s", no_scope);
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

static long op_two_users(void *arg)
{
	uid_t *ids = arg;

	if (syscall(SYS_setresgid, ids[0], ids[1], ids[1]) ||
	    syscall(SYS_setresuid, ids[0], ids[1], ids[1]))
		return -1;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return 0;
}

/* As with ptrace(2), it is the real user who counts, not who may open files. */
TEST_F(access, real_user)
{
	uid_t ids[] = { USER, OTHER };
	struct peer both;

	if (!yama_scope("0"))
		SKIP(return, "%s", no_scope);
	ASSERT_EQ(0, peer_start(&both));
	ASSERT_EQ(0, peer_call(&both, op_two_users, ids, sizeof(ids)));
	ASSERT_EQ(0, peer_call(&both, op_dumpable, NULL, 0));
	EXPECT_EQ(1, may(&both, &self->sibling));
	EXPECT_EQ(0, may(&both, &self->stranger));
	EXPECT_EQ(0, copied(&both, &self->sibling, &self->stranger));
	EXPECT_EQ(0, copied(&both, &self->stranger, &self->sibling));
	/* As a target, it has to be one user's altogether. */
	EXPECT_EQ(0, may(&self->sibling, &both));
	EXPECT_EQ(0, may(&self->stranger, &both));
	EXPECT_EQ(1, may(&self->root, &both));
	peer_kill(&both);
}

/*
 * In a user namespace, a user has all capabilities, but over nobody outside; and
 * who made it has them there.
 */
TEST_F(access, user_namespaces)
{
	struct peer second, inside, plain;

	if (!yama_scope("0"))
		SKIP(return, "%s", no_scope);
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
		SKIP(return, "%s", no_scope);
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
		SKIP(return, "%s", no_scope);
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
		SKIP(return, "%s", no_scope);
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

/* Open a file on overlayfs, and write its number, or why there is none, to @tell. */
static int overlay_main(int tell)
{
	char dir[] = "/tmp/dput-XXXXXX";
	int fd;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("dput", "/tmp", "tmpfs", 0, NULL) || !mkdtemp(dir) || chdir(dir) ||
	    mkdir("lower", 0700) || mkdir("upper", 0700) || mkdir("work", 0700) ||
	    mkdir("all", 0700) ||
	    mount("dput", "all", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work"))
		fd = -errno;
	else
		fd = open("all/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (write(tell, &fd, sizeof(fd)) != sizeof(fd))
		return 1;
	pause();
	return 0;
}

/* A file on overlayfs, which nobody has mounted any more; or -1 */
static int overlay_open(void)
{
	int tell[2], fd = -1, pidfd;
	pid_t pid;

	if (pipe(tell))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(overlay_main(tell[1]));
	}
	close(tell[1]);
	if (read(tell[0], &fd, sizeof(fd)) != sizeof(fd))
		fd = -EIO;
	close(tell[0]);
	if (fd < 0) {
		errno = -fd;
	} else {
		pidfd = sys_pidfd_open(pid, 0);
		fd = syscall(__NR_pidfd_getfd, pidfd, fd, 0);
		close(pidfd);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd < 0 ? -1 : fd;
}

/*
 * A mapping of a file on overlayfs is one of the file behind it. About both files
 * it is asked whether the caller may have them.
 */
TEST_F(access, files_behind)
{
	size_t len = NR * page_size();
	unsigned long files = DST + (1UL << 24);
	struct peer other, third;
	uint64_t before, after;
	int fd, counter;
	char last;

	fd = overlay_open();
	if (fd < 0)
		SKIP(return, "overlayfs: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(1, pwrite(fd, "x", 1, len - 1));
	ASSERT_EQ(files, peer_mmap(&self->root, files, len, RW, MAP_PRIVATE | MAP_FIXED, fd));
	ASSERT_EQ(0, peer_fill(&self->root, files, len / 2, 3));
	ASSERT_EQ(0, peer_start(&other));
	ASSERT_EQ(0, peer_start(&third));
	counter = count_calls("security_file_mprotect");
	if (counter < 0)
		SKIP(goto out, "no events for kernel functions: %s", strerror(errno));

#define EXPECT_ASKED_BEHIND(src, dst, asked) do {				\
	ASSERT_EQ(sizeof(before), read(counter, &before, sizeof(before)));	\
	ASSERT_EQ(0, peer_dput(src, files, dst, DST, len, 0));			\
	ASSERT_EQ(sizeof(after), read(counter, &after, sizeof(after)));		\
	/* How often is not promised: once for each look at the mapping. */	\
	EXPECT_EQ(asked, after != before);					\
	EXPECT_EQ(-1, peer_verify(dst, DST, len / 2, 3));			\
	EXPECT_EQ(0, peer_read(dst, DST + len - 1, &last, 1));			\
	EXPECT_EQ('x', last);							\
} while (0)
	EXPECT_ASKED_BEHIND(&other, &self->root, true);
	EXPECT_ASKED_BEHIND(&other, &third, true);
	EXPECT_ASKED_BEHIND(&self->root, &other, false);
	EXPECT_ASKED_BEHIND(&self->root, &self->root, false);
	/* Not the caller's, but it stays where it is. */
	ASSERT_EQ(0, peer_munmap(&other, DST, len));
	EXPECT_ASKED_BEHIND(&other, &other, false);
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
		SKIP(return, "%s", no_scope);
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
		SKIP(return, "%s", no_scope);
	EXPECT_EQ(0, may(&self->root, &self->child));
	EXPECT_EQ(0, may(&self->user, &self->child));
	EXPECT_EQ(1, copied(&self->root, &self->root, &self->root));
	EXPECT_EQ(1, copied(&self->user, &self->user, &self->user));
}

TEST_HARNESS_MAIN
