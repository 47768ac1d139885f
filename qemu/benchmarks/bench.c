// SPDX-License-Identifier: GPL-2.0
/*
 * What dput(2) costs, and what else does the same work.
 *
 *	bench [--exact] [--base] [--most MIB] [--profile SERIES] [GROUP|CASE]...
 *
 * --exact says that the guest's clock counts instructions (QEMU's icount, one
 * CPU); otherwise figures are nanoseconds of the wall clock. --base leaves out
 * all that needs dput(), for a kernel without it. --most limits the regions, for a
 * quick look; the targets are not affected. --profile marks the stretches
 * that make up SERIES for qemu/benchmarks/profile.c.
 *
 * Prints a line for each figure, fields divided by tabs:
 *	figure CASE SERIES X UNIT SAMPLES MIN MEDIAN MAX
 */
#include "bench.h"
#include <sched.h>

#define MAX_FIGURES	512
#define MAX_SAMPLES	64

static struct figure {
	const char *series, *unit;
	uint64_t x, value[MAX_SAMPLES];
	unsigned int n;
} figures[MAX_FIGURES];
static unsigned int nr_figures;
static const char *profiled;
bool base_only;

/* Where the profile begins and ends: qemu/bench knows their addresses. */
void __attribute__((noinline)) profile_begin(void)
{
	asm volatile("nop");
}

void __attribute__((noinline)) profile_end(void)
{
	asm volatile("nop");
}

uint64_t begin(const char *series)
{
	if (profiled && !strcmp(series, profiled))
		profile_begin();
	return now();
}

uint64_t end(const char *series, uint64_t x, uint64_t start)
{
	uint64_t took = now() - start;

	if (profiled && !strcmp(series, profiled))
		profile_end();
	sample(series, x, exact ? "instructions" : "ns", took);
	return took;
}

void sample(const char *series, uint64_t x, const char *unit, uint64_t value)
{
	struct figure *f;

	for (f = figures; f < figures + nr_figures; f++)
		if (f->x == x && !strcmp(f->series, series))
			break;
	if (f == figures + nr_figures) {
		if (nr_figures++ == MAX_FIGURES)
			errx(2, "too many figures");
		f->series = strdup(series);
		f->unit = unit;
		f->x = x;
		f->n = 0;
	}
	if (f->n == MAX_SAMPLES)
		errx(2, "%s: too many samples", series);
	f->value[f->n++] = value;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void print_figures(const char *name)
{
	struct figure *f;

	for (f = figures; f < figures + nr_figures; f++) {
		qsort(f->value, f->n, sizeof(f->value[0]), by_value);
		printf("figure\t%s\t%s\t%lu\t%s\t%u\t%lu\t%lu\t%lu\n", name,
		       f->series, f->x, f->unit, f->n, f->value[0],
		       f->value[f->n / 2], f->value[f->n - 1]);
	}
	fflush(stdout);
	nr_figures = 0;
}

static bool selected(const struct bench *b, char **names)
{
	if (!*names)
		return true;
	for (; *names; names++)
		if (!strcmp(*names, b->name) || !strcmp(*names, b->group))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	/* Nothing else runs unless we wait, and children are ordinary. */
	const struct sched_param param = { .sched_priority = 50 };
	const struct bench *const groups[] = {
		target_cases, copy_cases, after_cases, growth_cases, side_cases,
		real_cases,
	};
	const struct bench *b;
	unsigned int i, nr = 0;

	for (argv++; argc > 1 && *argv && !strncmp(*argv, "--", 2); argv++) {
		if (!strcmp(*argv, "--exact"))
			exact = true;
		else if (!strcmp(*argv, "--base"))
			base_only = true;
		else if (!strcmp(*argv, "--most") && argv[1])
			most = strtoul(*++argv, NULL, 10) * MIB;
		else if (!strcmp(*argv, "--profile") && argv[1])
			profiled = *++argv;
		else
			errx(2, "unknown option %s", *argv);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	peer_start(&peer);
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param))
		err(2, "sched_setscheduler");

	for (i = 0; i < ARRAY_SIZE(groups); i++) {
		for (b = groups[i]; b->name; b++) {
			uint64_t start = now();

			if (!selected(b, argv))
				continue;
			b->run();
			print_figures(b->name);
			printf("# %s took %.1f s\n", b->name,
			       (now() - start) / 1e9);
			nr++;
		}
	}
	peer_stop(&peer);
	if (!nr)
		errx(2, "there is no such case");
	return 0;
}
