// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) over mappings of files and of devices, which hear of it by being closed.
 * A FUSE server, which is a process of its own, keeps the call in the middle of that
 * for as long as a test looks around. Nobody else has /dev/fuse open: when the server
 * is killed, whoever waits for it goes on.
 */

#include "kselftest_harness.h"
#include <linux/android/binder.h>
#include <linux/android/binderfs.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define SRC		(ARENA + 64 * page_size())
#define DST		(ARENA + (1UL << 28) + 7 * page_size())

/* Of the FUSE file; binder's mapping follows it. */
#define FILE_PAGES	1
#define BINDER_PAGES	16
#define PAGES		(FILE_PAGES + BINDER_PAGES)

/* A file system that is a single file, full of zeroes */

struct server {
	char path[32];
	pid_t pid;
	int fd;			/* /dev/fuse, in the server */
	int told[2];		/* A byte when something is to be written ... */
	int go_on[2];		/* ... which is done when one comes back. */
};

static size_t serve_one(struct server *s, const struct fuse_in_header *in, char *out)
{
	const struct fuse_read_in *rd = (const void *)(in + 1);
	const struct fuse_write_in *wr = (const void *)(in + 1);
	struct fuse_attr_out attr = {
		.attr_valid = 1000,
		.attr = {
			.ino = FUSE_ROOT_ID, .size = FILE_PAGES * page_size(),
			.mode = S_IFREG | 0600, .nlink = 1, .blksize = page_size(),
		},
	};
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 65536,
	};
	struct fuse_write_out written = {};
	struct fuse_open_out open = {};
	char c;

	switch (in->opcode) {
	case FUSE_INIT:
		memcpy(out, &init, sizeof(init));
		return sizeof(init);
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		memcpy(out, &attr, sizeof(attr));
		return sizeof(attr);
	case FUSE_OPEN:
		memcpy(out, &open, sizeof(open));
		return sizeof(open);
	case FUSE_READ:
		memset(out, 0, rd->size);
		return rd->size;
	case FUSE_WRITE:
		if (write(s->told[1], "", 1) != 1 || read(s->go_on[0], &c, 1) != 1)
			return 0;
		written.size = wr->size;
		memcpy(out, &written, sizeof(written));
		return sizeof(written);
	}
	return 0;
}

static void serve(struct server *s)
{
	static char in[65536 + 4096] __aligned(8), out[65536 + 4096] __aligned(8);
	struct fuse_in_header *ih = (void *)in;
	struct fuse_out_header *oh = (void *)out;

	while (read(s->fd, in, sizeof(in)) > 0) {
		if (ih->opcode == FUSE_FORGET || ih->opcode == FUSE_BATCH_FORGET ||
		    ih->opcode == FUSE_INTERRUPT)
			continue;
		oh->unique = ih->unique;
		oh->len = sizeof(*oh) + serve_one(s, ih, out + sizeof(*oh));
		oh->error = 0;
		if (oh->len == sizeof(*oh) && ih->opcode != FUSE_FLUSH &&
		    ih->opcode != FUSE_RELEASE && ih->opcode != FUSE_FSYNC)
			oh->error = -ENOSYS;
		/* Of a request that was given up, it does not want to know. */
		if (write(s->fd, out, oh->len) < 0 && errno != ENOENT)
			break;
	}
}

static int server_main(struct server *s)
{
	char options[80];
	int err = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	s->fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof(options), "fd=%d,rootmode=100000,user_id=0,group_id=0", s->fd);
	if (s->fd < 0 || mount("dput", s->path, "fuse", MS_NOSUID | MS_NODEV, options))
		err = errno;
	if (write(s->told[1], &err, sizeof(err)) == sizeof(err) && !err)
		serve(s);
	return 0;
}

/* NULL, or why there is none */
static const char *server_start(struct server *s)
{
	int fd, err = EPIPE;

	if (pipe2(s->told, O_CLOEXEC) || pipe2(s->go_on, O_CLOEXEC))
		return "pipe";
	strcpy(s->path, "./dput-XXXXXX");
	fd = mkstemp(s->path);
	if (fd < 0)
		return "no file can be made here";
	close(fd);
	s->pid = fork();
	if (!s->pid)
		_exit(server_main(s));
	close(s->told[1]);
	close(s->go_on[0]);
	if (s->pid < 0 || read(s->told[0], &err, sizeof(err)) != sizeof(err) || err) {
		errno = err;
		return "FUSE (CONFIG_FUSE_FS)";
	}
	return NULL;
}

static void server_stop(struct server *s)
{
	if (s->pid > 0) {
		kill(s->pid, SIGKILL);
		waitpid(s->pid, NULL, 0);
		umount2(s->path, MNT_DETACH);
	}
	unlink(s->path);
}

/* What the process at the destination does */

struct map_arg {
	char path[64];
	unsigned long addr;
};

/* Map the FUSE file and write to it. */
static long op_map_file(void *arg)
{
	struct map_arg *a = arg;
	size_t len = FILE_PAGES * page_size();
	struct stat st;
	char *p;
	int fd;

	fd = open(a->path, O_RDWR | O_CLOEXEC);
	/* Without that it does not know the size. */
	if (fd < 0 || fstat(fd, &st))
		return -1;
	p = mmap((void *)a->addr, len, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	close(fd);
	if (p != (void *)a->addr)
		return -1;
	memset(p, 1, len);
	return 0;
}

/* Whoever opens a binder device is who may map it. */
static int binder_fd = -1;

/* Become the one whom everybody can send something to. */
static long op_map_binder(void *arg)
{
	struct map_arg *a = arg;
	void *p;

	binder_fd = open(a->path, O_RDWR | O_CLOEXEC);
	if (binder_fd < 0)
		return -1;
	p = mmap((void *)a->addr, BINDER_PAGES * page_size(), PROT_READ,
		 MAP_PRIVATE | MAP_FIXED_NOREPLACE, binder_fd, 0);
	if (p != (void *)a->addr)
		return -1;
	return ioctl(binder_fd, BINDER_SET_CONTEXT_MGR, 0);
}

/*
 * Send it @len bytes, which binder puts into pages of that mapping, and say what
 * binder answers: BR_TRANSACTION_COMPLETE, or an error.
 */
static uint32_t binder_send(int fd, size_t len)
{
	static char data[4 * 65536];
	struct {
		uint32_t cmd;
		struct binder_transaction_data tr;
	} __attribute__((packed)) out = {
		.cmd = BC_TRANSACTION,
		.tr = {
			.flags = TF_ONE_WAY,
			.data_size = len,
			.data.ptr.buffer = (binder_uintptr_t)(uintptr_t)data,
		},
	};
	uint32_t in[64] = {};
	struct binder_write_read bwr = {
		.write_size = sizeof(out),
		.write_buffer = (binder_uintptr_t)(uintptr_t)&out,
		.read_size = sizeof(in),
		.read_buffer = (binder_uintptr_t)(uintptr_t)in,
	};
	size_t i;

	if (ioctl(fd, BINDER_WRITE_READ, &bwr))
		return 0;
	for (i = 0; i < bwr.read_consumed / sizeof(in[0]); i++)
		if (in[i] != BR_NOOP)
			return in[i];
	return 0;
}

/* The caller */
struct call {
	int dst_fd, err;
	size_t len;
	bool done;
};

static void *call(void *arg)
{
	struct call *c = arg;

	c->err = sys_dput(PIDFD_SELF, SRC, c->dst_fd, DST, c->len, 0) ? errno : 0;
	__atomic_store_n(&c->done, true, __ATOMIC_RELEASE);
	return NULL;
}

FIXTURE(closing)
{
	struct server server;
	struct peer me, other;
	struct call call;
	pthread_t thread;
};

FIXTURE_SETUP(closing)
{
	struct map_arg map = { .addr = DST };
	const char *why;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	/* The mounts are this process's, and its children's. */
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		SKIP(return, "mount namespaces: %s", strerror(errno));
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->other));
	why = server_start(&self->server);
	if (why)
		SKIP(return, "%s: %s", why, strerror(errno));
	strcpy(map.path, self->server.path);
	ASSERT_EQ(0, peer_call(&self->other, op_map_file, &map, sizeof(map)));
	ASSERT_EQ(0, peer_map(&self->me, SRC, PAGES * page_size(), RW));
	ASSERT_EQ(0, peer_fill(&self->me, SRC, PAGES * page_size(), 1));
	self->call.dst_fd = self->other.pidfd;
}

FIXTURE_TEARDOWN(closing)
{
	server_stop(&self->server);
	if (self->other.pid)
		peer_kill(&self->other);
}

/* Make the call, up to where the file is closed. */
static void call_until_closing(struct __test_metadata *_metadata,
			       FIXTURE_DATA(closing) * self, size_t npages)
{
	struct pollfd told = { .fd = self->server.told[0], .events = POLLIN };
	char c;

	self->call.len = npages * page_size();
	ASSERT_EQ(0, pthread_create(&self->thread, NULL, call, &self->call));
	ASSERT_EQ(1, poll(&told, 1, 120000))
		TH_LOG("the file is not written: error %d", self->call.err);
	ASSERT_EQ(1, read(told.fd, &c, 1));
	/* Somebody else may have had it written. */
	while (strcmp(proc_perms(self->other.pid, DST), "rw-p")) {
		ASSERT_FALSE(__atomic_load_n(&self->call.done, __ATOMIC_ACQUIRE))
			TH_LOG("the call is over, with error %d", self->call.err);
		sched_yield();
	}
}

static void go_on(struct __test_metadata *_metadata, FIXTURE_DATA(closing) * self)
{
	ASSERT_EQ(1, write(self->server.go_on[1], "", 1));
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
	EXPECT_EQ(0, self->call.err);
	EXPECT_EQ(-1, peer_verify(&self->other, DST, self->call.len, 1));
}

/* The source can map something, and the destination's maps and memory be read. */
TEST_F(closing, others_go_on)
{
	size_t ps = page_size(), len = FILE_PAGES * ps;
	char *maps;
	void *p;

	call_until_closing(_metadata, self, FILE_PAGES);
	p = mmap(NULL, ps, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT_TRUE(p != MAP_FAILED);
	munmap(p, ps);
	maps = proc_maps(self->other.pid, DST, DST + len);
	ASSERT_TRUE(!!maps);
	EXPECT_TRUE(!!strstr(maps, "rw-p"))
		TH_LOG("%s", maps);
	free(maps);
	EXPECT_EQ(-1, peer_verify(&self->other, DST, len, 1));
	/* And page faults be handled. */
	EXPECT_EQ(0, peer_write(&self->other, DST, "x", 1));
	EXPECT_EQ(0, peer_fill(&self->other, DST, len, 1));
	go_on(_metadata, self);
}

/*
 * Binder looks for its mapping by the address, and maps pages there, until that has
 * been closed. So it has to be when something else can be found there.
 */
TEST_F(closing, drivers_know_first)
{
	struct map_arg map = { .addr = DST + FILE_PAGES * page_size() };
	struct binderfs_device device = { .name = "dput" };
	char dir[] = "./dput-XXXXXX", control[64];
	int fd;

	ASSERT_TRUE(!!mkdtemp(dir));
	if (mount("binder", dir, "binder", 0, NULL)) {
		fd = errno;
		rmdir(dir);
		SKIP(return, "binder: %s (CONFIG_ANDROID_BINDERFS)", strerror(fd));
	}
	snprintf(control, sizeof(control), "%s/binder-control", dir);
	snprintf(map.path, sizeof(map.path), "%s/%s", dir, device.name);
	fd = open(control, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(fd, BINDER_CTL_ADD, &device));
	close(fd);
	ASSERT_EQ(0, peer_call(&self->other, op_map_binder, &map, sizeof(map)));
	fd = open(map.path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	ASSERT_LE(0, fd);
	umount2(dir, MNT_DETACH);
	rmdir(dir);

	EXPECT_EQ(BR_TRANSACTION_COMPLETE, binder_send(fd, 64));
	call_until_closing(_metadata, self, PAGES);
	/* It would need pages that are not there yet. */
	EXPECT_EQ(BR_DEAD_REPLY, binder_send(fd, 2 * page_size()));
	go_on(_metadata, self);
	close(fd);
}

TEST_HARNESS_MAIN
