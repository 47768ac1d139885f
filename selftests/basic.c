// SPDX-License-Identifier: GPL-2.0
/* What dput(2) does: alignment, holes, flags, protections, isolation. */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include "dput_util.h"

/* An odd number of pages from each other, so that no table lines up. */
#define SRC	(ARENA + 64 * page_size())
#define DST	(ARENA + (1UL << 28) + 7 * page_size())

enum direction {
	PUT,			/* caller to child */
	GET,			/* child to caller */
	SELF,			/* within the caller */
	BETWEEN,		/* between two children */
	WITHIN,			/* within a child */
};

enum dst_state { HOLE, FULL, PARTLY };

struct sides {
	struct peer me, a, b;
	struct peer *src, *dst;
};

static int sides_setup(struct sides *s, enum direction dir)
{
	peer_self(&s->me);
	if (peer_start(&s->a) || peer_start(&s->b))
		return -1;
	s->src = dir == PUT || dir == SELF ? &s->me : &s->a;
	s->dst = dir == GET || dir == SELF ? &s->me :
		 dir == BETWEEN ? &s->b : &s->a;
	return 0;
}

static void sides_teardown(struct sides *s)
{
	peer_stop(&s->a);
	peer_stop(&s->b);
}

/*
 * Alignment: one source of NR pages, one destination around which the pages
 * before and after are watched too, and a model of what must come out.
 */
#define NR	6

FIXTURE(align)
{
	struct sides s;
};

FIXTURE_VARIANT(align)
{
	enum direction dir;
	enum dst_state state;
};

#define ALIGN_VARIANT(_dir, _state)					\
FIXTURE_VARIANT_ADD(align, _dir##_##_state)				\
{									\
	.dir = _dir, .state = _state,					\
}

ALIGN_VARIANT(PUT, HOLE);
ALIGN_VARIANT(PUT, FULL);
ALIGN_VARIANT(PUT, PARTLY);
ALIGN_VARIANT(GET, HOLE);
ALIGN_VARIANT(GET, FULL);
ALIGN_VARIANT(GET, PARTLY);
ALIGN_VARIANT(SELF, HOLE);
ALIGN_VARIANT(SELF, FULL);
ALIGN_VARIANT(SELF, PARTLY);
ALIGN_VARIANT(BETWEEN, HOLE);
ALIGN_VARIANT(BETWEEN, FULL);
ALIGN_VARIANT(BETWEEN, PARTLY);
ALIGN_VARIANT(WITHIN, HOLE);
ALIGN_VARIANT(WITHIN, FULL);
ALIGN_VARIANT(WITHIN, PARTLY);

FIXTURE_SETUP(align)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	ASSERT_EQ(0, sides_setup(&self->s, variant->dir));
}

FIXTURE_TEARDOWN(align)
{
	sides_teardown(&self->s);
}

/* Which pages of the destination, from the one before it on, are mapped? */
static bool dst_page_mapped(enum dst_state state, int page)
{
	return state == FULL || (state == PARTLY && page % 2);
}

static void check_image(struct __test_metadata *_metadata, struct peer *p,
			unsigned long addr, const bool *mapped,
			const unsigned char *image, int nr, const char *when)
{
	unsigned long ps = page_size();
	unsigned char buf[ps];
	int i;

	for (i = 0; i < nr; i++) {
		EXPECT_EQ(mapped[i], proc_mapped(p->pid, addr + i * ps, ps))
			TH_LOG("page %d %s", i, when);
		if (!mapped[i])
			continue;
		ASSERT_EQ(0, peer_read(p, addr + i * ps, buf, ps))
			TH_LOG("page %d %s", i, when);
		EXPECT_EQ(0, memcmp(buf, image + i * ps, ps))
			TH_LOG("page %d %s", i, when);
	}
}

static void check_align(struct __test_metadata *_metadata, struct sides *s,
			enum dst_state state, unsigned long off, size_t len)
{
	const unsigned long ps = page_size();
	const unsigned long lo = off & ~(ps - 1), hi = (off + len + ps - 1) & ~(ps - 1);
	const unsigned long start = (off + ps - 1) & ~(ps - 1);
	const unsigned long end = (off + len) & ~(ps - 1);
	/* The model covers one page more on each side. */
	const int nr = NR + 2;
	unsigned char *src, *dst;
	bool src_mapped[nr], mapped[nr];
	char *maps, *now;
	unsigned long i;
	int p;

	src = calloc(nr, ps);
	dst = calloc(nr, ps);

	ASSERT_EQ(0, peer_map(s->src, SRC - ps, nr * ps, RW));
	ASSERT_EQ(0, peer_fill(s->src, SRC - ps, nr * ps, 1));
	pattern(src, nr * ps, 0, 1);
	for (p = 0; p < nr; p++) {
		src_mapped[p] = true;
		mapped[p] = dst_page_mapped(state, p);
		if (!mapped[p])
			continue;
		ASSERT_EQ(0, peer_map(s->dst, DST + (p - 1) * ps, ps, RW));
		pattern(dst + p * ps, ps, 0, 100 + p);
		ASSERT_EQ(0, peer_fill(s->dst, DST + (p - 1) * ps, ps, 100 + p));
	}

	maps = proc_maps(s->src->pid, SRC - ps, SRC + nr * ps);
	ASSERT_EQ(0, peer_dput(s->src, SRC + off, s->dst, DST + off, len, 0))
		TH_LOG("%s", strerror(errno));
	now = proc_maps(s->src->pid, SRC - ps, SRC + nr * ps);
	EXPECT_STREQ(maps, now);
	free(maps);
	free(now);

	memcpy(dst + ps + off, src + ps + off, len);
	for (i = lo; i < hi; i += ps)
		mapped[1 + i / ps] = true;
	check_image(_metadata, s->src, SRC - ps, src_mapped, src, nr, "of the source");
	check_image(_metadata, s->dst, DST - ps, mapped, dst, nr, "of the copy");

	/* Once more, onto what the first call has made */
	ASSERT_EQ(0, peer_dput(s->src, SRC + off, s->dst, DST + off, len, 0));
	check_image(_metadata, s->src, SRC - ps, src_mapped, src, nr, "of the source, again");
	check_image(_metadata, s->dst, DST - ps, mapped, dst, nr, "of the copy, again");

	/* Every other page is written in the source first, the rest in the copy. */
	for (p = 0; p < nr; p++) {
		unsigned long a = (p - 1) * ps;

		if (p % 2) {
			pattern(src + p * ps, ps, 0, 50 + p);
			ASSERT_EQ(0, peer_fill(s->src, SRC + a, ps, 50 + p));
		} else if (mapped[p]) {
			pattern(dst + p * ps, ps, 0, 150 + p);
			ASSERT_EQ(0, peer_fill(s->dst, DST + a, ps, 150 + p));
		}
	}
	check_image(_metadata, s->src, SRC - ps, src_mapped, src, nr, "of the source, written");
	check_image(_metadata, s->dst, DST - ps, mapped, dst, nr, "of the copy, written");
	for (p = 0; p < nr; p++) {
		unsigned long a = (p - 1) * ps;

		if (p % 2 == 0) {
			pattern(src + p * ps, ps, 0, 60 + p);
			ASSERT_EQ(0, peer_fill(s->src, SRC + a, ps, 60 + p));
		} else if (mapped[p]) {
			pattern(dst + p * ps, ps, 0, 160 + p);
			ASSERT_EQ(0, peer_fill(s->dst, DST + a, ps, 160 + p));
		}
	}
	check_image(_metadata, s->src, SRC - ps, src_mapped, src, nr, "of the source, rewritten");
	check_image(_metadata, s->dst, DST - ps, mapped, dst, nr, "of the copy, rewritten");

	/* The aligned part is an image of one mapping. */
	if (start < end) {
		EXPECT_EQ(1, proc_count_vmas(s->dst->pid, DST + start, DST + end));
	}
	free(src);
	free(dst);
}

#define TEST_ALIGN(name, off, len)					\
TEST_F(align, name)							\
{									\
	check_align(_metadata, &self->s, variant->state, off, len);	\
}

TEST_ALIGN(aligned, 0, NR * page_size())
TEST_ALIGN(aligned_middle, page_size(), 3 * page_size())
TEST_ALIGN(ragged_head, 1001, 5 * page_size() - 1001)
TEST_ALIGN(ragged_tail, 0, 4 * page_size() + 77)
TEST_ALIGN(ragged_both, page_size() - 1, 3 * page_size() + 2)
TEST_ALIGN(head_and_tail_only, 2 * page_size() - 3, 6)
TEST_ALIGN(within_page, page_size() + 10, 20)
TEST_ALIGN(within_page_to_end, 2 * page_size() + 10, page_size() - 10)
TEST_ALIGN(first_byte, page_size(), 1)
TEST_ALIGN(last_byte, 2 * page_size() - 1, 1)
TEST_ALIGN(all_but_two_bytes, 1, NR * page_size() - 2)

/* Everything else, once for each direction */

FIXTURE(dput)
{
	struct sides s;
	struct peer *src, *dst;
	unsigned long ps;
};

FIXTURE_VARIANT(dput)
{
	enum direction dir;
};

FIXTURE_VARIANT_ADD(dput, put) { .dir = PUT };
FIXTURE_VARIANT_ADD(dput, get) { .dir = GET };
FIXTURE_VARIANT_ADD(dput, self) { .dir = SELF };
FIXTURE_VARIANT_ADD(dput, between) { .dir = BETWEEN };
FIXTURE_VARIANT_ADD(dput, within) { .dir = WITHIN };

FIXTURE_SETUP(dput)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	ASSERT_EQ(0, sides_setup(&self->s, variant->dir));
	self->src = self->s.src;
	self->dst = self->s.dst;
	self->ps = page_size();
}

FIXTURE_TEARDOWN(dput)
{
	sides_teardown(&self->s);
}

/* The call must fail, and leave both address spaces as they are. */
#define EXPECT_REFUSED(_err, _off, _len, _flags) do {			\
	struct snapshot _ss, _ds;					\
	int _ret, _e;							\
									\
	ASSERT_EQ(0, snapshot_take(&_ss, self->src));			\
	ASSERT_EQ(0, snapshot_take(&_ds, self->dst));			\
	_ret = peer_dput(self->src, SRC + (_off), self->dst,		\
			 DST + (_off), _len, _flags);			\
	_e = errno;							\
	EXPECT_EQ(-1, _ret);						\
	EXPECT_EQ(_err, _e);						\
	EXPECT_TRUE(snapshot_same(&_ss, self->src));			\
	EXPECT_TRUE(snapshot_same(&_ds, self->dst));			\
} while (0)

#define ASSERT_DPUT(_off, _len, _flags)					\
	ASSERT_EQ(0, peer_dput(self->src, SRC + (_off), self->dst,	\
			       DST + (_off), _len, _flags))		\
		TH_LOG("dput: %s", strerror(errno))

/* Private anonymous memory at @addr, with a pattern */
#define MAP_FILLED(_peer, _addr, _len, _seed) do {			\
	ASSERT_EQ(0, peer_map(_peer, _addr, _len, RW));			\
	ASSERT_EQ(0, peer_fill(_peer, _addr, _len, _seed));		\
} while (0)

/* Not one bit of either side is seen by the other. */
#define EXPECT_ISOLATED(_len) do {					\
	ASSERT_EQ(0, peer_fill(self->dst, DST, _len, 201));		\
	ASSERT_EQ(0, peer_fill(self->src, SRC, _len, 202));		\
	EXPECT_EQ(-1, peer_verify(self->dst, DST, _len, 201));		\
	EXPECT_EQ(-1, peer_verify(self->src, SRC, _len, 202));		\
	ASSERT_EQ(0, peer_fill(self->dst, DST, _len, 203));		\
	EXPECT_EQ(-1, peer_verify(self->src, SRC, _len, 202));		\
} while (0)

static bool all_zero(struct peer *p, unsigned long addr, size_t len)
{
	unsigned char *buf = malloc(len);
	bool ret = !peer_read(p, addr, buf, len);
	size_t i;

	for (i = 0; ret && i < len; i++)
		ret = !buf[i];
	free(buf);
	return ret;
}

TEST_F(dput, untouched_source)
{
	size_t len = 8 * self->ps;

	ASSERT_EQ(0, peer_map(self->src, SRC, len, RW));
	MAP_FILLED(self->dst, DST, len, 9);
	ASSERT_DPUT(0, len, 0);
	EXPECT_TRUE(all_zero(self->dst, DST, len));
	EXPECT_ISOLATED(len);
}

TEST_F(dput, zero_page)
{
	size_t len = 8 * self->ps;

	ASSERT_EQ(0, peer_map(self->src, SRC, len, RW));
	ASSERT_TRUE(all_zero(self->src, SRC, len));
	MAP_FILLED(self->dst, DST, len, 9);
	ASSERT_DPUT(0, len, 0);
	EXPECT_TRUE(all_zero(self->dst, DST, len));
	EXPECT_ISOLATED(len);
}

TEST_F(dput, partly_faulted_source)
{
	size_t len = 9 * self->ps;
	int i;

	ASSERT_EQ(0, peer_map(self->src, SRC, len, RW));
	for (i = 0; i < 9; i += 3) {
		ASSERT_EQ(0, peer_fill(self->src, SRC + i * self->ps, self->ps, i));
		ASSERT_TRUE(peer_readable(self->src, SRC + (i + 1) * self->ps));
	}
	ASSERT_DPUT(0, len, 0);
	for (i = 0; i < 9; i += 3) {
		EXPECT_EQ(-1, peer_verify(self->dst, DST + i * self->ps, self->ps, i));
		EXPECT_TRUE(all_zero(self->dst, DST + (i + 1) * self->ps, 2 * self->ps));
	}
	EXPECT_ISOLATED(len);
}

TEST_F(dput, same_address)
{
	size_t len = 8 * self->ps;

	if (self->src == self->dst)
		SKIP(return, "one address space: the ranges would overlap");
	MAP_FILLED(self->src, SRC, len, 1);
	MAP_FILLED(self->dst, SRC, len, 2);
	ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, SRC, len, 0));
	EXPECT_EQ(-1, peer_verify(self->dst, SRC, len, 1));
	ASSERT_EQ(0, peer_fill(self->src, SRC, len, 3));
	EXPECT_EQ(-1, peer_verify(self->dst, SRC, len, 1));
	ASSERT_EQ(0, peer_fill(self->dst, SRC, len, 4));
	EXPECT_EQ(-1, peer_verify(self->src, SRC, len, 3));
}

/* Page tables end at other places on the two sides. */
TEST_F(dput, many_page_tables)
{
	size_t n = 2 * 512 + 300, len = n * self->ps;

	ASSERT_EQ(0, peer_map(self->src, SRC, len, RW));
	ASSERT_EQ(0, peer_madvise(self->src, SRC, len, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, peer_stamp(self->src, SRC, n, 0, 1, 1));
	ASSERT_DPUT(0, len, 0);
	EXPECT_EQ(-1, peer_check(self->dst, DST, n, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(self->dst, DST, n, 0, 2, 2));
	ASSERT_EQ(0, peer_stamp(self->src, SRC, n, 1, 2, 3));
	EXPECT_EQ(-1, peer_check(self->src, SRC, n, 0, 2, 1));
	EXPECT_EQ(-1, peer_check(self->src, SRC, n, 1, 2, 3));
	EXPECT_EQ(-1, peer_check(self->dst, DST, n, 0, 2, 2));
	EXPECT_EQ(-1, peer_check(self->dst, DST, n, 1, 2, 1));
}

/* The destination's old mapping is cut at both ends, the source's is not. */
TEST_F(dput, middle_of_mappings)
{
	unsigned long ps = self->ps;
	char *maps, *now;

	MAP_FILLED(self->src, SRC - 8 * ps, 24 * ps, 1);
	MAP_FILLED(self->dst, DST - 8 * ps, 24 * ps, 2);
	maps = proc_maps(self->src->pid, SRC - 8 * ps, SRC + 16 * ps);
	ASSERT_DPUT(0, 8 * ps, 0);
	now = proc_maps(self->src->pid, SRC - 8 * ps, SRC + 16 * ps);
	EXPECT_STREQ(maps, now);
	free(maps);
	free(now);
	EXPECT_EQ(-1, peer_verify(self->src, SRC - 8 * ps, 24 * ps, 1));
	EXPECT_EQ(-1, peer_verify(self->dst, DST - 8 * ps, 8 * ps, 2));
	for (int i = 0; i < 8; i++) {
		unsigned char want[ps], got[ps];

		pattern(want, ps, (8 + i) * ps, 1);
		ASSERT_EQ(0, peer_read(self->dst, DST + i * ps, got, ps));
		EXPECT_EQ(0, memcmp(want, got, ps));
		pattern(want, ps, (16 + i) * ps, 2);
		ASSERT_EQ(0, peer_read(self->dst, DST + (8 + i) * ps, got, ps));
		EXPECT_EQ(0, memcmp(want, got, ps));
	}
	EXPECT_ISOLATED(8 * ps);
	/* Both can be unmapped as a whole. */
	EXPECT_EQ(0, peer_munmap(self->dst, DST - 8 * ps, 24 * ps));
	EXPECT_EQ(-1, peer_verify(self->src, SRC, 8 * ps, 202));
}

/* Copied on from there, and the first ones gone */
TEST_F(dput, copy_of_copy)
{
	unsigned long ps = self->ps, third = DST + (1UL << 24) + 5 * ps;
	size_t len = 8 * ps;

	MAP_FILLED(self->src, SRC, len, 1);
	ASSERT_DPUT(0, len, 0);
	ASSERT_EQ(0, peer_dput(self->dst, DST, self->src, third, len, 0));
	EXPECT_EQ(-1, peer_verify(self->src, third, len, 1));
	ASSERT_EQ(0, peer_fill(self->src, third, ps, 2));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
	EXPECT_EQ(-1, peer_verify(self->src, SRC, len, 1));
	ASSERT_EQ(0, peer_munmap(self->src, SRC, len));
	ASSERT_EQ(0, peer_fill(self->src, third, len, 3));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
	ASSERT_EQ(0, peer_fill(self->dst, DST, len, 4));
	EXPECT_EQ(-1, peer_verify(self->src, third, len, 3));
}

/* Holes */

TEST_F(dput, hole_is_efault)
{
	unsigned long ps = self->ps;
	int hole;

	MAP_FILLED(self->dst, DST - ps, 8 * ps, 2);
	for (hole = 0; hole < 6; hole++) {
		MAP_FILLED(self->src, SRC, 6 * ps, 1);
		ASSERT_EQ(0, peer_munmap(self->src, SRC + hole * ps, ps));
		EXPECT_REFUSED(EFAULT, 0, 6 * ps, 0);
		/* The hole may be the head or the tail. */
		EXPECT_REFUSED(EFAULT, 10, 6 * ps - 20, 0);
		ASSERT_EQ(0, peer_munmap(self->src, SRC, 6 * ps));
	}
	EXPECT_REFUSED(EFAULT, 0, 6 * ps, 0);
	EXPECT_REFUSED(EFAULT, 10, 20, 0);
	EXPECT_EQ(-1, peer_verify(self->dst, DST - ps, 8 * ps, 2));
}

TEST_F(dput, holes)
{
	unsigned long ps = self->ps;
	int i;

	for (i = 0; i < 6; i++)
		MAP_FILLED(self->src, SRC + i * ps, ps, i);
	ASSERT_EQ(0, peer_munmap(self->src, SRC + 2 * ps, ps));
	ASSERT_EQ(0, peer_munmap(self->src, SRC + 4 * ps, ps));
	for (i = -1; i < 7; i++)
		MAP_FILLED(self->dst, DST + i * ps, ps, 50 + i);
	ASSERT_DPUT(0, 6 * ps, DPUT_HOLES);
	for (i = -1; i < 7; i++) {
		unsigned long addr = DST + i * ps;

		if (i == 2 || i == 4) {
			EXPECT_EQ(0, proc_mapped(self->dst->pid, addr, ps));
			continue;
		}
		EXPECT_EQ(-1, peer_verify(self->dst, addr, ps,
					  i < 0 || i > 5 ? 50 + i : i));
	}
	EXPECT_EQ(0, proc_mapped(self->src->pid, SRC + 2 * ps, ps));
}

TEST_F(dput, nothing_but_holes)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->dst, DST - ps, ps, 1);
	MAP_FILLED(self->dst, DST, 6 * ps, 2);
	MAP_FILLED(self->dst, DST + 6 * ps, ps, 3);
	ASSERT_DPUT(0, 6 * ps, DPUT_HOLES);
	EXPECT_EQ(0, proc_mapped(self->dst->pid, DST, 6 * ps));
	EXPECT_EQ(-1, peer_verify(self->dst, DST - ps, ps, 1));
	EXPECT_EQ(-1, peer_verify(self->dst, DST + 6 * ps, ps, 3));
	/* And into a hole */
	ASSERT_DPUT(0, 6 * ps, DPUT_HOLES);
	EXPECT_EQ(0, proc_mapped(self->dst->pid, DST, 6 * ps));
}

TEST_F(dput, partial_page_in_hole)
{
	unsigned long ps = self->ps;
	int mapped;

	MAP_FILLED(self->src, SRC + ps, 2 * ps, 1);
	for (mapped = 0; mapped < 2; mapped++) {
		/* Head and tail both lie in holes. */
		if (mapped) {
			MAP_FILLED(self->dst, DST, ps, 2);
			MAP_FILLED(self->dst, DST + 3 * ps, ps, 3);
		}
		ASSERT_DPUT(9, 4 * ps - 99, DPUT_HOLES);
		EXPECT_EQ(-1, peer_verify(self->dst, DST + ps, 2 * ps, 1));
		EXPECT_EQ(mapped, proc_mapped(self->dst->pid, DST, ps));
		EXPECT_EQ(mapped, proc_mapped(self->dst->pid, DST + 3 * ps, ps));
		if (mapped) {
			EXPECT_EQ(-1, peer_verify(self->dst, DST, ps, 2));
			EXPECT_EQ(-1, peer_verify(self->dst, DST + 3 * ps, ps, 3));
		}
		/* Head and tail are one page. */
		ASSERT_DPUT(9, 99, DPUT_HOLES);
		EXPECT_EQ(mapped, proc_mapped(self->dst->pid, DST, ps));
		ASSERT_EQ(0, peer_munmap(self->dst, DST, 4 * ps));
	}
}

TEST_F(dput, holes_flag_without_holes)
{
	size_t len = 5 * self->ps;

	MAP_FILLED(self->src, SRC, len, 1);
	MAP_FILLED(self->dst, DST, len, 2);
	ASSERT_DPUT(0, len, DPUT_HOLES);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
	EXPECT_ISOLATED(len);
}

/* DPUT_NOREPLACE */

TEST_F(dput, noreplace_eexist)
{
	unsigned long ps = self->ps;
	int i;

	MAP_FILLED(self->src, SRC, 6 * ps, 1);
	/* Page 0 and page 5 are touched by the ragged ends only. */
	for (i = 0; i < 6; i++) {
		MAP_FILLED(self->dst, DST + i * ps, ps, 2);
		EXPECT_REFUSED(EEXIST, 10, 6 * ps - 20, DPUT_NOREPLACE);
		EXPECT_REFUSED(EEXIST, 10, 6 * ps - 20, DPUT_NOREPLACE | DPUT_HOLES);
		EXPECT_REFUSED(EEXIST, 0, 6 * ps, DPUT_NOREPLACE);
		EXPECT_REFUSED(EEXIST, i * ps + 8, 8, DPUT_NOREPLACE);
		ASSERT_EQ(0, peer_munmap(self->dst, DST + i * ps, ps));
	}
	ASSERT_EQ(0, peer_map(self->dst, DST + 2 * ps, ps, PROT_NONE));
	EXPECT_REFUSED(EEXIST, 0, 6 * ps, DPUT_NOREPLACE);
}

TEST_F(dput, noreplace_into_hole)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->src, SRC, 6 * ps, 1);
	/* Neighbours do not matter. */
	MAP_FILLED(self->dst, DST - ps, ps, 2);
	MAP_FILLED(self->dst, DST + 6 * ps, ps, 3);
	ASSERT_DPUT(0, 6 * ps, DPUT_NOREPLACE);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 6 * ps, 1));
	EXPECT_EQ(-1, peer_verify(self->dst, DST - ps, ps, 2));
	EXPECT_EQ(-1, peer_verify(self->dst, DST + 6 * ps, ps, 3));
	EXPECT_ISOLATED(6 * ps);
	EXPECT_REFUSED(EEXIST, 0, 6 * ps, DPUT_NOREPLACE);
}

TEST_F(dput, noreplace_ragged_into_hole)
{
	unsigned long ps = self->ps;
	unsigned char want[6 * ps], got[6 * ps];

	MAP_FILLED(self->src, SRC, 6 * ps, 1);
	ASSERT_DPUT(10, 6 * ps - 20, DPUT_NOREPLACE);
	memset(want, 0, 6 * ps);
	pattern(want + 10, 6 * ps - 20, 10, 1);
	ASSERT_EQ(0, peer_read(self->dst, DST, got, 6 * ps));
	EXPECT_EQ(0, memcmp(want, got, 6 * ps));
}

/* Protections */

TEST_F(dput, protections)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	ASSERT_EQ(0, peer_mprotect(self->src, SRC + ps, ps, PROT_READ));
	ASSERT_EQ(0, peer_mprotect(self->src, SRC + 2 * ps, ps, PROT_NONE));
	MAP_FILLED(self->dst, DST, 4 * ps, 2);
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_STREQ("rw-p", proc_perms(self->dst->pid, DST));
	EXPECT_STREQ("r--p", proc_perms(self->dst->pid, DST + ps));
	EXPECT_STREQ("---p", proc_perms(self->dst->pid, DST + 2 * ps));
	EXPECT_STREQ("rw-p", proc_perms(self->dst->pid, DST + 3 * ps));
	EXPECT_TRUE(peer_readable(self->dst, DST + ps));
	EXPECT_FALSE(peer_writable(self->dst, DST + ps));
	EXPECT_FALSE(peer_readable(self->dst, DST + 2 * ps));
	EXPECT_TRUE(peer_writable(self->dst, DST + 3 * ps));
	/* What was not accessible was copied all the same. */
	ASSERT_EQ(0, peer_mprotect(self->dst, DST, 4 * ps, RW));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	ASSERT_EQ(0, peer_mprotect(self->src, SRC, 4 * ps, RW));
	EXPECT_ISOLATED(4 * ps);
}

/* A read-only destination is replaced, also where its page was present. */
TEST_F(dput, replaces_readonly)
{
	size_t len = 4 * self->ps;

	MAP_FILLED(self->src, SRC, len, 1);
	MAP_FILLED(self->dst, DST, len, 2);
	ASSERT_EQ(0, peer_mprotect(self->dst, DST, len, PROT_READ));
	ASSERT_DPUT(0, len, 0);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
	EXPECT_ISOLATED(len);
}

/* A page that is mapped for a ragged end has the source's protection. */
TEST_F(dput, partial_page_protection)
{
	unsigned long ps = self->ps;
	unsigned char got[10], want[10];

	MAP_FILLED(self->src, SRC, ps, 1);
	ASSERT_EQ(0, peer_mprotect(self->src, SRC, ps, PROT_READ));
	ASSERT_DPUT(10, 10, 0);
	EXPECT_STREQ("r--p", proc_perms(self->dst->pid, DST));
	EXPECT_FALSE(peer_writable(self->dst, DST));
	ASSERT_EQ(0, peer_read(self->dst, DST + 10, got, 10));
	pattern(want, 10, 10, 1);
	EXPECT_EQ(0, memcmp(want, got, 10));
}

/* Ragged ends may lie in memory that could not be shared copy-on-write. */
TEST_F(dput, partial_pages_in_shared_memory)
{
	unsigned long ps = self->ps;
	unsigned char want[4 * ps], got[4 * ps];
	int i;

	for (i = 0; i < 4; i += 3) {
		ASSERT_EQ(SRC + i * ps, peer_mmap(self->src, SRC + i * ps, ps, RW,
						  MAP_SHARED | MAP_ANONYMOUS |
						  MAP_FIXED_NOREPLACE, -1));
		ASSERT_EQ(DST + i * ps, peer_mmap(self->dst, DST + i * ps, ps, RW,
						  MAP_SHARED | MAP_ANONYMOUS |
						  MAP_FIXED_NOREPLACE, -1));
	}
	ASSERT_EQ(0, peer_map(self->src, SRC + ps, 2 * ps, RW));
	ASSERT_EQ(0, peer_map(self->dst, DST + ps, 2 * ps, RW));
	ASSERT_EQ(0, peer_fill(self->src, SRC, 4 * ps, 1));
	ASSERT_EQ(0, peer_fill(self->dst, DST, 4 * ps, 2));
	ASSERT_DPUT(100, 4 * ps - 200, 0);
	pattern(want, 4 * ps, 0, 2);
	pattern(want + 100, 4 * ps - 200, 100, 1);
	ASSERT_EQ(0, peer_read(self->dst, DST, got, 4 * ps));
	EXPECT_EQ(0, memcmp(want, got, 4 * ps));
	EXPECT_STREQ("rw-s", proc_perms(self->dst->pid, DST));
	EXPECT_STREQ("rw-p", proc_perms(self->dst->pid, DST + ps));
	EXPECT_STREQ("rw-s", proc_perms(self->dst->pid, DST + 3 * ps));
	EXPECT_ISOLATED(4 * ps);
}

/* Shared mappings in the way are replaced, and their file is not touched. */
TEST_F(dput, replaces_shared_mapping)
{
	unsigned long ps = self->ps, other = DST + 64 * ps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	ASSERT_EQ(DST, peer_mmap(self->dst, DST, 4 * ps, RW, MAP_SHARED |
				 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1));
	ASSERT_EQ(0, peer_fill(self->dst, DST, 4 * ps, 2));
	/* Keep the object: move one part of the mapping away. */
	ASSERT_EQ(0, peer_mremap(self->dst, DST, ps, other));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	EXPECT_EQ(-1, peer_verify(self->dst, other, ps, 2));
	EXPECT_STREQ("rw-p", proc_perms(self->dst->pid, DST));
	EXPECT_ISOLATED(4 * ps);
}

struct checker {
	unsigned long addr, ps;
	int nr;
};

/* One-page mappings, every other one of which is read-only, each with its pattern */
static long op_many(void *arg)
{
	struct checker *c = arg;
	int i;

	if (mmap((void *)c->addr, c->nr * c->ps, RW, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_FIXED_NOREPLACE, -1, 0) != (void *)c->addr)
		return -1;
	for (i = 0; i < c->nr; i++) {
		unsigned long *w = (void *)(c->addr + i * c->ps);

		w[0] = i + 1;
		w[c->ps / sizeof(*w) - 1] = ~i;
		if (i % 2 && mprotect(w, c->ps, PROT_READ))
			return -1;
	}
	return 0;
}

/* The first page that differs, or -1; first and last are left to the caller. */
static long op_check_many(void *arg)
{
	struct checker *c = arg;
	int i;

	for (i = 1; i < c->nr - 1; i++) {
		unsigned long *w = (void *)(c->addr + i * c->ps);

		if (w[0] != (unsigned long)i + 1 ||
		    w[c->ps / sizeof(*w) - 1] != (unsigned long)~i)
			return i;
	}
	return -1;
}

static bool perms_alternate(pid_t pid, unsigned long addr, int nr)
{
	char *maps = proc_maps(pid, addr, addr + nr * page_size()), *c = maps;
	unsigned long s, e;
	bool ret = true;
	char w;
	int i;

	for (i = 0; ret && i < nr; i++) {
		ret = c && sscanf(c, "%lx-%lx r%c", &s, &e, &w) == 3 &&
		      e - s == page_size() && s == addr + i * page_size() &&
		      w == (i % 2 ? '-' : 'w');
		c = strchr(c, '\n');
		c = c ? c + 1 : NULL;
	}
	free(maps);
	return ret;
}

TEST_F(dput, many_mappings)
{
	unsigned long ps = self->ps;
	struct checker c = { .addr = SRC, .ps = ps, .nr = 1000 };
	char *maps, *now;

	ASSERT_EQ(0, peer_call(self->src, op_many, &c, sizeof(c)));
	MAP_FILLED(self->dst, DST, ps, 2);
	maps = proc_maps(self->src->pid, SRC, SRC + c.nr * ps);
	ASSERT_DPUT(16, c.nr * ps - 32, 0);
	now = proc_maps(self->src->pid, SRC, SRC + c.nr * ps);
	EXPECT_STREQ(maps, now);
	free(maps);
	free(now);
	EXPECT_TRUE(perms_alternate(self->dst->pid, DST, c.nr));
	EXPECT_EQ(-1, peer_call(self->src, op_check_many, &c, sizeof(c)));
	c.addr = DST;
	EXPECT_EQ(-1, peer_call(self->dst, op_check_many, &c, sizeof(c)));
	EXPECT_FALSE(peer_writable(self->dst, DST + ps));
	EXPECT_TRUE(peer_writable(self->dst, DST + 2 * ps));
	/* Over them again, with the protections the other way round in between */
	ASSERT_EQ(0, peer_mprotect(self->dst, DST, c.nr * ps, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, DST, c.nr, 0, 1, 7));
	ASSERT_DPUT(0, c.nr * ps, 0);
	EXPECT_TRUE(perms_alternate(self->dst->pid, DST, c.nr));
	EXPECT_EQ(-1, peer_call(self->dst, op_check_many, &c, sizeof(c)));
}

/* What a copy has of its source's other properties, and what it has not */

TEST_F(dput, guard_region)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_madvise(self->src, SRC + ps, ps, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions: %s", strerror(errno));
	MAP_FILLED(self->dst, DST, 4 * ps, 2);
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_TRUE(peer_readable(self->dst, DST));
	EXPECT_FALSE(peer_readable(self->dst, DST + ps));
	EXPECT_FALSE(peer_readable(self->src, SRC + ps));
	EXPECT_TRUE(peer_readable(self->dst, DST + 2 * ps));
	ASSERT_EQ(0, peer_madvise(self->dst, DST + ps, ps, MADV_GUARD_REMOVE));
	EXPECT_TRUE(all_zero(self->dst, DST + ps, ps));
	EXPECT_FALSE(peer_readable(self->src, SRC + ps));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, ps, 1));
}

/* A stack whose lowest pages have been replaced ends there. */
TEST_F(dput, stack_does_not_grow)
{
	unsigned long ps = self->ps, low = DST + 256 * ps;

	MAP_FILLED(self->src, SRC, 2 * ps, 1);
	ASSERT_EQ(low, peer_mmap(self->dst, low, 8 * ps, RW, MAP_PRIVATE | MAP_ANONYMOUS |
				 MAP_FIXED_NOREPLACE | MAP_GROWSDOWN, -1));
	if (!proc_vmflag(self->dst->pid, low, "gd"))
		SKIP(return, "no mapping grows down here");
	/* So far it does. */
	low -= ps;
	ASSERT_TRUE(peer_writable(self->dst, low));
	ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, low, 2 * ps, 0));
	EXPECT_FALSE(peer_writable(self->dst, low - ps));
	EXPECT_EQ(0, proc_mapped(self->dst->pid, low - ps, ps));
	EXPECT_EQ(-1, peer_verify(self->dst, low, 2 * ps, 1));
}

static long op_mlock(void *arg)
{
	unsigned long *a = arg;

	return mlock((void *)a[0], a[1]);
}

static long op_mlockall(void *arg)
{
	return mlockall(*(int *)arg);
}

TEST_F(dput, mlock_not_inherited)
{
	unsigned long ps = self->ps, arg[] = { SRC, 4 * ps };

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_call(self->src, op_mlock, arg, sizeof(arg)))
		SKIP(return, "mlock: %s", strerror(errno));
	ASSERT_TRUE(proc_vmflag(self->src->pid, SRC, "lo"));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_FALSE(proc_vmflag(self->dst->pid, DST, "lo"));
	EXPECT_TRUE(proc_vmflag(self->src->pid, SRC, "lo"));
	EXPECT_EQ(4 * ps / 1024, proc_status_kb(self->src->pid, "VmLck"));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	EXPECT_ISOLATED(4 * ps);
}

TEST_F(dput, mlocked_destination_replaced)
{
	unsigned long ps = self->ps, arg[] = { DST, 4 * ps };

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	MAP_FILLED(self->dst, DST, 4 * ps, 2);
	if (peer_call(self->dst, op_mlock, arg, sizeof(arg)))
		SKIP(return, "mlock: %s", strerror(errno));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_FALSE(proc_vmflag(self->dst->pid, DST, "lo"));
	EXPECT_EQ(0, proc_status_kb(self->dst->pid, "VmLck"));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
}

TEST_F(dput, mcl_future)
{
	unsigned long ps = self->ps;
	int flags = MCL_FUTURE;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_EQ(0, peer_call(self->dst, op_mlockall, &flags, sizeof(flags)));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST, "lo"));
	EXPECT_EQ(4 * ps / 1024, proc_status_kb(self->dst->pid, "VmLck"));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	EXPECT_ISOLATED(4 * ps);
}

/* What the source has never touched is there afterwards, unless it need not be. */
TEST_F(dput, mcl_future_populates)
{
	unsigned long ps = self->ps;
	int flags = MCL_FUTURE, i, k;

	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_EQ(0, peer_map(self->src, SRC, 6 * ps, RW));
	ASSERT_EQ(0, peer_fill(self->src, SRC, 2 * ps, 1));
	for (k = 0; k < 2; k++) {
		ASSERT_EQ(0, peer_call(self->dst, op_mlockall, &flags, sizeof(flags)));
		/* Ragged: the pages of the ends that are mapped for it are locked, too. */
		ASSERT_DPUT(8, 6 * ps - 16, 0);
		for (i = 0; i < 6; i++) {
			EXPECT_TRUE(proc_vmflag(self->dst->pid, DST + i * ps, "lo"));
			EXPECT_EQ(k, proc_vmflag(self->dst->pid, DST + i * ps, "lf"));
			if (i == 0 || i == 1 || i == 5 || !k) {
				EXPECT_NE(0, proc_pagemap(self->dst->pid, DST + i * ps) &
					     PM_PRESENT)
					TH_LOG("page %d", i);
			} else {
				EXPECT_EQ(0, proc_pagemap(self->dst->pid, DST + i * ps) &
					     PM_PRESENT)
					TH_LOG("page %d", i);
			}
		}
		EXPECT_EQ(6 * ps / 1024, proc_status_kb(self->dst->pid, "VmLck"));
		EXPECT_EQ(0, peer_munmap(self->dst, DST, 6 * ps));
		EXPECT_EQ(0, proc_status_kb(self->dst->pid, "VmLck"));
		flags = MCL_FUTURE | MCL_ONFAULT;
	}
}

/* An older copy that is not locked is not what is wanted. */
TEST_F(dput, mcl_future_over_older_copy)
{
	unsigned long ps = self->ps;
	int flags = MCL_FUTURE;

	if (geteuid())
		SKIP(return, "needs root");
	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	ASSERT_DPUT(0, 4 * ps, 0);
	ASSERT_EQ(0, peer_call(self->dst, op_mlockall, &flags, sizeof(flags)));
	ASSERT_FALSE(proc_vmflag(self->dst->pid, DST, "lo"));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST, "lo"));
	EXPECT_EQ(4 * ps / 1024, proc_status_kb(self->dst->pid, "VmLck"));
	/* And one that is */
	ASSERT_EQ(0, peer_fill(self->src, SRC + ps, 3 * ps, 2));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST, "lo"));
	EXPECT_EQ(4 * ps / 1024, proc_status_kb(self->dst->pid, "VmLck"));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, ps, 1));
	EXPECT_EQ(-1, peer_verify(self->dst, DST + ps, 3 * ps, 2));
	EXPECT_ISOLATED(4 * ps);
}

TEST_F(dput, seal_not_inherited)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_mseal(self->src, SRC, 4 * ps))
		SKIP(return, "mseal: %s", strerror(errno));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	EXPECT_EQ(0, peer_munmap(self->dst, DST, 4 * ps));
}

TEST_F(dput, advice_inherited)
{
	unsigned long ps = self->ps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_madvise(self->src, SRC, ps, MADV_NOHUGEPAGE) ||
	    peer_madvise(self->src, SRC + ps, ps, MADV_HUGEPAGE))
		SKIP(return, "no transparent huge pages: %s", strerror(errno));
	ASSERT_EQ(0, peer_madvise(self->src, SRC + 2 * ps, ps, MADV_DONTDUMP));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST, "nh"));
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST + ps, "hg"));
	EXPECT_TRUE(proc_vmflag(self->dst->pid, DST + 2 * ps, "dd"));
	EXPECT_FALSE(proc_vmflag(self->dst->pid, DST + 3 * ps, "hg"));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
}

static long op_name(void *arg)
{
	unsigned long *a = arg;

	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, a[0], a[1], "dput-test");
}

TEST_F(dput, name_inherited)
{
	unsigned long ps = self->ps, arg[] = { SRC, 4 * ps };
	char *maps;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_call(self->src, op_name, arg, sizeof(arg)))
		SKIP(return, "no names: %s", strerror(errno));
	ASSERT_DPUT(0, 4 * ps, 0);
	maps = proc_maps(self->dst->pid, DST, DST + 4 * ps);
	EXPECT_TRUE(!!strstr(maps, "[anon:dput-test]"));
	free(maps);
}

static long op_mbind(void *arg)
{
	unsigned long *a = arg, mask = 1;

	return syscall(__NR_mbind, a[0], a[1], MPOL_BIND, &mask, 8, 0);
}

static long op_mempolicy(void *arg)
{
	unsigned long addr = *(unsigned long *)arg;
	int mode;

	if (syscall(__NR_get_mempolicy, &mode, NULL, 0, addr, MPOL_F_ADDR))
		return -1;
	return mode;
}

TEST_F(dput, mempolicy_inherited)
{
	unsigned long ps = self->ps, arg[] = { SRC, 4 * ps }, dst = DST;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (peer_call(self->src, op_mbind, arg, sizeof(arg)))
		SKIP(return, "mbind: %s", strerror(errno));
	ASSERT_DPUT(0, 4 * ps, 0);
	EXPECT_EQ(MPOL_BIND, peer_call(self->dst, op_mempolicy, &dst, sizeof(dst)));
}

static long op_clear_soft_dirty(void *arg)
{
	return setting_write("/proc/self/clear_refs", "4");
}

TEST_F(dput, copy_is_soft_dirty)
{
	unsigned long ps = self->ps;
	int i;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	if (!soft_dirty_supported())
		SKIP(return, "soft-dirty tracking is not supported");
	ASSERT_EQ(0, peer_call(self->src, op_clear_soft_dirty, NULL, 0));
	ASSERT_EQ(0, proc_pagemap(self->src->pid, SRC) & PM_SOFT_DIRTY);
	ASSERT_DPUT(0, 4 * ps, 0);
	for (i = 0; i < 4; i++)
		EXPECT_NE(0, proc_pagemap(self->dst->pid, DST + i * ps) & PM_SOFT_DIRTY);
	EXPECT_EQ(0, proc_pagemap(self->src->pid, SRC) & PM_SOFT_DIRTY);
}

/* So are partial pages, which somebody has written to, and one that is mapped for that. */
TEST_F(dput, partial_pages_are_soft_dirty)
{
	unsigned long ps = self->ps;
	int i;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	MAP_FILLED(self->dst, DST, 3 * ps, 2);
	if (!soft_dirty_supported())
		SKIP(return, "soft-dirty tracking is not supported");
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, peer_call(self->dst, op_clear_soft_dirty, NULL, 0));
		ASSERT_EQ(0, proc_pagemap(self->dst->pid, DST) & PM_SOFT_DIRTY);
		ASSERT_EQ(0, proc_pagemap(self->dst->pid, DST + 2 * ps) & PM_SOFT_DIRTY);
		/* The first one ends in a page that is there, the other one in a hole. */
		ASSERT_DPUT(10, (3 + i) * ps - 20, 0);
		EXPECT_NE(0, proc_pagemap(self->dst->pid, DST) & PM_SOFT_DIRTY);
		EXPECT_NE(0, proc_pagemap(self->dst->pid, DST + (2 + i) * ps) & PM_SOFT_DIRTY);
	}
	/* Within one page */
	ASSERT_EQ(0, peer_call(self->dst, op_clear_soft_dirty, NULL, 0));
	ASSERT_DPUT(ps + 8, 8, 0);
	EXPECT_NE(0, proc_pagemap(self->dst->pid, DST + ps) & PM_SOFT_DIRTY);
}

/* A page that is pinned for I/O stays with the owner of the pin. */
struct pin_arg {
	unsigned long addr, len;
};

static long op_pin(void *arg)
{
	struct pin_arg *a = arg;

	return pin_memory(a->addr, a->len);
}

TEST_F(dput, pinned_page_stays)
{
	unsigned long ps = self->ps, pfn, dst_pfn;
	struct pin_arg arg = { SRC + ps, ps };

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	pfn = proc_pfn(self->src->pid, SRC + ps);
	if (!pfn)
		SKIP(return, "page frame numbers are hidden: needs root");
	if (peer_call(self->src, op_pin, &arg, sizeof(arg)) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	ASSERT_DPUT(0, 4 * ps, 0);
	dst_pfn = proc_pfn(self->dst->pid, DST + ps);
	EXPECT_NE(pfn, dst_pfn);
	EXPECT_NE(0, dst_pfn);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, 4 * ps, 1));
	EXPECT_ISOLATED(4 * ps);
	EXPECT_EQ(pfn, proc_pfn(self->src->pid, SRC + ps));
	/* Its neighbours were shared, and are not any more. */
	EXPECT_NE(proc_pfn(self->src->pid, SRC), proc_pfn(self->dst->pid, DST));
}

/* Without a write on either side, nothing has been copied. */
TEST_F(dput, pages_are_shared)
{
	unsigned long ps = self->ps, pfn[4];
	int i;

	MAP_FILLED(self->src, SRC, 4 * ps, 1);
	for (i = 0; i < 4; i++)
		pfn[i] = proc_pfn(self->src->pid, SRC + i * ps);
	if (!pfn[0])
		SKIP(return, "page frame numbers are hidden: needs root");
	ASSERT_DPUT(10, 4 * ps - 20, 0);
	for (i = 0; i < 4; i++) {
		EXPECT_EQ(pfn[i], proc_pfn(self->src->pid, SRC + i * ps));
		/* The partial pages never are. */
		EXPECT_EQ(i == 1 || i == 2,
			  pfn[i] == proc_pfn(self->dst->pid, DST + i * ps));
		EXPECT_EQ(i == 0 || i == 3 ? 1 : 2, kpagecount(pfn[i]));
	}
}

/* RSS and sizes are those of the process that they belong to. */
TEST_F(dput, accounting)
{
	unsigned long ps = self->ps;
	long src_size, dst_size, src_data, dst_data, kb = 256 * ps / 1024;

	ASSERT_EQ(0, peer_map(self->src, SRC, 256 * ps, RW));
	ASSERT_EQ(0, peer_stamp(self->src, SRC, 256, 0, 1, 1));
	src_size = proc_status_kb(self->src->pid, "VmSize");
	src_data = proc_status_kb(self->src->pid, "VmData");
	dst_size = proc_status_kb(self->dst->pid, "VmSize");
	dst_data = proc_status_kb(self->dst->pid, "VmData");
	ASSERT_DPUT(0, 256 * ps, 0);
	if (self->src != self->dst) {
		EXPECT_EQ(src_size, proc_status_kb(self->src->pid, "VmSize"));
		EXPECT_EQ(src_data, proc_status_kb(self->src->pid, "VmData"));
	}
	EXPECT_EQ(dst_size + kb, proc_status_kb(self->dst->pid, "VmSize"));
	EXPECT_EQ(dst_data + kb, proc_status_kb(self->dst->pid, "VmData"));
	EXPECT_EQ(kb, proc_smaps_kb(self->dst->pid, DST, DST + 256 * ps, "Rss"));
	/* Replaced, and the numbers stay. */
	ASSERT_DPUT(0, 256 * ps, 0);
	EXPECT_EQ(dst_size + kb, proc_status_kb(self->dst->pid, "VmSize"));
	EXPECT_EQ(dst_data + kb, proc_status_kb(self->dst->pid, "VmData"));
	/* By holes */
	ASSERT_EQ(0, peer_munmap(self->src, SRC, 256 * ps));
	ASSERT_DPUT(0, 256 * ps, DPUT_HOLES);
	EXPECT_EQ(self->src == self->dst ? dst_size - kb : dst_size,
		  proc_status_kb(self->dst->pid, "VmSize"));
}

/* 4 pages at the end of a piece of the heap that malloc() does not know of */
static long op_grow_heap(void *arg)
{
	size_t size = 16 * page_size();
	char *p = sbrk(size);

	if (p == (void *)-1)
		return -1;
	return (((unsigned long)p + size) & -page_size()) - 4 * page_size();
}

static long op_break(void *arg)
{
	return syscall(__NR_brk, 0);
}

/* The program break stays, whatever is copied of or over the heap, and works. */
TEST_F(dput, program_break)
{
	unsigned long from, to, next;
	size_t len = 4 * self->ps;
	long src_break, dst_break;

	from = peer_call(self->src, op_grow_heap, NULL, 0);
	to = peer_call(self->dst, op_grow_heap, NULL, 0);
	ASSERT_NE(-1UL, from);
	ASSERT_NE(-1UL, to);
	MAP_FILLED(self->src, SRC, len, 1);
	ASSERT_EQ(0, peer_fill(self->src, from, len, 2));
	src_break = peer_call(self->src, op_break, NULL, 0);
	dst_break = peer_call(self->dst, op_break, NULL, 0);
	ASSERT_EQ(0, peer_dput(self->src, from, self->dst, DST, len, 0));
	ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, to, len, 0));
	EXPECT_EQ(src_break, peer_call(self->src, op_break, NULL, 0));
	EXPECT_EQ(dst_break, peer_call(self->dst, op_break, NULL, 0));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 2));
	EXPECT_EQ(-1, peer_verify(self->dst, to, len, 1));
	next = peer_call(self->dst, op_grow_heap, NULL, 0);
	ASSERT_EQ(dst_break + 16 * self->ps, peer_call(self->dst, op_break, NULL, 0));
	EXPECT_EQ(0, peer_fill(self->dst, next, len, 3));
	EXPECT_EQ(-1, peer_verify(self->dst, to, len, 1));
}

/* Each way to name a process */
TEST_F(dput, pidfd_kinds)
{
	size_t len = 4 * self->ps;
	int src[3], dst[3], i, j;

	src[0] = self->src->pidfd;
	dst[0] = self->dst->pidfd;
	src[1] = sys_pidfd_open(self->src->pid, 0);
	dst[1] = sys_pidfd_open(self->dst->pid, 0);
	src[2] = self->src == &self->s.me ? PIDFD_SELF_PROCESS :
		 sys_pidfd_open(self->src->pid, PIDFD_THREAD);
	dst[2] = self->dst == &self->s.me ? PIDFD_SELF_PROCESS :
		 sys_pidfd_open(self->dst->pid, PIDFD_THREAD);
	MAP_FILLED(self->src, SRC, len, 1);
	for (i = 0; i < 3; i++)
		for (j = 0; j < 3; j++) {
			EXPECT_EQ(0, sys_dput(src[i], SRC, dst[j], DST, len, 0));
			EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
			ASSERT_EQ(0, peer_fill(self->dst, DST, len, 2));
		}
}

/* The source may exit, and the destination keeps what it has. */
TEST_F(dput, source_exits)
{
	size_t len = 8 * self->ps;

	if (self->src == self->dst || self->src == &self->s.me)
		SKIP(return, "the source is not a process of its own");
	MAP_FILLED(self->src, SRC, len, 1);
	ASSERT_DPUT(0, len, 0);
	peer_stop(self->src);
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
	ASSERT_EQ(0, peer_fill(self->dst, DST, len, 2));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 2));
}

/* fork() of either side sees what the side saw. */
TEST_F(dput, fork_after)
{
	size_t len = 8 * self->ps;
	struct peer sc, dc;

	MAP_FILLED(self->src, SRC, len, 1);
	ASSERT_DPUT(0, len, 0);
	ASSERT_EQ(0, peer_fork(self->src, &sc));
	ASSERT_EQ(0, peer_fork(self->dst, &dc));
	ASSERT_EQ(0, peer_fill(self->src, SRC, len, 2));
	ASSERT_EQ(0, peer_fill(self->dst, DST, len, 3));
	EXPECT_EQ(-1, peer_verify(&sc, SRC, len, 1));
	EXPECT_EQ(-1, peer_verify(&dc, DST, len, 1));
	ASSERT_EQ(0, peer_fill(&dc, DST, len, 4));
	EXPECT_EQ(-1, peer_verify(&sc, SRC, len, 1));
	ASSERT_EQ(0, peer_fill(&sc, SRC, len, 5));
	EXPECT_EQ(-1, peer_verify(self->src, SRC, len, 2));
	EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 3));
	EXPECT_EQ(-1, peer_verify(&dc, DST, len, 4));
	peer_kill(&sc);
	peer_kill(&dc);
}

/* mremap() of either side keeps both. */
TEST_F(dput, mremap_after)
{
	unsigned long to = DST + (1UL << 25);
	size_t len = 8 * self->ps;

	MAP_FILLED(self->src, SRC, len, 1);
	ASSERT_DPUT(0, len, 0);
	ASSERT_EQ(0, peer_mremap(self->dst, DST, len, to));
	EXPECT_EQ(-1, peer_verify(self->dst, to, len, 1));
	ASSERT_EQ(0, peer_fill(self->dst, to, len, 2));
	EXPECT_EQ(-1, peer_verify(self->src, SRC, len, 1));
	ASSERT_EQ(0, peer_mremap(self->src, SRC, len, to + (1UL << 24)));
	ASSERT_EQ(0, peer_fill(self->src, to + (1UL << 24), len, 3));
	EXPECT_EQ(-1, peer_verify(self->dst, to, len, 2));
}

/* Where mmap() maps nothing unless asked to: page tables may need more levels. */
TEST_F(dput, high)
{
#if __SIZEOF_LONG__ == 8
	const unsigned long to[] = { DST + (1UL << 43), DST + (1UL << 54) };
	size_t len = 8 * self->ps;
	struct peer probe, child;
	int i, n;

	ASSERT_EQ(0, peer_start(&probe));
	for (n = 0; n < 2 && !peer_map(&probe, to[n], len, RW); n++)
		;
	peer_stop(&probe);
	if (!n)
		SKIP(return, "no address is so high");
	MAP_FILLED(self->src, SRC, len, 1);
	for (i = 0; i < n; i++) {
		/* Ragged, so that a page is mapped, too */
		ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, to[i], len - 8, 0));
		EXPECT_EQ(-1, peer_verify(self->dst, to[i], len - 8, 1));
		ASSERT_EQ(0, peer_fill(self->dst, to[i], len, 2));
		EXPECT_EQ(-1, peer_verify(self->src, SRC, len, 1));
		ASSERT_EQ(0, peer_fork(self->dst, &child));
		EXPECT_EQ(-1, peer_verify(&child, to[i], len, 2));
		peer_kill(&child);
		/* And back */
		ASSERT_EQ(0, peer_dput(self->dst, to[i], self->src, SRC, len - 8, 0));
		EXPECT_EQ(-1, peer_verify(self->src, SRC, len - 8, 2));
		ASSERT_EQ(0, peer_fill(self->src, SRC, len, 1));
	}
#else
	SKIP(return, "no address is so high");
#endif
}

/* Have the kernel take addresses with tags, where the CPU ignores these. */
static long op_allow_tags(void *arg)
{
#if defined(__x86_64__) && defined(__LP64__)
	return syscall(SYS_arch_prctl, 0x4002 /* ARCH_ENABLE_TAGGED_ADDR */, 6UL);
#elif defined(__aarch64__)
	return prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, 0, 0, 0);
#else
	errno = EOPNOTSUPP;
	return -1;
#endif
}

/* Tags of addresses are ignored, on either side. */
TEST_F(dput, tagged_addresses)
{
	/* Bits that are there with LAM_U57 as well as with arm64's Top Byte Ignore */
	const unsigned long tags[] = { 0, (unsigned long)(0x2aULL << 57) };
	size_t len = 4 * self->ps;
	char want[8], got[8];
	int i;

	if (peer_call(self->src, op_allow_tags, NULL, 0) ||
	    (self->src != self->dst && peer_call(self->dst, op_allow_tags, NULL, 0)))
		SKIP(return, "no tags in addresses: %s", strerror(errno));
	MAP_FILLED(self->src, SRC, len, 1);
	MAP_FILLED(self->dst, DST, len, 2);
	pattern(want, sizeof(want), 8, 1);
	for (i = 0; i < 4; i++) {
		const unsigned long src = SRC | tags[i & 1], dst = DST | tags[i >> 1];

		EXPECT_EQ(0, peer_dput(self->src, src, self->dst, dst, len, 0))
			TH_LOG("%#lx to %#lx: %s", src, dst, strerror(errno));
		EXPECT_EQ(-1, peer_verify(self->dst, DST, len, 1));
		ASSERT_EQ(0, peer_fill(self->dst, DST, len, 2));
		EXPECT_EQ(0, peer_dput(self->src, src + 8, self->dst, dst + 8, 8, 0));
		ASSERT_EQ(0, peer_read(self->dst, DST + 8, got, 8));
		EXPECT_EQ(0, memcmp(want, got, 8));
	}
}

/* The last pages that there are: what lies above them may be address 0. */
TEST_F(dput, top)
{
#if __SIZEOF_LONG__ == 8
	size_t ps = self->ps, len = 16 * ps, around = 24 * ps;
	const unsigned long to = DST + around;
	unsigned long top = 0;
	struct peer probe;
	int bits, i;

	ASSERT_EQ(0, peer_start(&probe));
	for (bits = 64; !top && bits > 32; bits--) {
		top = (bits == 64 ? 0 : 1UL << bits) - ps - len;
		if (peer_map(&probe, top, len, RW))
			top = 0;
	}
	peer_stop(&probe);
	ASSERT_NE(0, top);
	MAP_FILLED(self->src, top, len, 1);
	MAP_FILLED(self->dst, DST, around, 7);
	MAP_FILLED(self->dst, to, len, 8);
	MAP_FILLED(self->dst, to + len, around, 9);
	/* The first time, and over an older copy */
	for (i = 1; i < 4; i++) {
		ASSERT_EQ(0, peer_dput(self->src, top, self->dst, to, len, 0));
		EXPECT_EQ(-1, peer_verify(self->dst, DST, around, 7));
		EXPECT_EQ(-1, peer_verify(self->dst, to, len, i));
		EXPECT_EQ(-1, peer_verify(self->dst, to + len, around, 9));
		EXPECT_EQ(-1, peer_verify(self->src, top, len, i));
		ASSERT_EQ(0, peer_fill(self->src, top, len, i + 1));
	}
	/* And back */
	ASSERT_EQ(0, peer_dput(self->dst, to, self->src, top, len - 8, 0));
	EXPECT_EQ(-1, peer_verify(self->src, top, len - 8, 3));
	EXPECT_EQ(-1, peer_verify(self->dst, to, len, 3));
#else
	SKIP(return, "mmap() ends far below");
#endif
}

#ifdef __aarch64__

#ifndef PROT_MTE
#define PROT_MTE		0x20
#endif
#define TAG_BYTES		16
#define TAG_ASM			".arch armv8.5-a+memtag\n\t"

/* The same for all of a page: QEMU 7.2 keeps no more than that. */
static unsigned long tag_of(size_t granule, unsigned long seed)
{
	return (granule * TAG_BYTES / page_size() * 3 + seed) & 15;
}

/* Tags of memory: of each 16 bytes, by a number */
static long op_set_tags(void *arg)
{
	unsigned long *a = arg, i;

	for (i = 0; i < a[1] / TAG_BYTES; i++) {
		unsigned long p = (a[0] + i * TAG_BYTES) | tag_of(i, a[2]) << 56;

		asm volatile(TAG_ASM "stg %0, [%0]" : : "r" (p) : "memory");
	}
	return 0;
}

/* The first that is wrong, or -1 */
static long op_check_tags(void *arg)
{
	unsigned long *a = arg, i;

	for (i = 0; i < a[1] / TAG_BYTES; i++) {
		unsigned long p = a[0] + i * TAG_BYTES, tagged = p;

		asm volatile(TAG_ASM "ldg %0, [%1]" : "+r" (tagged) : "r" (p));
		if ((tagged >> 56 & 15) != tag_of(i, a[2]))
			return i;
	}
	return -1;
}

static long set_tags(struct peer *p, unsigned long addr, size_t len, unsigned long seed)
{
	unsigned long a[] = { addr, len, seed };

	return peer_call(p, op_set_tags, a, sizeof(a));
}

static long check_tags(struct peer *p, unsigned long addr, size_t len, unsigned long seed)
{
	unsigned long a[] = { addr, len, seed };

	return peer_call(p, op_check_tags, a, sizeof(a));
}

/* Tags are part of the memory: they are copied with it, and then each side's own. */
TEST_F(dput, memory_tags)
{
	struct pin_arg pin = { SRC, 2 * self->ps };
	unsigned long ps = self->ps;
	size_t len = 4 * ps;
	int i;

	if (peer_mmap(self->src, SRC, len, RW | PROT_MTE, MAP_PRIVATE | MAP_ANONYMOUS |
		      MAP_FIXED_NOREPLACE, -1) != SRC)
		SKIP(return, "no memory tagging: %s", strerror(errno));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, peer_fill(self->src, SRC, len, 1));
		ASSERT_EQ(0, set_tags(self->src, SRC, len, 1));
		/* At the second time, some pages are pinned, and so copied at once. */
		if (i)
			ASSERT_LE(0, peer_call(self->src, op_pin, &pin, sizeof(pin)));
		ASSERT_DPUT(0, len, 0);
		EXPECT_TRUE(proc_vmflag(self->dst->pid, DST, "mt"));
		EXPECT_EQ(-1, check_tags(self->dst, DST, len, 1));
		/* Either side's write leaves them alone, ... */
		ASSERT_EQ(0, peer_fill(self->dst, DST, 3 * ps, 2));
		EXPECT_EQ(-1, check_tags(self->dst, DST, len, 1));
		ASSERT_EQ(0, peer_fill(self->src, SRC + ps, 3 * ps, 3));
		EXPECT_EQ(-1, check_tags(self->src, SRC, len, 1));
		/* ... and they can be changed without the other's seeing it. */
		ASSERT_EQ(0, set_tags(self->dst, DST, len, 5));
		EXPECT_EQ(-1, check_tags(self->src, SRC, len, 1));
		ASSERT_EQ(0, set_tags(self->src, SRC, len, 6));
		EXPECT_EQ(-1, check_tags(self->dst, DST, len, 5));
	}
	/* Bytes are copied without the tags, which are of 16 bytes. */
	ASSERT_DPUT(8, 16, 0);
	EXPECT_EQ(-1, check_tags(self->dst, DST, len, 5));
}

#endif /* __aarch64__ */

TEST_HARNESS_MAIN
