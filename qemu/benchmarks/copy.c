// SPDX-License-Identifier: GPL-2.0
/* A region of each size and kind, and what else would copy it. */
#include "bench.h"
#include <fcntl.h>
#include <sys/uio.h>

static const size_t sizes[] = {
	1, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, GIB
};

#define SECOND		1000000000ULL

static int rounds(size_t len)
{
	if (len >= 256 * MIB)
		return exact ? 1 : 3;
	return exact ? 4 : 9;
}

static size_t mapped(size_t len)
{
	return (len + PAGE - 1) & ~(PAGE - 1);
}

static void dput_round(enum kind kind, size_t len, size_t shift)
{
	void *src = map(fresh_src(), mapped(len), kind);
	unsigned long dst = fresh_dst() + shift, used = fresh_dst() + shift;

	fill(src, mapped(len));
	settle();
	MEASURE("dput-cold", len, dput_to(&peer, dst, src, len));
	settle();
	MEASURE("dput-again", len, dput_to(&peer, dst, src, len));
	peer_do(&peer, P_UNMAP, dst, mapped(len), 0);

	/* Over the destination's own memory, which has to be freed. */
	peer_do(&peer, P_MAP, used, mapped(len), kind);
	peer_do(&peer, P_FILL, used, mapped(len), 0);
	settle();
	MEASURE("dput-over", len, dput_to(&peer, used, src, len));
	peer_do(&peer, P_UNMAP, used, mapped(len), 0);
	unmap(src, mapped(len));
	settle();
}

static void splice_to(struct peer *p, unsigned long dst, char *src, size_t len)
{
	struct iovec iov = { src, len };

	peer_begin(p, P_PIPE, dst, len, 0);
	while (iov.iov_len) {
		ssize_t done = vmsplice(p->pipe, &iov, 1, 0);

		if (done <= 0)
			err(2, "vmsplice");
		iov.iov_base = (char *)iov.iov_base + done;
		iov.iov_len -= done;
	}
	peer_end(p);
}

static void others_round(enum kind kind, size_t len, bool only_fork)
{
	void *src = map(fresh_src(), mapped(len), kind), *to = fresh_src();
	unsigned long dst = fresh_dst();
	int fd;

	fill(src, mapped(len));
	fork_share("fork-without", "fork-with", len, src, mapped(len));
	if (exact && len >= 256 * MIB) {
		/* What interrupts a long fork() hits one sample of two at most. */
		populate(src, mapped(len));
		fork_share("fork-without", "fork-with", len, src, mapped(len));
	}
	if (only_fork) {
		unmap(src, mapped(len));
		return;
	}

	peer_do(&peer, P_MAP, dst, mapped(len), kind);
	settle();
	MEASURE("writev-cold", len, writev_to(&peer, dst, src, len));
	settle();
	MEASURE("writev-warm", len, writev_to(&peer, dst, src, len));
	settle();
	MEASURE("vmsplice", len, splice_to(&peer, dst, src, len));
	settle();
	MEASURE("mremap", len, to = mremap(src, mapped(len), mapped(len),
					   MREMAP_MAYMOVE | MREMAP_FIXED, to));
	if (to == MAP_FAILED)
		err(2, "mremap");
	unmap(to, mapped(len));

	/* What the source has is in a memfd, and stays there. */
	fd = new_memfd(mapped(len));
	src = map_file(fresh_src(), mapped(len), fd, MAP_SHARED);
	fill(src, mapped(len));
	settle();
	sample("memfd-copy", len, exact ? "instructions" : "ns",
	       peer_do(&peer, P_SHARED, dst, len, fd));
	unmap(src, mapped(len));
	close(fd);
	peer_do(&peer, P_UNMAP, dst, mapped(len), 0);

	src = map(fresh_src(), mapped(len), kind);
	to = map(fresh_src(), mapped(len), kind);
	fill(src, mapped(len));
	fill(to, mapped(len));
	settle();
	MEASURE("memcpy", len, memcpy(to, src, len));
	unmap(src, mapped(len));
	unmap(to, mapped(len));
	settle();
}

enum others { NONE, ONLY_FORK, ALL };

static void copy(enum kind kind, size_t from, size_t shift, enum others others)
{
	unsigned int i;
	int round;
	bool all;

	set_mthp(kind == MTHP);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint64_t start = now(), each;

		if (sizes[i] < from || region(sizes[i]) < sizes[i])
			continue;
		for (round = 0, all = false; !all; ) {
			if (!base_only)
				dput_round(kind, sizes[i], shift);
			if (others)
				others_round(kind, sizes[i], base_only || others == ONLY_FORK);
			/* Where the guest is slow, rather all sizes than many samples. */
			all = ++round == rounds(sizes[i]) ||
			      (!exact && now() - start > (round < 3 ? 60 : 20) * SECOND);
		}
		each = (now() - start) / round;
		if (!exact && each > 20 * SECOND && i + 1 < ARRAY_SIZE(sizes)) {
			printf("# left out: more than %zu MiB, which took %.0f s\n",
			       sizes[i] / MIB, each / 1e9);
			break;
		}
	}
	set_mthp(false);
}

static void copy_4k(void)
{
	copy(SMALL, 1, 0, ALL);
}

static void copy_64k(void)
{
	copy(MTHP, 64 * KIB, 0, ONLY_FORK);
}

static void copy_thp(void)
{
	copy(THP, 16 * MIB, 0, ALL);
}

static void copy_thp_shifted(void)
{
	copy(THP, 16 * MIB, SHIFTED, NONE);
}

/* Memory that is not anonymous and present. */

enum state { ANON, ZERO, FILE_CLEAN, FILE_PAGE_WRITTEN, FILE_WRITTEN, SWAPPED };

static void *map_state(enum state state, size_t len)
{
	void *src = fresh_src();
	volatile char *p = src;
	size_t i;
	int fd;

	if (state >= FILE_CLEAN && state <= FILE_WRITTEN) {
		fd = new_memfd(len);
		map_file(src, len, fd, MAP_SHARED);
		fill(src, len);
		unmap(src, len);
		map_file(src, len, fd, MAP_PRIVATE);
		close(fd);
	} else {
		map(src, len, SMALL);
	}
	if (state == FILE_PAGE_WRITTEN)
		touch(src, PAGE, PAGE);
	if (state >= ZERO && state <= FILE_PAGE_WRITTEN)
		for (i = 0; i < len; i += PAGE)
			(void)p[i];
	else
		fill(src, len);
	if (state == SWAPPED && madvise(src, len, MADV_PAGEOUT))
		err(2, "MADV_PAGEOUT");
	return src;
}

static void copy_states(void)
{
	static const char *const name[] = {
		"anonymous", "zero-page", "file-clean", "file-page-written",
		"file-written", "swapped"
	};
	const size_t len = 16 * MIB;
	enum state state;
	char series[64], with[64];
	int round;

	if (system("echo 64M > /sys/block/zram0/disksize && "
		   "mkswap /dev/zram0 > /dev/null && swapon /dev/zram0"))
		errx(2, "cannot set up swap");
	for (round = 0; round < rounds(len); round++) {
		for (state = ANON; state <= SWAPPED; state++) {
			unsigned long dst = fresh_dst();
			void *src;

			src = map_state(state, len);
			snprintf(series, sizeof(series), "%s-fork-without",
				 name[state]);
			snprintf(with, sizeof(with), "%s-fork-with", name[state]);
			fork_share(series, with, len, src, len);
			if (base_only) {
				unmap(src, len);
				continue;
			}

			peer_do(&peer, P_MAP, dst, len, SMALL);
			peer_do(&peer, P_FILL, dst, len, 0);
			settle();
			snprintf(series, sizeof(series), "%s-writev-warm",
				 name[state]);
			MEASURE(series, len, writev_to(&peer, dst, src, len));
			peer_do(&peer, P_UNMAP, dst, len, 0);
			unmap(src, len);

			src = map_state(state, len);
			settle();
			snprintf(series, sizeof(series), "%s-dput", name[state]);
			MEASURE(series, len, dput_to(&peer, dst, src, len));
			peer_do(&peer, P_UNMAP, dst, len, 0);
			unmap(src, len);
		}
	}
	if (system("swapoff /dev/zram0 && echo 1 > /sys/block/zram0/reset"))
		errx(2, "cannot take swap away");
}

const struct bench copy_cases[] = {
	{ "copy-4k", copy_4k, "copy" },
	{ "copy-64k", copy_64k, "copy" },
	{ "copy-thp", copy_thp, "copy" },
	{ "copy-thp-shifted", copy_thp_shifted, "copy" },
	{ "copy-states", copy_states, "copy" },
	{ }
};
