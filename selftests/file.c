// SPDX-License-Identifier: GPL-2.0
/* dput(2) of private file mappings: pages of the file, and pages written to. */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <sys/vfs.h>
#include "dput_util.h"

#define SRC	(ARENA + 64 * page_size())
#define DST	(ARENA + (1UL << 24) + 7 * page_size())
#define NR	8UL

FIXTURE(file)
{
	unsigned long ps;
	struct peer me, child;
	struct peer *src, *dst;
	int fd;
};

FIXTURE_VARIANT(file)
{
	enum file_where where;
	bool get;		/* from the child to the caller */
	bool within;		/* within the caller */
};

FIXTURE_VARIANT_ADD(file, memfd_put) { .where = MEMFD };
FIXTURE_VARIANT_ADD(file, memfd_get) { .where = MEMFD, .get = true };
FIXTURE_VARIANT_ADD(file, memfd_within) { .where = MEMFD, .within = true };
FIXTURE_VARIANT_ADD(file, tmpfs_put) { .where = TMPFS };
FIXTURE_VARIANT_ADD(file, tmpfs_get) { .where = TMPFS, .get = true };
FIXTURE_VARIANT_ADD(file, tmpfs_within) { .where = TMPFS, .within = true };
FIXTURE_VARIANT_ADD(file, disk_put) { .where = DISK };
FIXTURE_VARIANT_ADD(file, disk_get) { .where = DISK, .get = true };
FIXTURE_VARIANT_ADD(file, disk_within) { .where = DISK, .within = true };

static char *file_page(unsigned long ps, unsigned long page, unsigned int seed)
{
	static char buf[65536];

	pattern(buf, ps, page * ps, seed);
	return buf;
}

/* The file's pages are of pattern 1; the source has written 2 to its odd pages. */
FIXTURE_SETUP(file)
{
	unsigned long i;

	if (!dput_supported())
		SKIP(return, "no dput()");
	self->ps = page_size();
	self->fd = file_open(variant->where);
	if (self->fd < 0 && variant->where == TMPFS)
		SKIP(return, "no file on a tmpfs in /tmp or /dev/shm: %s", strerror(errno));
	if (self->fd < 0 && variant->where == DISK)
		SKIP(return, "no file in the current directory: %s", strerror(errno));
	ASSERT_LE(0, self->fd);
	if (variant->where == DISK && !file_on_disk(self->fd))
		SKIP(return, "the current directory is not on a disk");
	for (i = 0; i < NR; i++)
		ASSERT_EQ(self->ps, pwrite(self->fd, file_page(self->ps, i, 1),
					   self->ps, i * self->ps));
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	self->src = variant->get ? &self->child : &self->me;
	self->dst = variant->get || variant->within ? &self->me : &self->child;

	ASSERT_EQ(SRC, peer_mmap(self->src, SRC, NR * self->ps, RW,
				 MAP_PRIVATE | MAP_FIXED, self->fd));
	for (i = 1; i < NR; i += 2)
		ASSERT_EQ(0, peer_write(self->src, SRC + i * self->ps,
					file_page(self->ps, i, 2), self->ps));
}

FIXTURE_TEARDOWN(file)
{
	peer_stop(&self->child);
	munmap((void *)ARENA, ARENA_SIZE);
	close(self->fd);
}

#define DPUT(s, d, len, flags) \
	peer_dput(self->src, (s), self->dst, (d), (len), (flags))

/* Is page @page at @addr what the pattern of @seed has there? */
static bool page_is(struct peer *p, unsigned long addr, unsigned long ps,
		    unsigned long page, unsigned int seed)
{
	static char buf[65536];

	return !peer_read(p, addr, buf, ps) &&
	       !memcmp(buf, file_page(ps, page, seed), ps);
}

#define EXPECT_IMAGE(p, addr, first, n) do {				\
	for (unsigned long i_ = 0; i_ < (n); i_++)			\
		EXPECT_TRUE(page_is((p), (addr) + i_ * self->ps, self->ps, \
				    (first) + i_, ((first) + i_) % 2 + 1)); \
} while (0)

TEST_F(file, image)
{
	char *before = proc_maps(self->src->pid, SRC, SRC + NR * self->ps);
	char *after;

	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	EXPECT_IMAGE(self->src, SRC, 0, NR);
	after = proc_maps(self->src->pid, SRC, SRC + NR * self->ps);
	EXPECT_STREQ(before, after);
	EXPECT_EQ(1, proc_count_vmas(self->dst->pid, DST, DST + NR * self->ps));
	free(before);
	free(after);
}

/* From the middle of the mapping, so that no offset is the mapping's own. */
TEST_F(file, middle)
{
	ASSERT_EQ(0, DPUT(SRC + 3 * self->ps, DST, 3 * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 3, 3);
}

TEST_F(file, page_after_page)
{
	unsigned long i;

	for (i = 0; i < NR; i++)
		ASSERT_EQ(0, DPUT(SRC + i * self->ps, DST + i * self->ps,
				  self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	EXPECT_EQ(1, proc_count_vmas(self->dst->pid, DST, DST + NR * self->ps));
}

TEST_F(file, ragged)
{
	char buf[4];

	ASSERT_EQ(0, peer_map(self->dst, DST, NR * self->ps, RW));
	ASSERT_EQ(0, peer_fill(self->dst, DST, NR * self->ps, 7));
	ASSERT_EQ(0, DPUT(SRC + 3, DST + 3, (NR - 1) * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST + self->ps, 1, NR - 2);
	/* The bytes next to the range, before and after, are the old ones. */
	ASSERT_EQ(0, peer_read(self->dst, DST, buf, 4));
	EXPECT_EQ(0, memcmp(buf, file_page(self->ps, 0, 7), 3));
	EXPECT_EQ(buf[3], file_page(self->ps, 0, 1)[3]);
	ASSERT_EQ(0, peer_read(self->dst, DST + (NR - 1) * self->ps, buf, 4));
	EXPECT_EQ(0, memcmp(buf, file_page(self->ps, NR - 1, 2), 3));
	EXPECT_EQ(buf[3], file_page(self->ps, NR - 1, 7)[3]);
}

/* Writes stay where they are made, and out of the file. */
TEST_F(file, isolated)
{
	unsigned long i;
	char buf[1];

	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	for (i = 0; i < NR; i++)
		ASSERT_EQ(0, peer_write(self->dst, DST + i * self->ps,
					file_page(self->ps, i, 3), self->ps));
	EXPECT_IMAGE(self->src, SRC, 0, NR);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(0, peer_write(self->src, SRC + i * self->ps,
					file_page(self->ps, i, 4), self->ps));
	for (i = 0; i < NR; i++) {
		EXPECT_TRUE(page_is(self->dst, DST + i * self->ps, self->ps, i, 3));
		ASSERT_EQ(1, pread(self->fd, buf, 1, i * self->ps));
		EXPECT_EQ(buf[0], file_page(self->ps, i, 1)[0]);
	}
}

/* Pages nobody has written to follow the file, on both sides, as after fork(). */
TEST_F(file, follows_file)
{
	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	ASSERT_EQ(self->ps, pwrite(self->fd, file_page(self->ps, 2, 5), self->ps,
				   2 * self->ps));
	ASSERT_EQ(self->ps, pwrite(self->fd, file_page(self->ps, 3, 5), self->ps,
				   3 * self->ps));
	EXPECT_TRUE(page_is(self->dst, DST + 2 * self->ps, self->ps, 2, 5));
	EXPECT_TRUE(page_is(self->dst, DST + 3 * self->ps, self->ps, 3, 2));
	EXPECT_TRUE(page_is(self->src, SRC + 3 * self->ps, self->ps, 3, 2));
}

/* Truncation reaches the copy: also pages written to are gone. */
TEST_F(file, truncate)
{
	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	ASSERT_EQ(0, ftruncate(self->fd, 2 * self->ps));
	EXPECT_IMAGE(self->dst, DST, 0, 2);
	EXPECT_FALSE(peer_readable(self->dst, DST + 2 * self->ps));
	EXPECT_FALSE(peer_readable(self->dst, DST + 3 * self->ps));
	EXPECT_FALSE(peer_readable(self->src, SRC + 3 * self->ps));
}

/* A hole punched into the file takes away its own pages only. */
TEST_F(file, punch_hole)
{
	char buf[1];

	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	if (fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      2 * self->ps, 2 * self->ps))
		SKIP_REST(return, "fallocate: %s", strerror(errno));
	ASSERT_EQ(0, peer_read(self->dst, DST + 2 * self->ps, buf, 1));
	EXPECT_EQ(0, buf[0]);
	EXPECT_TRUE(page_is(self->dst, DST + 3 * self->ps, self->ps, 3, 2));
}

/*
 * What another process writes is written back to the file, and neither that nor
 * reading the file anew concerns the pages that were written to privately.
 */
TEST_F(file, written_back)
{
	unsigned long i;
	char *shared;

	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	shared = mmap(NULL, NR * self->ps, RW, MAP_SHARED, self->fd, 0);
	ASSERT_TRUE(shared != MAP_FAILED);
	for (i = 0; i < NR; i++)
		memcpy(shared + i * self->ps, file_page(self->ps, i, 6), self->ps);
	ASSERT_EQ(0, msync(shared, NR * self->ps, MS_SYNC));
	ASSERT_EQ(0, munmap(shared, NR * self->ps));
	/* The file's pages leave both sides' page tables, and on a disk memory too. */
	for (i = 0; i < NR; i += 2) {
		peer_madvise(self->src, SRC + i * self->ps, self->ps, MADV_DONTNEED);
		peer_madvise(self->dst, DST + i * self->ps, self->ps, MADV_DONTNEED);
	}
	posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED);
	for (i = 0; i < NR; i++) {
		EXPECT_TRUE(page_is(self->dst, DST + i * self->ps, self->ps, i, i % 2 ? 2 : 6));
		EXPECT_TRUE(page_is(self->src, SRC + i * self->ps, self->ps, i, i % 2 ? 2 : 6));
	}
}

/* Beyond the end of the file there is nothing, on either side. */
TEST_F(file, beyond_end)
{
	ASSERT_EQ(0, ftruncate(self->fd, 4 * self->ps));
	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	EXPECT_IMAGE(self->dst, DST, 0, 4);
	EXPECT_FALSE(peer_readable(self->dst, DST + 4 * self->ps));
	ASSERT_EQ(0, ftruncate(self->fd, NR * self->ps));
	EXPECT_TRUE(peer_readable(self->dst, DST + 4 * self->ps));
}

/* The copy keeps the file, whoever else lets go of it. */
TEST_F(file, reference)
{
	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	ASSERT_EQ(0, peer_munmap(self->src, SRC, NR * self->ps));
	close(self->fd);
	EXPECT_IMAGE(self->dst, DST, 0, NR);
	self->fd = -1;
}

/* Nobody has written to it: no page tables are copied, and the file shows. */
TEST_F(file, untouched)
{
	ASSERT_EQ(SRC, peer_mmap(self->src, SRC, NR * self->ps, PROT_READ,
				 MAP_PRIVATE | MAP_FIXED, self->fd));
	ASSERT_EQ(0, DPUT(SRC, DST, NR * self->ps, 0));
	for (unsigned long i = 0; i < NR; i++)
		EXPECT_TRUE(page_is(self->dst, DST + i * self->ps, self->ps, i, 1));
	EXPECT_STREQ("r--p", proc_perms(self->dst->pid, DST));
	EXPECT_FALSE(peer_writable(self->dst, DST));
}

/* Pages of one large folio are copied, and counted, together. */
TEST(large_folio)
{
	const unsigned long n = 64, ps = page_size();
	unsigned long i, pfn[64], rss;
	struct peer me, child;
	char *data;
	int fd;

	if (!dput_supported())
		SKIP(return, "no dput()");
	fd = file_open(DISK);
	if (fd < 0)
		SKIP(return, "no file in the current directory: %s", strerror(errno));
	if (!file_on_disk(fd))
		SKIP(return, "the current directory is not on a disk");
	data = malloc(n * ps);
	ASSERT_NE(NULL, data);
	pattern(data, n * ps, 0, 1);
	ASSERT_EQ(n * ps, pwrite(fd, data, n * ps, 0));
	peer_self(&me);
	ASSERT_EQ(0, peer_start(&child));
	ASSERT_EQ(SRC, peer_mmap(&me, SRC, n * ps, RW, MAP_PRIVATE | MAP_FIXED, fd));
	/* Before there is a written page, no page table would be copied. */
	ASSERT_EQ(0, memcmp((void *)SRC, data, n * ps));
	*(char *)SRC ^= 1;
	data[0] ^= 1;
	for (i = 1; i < n; i++) {
		pfn[i] = proc_pfn(me.pid, SRC + i * ps);
		if (!pfn[i])
			SKIP(return, "cannot see page frame numbers");
	}
	if (!(kpageflags(pfn[2]) & KPF_COMPOUND_TAIL))
		SKIP(return, "the file system has no large folios");
	ASSERT_EQ(1, kpagecount(pfn[2]));
	rss = proc_status_kb(child.pid, "RssFile");
	ASSERT_EQ(0, peer_dput(&me, SRC, &child, SRC, n * ps, 0));
	for (i = 1; i < n; i++) {
		EXPECT_EQ(pfn[i], proc_pfn(child.pid, SRC + i * ps));
		EXPECT_EQ(2, kpagecount(pfn[i]));
	}
	EXPECT_EQ(rss + (n - 1) * ps / 1024, proc_status_kb(child.pid, "RssFile"));
	for (i = 0; i < n; i++) {
		char buf[65536];

		ASSERT_EQ(0, peer_read(&child, SRC + i * ps, buf, ps));
		EXPECT_EQ(0, memcmp(buf, data + i * ps, ps));
	}
	EXPECT_EQ(0, memcmp((void *)SRC, data, n * ps));
	ASSERT_EQ(0, peer_munmap(&child, SRC, n * ps));
	for (i = 1; i < n; i++)
		EXPECT_EQ(1, kpagecount(pfn[i]));
	peer_stop(&child);
	munmap((void *)SRC, n * ps);
	free(data);
	close(fd);
}

TEST_HARNESS_MAIN
