#include <err.h>
#include <linux/dput.h>
#include <linux/pidfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_dput
#define SYS_dput  __NR_dput     /* until libc has it */
#endif
#define LEN  (64UL << 20)

int
main(void)
{
    int    fds[2], pidfd;
    char   *place, *buf, go = 1;
    pid_t  pid;

    place = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED || pipe(fds) == -1 || (pid = fork()) == -1)
        err(EXIT_FAILURE, "mmap, pipe or fork");

    if (pid == 0) {             /* The worker waits, then reads. */
        close(fds[1]);
        if (read(fds[0], &go, 1) == 1)
            printf("worker, at %p: %s\n", place, place);
        exit(EXIT_SUCCESS);
    }

    buf = place + LEN;          /* Empty in the worker. */
    strcpy(buf, "put here by the parent");

    pidfd = syscall(SYS_pidfd_open, pid, 0);
    if (pidfd == -1)
        err(EXIT_FAILURE, "pidfd_open");
    if (syscall(SYS_dput, PIDFD_SELF, buf, pidfd, place, LEN, 0) == -1)
        err(EXIT_FAILURE, "dput");

    strcpy(buf, "the worker does not see this");
    if (write(fds[1], &go, 1) == -1 || waitpid(pid, NULL, 0) == -1)
        err(EXIT_FAILURE, "write or waitpid");
    printf("parent, at %p: %s\n", buf, buf);
    exit(EXIT_SUCCESS);
}
