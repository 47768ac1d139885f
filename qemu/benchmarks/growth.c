// SPDX-License-Identifier: GPL-2.0
/* Does a call get dearer, and with what? Exact mode shows it best. */
#include "bench.h"

#define SIZE	(16 * MIB)

static int rounds(void)
{
	return exact ? 4 : 3;
}

/* [at, at + len) as nr mappings that cannot be joined. */
static void map_many(void *at, size_t len, unsigned int nr)
{
	size_t each = len / nr, i;

	map(at, len, SMALL);
	fill(at, len);
	for (i = 1; i < nr; i += 2)
		if (mprotect((char *)at + i * each, each, PROT_READ))
			err(2, "mprotect");
}

static void vmas_in_range(void)
{
	static const unsigned int counts[] = { 1, 4, 16, 64, 256, 1024, 4096 };
	unsigned int i;
	int round;

	for (round = 0; round < rounds(); round++) {
		for (i = 0; i < ARRAY_SIZE(counts); i++) {
			unsigned long dst = fresh_dst();
			void *src = fresh_src();

			map_many(src, SIZE, counts[i]);
			settle();
			if (!base_only) {
				MEASURE("dput-cold", counts[i], dput_to(&peer, dst, src, SIZE));
				settle();
				MEASURE("dput-again", counts[i], dput_to(&peer, dst, src, SIZE));
				peer_do(&peer, P_UNMAP, dst, SIZE, 0);
				/* Pages that nobody has shared yet. */
				unmap(src, SIZE);
				src = fresh_src();
				map_many(src, SIZE, counts[i]);
			}
			fork_share("fork-without", "fork-with", counts[i], src, SIZE);
			unmap(src, SIZE);
			settle();
		}
	}
}

static void vmas_elsewhere(void)
{
	static const unsigned int counts[] = { 1, 100, 1000, 10000, 30000 };
	unsigned int i;
	int round;

	if (base_only)
		return;
	for (round = 0; round < rounds(); round++) {
		for (i = 0; i < ARRAY_SIZE(counts); i++) {
			size_t len = counts[i] * PAGE;
			void *src = map(fresh_src(), SIZE, SMALL);
			unsigned long dst = fresh_dst();
			char *other = map(fresh_src(), len, SMALL);
			unsigned long page;
			pid_t pid;

			for (page = 1; page < counts[i]; page += 2)
				if (mprotect(other + page * PAGE, PAGE, PROT_NONE))
					err(2, "mprotect");
			fill(src, SIZE);
			settle();
			MEASURE("dput", counts[i], dput_to(&peer, dst, src, SIZE));
			peer_do(&peer, P_UNMAP, dst, SIZE, 0);
			/* All of it: that is what a user of fork() pays. */
			settle();
			MEASURE("fork", counts[i], pid = fork_raw());
			reap(pid);
			unmap(src, SIZE);
			unmap(other, len);
			settle();
		}
	}
}

/* So many processes have an image of the region already. */
static void sharers(void)
{
	static const unsigned int counts[] = { 0, 1, 4, 16, 64 };
	static struct peer others[64];
	unsigned int i, j;
	int round;

	if (base_only)
		return;
	for (i = 0; i < 64; i++)
		peer_start(&others[i]);
	for (round = 0; round < rounds(); round++) {
		for (i = 0; i < ARRAY_SIZE(counts); i++) {
			void *src = map(fresh_src(), SIZE, SMALL);
			unsigned long dst = fresh_dst();

			fill(src, SIZE);
			for (j = 0; j < counts[i]; j++)
				dput_to(&others[j], dst, src, SIZE);
			settle();
			MEASURE("dput", counts[i], dput_to(&peer, dst, src, SIZE));
			settle();
			sample("write", counts[i], exact ? "instructions" : "ns",
			       peer_do(&peer, P_TOUCH, dst, SIZE, PAGE));
			peer_do(&peer, P_UNMAP, dst, SIZE, 0);
			for (j = 0; j < counts[i]; j++)
				peer_do(&others[j], P_UNMAP, dst, SIZE, 0);
			unmap(src, SIZE);
			settle();
		}
	}
	for (i = 0; i < 64; i++)
		peer_stop(&others[i]);
}

/* So many calls were made before, of the same region, into the same place. */
static void calls_before(void)
{
	const size_t len = 16 * PAGE;
	unsigned long dst = fresh_dst(), call, at = 10;
	void *src = map(fresh_src(), len, SMALL);

	if (base_only)
		return;
	fill(src, len);
	for (call = 1; call <= 10005; call++) {
		bool near = call + 5 >= at && call <= at + 5;

		if (call > at + 5)
			at *= 10;
		if (near)
			settle();
		touch(src, PAGE, PAGE);
		if (near)
			MEASURE("dput", at, dput_to(&peer, dst, src, len));
		else
			dput_to(&peer, dst, src, len);
	}
	peer_do(&peer, P_UNMAP, dst, len, 0);
	unmap(src, len);
}

const struct bench growth_cases[] = {
	{ "growth-vmas-in-range", vmas_in_range, "growth" },
	{ "growth-vmas-elsewhere", vmas_elsewhere, "growth" },
	{ "growth-sharers", sharers, "growth" },
	{ "growth-calls", calls_before, "growth" },
	{ }
};
