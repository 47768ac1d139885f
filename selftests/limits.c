// SPDX-License-Identifier: GPL-2.0
/* Whose limits bound dput(2), and who pays: always the destination. */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define SRC		ARENA
#define DST		(ARENA + (1UL << 31) + (1UL << 21))

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"
#define OVERCOMMIT	"/proc/sys/vm/overcommit_memory"
#define COMMIT_KBYTES	"/proc/sys/vm/overcommit_kbytes"
#define COMMIT_RATIO	"/proc/sys/vm/overcommit_ratio"

/* To write one of these sets the other one to 0: that one counts which is not. */
static const char *commit_by = COMMIT_RATIO;

static void __attribute__((constructor)) prepare(void)
{
	char kbytes[32];

	setting_save(MAX_MAP_COUNT);
	setting_save(OVERCOMMIT);
	if (!setting_read(COMMIT_KBYTES, kbytes, sizeof(kbytes)) && strcmp(kbytes, "0"))
		commit_by = COMMIT_KBYTES;
	setting_save(commit_by);
	cgroup_prepare();
}

/*
 * Control groups: the caller, the source and the destination are in one each.
 * Counters of groups lag behind by some 64 pages for each CPU.
 */
enum { CALLER, SOURCE, DEST, GROUPS };

#define LAG		256L	/* for two CPUs */
#define MANY		1024L	/* so many pages are more than that */

static long meminfo_kb(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "r");
	size_t n = strlen(field);
	char line[128];
	long kb = -1;

	while (f && kb < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, field, n) && line[n] == ':')
			kb = atol(line + n + 1);
	if (f)
		fclose(f);
	return kb;
}

FIXTURE(memcg)
{
	struct peer me, src, dst;
	unsigned long ps;
	char group[GROUPS][192];
	long before[GROUPS];
};

static void delete_groups(FIXTURE_DATA(memcg) *self)
{
	int i;

	for (i = 0; i < GROUPS; i++)
		if (self->group[i][0])
			cgroup_delete(self->group[i]);
}

FIXTURE_SETUP(memcg)
{
	static const char * const names[] = { "caller", "source", "destination" };
	const char *why;
	int i;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	why = cgroup_enter();
	if (why)
		SKIP(return, "%s", why);
	self->ps = page_size();
	peer_self(&self->me);
	for (i = 0; i < GROUPS; i++)
		ASSERT_EQ(0, cgroup_new(names[i], self->group[i], sizeof(self->group[i])));
	ASSERT_EQ(0, peer_start(&self->src));
	ASSERT_EQ(0, peer_start(&self->dst));
	ASSERT_EQ(0, cgroup_move(self->group[CALLER], getpid()));
	ASSERT_EQ(0, cgroup_move(self->group[SOURCE], self->src.pid));
	ASSERT_EQ(0, cgroup_move(self->group[DEST], self->dst.pid));
}

FIXTURE_TEARDOWN(memcg)
{
	peer_kill(&self->src);
	peer_kill(&self->dst);
	cgroup_move(NULL, getpid());
	delete_groups(self);
}

static long op_pin(void *arg)
{
	unsigned long *a = arg;

	return pin_memory(a[0], a[1]);
}

/* What MANY page tables map, if an entry takes eight bytes */
static size_t sparse_len(void)
{
	return MANY * page_size() * (page_size() / 8);
}

/* That, with a page in each */
static void map_sparse(struct __test_metadata *_metadata, struct peer *p)
{
	size_t step = sparse_len() / MANY;

	/* More than all memory may be accounted as. */
	ASSERT_EQ(SRC, peer_mmap(p, SRC, MANY * step, RW, MAP_PRIVATE | MAP_ANONYMOUS |
				 MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1));
	/* Fails where there are no huge pages. */
	peer_madvise(p, SRC, MANY * step, MADV_NOHUGEPAGE);
	ASSERT_EQ(0, peer_stamp(p, SRC, MANY * step / page_size(), 0,
				step / page_size(), 1));
}

/* Pages in use, in all or of a kind */
static void count(FIXTURE_DATA(memcg) *self, const char *kind, long *pages)
{
	int i;

	/* With many CPUs, as much as is charged here is added up each 2 s only. */
	if (kind && sysconf(_SC_NPROCESSORS_ONLN) > LAG / 128)
		sleep(3);
	for (i = 0; i < GROUPS; i++)
		pages[i] = cgroup_number(self->group[i], kind ? "memory.stat" :
					 "memory.current", kind) / (long)self->ps;
}

/* It is the destination's group that has got @pages more. */
static void expect_charged(struct __test_metadata *_metadata, FIXTURE_DATA(memcg) *self,
			   const char *kind, long pages)
{
	long now[GROUPS];

	count(self, kind, now);
	EXPECT_GT(self->before[CALLER] + LAG, now[CALLER]);
	EXPECT_GT(self->before[SOURCE] + LAG, now[SOURCE]);
	EXPECT_LT(self->before[DEST] + pages - LAG, now[DEST]);
}

/* Half as many on 32-bit machines, where an entry takes four bytes */
#define TABLES	(__SIZEOF_LONG__ == 4 ? MANY / 2 : MANY)

/*
 * The source has mapped something in each of TABLES page tables since self->before
 * was counted. Where several share a page, that is nothing to look for elsewhere.
 */
static bool tables_are_pages(FIXTURE_DATA(memcg) *self)
{
	long now[GROUPS];

	count(self, "pagetables", now);
	return now[SOURCE] - self->before[SOURCE] > TABLES - LAG;
}

#define NO_PAGES	"several page tables share a page"

TEST_F(memcg, page_tables)
{
	long all[GROUPS];

	count(self, "pagetables", self->before);
	map_sparse(_metadata, &self->src);
	if (!tables_are_pages(self))
		SKIP(return, NO_PAGES);
	count(self, NULL, all);
	count(self, "pagetables", self->before);
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, SRC, sparse_len(), 0));
	expect_charged(_metadata, self, "pagetables", TABLES);
	memcpy(self->before, all, sizeof(all));
	expect_charged(_metadata, self, NULL, TABLES);
	/* They are given back, by RCU. */
	ASSERT_EQ(0, peer_munmap(&self->dst, SRC, sparse_len()));
	do {
		syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
		count(self, NULL, all);
	} while (all[DEST] >= self->before[DEST] + LAG);
}

static long op_lock_future(void *arg)
{
	return mlockall(MCL_FUTURE);
}

/* Nor is the caller charged for what comes when the destination locks its memory. */
TEST_F(memcg, page_tables_of_locked)
{
	size_t step = sparse_len() / MANY;
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	long i;

	/* A mapping for each page table, and nothing in them any more */
	count(self, "pagetables", self->before);
	for (i = 0; i < MANY; i++) {
		unsigned long at = SRC + i * step;

		ASSERT_EQ(0, peer_map(&self->src, at, self->ps, RW));
		ASSERT_EQ(0, peer_stamp(&self->src, at, 1, 0, 1, 1));
		ASSERT_EQ(0, peer_madvise(&self->src, at, self->ps, MADV_DONTNEED));
	}
	if (!tables_are_pages(self))
		SKIP(return, NO_PAGES);
	if (prlimit(self->dst.pid, RLIMIT_MEMLOCK, &unlimited, NULL))
		SKIP(return, "RLIMIT_MEMLOCK: %s", strerror(errno));
	ASSERT_EQ(0, peer_call(&self->dst, op_lock_future, NULL, 0));
	count(self, "pagetables", self->before);
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, SRC, sparse_len(), DPUT_HOLES));
	expect_charged(_metadata, self, "pagetables", TABLES);
}

/* A page that is pinned is copied at once. */
TEST_F(memcg, pinned_pages)
{
	unsigned long arg[] = { SRC, MANY * self->ps };

	ASSERT_EQ(0, peer_map(&self->src, SRC, arg[1], RW));
	ASSERT_EQ(0, peer_stamp(&self->src, SRC, MANY, 0, 1, 1));
	if (peer_call(&self->src, op_pin, arg, sizeof(arg)) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	count(self, "anon", self->before);
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, DST, arg[1], 0));
	expect_charged(_metadata, self, "anon", MANY);
	EXPECT_EQ(-1, peer_check(&self->dst, DST, MANY, 0, 1, 1));
}

/* How many pages more each group has than before, but for the lag */
static void expect_more(struct __test_metadata *_metadata, FIXTURE_DATA(memcg) *self,
			const long *caller_source_dest)
{
	long now[GROUPS];
	int i;

	count(self, "anon", now);
	for (i = 0; i < GROUPS; i++) {
		EXPECT_GT(self->before[i] + caller_source_dest[i] + LAG, now[i])
			TH_LOG("group %d", i);
		EXPECT_LT(self->before[i] + caller_source_dest[i] - LAG, now[i])
			TH_LOG("group %d", i);
	}
}

/* Shared pages stay charged to whom they were charged; who writes pays for the copy. */
TEST_F(memcg, shared_pages)
{
	const size_t len = MANY * self->ps;

	ASSERT_EQ(0, peer_map(&self->src, SRC, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->src, SRC, MANY, 0, 1, 1));
	count(self, "anon", self->before);
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, DST, len, 0));
	expect_more(_metadata, self, (long []){ 0, 0, 0 });
	ASSERT_EQ(0, peer_stamp(&self->dst, DST, MANY, 0, 1, 2));
	expect_more(_metadata, self, (long []){ 0, 0, MANY });
	/* The copies are given back for those that are shared again. */
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, DST, len, 0));
	expect_more(_metadata, self, (long []){ 0, 0, 0 });
	ASSERT_EQ(0, peer_stamp(&self->src, SRC, MANY, 0, 1, 3));
	expect_more(_metadata, self, (long []){ 0, MANY, 0 });
	EXPECT_EQ(-1, peer_check(&self->dst, DST, MANY, 0, 1, 1));
	/* The source has pages of its own; those that were its first belong to its group. */
	ASSERT_EQ(0, peer_munmap(&self->dst, DST, len));
	expect_more(_metadata, self, (long []){ 0, 0, 0 });
}

/* Pages that are mapped for the ragged ends */
TEST_F(memcg, partial_pages)
{
	long i;

	ASSERT_EQ(0, peer_map(&self->src, SRC, self->ps, RW));
	ASSERT_EQ(0, peer_fill(&self->src, SRC, self->ps, 1));
	count(self, "anon", self->before);
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, peer_dput(&self->src, SRC + 8, &self->dst,
				       DST + i * self->ps + 8, 16, 0));
	expect_charged(_metadata, self, "anon", MANY);
}

/* What describes mappings: VMAs and links to the reverse map */
static long op_comb(void *arg)
{
	unsigned long *a = arg, ps = page_size(), i;

	for (i = 1; i < a[1]; i += 2)
		if (mprotect((void *)a[0] + i * ps, ps, PROT_READ))
			return -1;
	return 0;
}

/*
 * Bytes of slab objects. There are too few of them to show through the lag where
 * pages are large, and so this waits until all is added up.
 */
static void count_slab(FIXTURE_DATA(memcg) *self, long *bytes)
{
	int i;

	sleep(3);
	for (i = 0; i < GROUPS; i++)
		bytes[i] = cgroup_number(self->group[i], "memory.stat", "slab");
}

/* Long: some debug options have all mappings looked at for each that changes. */
TEST_F_TIMEOUT(memcg, mappings, 1200)
{
	unsigned long arg[] = { SRC, 8 * MANY };
	/* More than 200 for each, of which a CPU may still have some pages' worth */
	const long bytes = arg[1] * 200, stock = 4 * self->ps;
	long now[GROUPS];

	ASSERT_EQ(0, peer_map(&self->src, SRC, arg[1] * self->ps, RW));
	ASSERT_EQ(0, peer_stamp(&self->src, SRC, 1, 0, 1, 1));
	ASSERT_EQ(0, peer_call(&self->src, op_comb, arg, sizeof(arg)));
	count_slab(self, self->before);
	ASSERT_EQ(0, peer_dput(&self->src, SRC, &self->dst, DST, arg[1] * self->ps, 0));
	count_slab(self, now);
	EXPECT_GT(self->before[CALLER] + bytes / 2, now[CALLER]);
	EXPECT_GT(self->before[SOURCE] + bytes / 2, now[SOURCE]);
	EXPECT_LT(self->before[DEST] + bytes - stock, now[DEST]);
}

/* Whatever happens to the caller's group, a copy between others does not. */
TEST_F(memcg, caller_at_limit)
{
	/* Behind the sparse range: that is DST with pages of 4 KiB. */
	unsigned long at = SRC + sparse_len() + (1UL << 21);
	unsigned long arg[] = { at, MANY * self->ps };
	char val[32];

	map_sparse(_metadata, &self->src);
	ASSERT_EQ(0, peer_map(&self->src, at, arg[1], RW));
	ASSERT_EQ(0, peer_stamp(&self->src, at, MANY, 0, 1, 1));
	if (peer_call(&self->src, op_pin, arg, sizeof(arg)) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	/* As much as the counters may lag behind is left for the call itself. */
	snprintf(val, sizeof(val), "%ld", LAG * (long)self->ps +
		 cgroup_number(self->group[CALLER], "memory.current", NULL));
	ASSERT_EQ(0, cgroup_write(self->group[CALLER], "memory.max", val));
	EXPECT_EQ(0, peer_dput(&self->src, SRC, &self->dst, SRC, sparse_len(), 0));
	EXPECT_EQ(0, peer_dput(&self->src, at, &self->dst, at, arg[1], 0));
	EXPECT_EQ(0, cgroup_number(self->group[CALLER], "memory.events", "max"));
	EXPECT_EQ(0, cgroup_number(self->group[CALLER], "memory.events", "oom_kill"));
	ASSERT_EQ(0, cgroup_write(self->group[CALLER], "memory.max", "max"));
}

/*
 * The destination's group may not grow: an error, or death of somebody in it,
 * but nobody else's.
 */
static void copy_at_limit(struct __test_metadata *_metadata, FIXTURE_DATA(memcg) *self,
			  unsigned long src, unsigned long dst, size_t len)
{
	struct peer other;
	char val[32];
	long kills;
	int ret, err;

	/* Nor make room by swapping. Without that file, there is no swap space. */
	if (cgroup_write(self->group[DEST], "memory.swap.max", "0")) {
		ASSERT_GE(0, meminfo_kb("SwapTotal"));
	}
	snprintf(val, sizeof(val), "%ld", LAG * (long)self->ps +
		 cgroup_number(self->group[DEST], "memory.current", NULL));
	ASSERT_EQ(0, cgroup_write(self->group[DEST], "memory.max", val));
	ret = peer_dput(&self->src, src, &self->dst, dst, len, 0);
	err = errno;
	ASSERT_EQ(-1, ret);
	if (err != ESRCH) {
		EXPECT_EQ(ENOMEM, err);
	}
	EXPECT_LT(0, cgroup_number(self->group[DEST], "memory.events", "max"));
	kills = cgroup_number(self->group[DEST], "memory.events", "oom_kill");
	TH_LOG("%s, %ld killed in the destination's group", strerror(err), kills);
	if (!kills) {
		EXPECT_EQ(0, proc_mapped(self->dst.pid, dst, len));
	}
	EXPECT_EQ(0, cgroup_number(self->group[CALLER], "memory.events", "max"));
	EXPECT_EQ(0, cgroup_number(self->group[CALLER], "memory.events", "oom_kill"));
	EXPECT_EQ(0, cgroup_number(self->group[SOURCE], "memory.events", "max"));
	EXPECT_EQ(0, cgroup_number(self->group[SOURCE], "memory.events", "oom_kill"));
	/* Elsewhere, it works. */
	ASSERT_EQ(0, peer_start(&other));
	EXPECT_EQ(0, peer_dput(&self->src, src, &other, dst, len, 0));
	peer_kill(&other);
}

TEST_F(memcg, destination_at_limit)
{
	count(self, "pagetables", self->before);
	map_sparse(_metadata, &self->src);
	if (!tables_are_pages(self))
		SKIP(return, NO_PAGES);
	copy_at_limit(_metadata, self, SRC, SRC, sparse_len());
	EXPECT_EQ(-1, peer_check(&self->src, SRC, sparse_len() / self->ps, 0,
				 sparse_len() / MANY / self->ps, 1));
}

TEST_F(memcg, destination_at_limit_pinned)
{
	unsigned long arg[] = { SRC, MANY * self->ps };

	ASSERT_EQ(0, peer_map(&self->src, SRC, arg[1], RW));
	ASSERT_EQ(0, peer_stamp(&self->src, SRC, MANY, 0, 1, 1));
	if (peer_call(&self->src, op_pin, arg, sizeof(arg)) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	copy_at_limit(_metadata, self, SRC, DST, arg[1]);
	EXPECT_EQ(-1, peer_check(&self->src, SRC, MANY, 0, 1, 1));
}

/* What a process sleeps in; 0 if nothing is to be seen */
static ssize_t read_stack(pid_t pid, char *stack, size_t size)
{
	char path[64];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	fd = open(path, O_RDONLY);
	if (fd >= 0) {
		n = read(fd, stack, size - 1);
		close(fd);
		if (!n)
			errno = ENODATA;
	}
	stack[n > 0 ? n : 0] = 0;
	return n > 0 ? n : 0;
}

enum { NOT_THROTTLED = 10, THROTTLED_LATER, THROTTLED_INSIDE };

/* Is @pid put to sleep for having exceeded memory.high, and is that in the call? */
static int watch_for_throttling(pid_t pid, volatile bool *done)
{
	int inside = 0, ret = NOT_THROTTLED;
	char stack[4096];

	while (!*done) {
		read_stack(pid, stack, sizeof(stack));
		if (!strstr(stack, "handle_over_high"))
			continue;
		if (!strstr(stack, "sys_dput")) {
			ret = THROTTLED_LATER;
			inside = 0;
		} else if (++inside > 1) {
			/* A stack that is being used can be anything, once. */
			return THROTTLED_INSIDE;
		}
	}
	return ret;
}

/*
 * Who takes more than its group's memory.high is put to sleep, for two seconds. Not
 * while it has locks that keep the source, of another group, from doing anything.
 */
TEST_F(memcg, high)
{
	pid_t me = getpid(), watcher;
	volatile bool *done;
	char stack[4096];
	int ret, status;

	if (!read_stack(self->src.pid, stack, sizeof(stack)))
		SKIP(return, "/proc/PID/stack: %s", strerror(errno));
	count(self, "pagetables", self->before);
	map_sparse(_metadata, &self->src);
	if (!tables_are_pages(self))
		SKIP(return, NO_PAGES);
	done = mmap(NULL, self->ps, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)done);
	watcher = fork();
	ASSERT_LE(0, watcher);
	if (!watcher) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(getppid() == me ? watch_for_throttling(me, done) : 3);
	}
	ASSERT_EQ(0, cgroup_move(self->group[DEST], me));
	if (cgroup_write(self->group[DEST], "memory.swap.max", "0")) {
		ASSERT_GE(0, meminfo_kb("SwapTotal"));
	}
	ASSERT_EQ(0, cgroup_write(self->group[DEST], "memory.high", "0"));
	ret = peer_dput(&self->src, SRC, &self->me, SRC, sparse_len(), 0);
	*done = true;
	EXPECT_EQ(0, cgroup_write(self->group[DEST], "memory.high", "max"));
	EXPECT_EQ(0, ret);
	ASSERT_EQ(watcher, waitpid(watcher, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	if (ret == 0 && WEXITSTATUS(status) == NOT_THROTTLED)
		SKIP(return, "memory.high throttles nobody here, or no stack tells");
	EXPECT_EQ(THROTTLED_LATER, WEXITSTATUS(status));
}

/*
 * vm.overcommit_memory=2: private writable memory is accounted. Nothing of this
 * is ever touched. The numbers are large, for the kernel compares with a
 * sum that is some megabytes off.
 */
#define LARGE		(256UL << 20)

FIXTURE(commit)
{
	struct peer me, child;
};

static long committed_kb(void)
{
	return meminfo_kb("Committed_AS");
}

/* So much more than now can be accounted from here on. */
static int commit_limit(unsigned long bytes)
{
	char val[32];

	/* Whichever it is, it changes with the other one, and is to be restored. */
	if (setting_read(commit_by, val, sizeof(val)) || setting_write(commit_by, val))
		return -1;
	/* Of which root need not leave anything; all swap space is added to it. */
	snprintf(val, sizeof(val), "%lu",
		 committed_kb() + (bytes >> 10) - meminfo_kb("SwapTotal"));
	return setting_write(COMMIT_KBYTES, val) || setting_write(OVERCOMMIT, "2");
}

FIXTURE_SETUP(commit)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it limits the whole system: DPUT_DISPOSABLE is not set");
	if (meminfo_kb("SwapTotal") >= committed_kb() + (long)(LARGE >> 10))
		SKIP(return, "there is more swap space than memory accounted for");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	ASSERT_EQ(0, peer_map(&self->me, SRC, LARGE, RW));
}

FIXTURE_TEARDOWN(commit)
{
	setting_restore(OVERCOMMIT);
	setting_restore(commit_by);
	peer_kill(&self->child);
}

/* Other processes come and go. */
#define EXPECT_COMMITTED(_kb) do {						\
	long _want = (_kb), _now = committed_kb();				\
										\
	EXPECT_GT(_want + (long)(LARGE >> 14), _now);				\
	EXPECT_LT(_want - (long)(LARGE >> 14), _now);				\
} while (0)

TEST_F(commit, enomem)
{
	struct snapshot me, child;
	long kb = committed_kb();
	int i;

	ASSERT_EQ(0, commit_limit(LARGE / 2));
	ASSERT_EQ(0, snapshot_take(&child, &self->child));
	me.maps = proc_maps(getpid(), ARENA, ARENA_END);
	for (i = 0; i < 32; i++) {
		ASSERT_EQ(-1, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST, LARGE, 0));
		ASSERT_EQ(ENOMEM, errno);
		ASSERT_EQ(-1, sys_dput(PIDFD_SELF, SRC, PIDFD_SELF, DST, LARGE, 0));
		ASSERT_EQ(ENOMEM, errno);
	}
	EXPECT_COMMITTED(kb);
	EXPECT_TRUE(snapshot_same(&child, &self->child));
	EXPECT_STREQ(me.maps, proc_maps(getpid(), ARENA, ARENA_END));
	/* It is what can be written that counts. */
	ASSERT_EQ(0, peer_mprotect(&self->me, SRC, LARGE, PROT_READ));
	ASSERT_EQ(0, peer_munmap(&self->me, SRC, LARGE));
	ASSERT_EQ(0, peer_map(&self->me, SRC, LARGE, PROT_READ));
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST, LARGE, 0));
	EXPECT_COMMITTED(kb - (long)(LARGE >> 10));
}

/* What replaces accounted memory needs the difference only. */
TEST_F(commit, replace)
{
	long kb;
	int i;

	ASSERT_EQ(0, peer_map(&self->child, DST, LARGE, RW));
	kb = committed_kb();
	ASSERT_EQ(0, commit_limit(LARGE / 2));
	for (i = 0; i < 32; i++)
		ASSERT_EQ(0, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST, LARGE, 0));
	EXPECT_COMMITTED(kb);
	/* In part: a quarter more, and another one that is too much */
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST + LARGE / 4, LARGE, 0));
	EXPECT_COMMITTED(kb + (long)(LARGE >> 12));
	EXPECT_EQ(-1, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST + LARGE * 3 / 4, LARGE, 0));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_COMMITTED(kb + (long)(LARGE >> 12));
	/* Less than before: what is not accounted replaces what is. */
	ASSERT_EQ(0, peer_munmap(&self->me, SRC, LARGE));
	ASSERT_EQ(0, peer_map(&self->me, SRC, LARGE, PROT_READ));
	EXPECT_EQ(0, sys_dput(PIDFD_SELF, SRC, self->child.pidfd, DST, LARGE, 0));
	EXPECT_COMMITTED(kb - (long)(LARGE >> 10) * 7 / 4);
	ASSERT_EQ(0, peer_munmap(&self->child, DST, LARGE * 5 / 4));
	EXPECT_COMMITTED(kb - (long)(LARGE >> 10) * 2);
}

/*
 * vm.max_map_count, to the number: whatever it is, the call works and stays
 * within it, or changes nothing.
 */
FIXTURE(map_count)
{
	struct peer me, child;
	unsigned long ps;
};

FIXTURE_VARIANT(map_count)
{
	int old;		/* mappings at the destination: how many pages each? */
	int pages, first;	/* copied, and from which page on */
	int more;		/* mappings that this makes it have more */
	bool within;
};

/* 12 pages are there. In the middle of one mapping, which is cut twice */
FIXTURE_VARIANT_ADD(map_count, middle) { .old = 12, .first = 3, .pages = 4, .more = 2 };
FIXTURE_VARIANT_ADD(map_count, start) { .old = 12, .pages = 4, .more = 1 };
FIXTURE_VARIANT_ADD(map_count, end) { .old = 12, .first = 8, .pages = 4, .more = 1 };
FIXTURE_VARIANT_ADD(map_count, fewer) { .old = 1, .first = 1, .pages = 8, .more = -7 };
FIXTURE_VARIANT_ADD(map_count, same) { .old = 4, .first = 4, .pages = 4 };
FIXTURE_VARIANT_ADD(map_count, hole) { .pages = 4, .more = 1 };
FIXTURE_VARIANT_ADD(map_count, hole_within) { .pages = 4, .more = 1, .within = true };
FIXTURE_VARIANT_ADD(map_count, middle_within)
{
	.old = 12, .first = 3, .pages = 4, .more = 2, .within = true,
};

FIXTURE_SETUP(map_count)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it limits the whole system: DPUT_DISPOSABLE is not set");
	self->ps = page_size();
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
}

FIXTURE_TEARDOWN(map_count)
{
	setting_restore(MAX_MAP_COUNT);
	peer_kill(&self->child);
}

TEST_F(map_count, boundary)
{
	struct peer *dst = variant->within ? &self->me : &self->child;
	struct peer *src = &self->me;
	unsigned long at = DST + variant->first * self->ps;
	size_t len = variant->pages * self->ps;
	int i, now, slack, good = 0, ret, err;
	struct snapshot before;
	char val[32];

	/* A mapping that the copy cannot be joined with */
	ASSERT_EQ(0, peer_map(src, SRC, len, RW));
	ASSERT_EQ(0, peer_fill(src, SRC, len, 1));
	for (slack = -2; slack <= 3; slack++) {
		peer_munmap(dst, DST, 12 * self->ps);
		for (i = 0; variant->old && i < 12; i += variant->old) {
			ASSERT_EQ(0, peer_map(dst, DST + i * self->ps, variant->old * self->ps,
					      i / variant->old % 2 ? RW : PROT_READ));
		}
		now = proc_count_vmas(dst->pid, 0, MAPS_END);
		ASSERT_EQ(0, snapshot_take(&before, dst));
		snprintf(val, sizeof(val), "%d", now + slack);
		ASSERT_EQ(0, setting_write(MAX_MAP_COUNT, val));
		ret = peer_dput(src, SRC, dst, at, len, 0);
		err = errno;
		setting_restore(MAX_MAP_COUNT);
		if (ret) {
			ASSERT_EQ(ENOMEM, err);
			EXPECT_TRUE(snapshot_same(&before, dst));
		} else {
			good++;
			EXPECT_EQ(-1, peer_verify(dst, at, len, 1));
			EXPECT_EQ(now + variant->more, proc_count_vmas(dst->pid, 0, MAPS_END));
			if (variant->more > 0) {
				EXPECT_LE(variant->more, slack);
			}
		}
		/* Where there is room enough, there is no excuse. */
		if (variant->more <= slack) {
			EXPECT_EQ(0, ret)
				TH_LOG("%d mappings, a limit of %s: %s", now, val, strerror(err));
		}
	}
	EXPECT_LT(0, good);

	/* One page once more into the copy takes no mapping at all. */
	snprintf(val, sizeof(val), "%d", proc_count_vmas(dst->pid, 0, MAPS_END));
	ASSERT_EQ(0, peer_fill(src, SRC + self->ps, self->ps, 2));
	ASSERT_EQ(0, setting_write(MAX_MAP_COUNT, val));
	ret = peer_dput(src, SRC + self->ps, dst, at + self->ps, self->ps, 0);
	err = errno;
	setting_restore(MAX_MAP_COUNT);
	EXPECT_EQ(0, ret)
		TH_LOG("once more: %s", strerror(err));
	EXPECT_EQ(-1, peer_verify(dst, at + self->ps, self->ps, 2));
}

/*
 * A limit of 0 with a higher hard one is no limit up to that, as for mmap(): Valgrind
 * sets it to see each brk().
 */
TEST(data_limit_is_zero)
{
	struct rlimit soft = { 0, RLIM_INFINITY }, hard = { 0, 0 };
	const unsigned long ps = page_size();
	struct peer me, dst;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_map(&me, SRC, ps, RW));
	ASSERT_EQ(0, peer_start(&dst));
	ASSERT_EQ(0, prlimit(dst.pid, RLIMIT_DATA, &soft, NULL));
	EXPECT_EQ(0, peer_dput(&me, SRC, &dst, DST, ps, 0));
	ASSERT_EQ(0, prlimit(dst.pid, RLIMIT_DATA, &hard, NULL));
	EXPECT_EQ(-1, peer_dput(&me, SRC, &dst, DST + ps, ps, 0));
	EXPECT_EQ(ENOMEM, errno);
	peer_kill(&dst);
	munmap((void *)SRC, ps);
}

TEST_HARNESS_MAIN
