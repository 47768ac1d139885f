// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) on real data: put a large data set into a process that is already
 * running, let it search there, and compare with process_vm_writev(2).
 *
 *	demo [FILE]
 *
 * FILE is an uncompressed tar archive, or a disk that holds one (/dev/vda
 * when nothing is given). Needs root, for the page frame numbers in
 * /proc/PID/pagemap, and about three times the archive's size in memory.
 *
 * Two processes take part. The worker is started first and has no data. The
 * caller, its parent, reads the archive, puts it into the worker, asks about
 * it over a socket and compares each answer with its own. All figures about
 * memory are read from /proc. Each thing that is claimed is checked; the exit
 * status is 0 only if all of them held, 1 if one did not, 2 if the
 * demonstration could not be run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

#ifndef __NR_dput
#define __NR_dput		473
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open		434
#endif
#ifndef PIDFD_SELF
#define PIDFD_SELF		(-10000)
#endif

#define MIB			(1UL << 20)
#define HUGE			(2 * MIB)	/* a huge page, if there are any */
#define MIN_DATA		(8 * MIB)
#define MAX_DATA		(512 * MIB)
#define ROUNDS			3		/* each time is the best of so many, */
#define ROUNDS_NS		2000000000ULL	/* or of as many as begin in this time */
#define SPOTS			64		/* pages that each side writes */
#define SPOTS_BOTH		16		/* pages that both sides write */
#define SPOTS_TIMED		1024		/* pages written to time a first write */
#define PATTERN			0xa5
#define WORD			"folio"

static unsigned long page_size;

static long dput(int src_fd, const void *src, int dst_fd, unsigned long dst,
		 size_t len, unsigned int flags)
{
	return syscall(__NR_dput, src_fd, src, dst_fd, dst, len, flags);
}

/* ---- Saying things, and keeping count of what was claimed ---- */

static unsigned int nr_claims, nr_failed;
static char *failed[100];			/* the texts of the first ones */

static void __attribute__((noreturn, format(printf, 1, 2)))
cannot(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "demo: cannot run: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(2);
}

static bool __attribute__((format(printf, 2, 3)))
claim(bool holds, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);

	nr_claims++;
	if (!holds) {
		if (nr_failed < 100)
			failed[nr_failed] = strdup(text);
		nr_failed++;
	}
	printf("   %s  %s\n", holds ? "[ok]    " : "[FAILED]", text);
	return holds;
}

static void section(const char *title)
{
	static int nr;

	printf("\n%d. %s\n\n", ++nr, title);
}

/* 1234567 as "1,234,567"; good for a few of them in one printf(). */
static const char *num(uint64_t n)
{
	static char ring[8][32];
	static unsigned int next;
	char digits[24], *out = ring[next++ % 8];
	int len = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)n);
	int i, o = 0;

	for (i = 0; i < len; i++) {
		if (i && (len - i) % 3 == 0)
			out[o++] = ',';
		out[o++] = digits[i];
	}
	out[o] = '\0';
	return out;
}

static double ms(uint64_t ns)
{
	return ns / 1e6;
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static unsigned long down(unsigned long x, unsigned long to)
{
	return x & ~(to - 1);
}

static unsigned long up(unsigned long x, unsigned long to)
{
	return down(x + to - 1, to);
}

/* ---- What both processes know: how to read, sum and write the data ---- */

struct file {
	char name[260];
	unsigned long start;		/* of its tar header, from the archive's start */
	unsigned long data, size;
};

static unsigned long octal(const char *field, int width)
{
	const char *end = field + width;
	unsigned long n = 0;

	while (field < end && *field == ' ')
		field++;
	for (; field < end && *field >= '0' && *field <= '7'; field++)
		n = n * 8 + (*field - '0');
	return n;
}

/*
 * The next regular file of the tar archive at @tar, from *@pos on. False at
 * the archive's end, and where something is not a tar header.
 */
static bool next_file(const char *tar, unsigned long len, unsigned long *pos,
		      struct file *file)
{
	char longname[256] = "";

	file->start = *pos;
	while (*pos + 512 <= len) {
		const char *head = tar + *pos;
		unsigned long size = octal(head + 124, 11);
		unsigned long data = *pos + 512;

		if (memcmp(head + 257, "ustar", 5) || size > len || data + size > len)
			return false;
		*pos = data + up(size, 512);

		switch (head[156]) {
		case 'L':			/* GNU tar: name of the next file */
			snprintf(longname, sizeof(longname), "%.*s", (int)size, tar + data);
			continue;
		case 'x':			/* more about the next file, or all */
		case 'g':
			continue;
		case '0':
		case '\0':
			break;
		default:			/* directory, link, ... */
			longname[0] = '\0';
			file->start = *pos;
			continue;
		}

		if (longname[0])
			strcpy(file->name, longname);
		else if (!head[262] && head[345])
			snprintf(file->name, sizeof(file->name), "%.155s/%.100s",
				 head + 345, head);
		else
			snprintf(file->name, sizeof(file->name), "%.100s", head);
		file->data = data;
		file->size = size;
		return true;
	}
	return false;
}

static uint64_t sum_bytes(const void *data, size_t len)
{
	const unsigned char *p = data;
	uint64_t sum = len, word;

	for (; len >= 8; len -= 8, p += 8) {
		memcpy(&word, p, 8);
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	for (; len; len--, p++)
		sum = (sum ^ *p) * 0x100000001b3ULL;
	return sum;
}

/* A page's part of the sum of all pages: it depends on where the page is. */
static uint64_t sum_page(const void *page, unsigned long nr)
{
	uint64_t sum = sum_bytes(page, page_size) + nr;

	return sum * 0xff51afd7ed558ccdULL ^ sum >> 32;
}

static uint64_t sum_pages(const char *start, unsigned long len)
{
	uint64_t sum = 0;
	unsigned long i;

	for (i = 0; i < len / page_size; i++)
		sum += sum_page(start + i * page_size, i);
	return sum;
}

static unsigned long count_word(const char *start, unsigned long len, const char *word)
{
	const char *end = start + len, *p = start;
	size_t wlen = strlen(word);
	unsigned long n = 0;

	while ((p = memmem(p, end - p, word, wlen))) {
		p += wlen;
		n++;
	}
	return n;
}

static bool find_file(const char *tar, unsigned long len, const char *name,
		      struct file *file)
{
	unsigned long pos = 0;

	while (next_file(tar, len, &pos, file))
		if (!strcmp(file->name, name))
			return true;
	return false;
}

static void first_line(const char *tar, const struct file *file, char *line, size_t size)
{
	unsigned long i;

	for (i = 0; i < file->size && i < size - 1; i++) {
		char c = tar[file->data + i];

		if (c == '\n')
			break;
		line[i] = c >= ' ' && c <= '~' ? c : '?';
	}
	line[i] = '\0';
}

/* How each side marks a page that it writes. */
static void stamp(char *page, const char *who)
{
	memcpy(page + 100, who, strlen(who) + 1);
}

/* ---- The worker ---- */

enum what { SPACE, NOSPACE, FILL, UNLIKE, SUM, COUNT, FIND, WRITE, BYE };

struct ask {
	enum what what;
	unsigned long addr, len;
	unsigned long first, step, count;	/* which pages of it to write */
	bool huge;
	char text[260];
};

struct answer {
	bool found;
	unsigned long addr;
	uint64_t n, size;
	uint64_t ns;				/* how long it took */
	char text[128];
};

static char *space;				/* the worker's place for data */
static unsigned long space_len;

static void do_ask(const struct ask *ask, struct answer *answer)
{
	char *p = (char *)ask->addr;
	struct file file;
	unsigned long i;
	uint64_t start = now();

	switch (ask->what) {
	case SPACE:
		space_len = ask->len + HUGE;
		space = mmap(NULL, space_len, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (space == MAP_FAILED)
			break;
		madvise(space, space_len, ask->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		answer->addr = up((unsigned long)space, HUGE);
		break;
	case NOSPACE:
		munmap(space, space_len);
		break;
	case FILL:
		memset(p, PATTERN, ask->len);
		break;
	case UNLIKE:
		for (i = 0; i < ask->len; i++)
			answer->n += (unsigned char)p[i] != PATTERN;
		break;
	case SUM:
		answer->n = sum_pages(p, ask->len);
		break;
	case COUNT:
		answer->n = count_word(p, ask->len, ask->text);
		break;
	case FIND:
		answer->found = find_file(p, ask->len, ask->text, &file);
		if (!answer->found)
			break;
		answer->size = file.size;
		answer->n = sum_bytes(p + file.data, file.size);
		first_line(p, &file, answer->text, sizeof(answer->text));
		break;
	case WRITE:
		for (i = 0; i < ask->count; i++)
			stamp(p + (ask->first + i * ask->step) * page_size, ask->text);
		break;
	case BYE:
		_exit(0);
	}
	answer->ns = now() - start;
}

static void __attribute__((noreturn)) worker(int sock)
{
	struct answer answer;
	struct ask ask;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Nothing is mapped here; it moves what comes next to other addresses. */
	mmap(NULL, 4096 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
	     -1, 0);

	while (recv(sock, &ask, sizeof(ask), 0) == sizeof(ask)) {
		memset(&answer, 0, sizeof(answer));
		do_ask(&ask, &answer);
		if (send(sock, &answer, sizeof(answer), 0) != sizeof(answer))
			break;
	}
	_exit(1);
}

/* ---- The caller's end of the socket ---- */

static pid_t worker_pid;
static int worker_fd, sock;

static void start_worker(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		cannot("socketpair: %m");
	worker_pid = fork();
	if (worker_pid < 0)
		cannot("fork: %m");
	if (!worker_pid) {
		close(pair[0]);
		worker(pair[1]);
	}
	close(pair[1]);
	sock = pair[0];
	worker_fd = syscall(__NR_pidfd_open, worker_pid, 0);
	if (worker_fd < 0)
		cannot("pidfd_open: %m");
}

static struct answer ask(const struct ask *what)
{
	struct answer answer;

	if (send(sock, what, sizeof(*what), MSG_NOSIGNAL) != sizeof(*what) ||
	    recv(sock, &answer, sizeof(answer), 0) != sizeof(answer)) {
		claim(false, "the worker answers");
		cannot("the worker is gone");
	}
	return answer;
}

#define ASK(...) ask(&(struct ask){ __VA_ARGS__ })

static unsigned long new_space(unsigned long len, bool huge)
{
	unsigned long addr = ASK(.what = SPACE, .len = len, .huge = huge).addr;

	if (!addr)
		cannot("the worker has no memory");
	return addr;
}

/* ---- What the kernel counts ---- */

struct figures {
	long rss, private, pss, pte;		/* the worker */
	long my_pss;				/* the caller */
	long anon, available;			/* the machine */
};

/* The sum, in bytes, of the lines of @path that start with @key or @key2. */
static long from_proc(const char *path, const char *key, const char *key2)
{
	char line[256];
	long sum = 0, kb;
	bool found = false;
	FILE *f = fopen(path, "r");

	if (!f)
		cannot("%s: %m", path);
	while (fgets(line, sizeof(line), f)) {
		const char *k = !strncmp(line, key, strlen(key)) ? key :
				key2 && !strncmp(line, key2, strlen(key2)) ? key2 : NULL;

		if (k && sscanf(line + strlen(k), "%ld", &kb) == 1) {
			sum += kb * 1024;
			found = true;
		}
	}
	fclose(f);
	if (!found)
		cannot("%s has no %s", path, key);
	return sum;
}

static struct figures figures(void)
{
	char rollup[64], status[64];
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY);

	/* Have the kernel add up its per-CPU counters first. */
	if (fd >= 0) {
		if (write(fd, "1", 1) < 0)
			perror("stat_refresh");
		close(fd);
	}
	snprintf(rollup, sizeof(rollup), "/proc/%d/smaps_rollup", worker_pid);
	snprintf(status, sizeof(status), "/proc/%d/status", worker_pid);
	return (struct figures) {
		.rss = from_proc(rollup, "Rss:", NULL),
		.private = from_proc(rollup, "Private_Clean:", "Private_Dirty:"),
		.pss = from_proc(rollup, "Pss:", NULL),
		.pte = from_proc(status, "VmPTE:", NULL),
		.my_pss = from_proc("/proc/self/smaps_rollup", "Pss:", NULL),
		.anon = from_proc("/proc/meminfo", "AnonPages:", NULL),
		.available = from_proc("/proc/meminfo", "MemAvailable:", NULL),
	};
}

static struct figures growth(const struct figures *from)
{
	struct figures to = figures();

	return (struct figures) {
		.rss = to.rss - from->rss,
		.private = to.private - from->private,
		.pss = to.pss - from->pss,
		.pte = to.pte - from->pte,
		.my_pss = to.my_pss - from->my_pss,
		.anon = to.anon - from->anon,
		.available = to.available - from->available,
	};
}

/*
 * The page frame numbers of [addr, addr + len): which physical page is behind
 * each page of a process. 0 where there is none.
 */
static void read_frames(pid_t pid, unsigned long addr, unsigned long len, uint64_t *frames)
{
	size_t size = len / page_size * 8, done = 0;
	unsigned long i;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		cannot("%s: %m", path);
	while (done < size) {
		ssize_t n = pread(fd, (char *)frames + done, size - done,
				  addr / page_size * 8 + done);

		if (n <= 0)
			cannot("%s: %m", path);
		done += n;
	}
	close(fd);
	for (i = 0; i < len / page_size; i++)
		frames[i] = frames[i] >> 63 ? frames[i] & ((1ULL << 55) - 1) : 0;
}

/* Both sides' frames of the range compared last, and how many were the same. */
static uint64_t *mine, *theirs;

static unsigned long same_frames(const char *addr, unsigned long dst, unsigned long len)
{
	unsigned long i, again = 1000, same = 0;

	read_frames(getpid(), (unsigned long)addr, len, mine);
	read_frames(worker_pid, dst, len, theirs);
	for (i = 0; i < len / page_size; i++) {
		unsigned long at = i * page_size;

		/* The kernel may have moved it between the two readings: look again. */
		if (mine[i] != theirs[i] && again) {
			again--;
			read_frames(getpid(), (unsigned long)addr + at, page_size, mine + i);
			read_frames(worker_pid, dst + at, page_size, theirs + i);
		}
		same += mine[i] && mine[i] == theirs[i];
	}
	return same;
}

/* ---- The data set ---- */

static char *data;
static unsigned long data_len;			/* whole pages */
static unsigned long tar_len;
static struct file *files;
static unsigned long nr_files;

static char *new_memory(unsigned long len, bool huge)
{
	unsigned long all = len + 2 * HUGE, start;
	char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	if (p == MAP_FAILED)
		cannot("no memory for the data set: %m");
	start = up((unsigned long)p, HUGE);
	madvise((void *)start, up(len, HUGE), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return (char *)start;
}

static void read_data(const char *path)
{
	unsigned long size, done = 0, pos = 0;
	struct file file;
	struct stat st;
	uint64_t bytes;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st))
		cannot("%s: %m", path);
	bytes = st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, &bytes))
		cannot("%s: its size: %m", path);
	if (bytes < MIN_DATA)
		cannot("%s: %s bytes are too few to show anything", path, num(bytes));
	size = bytes > MAX_DATA ? MAX_DATA : bytes;
	if (from_proc("/proc/meminfo", "MemAvailable:", NULL) < (long)(3 * size + 64 * MIB))
		cannot("%s: three copies of %s MiB do not fit into this machine's memory",
		       path, num(size / MIB));

	data = new_memory(size, false);
	while (done < size) {
		ssize_t n = read(fd, data + done, size - done > MIB ? MIB : size - done);

		if (n <= 0)
			cannot("%s: %m", path);
		done += n;
	}
	/* The page cache's copy is not needed any more. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);

	while (next_file(data, size, &pos, &file)) {
		if (!(nr_files & (nr_files + 1)) || !files)
			files = realloc(files, 2 * (nr_files + 1) * sizeof(file));
		if (!files)
			cannot("no memory for the index");
		files[nr_files++] = file;
	}
	tar_len = pos;
	data_len = up(tar_len, page_size);
	if (nr_files < 100 || data_len < MIN_DATA)
		cannot("%s: not a tar archive, or a very small one", path);

	mine = malloc(data_len / page_size * 8);
	theirs = malloc(data_len / page_size * 8);
	if (!mine || !theirs)
		cannot("no memory for the page frame numbers");

	printf("The data set   %.1f MiB, %s pages: %s files in a tar archive,\n"
	       "               read from %s%s\n",
	       (double)data_len / MIB, num(data_len / page_size), num(nr_files), path,
	       bytes > size ? " (the first 512 MiB)" : "");
}

/* The file to ask for: of the kernel's, one that many know. */
static const struct file *pick_file(unsigned long from)
{
	unsigned long i, n;

	for (i = from; i < nr_files; i++) {
		n = strlen(files[i].name);
		if (n > 10 && !strcmp(files[i].name + n - 10, "/mm/rmap.c"))
			return &files[i];
	}
	return &files[from + (nr_files - from) / 2];
}

/* Write to every @step'th page of the caller's memory, without changing it. */
static uint64_t touch(volatile char *start, unsigned long len, unsigned long step)
{
	uint64_t begin = now();
	unsigned long i;

	for (i = 0; i < len; i += step * page_size)
		start[i] = start[i];
	return now() - begin;
}

/* ---- The two ways to hand the data over. Each says how long it took. ---- */

static uint64_t by_dput(const char *src, unsigned long dst, unsigned long len)
{
	uint64_t start = now(), end;
	long err = dput(PIDFD_SELF, src, worker_fd, dst, len, 0);

	end = now();
	if (err) {
		claim(false, "dput() of %s bytes succeeds (it says: %m)", num(len));
		return 0;
	}
	return end - start ? end - start : 1;
}

static uint64_t by_writev(const char *src, unsigned long dst, unsigned long len)
{
	uint64_t start = now();
	unsigned long done = 0;

	while (done < len) {
		struct iovec from = { (char *)src + done, len - done };
		struct iovec to = { (char *)dst + done, len - done };
		ssize_t n = process_vm_writev(worker_pid, &from, 1, &to, 1, 0);

		if (n <= 0)
			cannot("process_vm_writev: %m");
		done += n;
	}
	return now() - start;
}

/* ---- The chapters ---- */

/* Have the worker search the archive that it has at @dst; compare with ours. */
static void count(const char *src, unsigned long dst, unsigned long len)
{
	unsigned long n = count_word(src, len, WORD);
	struct answer got = ASK(.what = COUNT, .addr = dst, .len = len, .text = WORD);

	claim(got.n == n && n, "worker and caller count the word \"%s\": %s and %s times",
	      WORD, num(got.n), num(n));
}

static void find(const struct file *file, unsigned long dst, unsigned long len)
{
	struct ask want = { .what = FIND, .addr = dst, .len = len };
	struct answer got;
	uint64_t sum;
	char line[128];

	strcpy(want.text, file->name);
	got = ask(&want);
	sum = sum_bytes(data + file->data, file->size);
	first_line(data, file, line, sizeof(line));
	claim(got.found && got.size == file->size && got.n == sum && !strcmp(got.text, line),
	      "the worker finds the file %s", file->name);
	printf("               it says: %7s bytes, checksum %016llx, \"%.40s\"\n",
	       num(got.size), (unsigned long long)got.n, got.text);
	printf("               we have: %7s bytes, checksum %016llx, \"%.40s\"\n",
	       num(file->size), (unsigned long long)sum, line);
}

static void show_frame(const char *which, unsigned long i, unsigned long dst)
{
	printf("   %-12s  0x%012lx  frame %8llx    0x%012lx  frame %8llx\n", which,
	       (unsigned long)data + i * page_size, (unsigned long long)mine[i],
	       dst + i * page_size, (unsigned long long)theirs[i]);
}

static bool whole(unsigned long dst)
{
	unsigned long pages = data_len / page_size, same;
	uint64_t sum, took;

	section("The worker is given the whole data set");
	printf("   One call, dput(), from the first page to the last.\n\n");

	took = by_dput(data, dst, data_len);
	if (!took)
		return false;
	claim(true, "dput() of %.1f MiB succeeds, in %.2f ms", (double)data_len / MIB, ms(took));
	claim((unsigned long)data != dst,
	      "the worker has it at another address than the caller");
	sum = sum_pages(data, data_len);
	claim(ASK(.what = SUM, .addr = dst, .len = data_len).n == sum,
	      "the worker's checksum over all of it equals the caller's");
	count(data, dst, data_len);
	find(pick_file(0), dst, data_len);

	printf("\n   Where the bytes are (a frame is a page of the machine's memory):\n\n"
	       "                 the caller's address and frame    the worker's address and frame\n");
	same = same_frames(data, dst, data_len);
	show_frame("first page", 0, dst);
	show_frame("in between", pages / 2, dst);
	show_frame("last page", pages - 1, dst);
	printf("\n");
	return claim(same == pages,
		     "%s of %s pages are the same memory on both sides: nothing was copied",
		     num(same), num(pages));
}

/* Which of the spots of writes() a page is. */
enum spot { NOT_WRITTEN, BY_CALLER, BY_WORKER, BY_BOTH };

static enum spot spot_of(unsigned long page, unsigned long step)
{
	unsigned long i = page / step;

	switch (page % step) {
	case 1:
		return i < SPOTS ? BY_CALLER : NOT_WRITTEN;
	case 2:
		return i < SPOTS ? BY_WORKER : NOT_WRITTEN;
	case 3:
		return i < SPOTS_BOTH ? BY_BOTH : NOT_WRITTEN;
	}
	return NOT_WRITTEN;
}

static const char caller_text[] = "The caller wrote this, and only the caller may see it.";
static const char worker_text[] = "The worker wrote this, and only the worker may see it.";

/* Is it the case that the written pages, and no others, have been parted? */
static bool parted(unsigned long dst, unsigned long step, bool worker_too,
		   unsigned long *nr)
{
	unsigned long i;
	bool right = true;

	/* same_frames() leaves both sides' frames in mine[] and theirs[]. */
	*nr = data_len / page_size - same_frames(data, dst, data_len);
	for (i = 0; i < data_len / page_size; i++) {
		enum spot spot = spot_of(i, step);
		bool apart = spot == BY_CALLER || (worker_too && spot != NOT_WRITTEN);

		if (!mine[i] || !theirs[i] || (mine[i] != theirs[i]) != apart)
			right = false;
	}
	return right;
}

static void writes(unsigned long dst)
{
	unsigned long pages = data_len / page_size, step = pages / SPOTS;
	unsigned long all = 2 * SPOTS + SPOTS_BOTH, i, nr;
	char *saved = malloc(SPOTS * 4 * page_size), *page = malloc(page_size);
	uint64_t before = 0, want_mine = 0, want_theirs = 0, got;
	struct figures figs = figures();
	bool right;
	struct ask write = { .what = WRITE, .addr = dst, .first = 2, .step = step,
			     .count = SPOTS };

	if (!saved || !page)
		cannot("no memory");
	section("Both write: neither sees it, and only what was written is copied");

	/* What every byte has to be afterwards, on each side. */
	for (i = 0; i < pages; i++) {
		const char *p = data + i * page_size;
		enum spot spot = spot_of(i, step);
		uint64_t sum = sum_page(p, i), caller = sum, worker = sum;

		memcpy(page, p, page_size);
		stamp(page, caller_text);
		if (spot == BY_CALLER || spot == BY_BOTH)
			caller = sum_page(page, i);
		memcpy(page, p, page_size);
		stamp(page, worker_text);
		if (spot == BY_WORKER || spot == BY_BOTH)
			worker = sum_page(page, i);
		before += sum;
		want_mine += caller;
		want_theirs += worker;
		if (spot != NOT_WRITTEN)
			memcpy(saved + (i / step * 4 + i % step) * page_size, p, page_size);
	}

	for (i = 0; i < SPOTS; i++)
		stamp(data + (i * step + 1) * page_size, caller_text);
	got = ASK(.what = SUM, .addr = dst, .len = data_len).n;
	claim(got == before, "the caller wrote %d pages: every byte of the worker's is as before",
	      SPOTS);
	right = parted(dst, step, false, &nr);
	claim(right && nr == SPOTS,
	      "%s pages are different memory now, exactly those %d", num(nr), SPOTS);

	strcpy(write.text, worker_text);
	ask(&write);
	for (i = 0; i < SPOTS_BOTH; i++)
		stamp(data + (i * step + 3) * page_size, caller_text);
	write.first = 3;
	write.count = SPOTS_BOTH;
	ask(&write);

	printf("\n   Now the worker writes %d other pages, and each of them the same %d.\n\n",
	       SPOTS, SPOTS_BOTH);
	claim(sum_pages(data, data_len) == want_mine,
	      "the caller has its old bytes and what it wrote, nothing of the worker's");
	claim(ASK(.what = SUM, .addr = dst, .len = data_len).n == want_theirs,
	      "the worker has its old bytes and what it wrote, nothing of the caller's");
	right = parted(dst, step, true, &nr);
	claim(right && nr == all,
	      "%s pages are different memory now, exactly those %lu that were written",
	      num(nr), all);
	claim(same_frames(data, dst, data_len) == pages - all,
	      "the other %s pages are still the same memory on both sides", num(pages - all));
	figs = growth(&figs);
	claim(labs(figs.private - (long)(all * page_size)) <= (long)(32 * page_size),
	      "the worker's own memory (Private) grew by %s KiB; %lu pages are %s KiB",
	      num(figs.private > 0 ? figs.private / 1024 : 0), all,
	      num(all * page_size / 1024));

	/* As it was, for the chapters to come. */
	for (i = 0; i < pages; i++)
		if (spot_of(i, step) != NOT_WRITTEN)
			memcpy(data + i * page_size,
			       saved + (i / step * 4 + i % step) * page_size, page_size);
	free(saved);
	free(page);
}

static void ragged(void)
{
	unsigned long first = nr_files / 20, last = nr_files - 1;
	unsigned long dst, end, place, place_end, same, pages, i, unlike;
	const struct file *small = NULL;
	const char *src;

	section("Ragged ends: from the middle of a page to the middle of another");

	/* Some file's first byte to another's last, both inside a page. */
	while (files[first].start % page_size == 0)
		first++;
	while ((files[last].data + files[last].size) % page_size == 0)
		last--;
	src = data + files[first].start;
	end = files[last].data + files[last].size - files[first].start;

	/* The worker's place is one page larger than it must be at each end. */
	place = new_space(end + 4 * page_size, false);
	dst = place + page_size + (unsigned long)src % page_size;
	place_end = up(dst + end, page_size) + page_size;
	ASK(.what = FILL, .addr = place, .len = 2 * page_size);
	ASK(.what = FILL, .addr = place_end - 2 * page_size, .len = 2 * page_size);

	printf("   %s bytes: %s files, from byte %lu of a page to byte %lu of another.\n"
	       "   The worker has 0x%02x in all its bytes before and after that place.\n\n",
	       num(end), num(last - first + 1), dst % page_size, (dst + end) % page_size,
	       PATTERN);

	if (!by_dput(src, dst, end))
		goto out;
	claim(true, "dput() succeeds");
	unlike = ASK(.what = UNLIKE, .addr = place, .len = dst - place).n;
	claim(!unlike, "the worker's %s bytes before it are untouched (%s changed)",
	      num(dst - place), num(unlike));
	unlike = ASK(.what = UNLIKE, .addr = dst + end, .len = place_end - (dst + end)).n;
	claim(!unlike, "the worker's %s bytes after it are untouched (%s changed)",
	      num(place_end - (dst + end)), num(unlike));
	i = up(dst, page_size) - dst;
	claim(ASK(.what = SUM, .addr = dst, .len = end).n == sum_pages(src, end),
	      "the worker's checksum of all but the last bytes equals the caller's");
	count(src, dst, end);
	find(&files[first], dst, end);
	find(&files[last], dst, end);

	pages = (down((unsigned long)src + end, page_size) - up((unsigned long)src, page_size)) /
		page_size;
	same = same_frames(src + i, dst + i, pages * page_size);
	claim(same == pages, "%s of %s whole pages are the same memory on both sides",
	      num(same), num(pages));
	same = same_frames((char *)down((unsigned long)src, page_size),
			   down(dst, page_size), page_size);
	i = down((unsigned long)src + end, page_size) - (unsigned long)src;
	same += same_frames(src + i, dst + i, page_size);
	claim(!same, "the two partial pages are not shared: only their bytes were copied");

	/* And a file that lies inside a single page. */
	for (i = 0; i < nr_files && !small; i++)
		if (files[i].size > 10 && files[i].start % page_size &&
		    files[i].start / page_size == (files[i].data + files[i].size) / page_size)
			small = &files[i];
	if (!small)
		goto out;
	dst = place + small->start % page_size;
	end = small->data + small->size - small->start;
	ASK(.what = FILL, .addr = place, .len = 2 * page_size);
	printf("\n   A small file, with its header %s bytes inside one page:\n\n", num(end));
	if (!by_dput(data + small->start, dst, end))
		goto out;
	find(small, dst, end);
	unlike = ASK(.what = UNLIKE, .addr = place, .len = dst - place).n +
		 ASK(.what = UNLIKE, .addr = dst + end,
		     .len = place + 2 * page_size - dst - end).n;
	claim(!unlike, "the rest of that page and the next are untouched (%s changed)",
	      num(unlike));
out:
	ASK(.what = NOSPACE);
}

struct times {
	uint64_t cold, warm, worker_write, caller_write;
};

static void best(uint64_t *best, uint64_t ns)
{
	if (ns && (!*best || ns < *best))
		*best = ns;
}

/*
 * One round of one way: into memory that the worker has mapped and never
 * used, then each side's first write to some pages of it; and over memory
 * that the worker is using. The caller writes to all its pages beforehand, so
 * that each round finds them as the first one did.
 */
static bool round_of(uint64_t (*put)(const char *, unsigned long, unsigned long),
		     char *src, bool huge, struct times *t, struct figures *figs)
{
	unsigned long dst = new_space(data_len, huge), pages = data_len / page_size;
	unsigned long n = pages < SPOTS_TIMED ? pages : SPOTS_TIMED, step = pages / n;
	struct figures start;
	uint64_t ns;
	bool right;

	touch(src, data_len, 1);
	start = figures();
	ns = put(src, dst, data_len);
	if (!ns)
		return false;
	best(&t->cold, ns);
	*figs = growth(&start);
	right = ASK(.what = SUM, .addr = dst, .len = data_len).n == sum_pages(src, data_len);
	ns = ASK(.what = WRITE, .addr = dst, .step = step, .count = n).ns;
	best(&t->worker_write, ns / n);
	ns = touch(src + page_size, n * step * page_size - page_size, step);
	best(&t->caller_write, ns / n);
	ASK(.what = NOSPACE);

	dst = new_space(data_len, huge);
	ASK(.what = FILL, .addr = dst, .len = data_len);
	touch(src, data_len, 1);
	ns = put(src, dst, data_len);
	if (!ns)
		return false;
	best(&t->warm, ns);
	right &= ASK(.what = SUM, .addr = dst, .len = data_len).n == sum_pages(src, data_len);
	ASK(.what = NOSPACE);
	return claim(right, "the worker's checksum is right, both times, after %s()",
		     put == by_dput ? "dput" : "process_vm_writev");
}

static void table_head(const char *what)
{
	printf("\n   %-46s %10s  %19s\n", what, "dput()", "process_vm_writev()");
}

static void time_row(const char *what, double d, double w, const char *unit)
{
	printf("   %-46s %10.2f  %19.2f  %s", what, d, w, unit);
	if (d > 0 && w > d)
		printf("   %.1f times less", w / d);
	printf("\n");
}

static void memory_row(const char *what, long d, long w)
{
	printf("   %-46s %+10.1f  %+19.1f  MiB\n", what, (double)d / MIB, (double)w / MIB);
}

/* From which share of pages written later on does copying at once pay? */
static void break_even(const struct times *d, const struct times *w)
{
	unsigned long pages = data_len / page_size;
	double saved = ((double)w->cold - d->cold) / pages;
	double worker = (double)d->worker_write - w->worker_write;
	double caller = (double)d->caller_write - w->caller_write;
	double later = worker > caller ? worker : caller;

	if (saved > later)
		printf("   So dput() takes less time in all even if every page is written later.\n");
	else if (saved > 0)
		printf("   So dput() takes less time in all as long as less than %.0f %% of the\n"
		       "   pages are written later.\n", 100 * saved / later);
}

/* Time and memory, as a table; @src has the data set. */
static void compare(char *src, bool huge)
{
	unsigned long pages = data_len / page_size;
	struct times d = {}, w = {};
	struct figures df, wf;
	long len = data_len, slack = len / 50 + 2 * MIB;
	uint64_t start = now();
	char title[40];
	int i;

	for (i = 0; i < ROUNDS && (!i || now() - start < ROUNDS_NS); i++)
		if (!round_of(by_dput, src, huge, &d, &df) ||
		    !round_of(by_writev, src, huge, &w, &wf))
			return;

	snprintf(title, sizeof(title), i == 1 ? "Time" : "Time (the best of %d rounds)", i);
	table_head(title);
	time_row("into memory the worker has not used yet", ms(d.cold), ms(w.cold), "ms");
	time_row("over memory the worker is using", ms(d.warm), ms(w.warm), "ms");
	time_row("per page of 4 KiB, not used yet", d.cold / 1e3 / pages,
		 w.cold / 1e3 / pages, "us");
	time_row("per page of 4 KiB, in use", d.warm / 1e3 / pages,
		 w.warm / 1e3 / pages, "us");
	time_row("later, the worker's first write to a page", d.worker_write / 1e3,
		 w.worker_write / 1e3, "us");
	time_row("later, the caller's first write to a page", d.caller_write / 1e3,
		 w.caller_write / 1e3, "us");
	break_even(&d, &w);

	table_head("Memory (what changed, memory not used before)");
	memory_row("the worker can reach (Rss)", df.rss, wf.rss);
	memory_row("  of that, it is the only user (Private)", df.private, wf.private);
	memory_row("  its share, shared pages split (Pss)", df.pss, wf.pss);
	memory_row("the caller's share (Pss)", df.my_pss, wf.my_pss);
	memory_row("the worker's page tables (VmPTE)", df.pte, wf.pte);
	memory_row("all programs together (AnonPages)", df.anon, wf.anon);
	memory_row("what the machine has left (MemAvailable)", df.available, wf.available);
	printf("\n");

	claim(d.cold < w.cold, "dput() took less time, into memory not used yet");
	/* These two are closer: on a busy machine, one round says nothing. */
	if (i > 1)
		claim(d.warm < w.warm, "dput() took less time, over memory in use");
	claim(labs(df.rss - len) < slack, "the worker can reach all of it after dput()");
	claim(df.anon < slack, "dput() took no memory for data on the machine");
	claim(wf.anon > len - slack, "process_vm_writev() took as much as the data set");
	claim(df.available > -(len / 10), "the machine has as much memory left after dput()");
	claim(df.pte <= wf.pte + 64 * 1024,
	      "dput() took no more page tables than process_vm_writev()");
	/* Where the kernel counts them one by one, so can we. */
	if (huge)
		return;
	claim(df.private < slack, "the worker has no memory of its own after dput()");
	claim(wf.private > len - slack, "the worker has it all as its own after process_vm_writev()");
	claim(labs(df.pss - len / 2) < slack && labs(df.my_pss + len / 2) < slack,
	      "worker and caller each count for half of it after dput()");
}

static void huge_pages(void)
{
	unsigned long pages = data_len / page_size, same, dst;
	long big;
	char *copy;

	if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK))
		return;
	section("The same with huge pages");
	copy = new_memory(data_len, true);
	big = from_proc("/proc/self/smaps_rollup", "AnonHugePages:", NULL);
	memcpy(copy, data, data_len);
	big = from_proc("/proc/self/smaps_rollup", "AnonHugePages:", NULL) - big;
	if (big < (long)data_len / 10 * 9) {
		printf("   This kernel gives no huge pages at present (%.1f of %.1f MiB): left out.\n",
		       (double)big / MIB, (double)data_len / MIB);
		return;
	}
	/* From here on, the caller has the data set in huge pages only. */
	munmap(data, data_len);
	data = copy;
	printf("   The caller has the data set in pages of 2 MiB (%.1f of %.1f MiB).\n\n",
	       (double)big / MIB, (double)data_len / MIB);

	dst = new_space(data_len, true);
	if (!by_dput(data, dst, data_len))
		return;
	same = same_frames(data, dst, data_len);
	claim(same == pages, "%s of %s pages are the same memory on both sides", num(same),
	      num(pages));
	ASK(.what = NOSPACE);
	compare(data, true);
}

int main(int argc, char **argv)
{
	unsigned long dst;
	unsigned int i;
	int status;

	page_size = sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(1800);
	if (argc > 2) {
		fprintf(stderr, "usage: demo [FILE]\n");
		return 2;
	}
	if (geteuid())
		cannot("the kernel tells page frame numbers to root only");

	printf("dput(2): a large data set for a running process, without copying it\n\n");
	start_worker();
	printf("The worker     process %d, running, and without any data\n", worker_pid);
	printf("The caller     process %d\n", getpid());
	read_data(argc > 1 ? argv[1] : "/dev/vda");

	if (dput(PIDFD_SELF, data, worker_fd, (unsigned long)data, 0, 0) && errno == ENOSYS) {
		claim(false, "this kernel has dput()");
		goto out;
	}
	dst = new_space(data_len, false);
	if (whole(dst))
		writes(dst);
	ASK(.what = NOSPACE);
	ragged();

	section("What it costs, next to process_vm_writev() of the same range");
	compare(data, false);
	huge_pages();
out:
	send(sock, &(struct ask){ .what = BYE }, sizeof(struct ask), MSG_NOSIGNAL);
	claim(waitpid(worker_pid, &status, 0) == worker_pid && !status,
	      "the worker ends by itself, in good order");

	if (!nr_failed) {
		printf("\nAll %u claims held.\n", nr_claims);
		return 0;
	}
	printf("\n%u of %u claims did NOT hold:\n", nr_failed, nr_claims);
	for (i = 0; i < nr_failed && i < 100; i++)
		printf("   %s\n", failed[i]);
	return 1;
}
