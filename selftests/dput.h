/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * dput(2) for programs whose libc does not have it: dput() as the manual page
 * describes it, and what older kernel headers lack. Needs nothing but this file, and
 * what makes <unistd.h> declare syscall(): with -std=c99, -D_DEFAULT_SOURCE.
 */
#ifndef DPUT_H
#define DPUT_H

#include <stddef.h>
#include <unistd.h>
#include <sys/syscall.h>

#if defined(__has_include)
#if __has_include(<linux/dput.h>)
#include <linux/dput.h>
#endif
#endif

#ifndef DPUT_HOLES
#define DPUT_HOLES		(1U << 0)
#endif
#ifndef DPUT_NOREPLACE
#define DPUT_NOREPLACE		(1U << 1)
#endif

/* From linux/pidfd.h: they stand for the caller. */
#ifndef PIDFD_SELF_THREAD
#define PIDFD_SELF_THREAD	-10000
#endif
#ifndef PIDFD_SELF_THREAD_GROUP
#define PIDFD_SELF_THREAD_GROUP	-10001
#endif
#ifndef PIDFD_SELF
#define PIDFD_SELF		PIDFD_SELF_THREAD
#endif
#ifndef PIDFD_SELF_PROCESS
#define PIDFD_SELF_PROCESS	PIDFD_SELF_THREAD_GROUP
#endif

#ifndef __NR_dput
#if defined(__alpha__)
#define __NR_dput		583
#elif defined(_MIPS_SIM) && defined(_ABI64) && _MIPS_SIM == _ABI64
#define __NR_dput		5473
#elif defined(_MIPS_SIM) && defined(_ABIN32) && _MIPS_SIM == _ABIN32
#define __NR_dput		6473
#elif defined(_MIPS_SIM)
#define __NR_dput		4473
#elif defined(__x86_64__) && defined(__ILP32__)
#define __NR_dput		(0x40000000 + 473)
#else
#define __NR_dput		473
#endif
#endif

/*
 * Make [dst, dst + len) of one process hold what [src, src + len) of another one,
 * or of the same, holds. 0, or -1 and errno.
 */
static inline int dput(int src_fd, const void *src, int dst_fd, void *dst,
		       size_t len, unsigned int flags)
{
	return (int)syscall(__NR_dput, src_fd, src, dst_fd, dst, len, flags);
}

#endif
