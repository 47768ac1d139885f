// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) while others write, map, fork, execute and exit on either side.
 *
 * DPUT_SEED and DPUT_ITERATIONS in the environment choose another course of
 * events, and more or less of them.
 */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define SRC		(ARENA + 64 * page_size())
#define DST		(ARENA + (1UL << 26) + 7 * page_size())

/* More than DPUT_ITERATIONS may need: who runs it has a deadline of its own. */
#define LONG		14400

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

/* In the log of each test that it is for, with what else belongs to that test */
static unsigned int seed(void)
{
	unsigned int n = env_number("DPUT_SEED", 1);
	static bool said;

	if (!said && getenv("DPUT_SEED"))
		fprintf(stderr, "# DPUT_SEED=%u\n", n);
	said = true;
	return n;
}

/*
 * An older copy would only be brought up to date, by another way through the
 * kernel: in each second round, have it replaced.
 */
static long differ(struct peer *p, unsigned long addr, size_t len, long round)
{
	return round & 1 ? peer_madvise(p, addr, len, MADV_RANDOM) : 0;
}

/*
 * An image is of one instant: each writer's numbers, in the order of its
 * writes, do not increase, and differ by one at most.
 */
#define WRITERS		2
#define PAGES		48
/* powerpc has huge pages of 32. */
#define FEW_PAGES	"huge pages of too few pages"

struct writer {
	unsigned long addr;
	int nr;
};

static struct writer writers[WRITERS];
static pthread_t threads[WRITERS];
static volatile bool writers_stop;
static volatile unsigned long rounds[WRITERS];

static void *write_in_order(void *arg)
{
	struct writer *w = arg;
	unsigned long seq, ps = page_size();
	int pg;

	for (seq = 1; !writers_stop; seq++) {
		for (pg = 0; pg < PAGES; pg++)
			__atomic_store_n((unsigned long *)(w->addr + pg * ps + w->nr * 64),
					 seq, __ATOMIC_RELEASE);
		rounds[w->nr] = seq;
	}
	return NULL;
}

static long op_start_writers(void *arg)
{
	int i;

	for (i = 0; i < WRITERS; i++) {
		writers[i].addr = *(unsigned long *)arg;
		writers[i].nr = i;
		if (pthread_create(&threads[i], NULL, write_in_order, &writers[i]))
			return -1;
	}
	for (i = 0; i < WRITERS; i++)
		while (!rounds[i])
			sched_yield();
	return 0;
}

static long op_stop_writers(void *arg)
{
	int i;

	writers_stop = true;
	for (i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

struct image {
	unsigned long addr;
	unsigned long word[WRITERS][PAGES];
};

/* Read from the last page to the first, and twice: it must not change. */
static long op_read_image(void *arg)
{
	struct image *im = arg;
	unsigned long ps = page_size();
	int again, pg, w;

	for (again = 0; again < 2; again++) {
		for (pg = PAGES - 1; pg >= 0; pg--)
			for (w = 0; w < WRITERS; w++) {
				unsigned long v = *(volatile unsigned long *)
						  (im->addr + pg * ps + w * 64);

				if (again && v != im->word[w][pg])
					return -1;
				im->word[w][pg] = v;
			}
		sched_yield();
	}
	return 0;
}

FIXTURE(instant)
{
	struct peer me, a, b;
	struct peer *src, *dst;
};

FIXTURE_VARIANT(instant)
{
	bool src_child, dst_child, dst_other, huge, whole;
};

FIXTURE_VARIANT_ADD(instant, get) { .src_child = true };
FIXTURE_VARIANT_ADD(instant, put) { .dst_child = true };
FIXTURE_VARIANT_ADD(instant, self) {};
FIXTURE_VARIANT_ADD(instant, within_child) { .src_child = true, .dst_child = true };
FIXTURE_VARIANT_ADD(instant, between) { .src_child = true, .dst_other = true };
/* By its pages, as few of them are copied, and by its PMD */
FIXTURE_VARIANT_ADD(instant, get_huge) { .src_child = true, .huge = true };
FIXTURE_VARIANT_ADD(instant, get_whole) { .src_child = true, .huge = true, .whole = true };

FIXTURE_SETUP(instant)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
	self->src = variant->src_child ? &self->a : &self->me;
	self->dst = variant->dst_other ? &self->b :
		    variant->dst_child ? &self->a : &self->me;
}

FIXTURE_TEARDOWN(instant)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
}

TEST_F_TIMEOUT(instant, writers, LONG)
{
	size_t len = PAGES * page_size(), size = len;
	unsigned long src = SRC, dst = DST, last[WRITERS] = {};
	long i, n = iterations(300), huge = 0;
	const char *reason;
	struct image im;
	int pg, w;

	if (variant->huge) {
		src = ARENA + (1UL << 28);
		size = thp_size();
		reason = size && size < len ? FEW_PAGES : folios_enable(size);
		if (reason)
			SKIP(return, "%s", reason);
	}
	if (variant->whole) {
		dst = ARENA + (1UL << 29);
		len = size;
		n = iterations(50);
	}
	if (variant->huge)
		NEED_LARGE(folios_map(self->src, src, size, size));
	else
		ASSERT_EQ(0, peer_map(self->src, src, size, RW));
	ASSERT_EQ(0, peer_call(self->src, op_start_writers, &src, sizeof(src)));
	for (i = 0; i < n; i++) {
		/* The writers break it up each time. */
		if (variant->whole)
			peer_madvise(self->src, src, size, MADV_COLLAPSE);
		huge += variant->huge && is_huge(self->src->pid, src, size);
		ASSERT_EQ(0, differ(self->dst, dst, len, i));
		ASSERT_EQ(0, peer_dput(self->src, src, self->dst, dst, len, 0))
			TH_LOG("dput: %s", strerror(errno));
		im.addr = dst;
		ASSERT_EQ(0, peer_call(self->dst, op_read_image, &im, sizeof(im)))
			TH_LOG("image %ld has changed", i);
		for (w = 0; w < WRITERS; w++) {
			for (pg = 1; pg < PAGES; pg++)
				ASSERT_GE(im.word[w][pg - 1], im.word[w][pg])
					TH_LOG("image %ld, writer %d, page %d", i, w, pg);
			ASSERT_LE(im.word[w][0], im.word[w][PAGES - 1] + 1)
				TH_LOG("image %ld, writer %d", i, w);
			/* Nor is it older than the one before. */
			ASSERT_LE(last[w], im.word[w][PAGES - 1]);
			last[w] = im.word[w][PAGES - 1];
		}
	}
	ASSERT_EQ(0, peer_call(self->src, op_stop_writers, NULL, 0));
	if (variant->huge)
		EXPECT_LT(0, huge);
	/* They did write all the while. */
	for (w = 0; w < WRITERS; w++)
		EXPECT_LT(1, last[w]);
}

/*
 * Threads write to both sides, of the same pages, while they are copied and
 * afterwards: what one side writes after the call is never seen on the other.
 */
#define SIDE_PAGES	64

struct side {
	unsigned long addr;
	int nr;			/* 0: the source, 1: the destination */
	unsigned long rounds;	/* to wait for */
	unsigned long word[SIDE_PAGES];
};

static volatile unsigned long side_rounds[2];

/* Each side has a word of its own in each page. */
static unsigned long *side_word(const struct side *s, int nr, int pg)
{
	return (unsigned long *)(s->addr + pg * page_size() + nr * 64);
}

static void *side_write(void *arg)
{
	struct side *s = arg;
	unsigned long seq;
	int pg;

	for (seq = 1; ; seq++) {
		for (pg = 0; pg < SIDE_PAGES; pg++)
			__atomic_store_n(side_word(s, s->nr, pg), seq, __ATOMIC_RELEASE);
		side_rounds[s->nr] = seq;
	}
	return NULL;
}

static long op_side_start(void *arg)
{
	static struct side sides[2];
	struct side *s = arg;
	pthread_t thread;

	sides[s->nr] = *s;
	if (pthread_create(&thread, NULL, side_write, &sides[s->nr]))
		return -1;
	while (!side_rounds[s->nr])
		sched_yield();
	return 0;
}

/* Wait for that side's thread to have written to each page since. */
static long op_side_wait(void *arg)
{
	struct side *s = arg;
	unsigned long until = side_rounds[s->nr] + 2;

	while (side_rounds[s->nr] < until)
		sched_yield();
	return 0;
}

/* What the other side's words are here */
static long op_side_read(void *arg)
{
	struct side *s = arg;
	int pg;

	for (pg = 0; pg < SIDE_PAGES; pg++)
		s->word[pg] = __atomic_load_n(side_word(s, !s->nr, pg), __ATOMIC_ACQUIRE);
	return 0;
}

FIXTURE(sides)
{
	struct peer me, a;
};

FIXTURE_VARIANT(sides)
{
	bool src_child, dst_child, huge;
};

FIXTURE_VARIANT_ADD(sides, within) {};
FIXTURE_VARIANT_ADD(sides, put) { .dst_child = true };
FIXTURE_VARIANT_ADD(sides, get) { .src_child = true };
FIXTURE_VARIANT_ADD(sides, within_huge) { .huge = true };
FIXTURE_VARIANT_ADD(sides, put_huge) { .dst_child = true, .huge = true };

FIXTURE_SETUP(sides)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
}

FIXTURE_TEARDOWN(sides)
{
	peer_kill(&self->a);
}

TEST_F_TIMEOUT(sides, write, LONG)
{
	struct peer *src = variant->src_child ? &self->a : &self->me;
	struct peer *dst = variant->dst_child ? &self->a : &self->me;
	struct side from = { .addr = SRC }, to = { .addr = DST, .nr = 1 }, now;
	size_t len = SIDE_PAGES * page_size(), size = len;
	long i, n = iterations(100), huge = 0;
	const char *reason;
	int pg;

	if (variant->huge) {
		size = thp_size();
		reason = size && size < len ? FEW_PAGES : folios_enable(size);
		if (reason)
			SKIP(return, "%s", reason);
		from.addr = ARENA + (1UL << 28);
		to.addr = ARENA + (1UL << 29);
	}
	if (variant->huge)
		NEED_LARGE(folios_map(src, from.addr, size, size));
	else
		ASSERT_EQ(0, peer_map(src, from.addr, size, RW));
	ASSERT_EQ(0, peer_stamp(src, from.addr, 1, 0, 1, 1));
	ASSERT_EQ(0, peer_dput(src, from.addr, dst, to.addr, size, 0));
	ASSERT_EQ(0, peer_call(src, op_side_start, &from, sizeof(from)));
	ASSERT_EQ(0, peer_call(dst, op_side_start, &to, sizeof(to)));
	for (i = 0; i < n; i++) {
		/* Now and then on the whole of it, and anew; what was huge is broken up. */
		if (i % 10 == 0 && variant->huge) {
			huge += !peer_madvise(src, from.addr, size, MADV_COLLAPSE);
			ASSERT_EQ(0, peer_dput(src, from.addr, dst, to.addr, size, 0));
		}
		ASSERT_EQ(0, differ(dst, to.addr, len, i));
		ASSERT_EQ(0, peer_dput(src, from.addr, dst, to.addr, len, 0))
			TH_LOG("dput: %s", strerror(errno));
		ASSERT_EQ(0, peer_call(dst, op_side_read, &to, sizeof(to)));
		now = to;
		/* Each page has been written to by both sides now. */
		ASSERT_EQ(0, peer_call(src, op_side_wait, &from, sizeof(from)));
		ASSERT_EQ(0, peer_call(dst, op_side_wait, &now, sizeof(now)));
		ASSERT_EQ(0, peer_call(dst, op_side_read, &now, sizeof(now)));
		ASSERT_EQ(0, peer_call(src, op_side_read, &from, sizeof(from)));
		for (pg = 0; pg < SIDE_PAGES; pg++) {
			ASSERT_EQ(to.word[pg], now.word[pg])
				TH_LOG("round %ld: the destination's page %d has changed", i, pg);
			ASSERT_EQ(0, from.word[pg])
				TH_LOG("round %ld: the source's page %d has changed", i, pg);
		}
	}
	/* The source's numbers were different ones each time. */
	EXPECT_LT(1, to.word[0]);
	if (variant->huge)
		TH_LOG("%ld times huge again", huge);
}

/*
 * A thread of the destination reads all the while. Each page that it finds is of
 * the last image or of the one before, as a whole, and never of an older one again.
 */
#define SEEN_PAGES	64

struct seen {
	unsigned long addr, step;	/* bytes from one page that is looked at to the next */
	unsigned long image;		/* to write, or to wait for */
};

static struct seen seen;
static volatile bool seen_stop;
static volatile unsigned long seen_rounds, seen_last[SEEN_PAGES];
static volatile long seen_bad;

static unsigned long *seen_word(const struct seen *s, int pg, bool last)
{
	return (unsigned long *)(s->addr + pg * s->step + (last ? page_size() : sizeof(long))) - 1;
}

static void *see(void *arg)
{
	unsigned long first, last;
	int pg;

	for (; !seen_stop; seen_rounds++) {
		for (pg = 0; pg < SEEN_PAGES; pg++) {
			first = __atomic_load_n(seen_word(&seen, pg, false), __ATOMIC_ACQUIRE);
			last = __atomic_load_n(seen_word(&seen, pg, true), __ATOMIC_ACQUIRE);
			if (first % SEEN_PAGES != (unsigned long)pg ||
			    last % SEEN_PAGES != (unsigned long)pg ||
			    first < seen_last[pg] || last < first)
				seen_bad = pg + 1;
			seen_last[pg] = last;
		}
	}
	return NULL;
}

static pthread_t seen_thread;

static long op_see(void *arg)
{
	seen = *(struct seen *)arg;
	return pthread_create(&seen_thread, NULL, see, NULL) ? -1 : 0;
}

static long op_see_no_more(void *arg)
{
	seen_stop = true;
	return pthread_join(seen_thread, NULL);
}

static long op_seen_write(void *arg)
{
	struct seen *s = arg;
	int pg;

	for (pg = 0; pg < SEEN_PAGES; pg++) {
		*seen_word(s, pg, false) = s->image * SEEN_PAGES + pg;
		*seen_word(s, pg, true) = s->image * SEEN_PAGES + pg;
	}
	return 0;
}

/* The first page that is wrong, or not of that image after another look, or -1 */
static long op_seen(void *arg)
{
	unsigned long until = seen_rounds + 2;
	struct seen *s = arg;
	int pg;

	while (seen_rounds < until)
		sched_yield();
	if (seen_bad)
		return seen_bad - 1;
	for (pg = 0; pg < SEEN_PAGES; pg++)
		if (seen_last[pg] / SEEN_PAGES != s->image)
			return pg;
	return -1;
}

FIXTURE(seen)
{
	struct peer me, a;
};

FIXTURE_VARIANT(seen)
{
	bool src_child, dst_child, huge;
};

FIXTURE_VARIANT_ADD(seen, within) {};
FIXTURE_VARIANT_ADD(seen, put) { .dst_child = true };
FIXTURE_VARIANT_ADD(seen, get) { .src_child = true };
FIXTURE_VARIANT_ADD(seen, within_huge) { .huge = true };
FIXTURE_VARIANT_ADD(seen, put_huge) { .dst_child = true, .huge = true };

FIXTURE_SETUP(seen)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
}

FIXTURE_TEARDOWN(seen)
{
	peer_kill(&self->a);
}

TEST_F_TIMEOUT(seen, by_the_destination, LONG)
{
	struct peer *src = variant->src_child ? &self->a : &self->me;
	struct peer *dst = variant->dst_child ? &self->a : &self->me;
	struct seen from = { .addr = SRC, .step = page_size() }, to;
	size_t len = SEEN_PAGES * page_size();
	long i, n = iterations(100), huge = 0;
	const char *reason;

	to = from;
	to.addr = DST;
	if (variant->huge) {
		reason = thp_size() && thp_size() < len ? FEW_PAGES : folios_enable(thp_size());
		len = thp_size();
		if (reason)
			SKIP(return, "%s", reason);
		from.addr = ARENA + (1UL << 28);
		to.addr = ARENA + (1UL << 29);
		from.step = len / SEEN_PAGES;
		to.step = from.step;
	}
	if (variant->huge)
		NEED_LARGE(folios_map(src, from.addr, len, len));
	else
		ASSERT_EQ(0, peer_map(src, from.addr, len, RW));
	for (i = 0; i < n; i++) {
		from.image = i + 1;
		to.image = from.image;
		ASSERT_EQ(0, peer_call(src, op_seen_write, &from, sizeof(from)));
		/* Writing to what is shared has broken it up. */
		if (variant->huge && i % 3 == 2)
			huge += !peer_madvise(src, from.addr, len, MADV_COLLAPSE);
		/* One time new mappings, one time the old ones with other pages */
		if (i)
			ASSERT_EQ(0, differ(dst, to.addr, len, i));
		ASSERT_EQ(0, peer_dput(src, from.addr, dst, to.addr, len, 0))
			TH_LOG("dput: %s", strerror(errno));
		if (!i)
			ASSERT_EQ(0, peer_call(dst, op_see, &to, sizeof(to)));
		ASSERT_EQ(-1, peer_call(dst, op_seen, &to, sizeof(to)))
			TH_LOG("round %ld", i);
	}
	EXPECT_EQ(0, peer_call(dst, op_see_no_more, NULL, 0));
	if (variant->huge)
		TH_LOG("%ld times huge again", huge);
}

/* Opposite directions at once: neither waits for the other for ever. */

#define COPIERS		4

struct copier {
	pthread_t thread;
	struct peer *from, *to;
	unsigned long src, dst;
	size_t len;
	long n;
	unsigned int flags;
	/* Errors that are no failure, as bits */
	uint64_t allowed;
	volatile bool *stop;
	long good, bad;
	int err;
};

#define ALLOW(_err)	(1ULL << (_err))

static void *copy_often(void *arg)
{
	struct copier *c = arg;
	long i;

	for (i = 0; c->stop ? !*c->stop : i < c->n; i++) {
		if (!peer_dput(c->from, c->src, c->to, c->dst, c->len, c->flags)) {
			c->good++;
		} else if (errno > 63 || !(c->allowed & ALLOW(errno))) {
			c->bad++;
			c->err = errno;
		}
	}
	return NULL;
}

FIXTURE(opposite)
{
	struct peer me, a, b;
};

FIXTURE_VARIANT(opposite)
{
	bool with_caller;	/* the caller is one side */
	bool ring;		/* three processes, in a circle */
};

FIXTURE_VARIANT_ADD(opposite, children) {};
FIXTURE_VARIANT_ADD(opposite, caller) { .with_caller = true };
FIXTURE_VARIANT_ADD(opposite, three) { .with_caller = true, .ring = true };

FIXTURE_SETUP(opposite)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
}

FIXTURE_TEARDOWN(opposite)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
}

TEST_F_TIMEOUT(opposite, directions, LONG)
{
	struct peer *p[3] = { variant->with_caller ? &self->me : &self->b, &self->a, &self->b };
	int nr = variant->ring ? 3 : 2, i;
	size_t npages = 32, len = npages * page_size();
	struct copier c[COPIERS] = {};
	long bad = 0;

	/* All pages are the same everywhere, and so they must stay. */
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, peer_map(p[i], SRC, len, RW));
		ASSERT_EQ(0, peer_stamp(p[i], SRC, npages, 0, 1, 1));
	}
	for (i = 0; i < COPIERS; i++) {
		c[i].from = p[i % nr];
		c[i].to = p[(i + 1) % nr];
		c[i].src = SRC + i / 2 * 8 * page_size();
		c[i].dst = c[i].src;
		c[i].len = (npages - i / 2 * 8) * page_size();
		c[i].n = iterations(500);
		ASSERT_EQ(0, pthread_create(&c[i].thread, NULL, copy_often, &c[i]));
	}
	for (i = 0; i < COPIERS; i++) {
		pthread_join(c[i].thread, NULL);
		if (c[i].bad)
			TH_LOG("copier %d: %ld errors, %s", i, c[i].bad, strerror(c[i].err));
		bad += c[i].bad;
	}
	EXPECT_EQ(0, bad);
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(-1, peer_check(p[i], SRC, npages, 0, 1, 1));
		EXPECT_EQ(1, proc_mapped(p[i]->pid, SRC, len));
	}
	/* And nothing is shared that may not be. */
	for (i = 0; i < nr; i++)
		ASSERT_EQ(0, peer_stamp(p[i], SRC, npages, 0, 1, 10 + i));
	for (i = 0; i < nr; i++)
		EXPECT_EQ(-1, peer_check(p[i], SRC, npages, 0, 1, 10 + i));
}

/* Changes to the mappings of either side */

#define BUSY_PAGES	64

enum { OP_UNMAP, OP_MPROTECT, OP_DONTNEED, OP_FORK, OP_WRITE, OP_MREMAP, NR_OPS };

struct busy_arg {
	unsigned long addr;
	unsigned int ops;	/* a mask */
	unsigned int seed;
};

static struct busy_arg busy;
static pthread_t busy_thread;
static volatile bool busy_stop;
static volatile unsigned long busy_rounds;

static int map_stamped(unsigned long addr, int first, int nr)
{
	unsigned long ps = page_size(), base = addr + first * ps;
	struct peer me;

	if (mmap((void *)base, nr * ps, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) != (void *)base)
		return -1;
	peer_self(&me);
	return peer_stamp(&me, addr, first + nr, first, 1, 1);
}

/*
 * Each word of a page is its own or zero, whatever happens: dput() puts the
 * same things there as this thread does.
 */
static void *be_busy(void *arg)
{
	unsigned long ps = page_size(), tmp = ARENA_END - (1UL << 24);
	unsigned int state = busy.seed;

	while (!busy_stop) {
		int op = rand_r(&state) % NR_OPS;
		int first = rand_r(&state) % (BUSY_PAGES - 8);
		int nr = 1 + rand_r(&state) % 8;
		void *p = (void *)busy.addr + first * ps;
		pid_t pid;

		busy_rounds++;
		if (!(busy.ops & 1U << op))
			continue;
		switch (op) {
		case OP_UNMAP:
			munmap(p, nr * ps);
			map_stamped(busy.addr, first, nr);
			break;
		case OP_MPROTECT:
			mprotect(p, nr * ps, PROT_READ);
			mprotect(p, nr * ps, PROT_NONE);
			mprotect(p, nr * ps, RW);
			break;
		case OP_DONTNEED:
			madvise(p, nr * ps, MADV_DONTNEED);
			break;
		case OP_FORK:
			pid = fork();
			if (!pid)
				_exit(0);
			if (pid > 0)
				waitpid(pid, NULL, 0);
			break;
		case OP_WRITE:
			map_stamped(busy.addr, first, nr);
			break;
		case OP_MREMAP:
			if (mremap(p, nr * ps, nr * ps, MREMAP_MAYMOVE | MREMAP_FIXED,
				   (void *)tmp) == (void *)tmp)
				mremap((void *)tmp, nr * ps, nr * ps,
				       MREMAP_MAYMOVE | MREMAP_FIXED, p);
			break;
		}
	}
	return NULL;
}

static long op_start_busy(void *arg)
{
	busy = *(struct busy_arg *)arg;
	if (pthread_create(&busy_thread, NULL, be_busy, NULL))
		return -1;
	while (busy_rounds < NR_OPS)
		sched_yield();
	return 0;
}

static long op_stop_busy(void *arg)
{
	busy_stop = true;
	pthread_join(busy_thread, NULL);
	return busy_rounds;
}

/*
 * The first page with a word that is neither its own nor zero, or -1. A page
 * that is being written when it is copied may have some of its words.
 */
static long check_foreign(struct peer *p, unsigned long addr, int nr)
{
	unsigned long ps = page_size(), *page = malloc(ps), *want;
	struct peer me;
	size_t j;
	int i;

	want = mmap(NULL, nr * ps, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	peer_self(&me);
	peer_stamp(&me, (unsigned long)want, nr, 0, 1, 1);
	for (i = 0; i < nr; i++) {
		/* What is not there, or cannot be read, is all right. */
		if (peer_read(p, addr + i * ps, page, ps))
			continue;
		for (j = 0; j < ps / sizeof(*page); j++)
			if (page[j] && page[j] != want[i * ps / sizeof(*page) + j])
				break;
		if (j < ps / sizeof(*page))
			break;
	}
	munmap(want, nr * ps);
	free(page);
	return i < nr ? i : -1;
}

FIXTURE(busy)
{
	struct peer me, a, b;
};

FIXTURE_VARIANT(busy)
{
	unsigned int ops;
	bool is_source;		/* the process that is busy, or else */
	bool is_both;		/* it is copied within the process */
};

#define BUSY_VARIANT(_name, _ops)						\
FIXTURE_VARIANT_ADD(busy, _name##_source)					\
{										\
	.ops = _ops, .is_source = true,						\
};										\
FIXTURE_VARIANT_ADD(busy, _name##_destination)					\
{										\
	.ops = _ops,								\
};										\
FIXTURE_VARIANT_ADD(busy, _name##_both)						\
{										\
	.ops = _ops, .is_source = true, .is_both = true,			\
}

BUSY_VARIANT(munmap, 1U << OP_UNMAP);
BUSY_VARIANT(mprotect, 1U << OP_MPROTECT);
BUSY_VARIANT(fork, 1U << OP_FORK | 1U << OP_WRITE);
BUSY_VARIANT(all, (1U << NR_OPS) - 1);

FIXTURE_SETUP(busy)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
}

FIXTURE_TEARDOWN(busy)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
}

static long op_map_stamped(void *arg)
{
	return map_stamped(*(unsigned long *)arg, 0, BUSY_PAGES);
}

TEST_F_TIMEOUT(busy, mappings, LONG)
{
	struct peer *busy_one = &self->a, *src, *dst;
	unsigned long ps = page_size(), src_addr = SRC, dst_addr = DST;
	struct busy_arg arg = { .ops = variant->ops, .seed = seed() };
	size_t len = BUSY_PAGES * ps;
	long i, n = iterations(300), good = 0;
	unsigned int state = seed();

	src = variant->is_source ? busy_one : &self->b;
	dst = variant->is_source && !variant->is_both ? &self->b : busy_one;
	ASSERT_EQ(0, peer_call(src, op_map_stamped, &src_addr, sizeof(src_addr)));
	ASSERT_EQ(0, peer_call(dst, op_map_stamped, &dst_addr, sizeof(dst_addr)));
	arg.addr = variant->is_source ? SRC : DST;
	ASSERT_EQ(0, peer_call(busy_one, op_start_busy, &arg, sizeof(arg)));
	for (i = 0; i < n; i++) {
		size_t first = rand_r(&state) % BUSY_PAGES;
		size_t nr = 1 + rand_r(&state) % (BUSY_PAGES - first);
		/* Ragged ends, every other time */
		size_t cut = i % 2 ? 16 : 0;
		unsigned int flags = i % 3 ? DPUT_HOLES : 0;
		int ret;

		ret = peer_dput(src, src_addr + first * ps + cut, dst,
				dst_addr + first * ps + cut, nr * ps - 2 * cut, flags);
		good += !ret;
		/* There are holes, and pages that cannot be accessed. */
		if (ret) {
			ASSERT_EQ(EFAULT, errno);
		}
		if (i % 10)
			continue;
		EXPECT_EQ(-1, check_foreign(src, src_addr, BUSY_PAGES));
		EXPECT_EQ(-1, check_foreign(dst, dst_addr, BUSY_PAGES));
	}
	EXPECT_LT(0, peer_call(busy_one, op_stop_busy, NULL, 0));
	EXPECT_LT(0, good);
	/* Once all is quiet, it works as ever. */
	ASSERT_EQ(0, peer_call(src, op_map_stamped, &src_addr, sizeof(src_addr)));
	ASSERT_EQ(0, peer_dput(src, src_addr, dst, dst_addr, len, 0));
	EXPECT_EQ(-1, peer_check(dst, dst_addr, BUSY_PAGES, 0, 1, 1));
}

/*
 * A partial page is of the same instant: it stays where it is until its bytes are
 * copied, which comes last. UFFDIO_MOVE takes no mmap_lock.
 */
#define EDGE_TABLES	1024UL

struct byte {
	unsigned long addr;
	char value;
};

static long op_byte(void *arg)
{
	struct byte *b = arg;

	b->value = *(volatile char *)b->addr;
	return 0;
}

struct edge {
	struct peer *me, *dst;
	unsigned long src;
	size_t len;
	int ret;
	volatile bool done;
};

static void *put_edge(void *arg)
{
	struct edge *e = arg;

	e->ret = peer_dput(e->me, e->src, e->dst, e->src, e->len, 0);
	e->done = true;
	return NULL;
}

TEST(edge_is_not_moved_away)
{
	unsigned long ps = page_size(), step = ps * (ps / 8);
	size_t len = EDGE_TABLES * step;
	unsigned long src = ARENA, edge = src + len, to = edge + 2 * ps;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_register reg = {
		.range = { to, ps }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct peer me, dst;
	struct edge e = { &me, &dst, src, len + ps / 2 };
	long i, inside = 0, n = iterations(20), tables;
	pthread_t thread;
	int fd;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	fd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		SKIP(return, "userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api))
		SKIP(return, "UFFDIO_MOVE: %s", strerror(errno));
	peer_self(&me);
	/* A page in each page table, so that the call takes some time */
	if (peer_mmap(&me, src, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		      MAP_FIXED_NOREPLACE, -1) != (long)src)
		SKIP(return, "%zu MiB of addresses: %s", len >> 20, strerror(errno));
	/* Fails where there are no huge pages. */
	peer_madvise(&me, src, len, MADV_NOHUGEPAGE);
	ASSERT_EQ(0, peer_start(&dst));
	ASSERT_EQ(0, peer_munmap(&dst, src, len));
	ASSERT_EQ(0, peer_stamp(&me, src, len / ps, 0, step / ps, 1));
	ASSERT_EQ(0, peer_map(&me, to, ps, RW));
	ASSERT_EQ(0, peer_map(&dst, edge, ps, RW));
	/* A mapping of its own */
	ASSERT_EQ(0, peer_map(&me, edge, ps, RW));
	ASSERT_EQ(0, madvise((void *)edge, ps, MADV_DONTDUMP));
	memset((void *)to, 'b', ps);
	ASSERT_EQ(0, ioctl(fd, UFFDIO_REGISTER, &reg));
	for (i = 0; i < n; i++) {
		struct uffdio_move move = { .dst = to, .src = edge, .len = ps };
		struct byte seen = { edge };

		ASSERT_EQ(0, madvise((void *)to, ps, MADV_DONTNEED));
		memset((void *)edge, 'a', ps);
		tables = proc_status_kb(dst.pid, "VmPTE");
		e.done = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, put_edge, &e));
		/* It copies page tables: the page has been looked at. */
		while (!e.done && proc_status_kb(dst.pid, "VmPTE") < tables + 8 * (long)ps / 1024)
			;
		inside += !e.done;
		ASSERT_EQ(0, ioctl(fd, UFFDIO_MOVE, &move));
		memset((void *)to, 'b', ps);
		pthread_join(thread, NULL);
		ASSERT_EQ(0, e.ret);
		ASSERT_EQ(0, peer_call(&dst, op_byte, &seen, sizeof(seen)));
		EXPECT_EQ('a', seen.value);
		ASSERT_EQ(0, peer_munmap(&dst, src, len));
	}
	close(fd);
	peer_stop(&dst);
	if (!inside)
		SKIP(return, "the call always ended before the page could be moved");
	TH_LOG("begun during the call: %ld of %ld", inside, n);
}

/* Exit */

FIXTURE(end)
{
	struct peer me, a;
};

FIXTURE_VARIANT(end)
{
	bool is_source;
};

FIXTURE_VARIANT_ADD(end, source) { .is_source = true };
FIXTURE_VARIANT_ADD(end, destination) {};

FIXTURE_SETUP(end)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&self->me);
}

FIXTURE_TEARDOWN(end)
{
}

static volatile bool copier_stop;

static void copier_init(struct copier *c, struct peer *me, struct peer *other,
			bool other_is_source, size_t len)
{
	*c = (struct copier){
		.from = other_is_source ? other : me,
		.to = other_is_source ? me : other,
		.src = SRC, .dst = DST, .len = len, .stop = &copier_stop,
	};
	copier_stop = false;
}

TEST_F_TIMEOUT(end, exit, LONG)
{
	size_t npages = 64, len = npages * page_size();
	long i, n = iterations(30), good = 0;
	struct copier c;
	struct peer a;

	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, npages, 0, 1, 1));
	for (i = 0; i < n; i++) {
		/* It inherits what is at SRC. */
		ASSERT_EQ(0, peer_start(&a));
		copier_init(&c, &self->me, &a, variant->is_source, len);
		c.allowed = ALLOW(ESRCH);
		ASSERT_EQ(0, pthread_create(&c.thread, NULL, copy_often, &c));
		while (i % 3 && !*(volatile long *)&c.good)
			sched_yield();
		ASSERT_EQ(0, kill(a.pid, SIGKILL));
		ASSERT_EQ(a.pid, waitpid(a.pid, NULL, 0));
		copier_stop = true;
		pthread_join(c.thread, NULL);
		EXPECT_EQ(0, c.bad)
			TH_LOG("%s", strerror(c.err));
		good += c.good;
		close(a.pidfd);
		close(a.sock);
		if (variant->is_source && c.good) {
			EXPECT_EQ(-1, peer_check(&self->me, DST, npages, 0, 1, 1));
			ASSERT_EQ(0, peer_stamp(&self->me, DST, npages, 0, 1, 2));
			EXPECT_EQ(-1, peer_check(&self->me, SRC, npages, 0, 1, 1));
		}
	}
	EXPECT_LT(0, good);
}

/* execve(), of this program, which says that it has come that far and waits */

#define EXEC_FD		"DPUT_RACE_EXEC"

static void __attribute__((constructor)) executed(void)
{
	char *s = getenv(EXEC_FD), byte = 0;

	if (!s)
		return;
	if (write(atoi(s), &byte, 1) != 1)
		_exit(1);
	/* Until it is killed */
	for (;;)
		pause();
}

/* A child that executes this program */
static pid_t exec_child(int fd)
{
	char path[] = "/proc/self/exe", env[32];
	char *argv[] = { path, NULL }, *envp[] = { env, NULL };
	pid_t pid;

	snprintf(env, sizeof(env), EXEC_FD "=%d", fd);
	pid = fork();
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execve(path, argv, envp);
	_exit(1);
}

static void race_exec(struct __test_metadata *_metadata, struct peer *me, bool is_source,
		      unsigned long src, unsigned long dst, size_t len)
{
	long i, n = iterations(40), good = 0;
	int fds[2], status;
	struct copier c;
	struct peer a;
	char byte;

	for (i = 0; i < n; i++) {
		ASSERT_EQ(0, pipe(fds));
		a.pid = exec_child(fds[1]);
		ASSERT_LT(0, a.pid);
		close(fds[1]);
		a.pidfd = sys_pidfd_open(a.pid, 0);
		ASSERT_LE(0, a.pidfd);
		copier_init(&c, me, &a, is_source, len);
		c.src = src;
		c.dst = dst;
		/* The new image has other mappings. */
		c.allowed = ALLOW(EAGAIN) | ALLOW(ESRCH) | ALLOW(EFAULT) | ALLOW(ENOMEM);
		if (geteuid())
			c.allowed |= ALLOW(EPERM);
		ASSERT_EQ(0, pthread_create(&c.thread, NULL, copy_often, &c));
		/* It has executed, or it has died of what it was given. */
		while (read(fds[0], &byte, 1) < 0 && errno == EINTR)
			;
		copier_stop = true;
		pthread_join(c.thread, NULL);
		EXPECT_EQ(0, c.bad)
			TH_LOG("%s", strerror(c.err));
		good += c.good;
		kill(a.pid, SIGKILL);
		ASSERT_EQ(a.pid, waitpid(a.pid, &status, 0));
		close(a.pidfd);
		close(fds[0]);
	}
	EXPECT_LT(0, good);
}

TEST_F_TIMEOUT(end, execve, LONG)
{
	size_t npages = 64, len = npages * page_size();

	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, npages, 0, 1, 1));
	race_exec(_metadata, &self->me, variant->is_source, SRC, DST, len);
	EXPECT_EQ(-1, peer_check(&self->me, SRC, npages, 0, 1, 1));
	if (variant->is_source && proc_mapped(getpid(), DST, len) == 1) {
		EXPECT_EQ(-1, peer_check(&self->me, DST, npages, 0, 1, 1));
	}
}

/* Does the address space go as far as this? Something may be mapped there. */
static bool is_inside(unsigned long addr)
{
	void *p = mmap((void *)addr, page_size(), PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return errno == EEXIST;
	munmap(p, page_size());
	return p == (void *)addr;
}

/*
 * Where execve() sets up the stack, before it moves it to a random address:
 * STACK_TOP_MAX, or 0 if it is not known.
 */
static unsigned long stack_top(void)
{
	unsigned long ps = page_size();
#if __SIZEOF_LONG__ == 4
	unsigned long top, step = 1UL << 24;

	/* The end of the address space, to the page */
	for (top = -step; top && !is_inside(top - ps); top -= step)
		;
	for (; top && step >= ps; step /= 2)
		if (is_inside(top + step - ps))
			top += step;
	/* If it goes that far, the kernel has 64 bits, and the stack is beyond it. */
	return top <= 0xf0000000UL ? top : 0;
#else
	/* Of what may be, by the levels of page tables that the machine has */
	static const unsigned char bits[] = {
#if defined(__x86_64__)
		56, 47,
#elif defined(__aarch64__)
		/* More than 48 have to be asked for. */
		48, 47, 42, 39, 36,
#elif defined(__riscv)
		56, 47, 38,
#elif defined(__s390x__)
		42,
#elif defined(__powerpc64__)
		47,
#endif
		0
	};
	size_t i;

	for (i = 0; bits[i]; i++) {
		unsigned long top = 1UL << bits[i];

#ifdef __x86_64__
		/* Some processors cannot have code in the last page. */
		top -= ps;
#endif
		if (is_inside(top - ps))
			return top;
	}
	return 0;
#endif
}

TEST_F_TIMEOUT(end, execve_stack, LONG)
{
	unsigned long top = stack_top();
	size_t len = 32 * page_size();

	if (variant->is_source)
		SKIP(return, "for the destination only");
	if (!top)
		SKIP(return, "where execve() sets up the stack is not known");
	ASSERT_EQ(0, peer_map(&self->me, SRC, len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, SRC, 32, 0, 1, 1));
	race_exec(_metadata, &self->me, false, SRC, top - len, len);
	EXPECT_EQ(-1, peer_check(&self->me, SRC, 32, 0, 1, 1));
}

/*
 * What the rest of the system does to either side meanwhile: a debugger comes and
 * goes, and memory is reclaimed, merged, compacted and moved between nodes. None
 * of that may show in the contents.
 */

#define COMPACT		"/proc/sys/vm/compact_memory"

enum pressure { P_PTRACE, P_RECLAIM, P_COMPACT, P_MIGRATE, P_KSM, NR_PRESSURES };

static void __attribute__((constructor)) prepare(void)
{
	if (getenv(EXEC_FD) || !dput_supported())
		return;
	swap_prepare();
	cgroup_prepare();
	ksm_save();
	folios_save();
}

static bool stop_and_go(pid_t pid)
{
	bool stopped = false;
	int status;

	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
		return false;
	if (!ptrace(PTRACE_INTERRUPT, pid, NULL, NULL))
		stopped = waitpid(pid, &status, __WALL) == pid;
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return stopped;
}

static int press_nodes[2];

static bool migrate(pid_t pid, bool back)
{
	unsigned long old = 1UL << press_nodes[back], new = 1UL << press_nodes[!back];
	long before = vmstat("pgmigrate_success");

	return syscall(__NR_migrate_pages, pid, 8 * sizeof(old), &old, &new) >= 0 &&
	       vmstat("pgmigrate_success") > before;
}

static bool compact(void)
{
	long before = vmstat("compact_migrate_scanned");

	return !setting_write(COMPACT, "1") && vmstat("compact_migrate_scanned") > before;
}

/* Until it is killed; @done counts what had an effect. */
static void __noreturn press(unsigned int mask, pid_t a, pid_t b, volatile unsigned long *done)
{
	unsigned int state = seed();

	for (;;) {
		int r = rand_r(&state);
		pid_t pid = r & 16 ? a : b;

		if (mask & 1U << P_PTRACE && stop_and_go(pid))
			done[P_PTRACE]++;
		if (mask & 1U << P_RECLAIM && !cgroup_reclaim(r & 32 ? "64K" : "256K"))
			done[P_RECLAIM]++;
		if (mask & 1U << P_COMPACT && compact())
			done[P_COMPACT]++;
		if (mask & 1U << P_MIGRATE && migrate(pid, r & 64))
			done[P_MIGRATE]++;
		sched_yield();
	}
}

static long ksm_number(const char *name)
{
	char path[64], buf[32];

	snprintf(path, sizeof(path), KSM "%s", name);
	return setting_read(path, buf, sizeof(buf)) ? -1 : atol(buf);
}

static const char *press_missing(unsigned int mask)
{
	const char *reason = NULL;

	if (geteuid())
		return "needs root";
	if (mask & 1U << P_COMPACT && access(COMPACT, W_OK))
		return "no compaction";
	if (mask & 1U << P_MIGRATE && memory_nodes(press_nodes) < 2)
		return "needs two NUMA nodes (numa=fake=2 is as good)";
	if (mask & 1U << P_KSM && ksm_missing())
		return ksm_missing();
	if (mask & 1U << P_RECLAIM)
		reason = cgroup_enter() ?: swap_missing();
	return reason;
}

/* Pages that are all the same, for KSM */
struct same_arg {
	unsigned long addr, nr;
	int byte;
};

static long op_fill_same(void *arg)
{
	struct same_arg *a = arg;

	memset((void *)a->addr, a->byte, a->nr * page_size());
	return madvise((void *)a->addr, a->nr * page_size(), MADV_MERGEABLE);
}

static long op_check_same(void *arg)
{
	struct same_arg *a = arg;
	unsigned long i;

	for (i = 0; i < a->nr * page_size(); i++)
		if (((volatile unsigned char *)a->addr)[i] != a->byte)
			return i;
	return -1;
}

FIXTURE(pressure)
{
	struct peer me, a, b;
	pid_t pid;
	unsigned long *done;
	bool swap;
};

FIXTURE_VARIANT(pressure)
{
	unsigned int mask;
};

FIXTURE_VARIANT_ADD(pressure, ptrace) { .mask = 1U << P_PTRACE };
FIXTURE_VARIANT_ADD(pressure, reclaim) { .mask = 1U << P_RECLAIM };
FIXTURE_VARIANT_ADD(pressure, compaction) { .mask = 1U << P_COMPACT };
FIXTURE_VARIANT_ADD(pressure, migration) { .mask = 1U << P_MIGRATE };
FIXTURE_VARIANT_ADD(pressure, ksm) { .mask = 1U << P_KSM };
FIXTURE_VARIANT_ADD(pressure, all) { .mask = (1U << NR_PRESSURES) - 1 };

FIXTURE_SETUP(pressure)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = press_missing(variant->mask);
	if (reason)
		SKIP(return, "%s", reason);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
	self->done = mmap(NULL, page_size(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(self->done != MAP_FAILED);
	if (variant->mask & 1U << P_RECLAIM) {
		ASSERT_EQ(0, swap_on());
		self->swap = true;
	}
	if (variant->mask & 1U << P_KSM) {
		setting_write(KSM "sleep_millisecs", "0");
		setting_write(KSM "pages_to_scan", "10000");
		ASSERT_EQ(0, setting_write(KSM "run", "1"));
	}
}

FIXTURE_TEARDOWN(pressure)
{
	if (self->pid > 0) {
		kill(self->pid, SIGKILL);
		waitpid(self->pid, NULL, 0);
	}
	peer_kill(&self->a);
	peer_kill(&self->b);
	setting_restore(KSM "run");
	setting_restore(KSM "sleep_millisecs");
	setting_restore(KSM "pages_to_scan");
	if (self->swap)
		swap_off();
}

static bool pressed(unsigned int mask, const volatile unsigned long *done)
{
	int i;

	for (i = 0; i < NR_PRESSURES; i++)
		if (mask & 1U << i && done[i] < 5)
			return false;
	return true;
}

TEST_F_TIMEOUT(pressure, contents, LONG)
{
	struct peer *p[3] = { &self->me, &self->a, &self->b };
	size_t nr = 64, len = 2 * nr * page_size();
	unsigned int state = seed();
	long i, n = iterations(40), scans = 0;
	time_t until = time(NULL) + 300;
	struct same_arg same = { .addr = SRC + nr * page_size(), .nr = nr, .byte = 7 };

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, peer_map(p[i], SRC, len, RW));
		ASSERT_EQ(0, peer_map(p[i], DST, len, RW));
		ASSERT_EQ(0, peer_call(p[i], op_fill_same, &same, sizeof(same)));
	}
	if (variant->mask & 1U << P_KSM)
		scans = ksm_number("full_scans");
	self->pid = fork();
	ASSERT_LE(0, self->pid);
	if (!self->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		press(variant->mask, self->a.pid, self->b.pid, self->done);
	}
	for (i = 0; i < n || (!pressed(variant->mask, self->done) && time(NULL) < until); i++) {
		int from = rand_r(&state) % 3, to = rand_r(&state) % 3;
		/* A part of a second time, in place, as often as not */
		int again = rand_r(&state) % 2;
		size_t first = rand_r(&state) % nr;

		if (variant->mask & 1U << P_KSM)
			self->done[P_KSM] = ksm_number("full_scans") - scans;
		same.addr = SRC + nr * page_size();
		ASSERT_EQ(0, peer_stamp(p[from], SRC, nr, 0, 1, 2 * i + 1));
		/* Which takes merged pages apart */
		if (i % 8 == 0) {
			ASSERT_EQ(0, peer_call(p[from], op_fill_same, &same, sizeof(same)));
		}
		ASSERT_EQ(0, peer_dput(p[from], SRC, p[to], DST, len, 0));
		if (again) {
			ASSERT_EQ(0, peer_stamp(p[to], DST, nr, first, 7, 3));
			ASSERT_EQ(0, peer_dput(p[from], SRC + first * page_size(), p[to],
					       DST + first * page_size(),
					       (nr - first) * page_size(), 0));
		}
		EXPECT_EQ(-1, peer_check(p[to], DST, nr, 0, 1, 2 * i + 1))
			TH_LOG("round %ld, %d to %d", i, from, to);
		same.addr = DST + nr * page_size();
		EXPECT_EQ(-1, peer_call(p[to], op_check_same, &same, sizeof(same)))
			TH_LOG("round %ld, %d to %d", i, from, to);
		ASSERT_EQ(0, peer_stamp(p[to], DST, nr, 0, 1, 2 * i + 2));
		EXPECT_EQ(-1, peer_check(p[from], SRC, nr, 0, 1, 2 * i + 1))
			TH_LOG("round %ld, %d to %d", i, from, to);
	}
	EXPECT_TRUE(pressed(variant->mask, self->done));
	/*
	 * Now that nobody writes, and nothing presses, what is the same is merged
	 * within some scans; it has to be there for that, and not swapped out.
	 */
	kill(self->pid, SIGKILL);
	waitpid(self->pid, NULL, 0);
	self->pid = 0;
	if (variant->mask & 1U << P_KSM) {
		same.addr = SRC + nr * page_size();
		until = time(NULL) + 300;
		for (i = 0; !ksm_number("pages_sharing") && time(NULL) < until; i++)
			EXPECT_EQ(-1, peer_call(p[i % 3], op_check_same, &same, sizeof(same)));
		EXPECT_LT(0, ksm_number("pages_sharing"));
	}
}

TEST_HARNESS_MAIN
