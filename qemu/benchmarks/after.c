// SPDX-License-Identifier: GPL-2.0
/* What follows a copy: the first writes, and the memory it takes. */
#include "bench.h"

#define SIZE	region(exact ? 64 * MIB : 16 * MIB)

static void *fresh_touched(enum kind kind, size_t len)
{
	void *src = map(fresh_src(), len, kind);

	fill(src, len);
	return src;
}

/* The first write to each page, on either side; fork()'s child has left. */
static void first_writes(enum kind kind)
{
	int round;

	if (base_only)
		return;
	for (round = 0; round < (exact ? 2 : 5); round++) {
		void *src = fresh_touched(kind, SIZE);
		unsigned long dst = fresh_dst();

		settle();
		MEASURE("src-before", SIZE, touch(src, SIZE, PAGE));
		dput_to(&peer, dst, src, SIZE);
		settle();
		sample("dst-shared", SIZE, exact ? "instructions" : "ns",
		       peer_do(&peer, P_TOUCH, dst, SIZE, PAGE));
		settle();
		MEASURE("src-unshared", SIZE, touch(src, SIZE, PAGE));
		peer_do(&peer, P_UNMAP, dst, SIZE, 0);
		dst = fresh_dst();
		dput_to(&peer, dst, src, SIZE);
		settle();
		MEASURE("src-shared", SIZE, touch(src, SIZE, PAGE));
		settle();
		sample("dst-unshared", SIZE, exact ? "instructions" : "ns",
		       peer_do(&peer, P_TOUCH, dst, SIZE, PAGE));
		peer_do(&peer, P_UNMAP, dst, SIZE, 0);
		unmap(src, SIZE);

		/* The same pages of memory that was never shared, in the peer. */
		dst = fresh_dst();
		peer_do(&peer, P_MAP, dst, SIZE, kind);
		settle();
		sample("dst-new", SIZE, exact ? "instructions" : "ns",
		       peer_do(&peer, P_TOUCH, dst, SIZE, PAGE));
		peer_do(&peer, P_UNMAP, dst, SIZE, 0);
	}
}

static void writes_4k(void)
{
	first_writes(SMALL);
}

static void writes_thp(void)
{
	first_writes(THP);
}

/* A copy, and then so many percent of its pages written, evenly spread. */
static void totals(enum kind kind)
{
	static const unsigned int percent[] = { 0, 1, 10, 50, 100 };
	unsigned int i;
	int round;

	if (base_only)
		return;
	for (round = 0; round < (exact ? 1 : 3); round++) {
		void *src = fresh_touched(kind, SIZE);

		for (i = 0; i < ARRAY_SIZE(percent); i++) {
			unsigned int x = percent[i];
			size_t step = x ? 100 / x * PAGE : 0;
			unsigned long dst = fresh_dst();

			fill(src, SIZE);
			settle();
			MEASURE("dput", x, {
				dput_to(&peer, dst, src, SIZE);
				if (step)
					peer_do(&peer, P_TOUCH, dst, SIZE, step);
			});
			peer_do(&peer, P_UNMAP, dst, SIZE, 0);

			dst = fresh_dst();
			peer_do(&peer, P_MAP, dst, SIZE, kind);
			settle();
			MEASURE("writev-cold", x, {
				writev_to(&peer, dst, src, SIZE);
				if (step)
					peer_do(&peer, P_TOUCH, dst, SIZE, step);
			});
			settle();
			MEASURE("writev-warm", x, {
				writev_to(&peer, dst, src, SIZE);
				if (step)
					peer_do(&peer, P_TOUCH, dst, SIZE, step);
			});
			peer_do(&peer, P_UNMAP, dst, SIZE, 0);
		}
		unmap(src, SIZE);
	}
}

static void totals_4k(void)
{
	totals(SMALL);
}

static void totals_thp(void)
{
	totals(THP);
}

/* ---- Memory ---- */

static long meminfo(const char *name)
{
	char line[128];
	FILE *f = fopen("/proc/meminfo", "r");
	long kib = -1;

	if (!f)
		err(2, "cannot read how much memory there is");
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			kib = strtol(line + strlen(name), NULL, 10);
	fclose(f);
	return kib;
}

struct taken {
	long pages, tables, slab;	/* KiB */
};

static struct taken taken(void)
{
	struct taken t;

	settle();
	t.pages = meminfo("AnonPages:");
	t.tables = meminfo("PageTables:");
	t.slab = meminfo("SUnreclaim:");
	return t;
}

static void note(const char *what, enum kind kind, struct taken since)
{
	struct taken t = taken();
	char series[64];
	/* AnonPages counts a shared page once. */
	const long value[] = { t.pages - since.pages, t.tables - since.tables,
			       t.slab - since.slab };
	static const char *const name[] = { "pages", "tables", "slab" };
	unsigned int i;

	for (i = 0; i < 3; i++) {
		snprintf(series, sizeof(series), "%s-%s-%s", kind_name[kind],
			 what, name[i]);
		sample(series, region(256 * MIB), "KiB", value[i] < 0 ? 0 : value[i]);
	}
}

static void memory(void)
{
	const size_t len = region(256 * MIB);
	enum kind kind;

	if (base_only)
		return;
	for (kind = SMALL; kind <= THP; kind += THP - SMALL) {
		void *src = fresh_touched(kind, len);
		unsigned long dst = fresh_dst();
		struct taken before = taken();
		int hold[2];
		pid_t pid;
		char c;

		dput_to(&peer, dst, src, len);
		note("dput", kind, before);
		peer_do(&peer, P_UNMAP, dst, len, 0);

		dst = fresh_dst() + SHIFTED;
		before = taken();
		dput_to(&peer, dst, src, len);
		note("dput-shifted", kind, before);
		peer_do(&peer, P_UNMAP, dst, len, 0);

		dst = fresh_dst();
		before = taken();
		peer_do(&peer, P_MAP, dst, len, kind);
		writev_to(&peer, dst, src, len);
		note("writev", kind, before);
		peer_do(&peer, P_UNMAP, dst, len, 0);

		/* A child with the region, less one without it. */
		if (pipe(hold))
			err(2, "pipe");
		before = taken();
		pid = fork();
		if (!pid) {
			close(hold[1]);
			_exit(read(hold[0], &c, 1) != 0);
		}
		close(hold[0]);
		note("fork", kind, before);
		close(hold[1]);
		reap(pid);
		unmap(src, len);
	}
}

const struct bench after_cases[] = {
	{ "after-writes-4k", writes_4k, "after" },
	{ "after-writes-thp", writes_thp, "after" },
	{ "after-total-4k", totals_4k, "after" },
	{ "after-total-thp", totals_thp, "after" },
	{ "memory", memory, "memory" },
	{ }
};
