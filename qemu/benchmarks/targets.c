// SPDX-License-Identifier: GPL-2.0
/* The cases that have a target. */
#include "bench.h"

#define SIZE	(256 * MIB)

/* Every hundredth page. */
#define STEP	(100 * PAGE)

static void fork_shares(enum kind kind, size_t len, int rounds)
{
	while (rounds--) {
		void *src = map(fresh_src(), len, kind);

		fill(src, len);
		fork_share("fork-without", "fork-with", len, src, len);
		unmap(src, len);
	}
}

/* The first call, and calls that find their own earlier image. */
static void cold_and_again(enum kind kind, size_t len, int rounds)
{
	while (rounds--) {
		void *src = map(fresh_src(), len, kind);
		unsigned long dst = fresh_dst(), shifted = fresh_dst() + SHIFTED;

		fill(src, len);
		settle();
		MEASURE("cold", len, dput_to(&peer, dst, src, len));
		settle();
		MEASURE("again", len, dput_to(&peer, dst, src, len));

		peer_do(&peer, P_TOUCH, dst, len, STEP);
		settle();
		MEASURE("again-dst-wrote", len, dput_to(&peer, dst, src, len));

		touch(src, len, STEP);
		settle();
		MEASURE("again-src-wrote", len, dput_to(&peer, dst, src, len));
		peer_do(&peer, P_UNMAP, dst, len, 0);
		unmap(src, len);
		settle();
		if (kind != THP)
			continue;

		src = map(fresh_src(), len, kind);
		fill(src, len);
		settle();
		MEASURE("cold-shifted", len, dput_to(&peer, shifted, src, len));
		peer_do(&peer, P_UNMAP, shifted, len, 0);
		unmap(src, len);
	}
}

/* The first copy faults the pages in, the second finds them. */
static void writev(enum kind kind, size_t len, int rounds)
{
	void *src = map(fresh_src(), len, kind);

	fill(src, len);
	while (rounds--) {
		unsigned long dst = fresh_dst();

		peer_do(&peer, P_MAP, dst, len, kind);
		settle();
		MEASURE("writev-cold", len, writev_to(&peer, dst, src, len));
		settle();
		MEASURE("writev-warm", len, writev_to(&peer, dst, src, len));
		peer_do(&peer, P_UNMAP, dst, len, 0);
	}
	unmap(src, len);
}

static void target_4k(void)
{
	fork_shares(SMALL, SIZE, 2);
	if (base_only)
		return;
	cold_and_again(SMALL, SIZE, 2);
	writev(SMALL, SIZE, 1);
}

static void target_thp(void)
{
	fork_shares(THP, SIZE, 2);
	if (base_only)
		return;
	cold_and_again(THP, SIZE, 2);
	writev(THP, SIZE, 1);
}

/*
 * One page, a mapping of its own on both sides. There is other memory close by, as
 * there is in a program, so that its page tables stay when it is unmapped.
 */
#define CLOSE_BY	(64 * KIB)

static void target_page(void)
{
	unsigned long dst;
	void *src;
	int i;

	if (base_only)
		return;
	for (i = 0; i < 16; i++) {
		src = map(fresh_src(), PAGE, SMALL);
		map((char *)src + CLOSE_BY, PAGE, SMALL);
		touch(src, PAGE, PAGE);
		touch((char *)src + CLOSE_BY, PAGE, PAGE);
		dst = fresh_dst();
		peer_do(&peer, P_MAP, dst + CLOSE_BY, PAGE, SMALL);
		peer_do(&peer, P_TOUCH, dst + CLOSE_BY, PAGE, PAGE);
		settle();
		MEASURE("cold", PAGE, dput_to(&peer, dst, src, PAGE));
		settle();
		MEASURE("again", PAGE, dput_to(&peer, dst, src, PAGE));
		touch(src, PAGE, PAGE);
		settle();
		MEASURE("again-src-wrote", PAGE, dput_to(&peer, dst, src, PAGE));
		peer_do(&peer, P_TOUCH, dst, PAGE, PAGE);
		settle();
		MEASURE("again-dst-wrote", PAGE, dput_to(&peer, dst, src, PAGE));
		touch(src, PAGE, PAGE);
		peer_do(&peer, P_TOUCH, dst, PAGE, PAGE);
		settle();
		MEASURE("again-both-wrote", PAGE, dput_to(&peer, dst, src, PAGE));

		touch(src, PAGE, PAGE);
		peer_do(&peer, P_TOUCH, dst, PAGE, PAGE);
		settle();
		MEASURE("writev-warm", PAGE, writev_to(&peer, dst, src, PAGE));
		peer_do(&peer, P_UNMAP, dst, CLOSE_BY + PAGE, 0);
		unmap(src, CLOSE_BY + PAGE);
	}
}

/* Put, written on both sides, put again, ... */
static void target_calls(void)
{
	const size_t len = 16 * PAGE;
	unsigned long dst = fresh_dst(), call;
	void *src = map(fresh_src(), len, SMALL);

	if (base_only)
		return;
	fill(src, len);
	for (call = 1; call <= 100010; call++) {
		unsigned long at = call < 1000 ? 100 : 100000;
		bool near = call + 10 >= at && call <= at + 10;

		if (near || call % 1000 == 0)
			settle();
		touch(src, PAGE, PAGE);
		if (near) {
			peer_do(&peer, P_TOUCH, dst + PAGE, PAGE, PAGE);
			MEASURE("call", at, dput_to(&peer, dst, src, len));
		} else {
			dput_to(&peer, dst, src, len);
		}
	}
	peer_do(&peer, P_UNMAP, dst, len, 0);
	unmap(src, len);
}

static void target_scale(void)
{
	static const size_t sizes[] = { MIB, GIB };
	unsigned int i, round;

	if (base_only)
		return;
	for (i = 0; i < 2; i++) {
		for (round = 0; round < (sizes[i] == GIB ? 1 : 8); round++) {
			size_t len = sizes[i];
			void *src = map(fresh_src(), len, SMALL);
			unsigned long dst = fresh_dst();

			fill(src, len);
			settle();
			MEASURE("cold", len, dput_to(&peer, dst, src, len));
			peer_do(&peer, P_UNMAP, dst, len, 0);
			unmap(src, len);
			settle();
		}
	}
}

/*
 * The longest fault while 1 GiB is copied: of a thread of the source that writes
 * to its first pages, or elsewhere, and of a thread of the destination.
 */
void longest_stalls(void)
{
	const size_t len = exact ? GIB : region(GIB), some = 16 * MIB;
	void *other = map(fresh_src(), some, SMALL);
	void *src = map(fresh_src(), len, SMALL);
	unsigned long dst = fresh_dst(), dst_other = fresh_dst();
	const char *unit = exact ? "instructions" : "ns";
	pid_t pid;

	fill(src, len);
	stall_start(src, some);
	settle();
	pid = fork_raw();
	sample("fork-source", len, unit, stall_end());
	reap(pid);
	settle();
	stall_start(other, some);
	pid = fork_raw();
	sample("fork-source-elsewhere", len, unit, stall_end());
	reap(pid);
	settle();
	if (base_only)
		goto out;

	/* As before fork(): nothing is shared. */
	fill(src, len);
	settle();
	stall_start(src, some);
	dput_to(&peer, dst, src, len);
	sample("dput-source", len, unit, stall_end());
	peer_do(&peer, P_UNMAP, dst, len, 0);
	settle();

	unmap(other, some);
	map(other, some, SMALL);
	stall_start(other, some);
	dput_to(&peer, dst, src, len);
	sample("dput-source-elsewhere", len, unit, stall_end());
	peer_do(&peer, P_UNMAP, dst, len, 0);
	settle();

	peer_do(&peer, P_MAP, dst_other, some, SMALL);
	peer_do(&peer, P_STALL, dst_other, some, 0);
	dput_to(&peer, dst, src, len);
	sample("dput-destination-elsewhere", len, unit,
	       peer_do(&peer, P_STALLED, 0, 0, 0));
	settle();

	peer_do(&peer, P_STALL, dst, some, 0);
	dput_to(&peer, dst, src, len);
	sample("dput-destination", len, unit,
	       peer_do(&peer, P_STALLED, 0, 0, 0));
	peer_do(&peer, P_UNMAP, dst, len, 0);
	peer_do(&peer, P_UNMAP, dst_other, some, 0);
out:
	unmap(src, len);
	unmap(other, some);
	settle();
}

const struct bench target_cases[] = {
	{ "target-4k", target_4k, "targets" },
	{ "target-thp", target_thp, "targets" },
	{ "target-page", target_page, "targets" },
	{ "target-calls", target_calls, "targets" },
	{ "target-scale", target_scale, "targets" },
	{ "target-stall", longest_stalls, "targets" },
	{ }
};
