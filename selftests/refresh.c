// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) over an older copy of the same memory, which may have changed on
 * either side since. The kernel then replaces only the pages that differ; what
 * comes out must be what copying all of it anew gives.
 */

#include "kselftest_harness.h"
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define SRC	(ARENA + (1UL << 28))
#define DST	(ARENA + (3UL << 28))

/* More than a page table's worth, and into the next one also where it has 1024 entries */
#define SMALL_PAGES	700
#define SMALL_OFFSET	700

enum dir { PUT, GET, WITHIN, BETWEEN, FORKED };
enum kind { SMALL, HUGE, FROM_FILE };

FIXTURE(refresh)
{
	struct peer me, child, other;
	struct peer *src, *dst;
	unsigned long ps, s, d;
	size_t npages, len;
	char *a, *b;		/* room to compare in */
	const char *no_cgroup;	/* why there is none */
};

FIXTURE_VARIANT(refresh)
{
	enum dir dir;
	enum kind kind;
	/* Pages by which the destination is off from where it would line up */
	int shift;
};

#define REFRESH_VARIANT(_dir, _kind, _shift)				\
FIXTURE_VARIANT_ADD(refresh, _dir##_##_kind##_##_shift)			\
{									\
	.dir = _dir, .kind = _kind, .shift = _shift,			\
}

REFRESH_VARIANT(PUT, SMALL, 0);
REFRESH_VARIANT(PUT, SMALL, 5);
REFRESH_VARIANT(GET, SMALL, 5);
REFRESH_VARIANT(WITHIN, SMALL, 0);
REFRESH_VARIANT(WITHIN, SMALL, 5);
REFRESH_VARIANT(BETWEEN, SMALL, 0);
REFRESH_VARIANT(FORKED, SMALL, 0);
REFRESH_VARIANT(PUT, HUGE, 0);
REFRESH_VARIANT(PUT, HUGE, 5);
REFRESH_VARIANT(GET, HUGE, 0);
REFRESH_VARIANT(WITHIN, HUGE, 0);
REFRESH_VARIANT(FORKED, HUGE, 0);
REFRESH_VARIANT(PUT, FROM_FILE, 0);
REFRESH_VARIANT(WITHIN, FROM_FILE, 5);

static void __attribute__((constructor)) prepare(void)
{
	folios_save();
	if (dput_supported())
		swap_prepare();
	cgroup_prepare();
}

struct file_arg {
	unsigned long addr;
	size_t len;
};

/* A private mapping of a memfd with something in it. */
static long map_file(void *arg)
{
	struct file_arg *f = arg;
	int fd = memfd_create("refresh", 0);
	char *p;
	long ret;

	if (fd < 0 || ftruncate(fd, f->len))
		return -1;
	p = mmap(NULL, f->len, RW, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -1;
	pattern(p, f->len, 0, 7);
	munmap(p, f->len);
	p = mmap((void *)f->addr, f->len, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0);
	ret = p == (void *)f->addr ? 0 : -1;
	close(fd);
	return ret;
}

static int again(FIXTURE_DATA(refresh) * self)
{
	return peer_dput(self->src, self->s, self->dst, self->d, self->len, 0);
}

/* Not by process_vm_readv(), which pins pages and so ends their being shared. */
static bool read_all(struct peer *p, unsigned long addr, char *buf, size_t len)
{
	char path[32];
	ssize_t n = 0;
	size_t done;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", p->pid);
	fd = open(path, O_RDONLY);
	for (done = 0; done < len; done += n) {
		n = pread(fd, buf + done, len - done, addr + done);
		if (n <= 0)
			break;
	}
	close(fd);
	return done == len;
}

/* Does the destination hold what the source does? */
static bool same(struct __test_metadata *_metadata, FIXTURE_DATA(refresh) * self)
{
	unsigned long off;

	if (!read_all(self->src, self->s, self->a, self->len) ||
	    !read_all(self->dst, self->d, self->b, self->len)) {
		TH_LOG("not all of it can be read");
		return false;
	}
	for (off = 0; off < self->len; off += self->ps) {
		if (memcmp(self->a + off, self->b + off, self->ps)) {
			TH_LOG("page %lu differs", off / self->ps);
			return false;
		}
	}
	return true;
}

/* Neither side sees what the other one writes from now on. */
static bool isolated(struct __test_metadata *_metadata, FIXTURE_DATA(refresh) * self)
{
	const size_t n = self->npages;

	return !peer_stamp(self->src, self->s, n, 0, 3, 101) &&
	       !peer_stamp(self->dst, self->d, n, 0, 3, 102) &&
	       !peer_stamp(self->dst, self->d, n, 1, 3, 103) &&
	       !peer_stamp(self->src, self->s, n, 1, 3, 104) &&
	       peer_check(self->src, self->s, n, 0, 3, 101) == -1 &&
	       peer_check(self->dst, self->d, n, 0, 3, 102) == -1 &&
	       peer_check(self->dst, self->d, n, 1, 3, 103) == -1 &&
	       peer_check(self->src, self->s, n, 1, 3, 104) == -1;
}

/* What follows each change: once more, and once more with nothing changed. */
#define EXPECT_REFRESHED() do {						\
	ASSERT_EQ(0, again(self)) TH_LOG("%s", strerror(errno));	\
	ASSERT_TRUE(same(_metadata, self));				\
	ASSERT_EQ(0, again(self));					\
	ASSERT_TRUE(same(_metadata, self));				\
	ASSERT_TRUE(isolated(_metadata, self));				\
	ASSERT_EQ(0, again(self));					\
	ASSERT_TRUE(same(_metadata, self));				\
} while (0)

FIXTURE_SETUP(refresh)
{
	struct file_arg file;
	const char *reason;

	if (!dput_supported())
		SKIP(return, "no dput()");
	/* Before there is any memory; it is for the tests that reclaim it. */
	self->no_cgroup = cgroup_enter();
	self->ps = page_size();
	self->npages = SMALL_PAGES;
	self->s = SRC + SMALL_OFFSET * self->ps;
	self->d = DST + SMALL_OFFSET * self->ps;
	if (variant->kind == HUGE) {
		reason = folios_enable(thp_size());
		if (reason)
			SKIP(return, "%s", reason);
		self->npages = 2 * thp_size() / self->ps;
		self->s = SRC;
		self->d = DST;
	}
	self->len = self->npages * self->ps;
	self->d += variant->shift * self->ps;
	self->a = malloc(self->len);
	self->b = malloc(self->len);
	ASSERT_TRUE(self->a && self->b);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	ASSERT_EQ(0, peer_start(&self->other));

	self->src = &self->me;
	self->dst = &self->child;
	if (variant->dir == GET) {
		self->src = &self->child;
		self->dst = &self->me;
	} else if (variant->dir == WITHIN) {
		self->dst = &self->me;
	} else if (variant->dir == BETWEEN) {
		self->src = &self->child;
		self->dst = &self->other;
	}

	if (variant->kind == FROM_FILE) {
		file.addr = self->s;
		file.len = self->len;
		ASSERT_EQ(0, peer_call(self->src, map_file, &file, sizeof(file)));
		ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 2, 1));
	} else if (variant->kind == HUGE) {
		NEED_LARGE(folios_map(self->src, self->s, self->len, thp_size()));
	} else {
		ASSERT_EQ(0, peer_map(self->src, self->s, self->len, RW));
		ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 1));
	}
	if (variant->dir == FORKED) {
		/* What fork() makes is such a copy, too, at the same address. */
		peer_stop(&self->child);
		ASSERT_EQ(0, peer_fork(&self->me, &self->child));
		self->d = self->s;
	} else {
		ASSERT_EQ(0, again(self));
	}
	ASSERT_TRUE(same(_metadata, self));
}

FIXTURE_TEARDOWN(refresh)
{
	peer_stop(&self->child);
	peer_stop(&self->other);
	munmap((void *)ARENA, ARENA_SIZE);
	swap_off();
	free(self->a);
	free(self->b);
}

TEST_F(refresh, unchanged)
{
	EXPECT_REFRESHED();
}

/* Whether an empty page table goes, so that a huge page fits in: CONFIG_PT_RECLAIM */
static bool page_tables_go(void)
{
	size_t size = thp_size(), ps = page_size();
	char *map = mmap(NULL, 2 * size, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *huge = (char *)(((unsigned long)map + size - 1) & ~(size - 1));
	bool go;

	if (map == MAP_FAILED)
		return false;
	madvise(huge, size, MADV_HUGEPAGE);
	*huge = 1;
	/* It gets a page table, which is left empty. */
	mprotect(huge, ps, PROT_READ);
	mprotect(huge, ps, RW);
	madvise(huge, size, MADV_DONTNEED);
	*huge = 1;
	go = is_huge(getpid(), (unsigned long)huge, size);
	munmap(map, 2 * size);
	return go;
}

/* A huge page that was written to on one side is one again afterwards. */
TEST_F(refresh, destination_wrote)
{
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 2, 7, 2));
	if (variant->kind == HUGE && !variant->shift) {
		ASSERT_TRUE(is_huge(self->src->pid, self->s, self->len));
		ASSERT_EQ(0, again(self));
		ASSERT_TRUE(same(_metadata, self));
		EXPECT_EQ(page_tables_go(), is_huge(self->src->pid, self->s, self->len));
		EXPECT_EQ(page_tables_go(), is_huge(self->dst->pid, self->d, self->len));
	}
	EXPECT_REFRESHED();
}

TEST_F(refresh, source_wrote)
{
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 2, 7, 2));
	EXPECT_REFRESHED();
}

TEST_F(refresh, both_wrote)
{
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 2, 7, 2));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 2, 14, 3));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 4, 7, 4));
	EXPECT_REFRESHED();
}

/* The only owner of a page writes to it in place, and shares it again. */
TEST_F(refresh, written_in_place)
{
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 2));
	ASSERT_EQ(0, again(self));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 0, 1, 3));
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 5, 4));
	EXPECT_REFRESHED();
}

TEST_F(refresh, source_dropped)
{
	ASSERT_EQ(0, peer_madvise(self->src, self->s + 5 * self->ps, 9 * self->ps,
				  MADV_DONTNEED));
	EXPECT_REFRESHED();
}

TEST_F(refresh, destination_dropped)
{
	ASSERT_EQ(0, peer_madvise(self->dst, self->d + 5 * self->ps, 9 * self->ps,
				  MADV_DONTNEED));
	EXPECT_REFRESHED();
}

/* Everything that is mapped there now goes, whatever it is. */
TEST_F(refresh, destination_remapped)
{
	ASSERT_EQ(0, peer_munmap(self->dst, self->d + 3 * self->ps, self->ps));
	ASSERT_EQ(0, peer_mprotect(self->dst, self->d + 6 * self->ps, self->ps,
				   PROT_READ));
	ASSERT_EQ(0, peer_munmap(self->dst, self->d + 8 * self->ps, self->ps));
	ASSERT_EQ(0, peer_map(self->dst, self->d + 8 * self->ps, self->ps, RW));
	ASSERT_EQ(0, peer_fill(self->dst, self->d + 8 * self->ps, self->ps, 9));
	EXPECT_REFRESHED();
}

/* A page of another part of the source in a page's place. */
TEST_F(refresh, source_moved)
{
	unsigned long elsewhere = SRC - (1UL << 27);

	ASSERT_EQ(0, peer_mremap(self->src, self->s + 10 * self->ps, 4 * self->ps,
				 elsewhere));
	ASSERT_EQ(0, peer_mremap(self->src, self->s + 20 * self->ps, 4 * self->ps,
				 self->s + 10 * self->ps));
	ASSERT_EQ(0, peer_mremap(self->src, elsewhere, 4 * self->ps,
				 self->s + 20 * self->ps));
	EXPECT_REFRESHED();
}

TEST_F(refresh, guards)
{
	ASSERT_EQ(0, peer_madvise(self->dst, self->d + 4 * self->ps, 3 * self->ps,
				  MADV_GUARD_INSTALL));
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	ASSERT_EQ(0, peer_madvise(self->src, self->s + 8 * self->ps, 3 * self->ps,
				  MADV_GUARD_INSTALL));
	ASSERT_EQ(0, again(self));
	EXPECT_TRUE(peer_readable(self->dst, self->d + 7 * self->ps));
	EXPECT_FALSE(peer_readable(self->dst, self->d + 8 * self->ps));
	EXPECT_FALSE(peer_readable(self->dst, self->d + 10 * self->ps));
	EXPECT_TRUE(peer_readable(self->dst, self->d + 11 * self->ps));
	ASSERT_EQ(0, peer_madvise(self->src, self->s + 8 * self->ps, 3 * self->ps,
				  MADV_GUARD_REMOVE));
	EXPECT_REFRESHED();
}

TEST_F(refresh, swapped_out)
{
	const char *reason = swap_missing() ?: self->no_cgroup;
	int i;

	if (reason)
		SKIP(return, "%s", reason);
	ASSERT_EQ(0, swap_on())
		TH_LOG("swapon: %s", strerror(errno));
	/* These are the source's alone, and go by themselves. */
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 2, 7, 2));
	ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_PAGEOUT));
	ASSERT_EQ(0, peer_madvise(self->dst, self->d, self->len, MADV_PAGEOUT));
	EXPECT_LT(0, pages_swapped(self->src, self->s, self->npages));
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	/* And these by both mappings. */
	for (i = 0; i < 1000 && !pages_swapped(self->dst, self->d, self->npages); i++)
		cgroup_reclaim("16M");
	EXPECT_LT(0, pages_swapped(self->dst, self->d, self->npages));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 3, 7, 3));
	EXPECT_REFRESHED();
}

static long clear_refs(pid_t pid)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	return setting_write(path, "1");
}

/*
 * Entries that are right are not touched, and so keep what they say about who
 * has read the page; new ones say that nobody has.
 */
TEST_F(refresh, kept)
{
	unsigned long end = self->d + self->len;
	size_t i;
	long kb;

	if (variant->kind == FROM_FILE)
		SKIP(return, "pages of files have that for themselves");
	if (proc_smaps_kb(self->dst->pid, self->d, end, "Referenced") < 0)
		SKIP(return, "no Referenced in smaps");
	/* With fork(), the source's entries can be clean or writable so far. */
	ASSERT_EQ(0, again(self));
	ASSERT_EQ(0, clear_refs(self->src->pid));
	ASSERT_EQ(0, clear_refs(self->dst->pid));
	ASSERT_EQ(0, proc_smaps_kb(self->dst->pid, self->d, end, "Referenced"));
	for (i = 0; i < self->npages; i++)
		ASSERT_TRUE(peer_readable(self->dst, self->d + i * self->ps));
	kb = proc_smaps_kb(self->dst->pid, self->d, end, "Referenced");
	EXPECT_EQ(self->len / 1024, kb);
	ASSERT_EQ(0, again(self));
	EXPECT_EQ(kb, proc_smaps_kb(self->dst->pid, self->d, end, "Referenced"));
	if (variant->kind == HUGE && !variant->shift)
		return;
	/* Two pages that differ, one by each side */
	ASSERT_EQ(0, peer_stamp(self->src, self->s, 10, 9, 1, 2));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, 12, 11, 1, 3));
	ASSERT_EQ(0, again(self));
	kb -= proc_smaps_kb(self->dst->pid, self->d, end, "Referenced");
	/* A new page itself can be marked, whoever has mapped it. */
	EXPECT_LE(self->ps / 1024, kb);
	EXPECT_GE(2 * self->ps / 1024, kb);
	ASSERT_TRUE(same(_metadata, self));
}

/* How many of the pages are soft-dirty; some may never have been touched. */
static size_t soft_dirty(struct peer *p, unsigned long addr, size_t npages)
{
	size_t i, n = 0;

	for (i = 0; i < npages; i++)
		n += !!(proc_pagemap(p->pid, addr + i * page_size()) & PM_SOFT_DIRTY);
	return n;
}

static int clear_soft_dirty(pid_t pid)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	return setting_write(path, "4");
}

/* Who tracks the destination sees that all of it may have changed, as with a new copy. */
TEST_F(refresh, soft_dirty)
{
	const size_t n = self->npages;
	const size_t one[] = { n / 2, 7 };	/* the second one was never touched */
	int i;

	if (!soft_dirty_supported())
		SKIP(return, "soft-dirty tracking is not supported");
	if (variant->kind != HUGE)
		ASSERT_EQ(0, peer_madvise(self->src, self->s + 5 * self->ps, 9 * self->ps,
					  MADV_DONTNEED));
	ASSERT_EQ(0, again(self));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, clear_soft_dirty(self->src->pid));
		ASSERT_EQ(0, clear_soft_dirty(self->dst->pid));
		ASSERT_EQ(0, soft_dirty(self->src, self->s, n));
		ASSERT_EQ(0, soft_dirty(self->dst, self->d, n));
		if (i)
			ASSERT_EQ(0, peer_stamp(self->src, self->s, n, n - 1, 1, 2));
		ASSERT_EQ(0, again(self));
		EXPECT_EQ(n, soft_dirty(self->dst, self->d, n));
		EXPECT_EQ(i, soft_dirty(self->src, self->s, n) > 0);
		ASSERT_TRUE(same(_metadata, self));
	}
	/* In the middle of the copy, which may stay clean around it */
	for (i = 0; i < 2; i++) {
		const unsigned long off = one[i] * self->ps;

		ASSERT_EQ(0, clear_soft_dirty(self->dst->pid));
		ASSERT_EQ(0, soft_dirty(self->dst, self->d, n));
		ASSERT_EQ(0, peer_dput(self->src, self->s + off, self->dst, self->d + off,
				       self->ps, 0));
		EXPECT_EQ(1, soft_dirty(self->dst, self->d + off, 1));
		ASSERT_TRUE(same(_metadata, self));
	}
	EXPECT_REFRESHED();
}

/*
 * Pages that the source gives up belong to the copy as well, and must not be
 * taken from it; also where it is fork() that made the copy.
 */
TEST_F(refresh, lazily_freed)
{
	const char *reason = self->no_cgroup;

	if (reason)
		SKIP(return, "%s", reason);
	if (variant->kind == FROM_FILE)
		SKIP(return, "MADV_FREE is for anonymous memory");
	ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_FREE));
	ASSERT_EQ(0, again(self));
	/* If the source lost pages already, they are lost. */
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 5));
	ASSERT_EQ(0, again(self));
	ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_FREE));
	ASSERT_EQ(0, again(self));
	reason = cgroup_reclaim_given_up();
	ASSERT_EQ(-1, peer_check(self->dst, self->d, self->npages, 0, 1, 5));
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/* fork() copies what was given up as it is, to be dropped; dput() for good. */
TEST_F(refresh, forked_when_lazily_freed)
{
	const char *reason = self->no_cgroup;
	struct peer child;

	if (reason)
		SKIP(return, "%s", reason);
	if (variant->kind == FROM_FILE)
		SKIP(return, "MADV_FREE is for anonymous memory");
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 5));
	ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_FREE));
	ASSERT_EQ(0, peer_fork(self->src, &child));
	ASSERT_EQ(0, peer_dput(self->src, self->s, &child, self->s, self->len, 0));
	reason = cgroup_reclaim_given_up();
	EXPECT_EQ(-1, peer_check(&child, self->s, self->npages, 0, 1, 5));
	if (self->src == &self->me)
		peer_stop(&child);
	else
		peer_stop_child(self->src, &child);
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/*
 * To and fro, while the pages move between the nodes: of two mappings, it is
 * sometimes the destination's that migration comes to first.
 */
TEST_F(refresh, migrated)
{
	struct peer *peers[] = { self->src, self->dst };
	unsigned long addrs[] = { self->s, self->d };
	long start = vmstat("pgmigrate_success");
	int round, way, nodes[2];
	pid_t pid[2];

	if (geteuid())
		SKIP(return, "needs root");
	if (memory_nodes(nodes) < 2)
		SKIP(return, "needs two NUMA nodes (numa=fake=2 is as good)");
	for (way = 0; way < 2; way++) {
		pid[way] = start_migrating(peers[way]->pid, addrs[way], self->npages);
		ASSERT_LT(0, pid[way]);
	}
	for (round = 0; round < 30; round++) {
		way = round & 1;
		ASSERT_EQ(0, peer_dput(peers[way], addrs[way], peers[!way], addrs[!way],
				       self->len, 0));
		ASSERT_TRUE(same(_metadata, self));
		/* So that the next one has something to do, and none is lost */
		ASSERT_EQ(0, peer_stamp(peers[!way], addrs[!way], self->npages, round % 7, 7,
					round & 0x7f));
	}
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	EXPECT_LT(start, vmstat("pgmigrate_success"));
	for (way = 0; way < 2; way++) {
		kill(pid[way], SIGKILL);
		waitpid(pid[way], NULL, 0);
	}
}

/* A pinned page stays the source's. */
TEST_F(refresh, pinned)
{
	unsigned long pfn, page = self->s + 6 * self->ps;
	int ring;

	if (self->src != &self->me)
		SKIP(return, "it is the test that pins");
	if (!proc_pfn(self->src->pid, page))
		SKIP(return, "page frame numbers are hidden: needs root");
	ring = pin_memory(page, 4 * self->ps);
	if (ring < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 2));
	pfn = proc_pfn(self->src->pid, page);
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	EXPECT_NE(pfn, proc_pfn(self->dst->pid, self->d + 6 * self->ps));
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 6, 1, 3));
	EXPECT_EQ(pfn, proc_pfn(self->src->pid, page));
	EXPECT_REFRESHED();
	EXPECT_EQ(pfn, proc_pfn(self->src->pid, page));
	close(ring);
}

/* One page at a time, with the others of the copy left alone. */
TEST_F(refresh, page_by_page)
{
	unsigned long off;
	size_t i;

	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 0, 1, 2));
	for (i = 0; i < self->npages; i += 50) {
		off = i * self->ps;
		ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, i,
					self->npages, 3));
		ASSERT_EQ(0, peer_dput(self->src, self->s + off, self->dst,
				       self->d + off, self->ps, 0));
		ASSERT_EQ(0, peer_dput(self->src, self->s + off, self->dst,
				       self->d + off, self->ps, 0));
		ASSERT_EQ(-1, peer_check(self->dst, self->d, self->npages, i,
					 self->npages, 3));
		/* The ones next to it. */
		ASSERT_EQ(-1, !i ? -1 : peer_check(self->dst, self->d, i, i - 1, 1, 2));
		ASSERT_EQ(-1, peer_check(self->dst, self->d, i + 50 < self->npages ?
					 i + 50 : self->npages, i + 1, 1, 2));
	}
	ASSERT_TRUE(isolated(_metadata, self));
	EXPECT_REFRESHED();
}

/* With ends that are copied as bytes, inside the older copy. */
TEST_F(refresh, ragged)
{
	char want[3] = "abc", got[3];

	ASSERT_EQ(0, peer_write(self->dst, self->d, want, 3));
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 1, 9, 2));
	ASSERT_EQ(0, peer_stamp(self->dst, self->d, self->npages, 2, 9, 3));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, peer_dput(self->src, self->s + 3, self->dst, self->d + 3,
				       self->len - 6, 0));
		ASSERT_EQ(0, peer_read(self->dst, self->d, got, 3));
		ASSERT_EQ(0, memcmp(want, got, 3));
	}
	ASSERT_EQ(0, peer_read(self->src, self->s, got, 3));
	ASSERT_EQ(0, peer_write(self->dst, self->d, got, 3));
	ASSERT_TRUE(same(_metadata, self));
	EXPECT_REFRESHED();
}

/*
 * As many pages on both sides, and yet it is no older copy: there is something in
 * place of a hole, and nothing where the range ends.
 */
TEST_F(refresh, no_older_copy)
{
	const size_t n = self->npages / 2, hole = 5 * self->ps;
	char want[7], got[7];

	peer_munmap(self->src, self->s + hole, self->ps);
	peer_munmap(self->dst, self->d, self->len);
	ASSERT_EQ(0, peer_dput(self->src, self->s, self->dst, self->d, n * self->ps,
			       DPUT_HOLES));
	ASSERT_EQ(0, proc_mapped(self->dst->pid, self->d + hole, self->ps));
	ASSERT_EQ(0, peer_map(self->dst, self->d + hole, self->ps, PROT_READ));
	ASSERT_EQ(0, peer_dput(self->src, self->s, self->dst, self->d, n * self->ps + 7,
			       DPUT_HOLES));
	EXPECT_EQ(0, proc_mapped(self->dst->pid, self->d + hole, self->ps));
	ASSERT_EQ(0, peer_read(self->src, self->s + n * self->ps, want, 7));
	EXPECT_EQ(0, peer_read(self->dst, self->d + n * self->ps, got, 7));
	EXPECT_EQ(0, memcmp(want, got, 7));
}

static long op_name(void *arg)
{
	unsigned long *a = arg;

	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, a[0], a[1], "dput-renamed");
}

/* What is not about pages comes with a copy, too, over an older one as well. */
TEST_F(refresh, named)
{
	unsigned long arg[] = { self->s, self->len };
	char *maps;

	if (variant->kind == FROM_FILE)
		SKIP(return, "names are for anonymous memory");
	if (peer_call(self->src, op_name, arg, sizeof(arg)))
		SKIP(return, "no names of anonymous memory: %s", strerror(errno));
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	maps = proc_maps(self->dst->pid, self->d, self->d + self->len);
	ASSERT_NE(NULL, maps);
	EXPECT_NE(NULL, strstr(maps, "[anon:dput-renamed]"));
	free(maps);
}

TEST_F(refresh, fork_of_copy)
{
	struct peer grandchild;

	ASSERT_EQ(0, peer_fork(self->dst, &grandchild));
	ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 2, 7, 2));
	ASSERT_EQ(0, again(self));
	ASSERT_TRUE(same(_metadata, self));
	ASSERT_EQ(-1, variant->kind == FROM_FILE ? -1 :
		  peer_check(&grandchild, self->d, self->npages, 2, 7, 1));
	if (self->dst == &self->me)
		peer_stop(&grandchild);
	else
		peer_stop_child(self->dst, &grandchild);
	EXPECT_REFRESHED();
}

/*
 * Source and destination go from one page table to the next one at different
 * pages; what is mapped around the source is not to be copied. Page tables have
 * up to 1024 entries of 4 KiB, where PMDs are folded.
 */
TEST(page_tables)
{
	const size_t ps = page_size(), n = 1024, around = n / 2;
	const unsigned long src = ARENA + (1UL << 28), dst = ARENA + (3UL << 28);
	const unsigned long from = src + around * ps;
	struct peer me, child, *to[] = { &me, &child };
	uint64_t want, is;
	size_t i;
	int k;

	if (!dput_supported())
		SKIP(return, "no dput()");
	peer_self(&me);
	ASSERT_EQ(0, peer_start(&child));
	ASSERT_EQ(0, peer_map(&me, src, 3 * n * ps, RW));
	ASSERT_EQ(0, peer_stamp(&me, src, 3 * n, 0, 1, 1));
	for (k = 0; k < 2; k++) {
		ASSERT_EQ(0, peer_dput(&me, from, to[k], dst, n * ps, 0));
		ASSERT_EQ(0, peer_stamp(to[k], dst, n, 0, 1, 2));
		ASSERT_EQ(0, peer_dput(&me, from, to[k], dst, n * ps, 0));
		for (i = 0; i < n; i++) {
			ASSERT_EQ(0, peer_read(&me, from + i * ps, &want, sizeof(want)));
			ASSERT_EQ(0, peer_read(to[k], dst + i * ps, &is, sizeof(is)));
			ASSERT_EQ(want, is) TH_LOG("page %zu", i);
		}
	}
	peer_stop(&child);
}

/* Memory that is next to what is copied, to be read when told */
struct neighbours {
	char *places[2];
	unsigned int delay;
	int go;
};

static void *read_neighbours(void *arg)
{
	struct neighbours *n = arg;
	unsigned int i;

	while (!__atomic_load_n(&n->go, __ATOMIC_ACQUIRE))
		;
	for (i = 0; i < n->delay; i++)
		__asm__ volatile("" : : : "memory");
	for (i = 0; i < 2; i++)
		if (*(volatile char *)n->places[i])
			return arg;
	return NULL;
}

/*
 * There is no page table for the first part of the range, on either side, until
 * page faults right before it bring one to both. What lies behind such a table
 * in the machine's memory is none of the copy's: a kernel with CONFIG_DEBUG_VM
 * complains.
 */
TEST(neighbours_fault)
{
	const size_t ps = page_size(), near = 128 * ps;
	/* At least what an entry two levels above the pages is about */
	const unsigned long part = 1UL << 31;
	const unsigned long src = ARENA_END, dst = src + 2 * part;
	const size_t len = part - near + 2 * ps;
	const unsigned long touched = part - near + ps;
	unsigned int round, rounds = 200;
	struct peer me;
	char *s, *d;

	if (!dput_supported())
		SKIP(return, "no dput()");
	if (sizeof(long) == 4)
		SKIP(return, "the address space is too small for a part with no page table");
	if (ps > 4096)
		SKIP(return, "such a part may be larger than the address space");
	peer_self(&me);
	for (round = 0; round < rounds; round++) {
		struct neighbours n = {
			.places = { (char *)src, (char *)dst },
			.delay = round * 64,
		};
		pthread_t thread;
		void *wrong;
		int i, err;

		for (i = 0; i < 2; i++)
			ASSERT_TRUE(n.places[i] == mmap(n.places[i], near, PROT_READ, MAP_PRIVATE |
							MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
							-1, 0));
		s = n.places[0] + near;
		d = n.places[1] + near;
		ASSERT_TRUE(s == mmap(s, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
				      MAP_FIXED_NOREPLACE, -1, 0));
		memset(s + touched, 1, ps);
		ASSERT_EQ(0, peer_dput(&me, (long)s, &me, (long)d, len, 0));
		memset(s + touched, 2, ps);

		ASSERT_EQ(0, pthread_create(&thread, NULL, read_neighbours, &n));
		__atomic_store_n(&n.go, 1, __ATOMIC_RELEASE);
		err = peer_dput(&me, (long)s, &me, (long)d, len, 0);
		ASSERT_EQ(0, pthread_join(thread, &wrong));
		ASSERT_EQ(0, err);
		ASSERT_TRUE(!wrong);
		ASSERT_EQ(0, memcmp(s + touched, d + touched, ps));
		ASSERT_EQ(2, d[touched]);
		/* Nothing came to where there was nothing. */
		for (i = 0; i < 512; i++)
			ASSERT_EQ(0, d[i * ps]) TH_LOG("page %d", i);
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, munmap(n.places[i], near + len));
	}
}

/*
 * Ranges with no page table before a boundary of one, at the boundaries of all
 * sizes that an architecture may have: what lies behind is refreshed nevertheless.
 * The child is given it at the same address: most of these are free in both.
 */
TEST(behind_no_page_table)
{
	const size_t ps = page_size(), half = 8 * ps;
	unsigned int shift, nr, places = 0;
	struct peer me, child;

	if (!dput_supported())
		SKIP(return, "no dput()");
	peer_self(&me);
	ASSERT_EQ(0, peer_start(&child));
	for (shift = __builtin_ctzl(ps) + 9; shift < 8 * sizeof(long) - 1; shift++) {
		for (nr = 1; nr <= 3; nr++) {
			const unsigned long at = nr * (1UL << shift);
			const unsigned long from = at - half;
			int i;

			if (peer_map(&child, from, 2 * half, RW))
				continue;
			ASSERT_EQ(0, peer_munmap(&child, from, 2 * half));
			if (peer_map(&me, from, 2 * half, RW))
				continue;
			places++;
			ASSERT_EQ(0, peer_fill(&me, at, half, 1));
			ASSERT_EQ(0, peer_dput(&me, from, &child, from, 2 * half, 0));
			/* Changed in the source, and then in the copy */
			for (i = 0; i < 2; i++) {
				ASSERT_EQ(0, peer_fill(i ? &child : &me, at, half, 2 + i));
				ASSERT_EQ(0, peer_dput(&me, from, &child, from, 2 * half, 0));
				ASSERT_EQ(-1, peer_verify(&child, at, half, 2))
					TH_LOG("behind %#lx", at);
			}
			ASSERT_EQ(0, peer_munmap(&me, from, 2 * half));
			ASSERT_EQ(0, peer_munmap(&child, from, 2 * half));
		}
	}
	/* At least those of 1 GiB */
	EXPECT_LT(2, places);
	peer_stop(&child);
}

/*
 * Userfaultfd maps pages of a file with the dirty bit set, also privately: those of an
 * older copy are taken away in two steps, the second one after the TLB flush, and only
 * once each. Otherwise the kernel complains when the pages are freed, or sooner.
 */
TEST(file_pages_mapped_dirty)
{
	const size_t ps = page_size(), len = 2 * ps;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MINOR };
	struct uffdio_continue cont = {};
	unsigned long pfn[2];
	char *s, *d, *file;
	struct peer me;
	int fd, uffd, i;

	if (!dput_supported())
		SKIP(return, "no dput()");
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd of that mode");
	peer_self(&me);
	fd = memfd_create("refresh", MFD_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	file = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, file);
	memset(file, 1, len);

	s = (char *)SRC;
	d = (char *)DST;
	ASSERT_EQ(s, mmap(s, len, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0));
	reg.range.start = SRC;
	reg.range.len = len;
	cont.range = reg.range;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_CONTINUE, &cont));
	for (i = 0; i < 2; i++)
		pfn[i] = proc_pfn(getpid(), SRC + i * ps);
	ASSERT_EQ(0, peer_dput(&me, SRC, &me, DST, len, 0));

	/* One page is replaced by a page, and one goes, which is for the second walk. */
	memset(s, 2, ps);
	ASSERT_EQ(0, madvise(s + ps, ps, MADV_DONTNEED));
	ASSERT_EQ(0, peer_dput(&me, SRC, &me, DST, len, 0));
	ASSERT_EQ(2, d[0]);
	for (i = 0; i < 2 && pfn[i]; i++) {
		EXPECT_EQ(1, kpagecount(pfn[i])) TH_LOG("page %d of the file", i);
	}
	ASSERT_EQ(1, d[ps]);
	ASSERT_EQ(0, close(uffd));
	ASSERT_EQ(0, munmap(s, len));
	ASSERT_EQ(0, munmap(d, len));
	ASSERT_EQ(0, munmap(file, len));
	ASSERT_EQ(0, close(fd));
}

TEST_HARNESS_MAIN
