/* Other clocks for one process: preloaded, it adds to CLOCK_BOOTTIME and to CLOCK_REALTIME the two
 * numbers of seconds in the file that CLOCKS_AHEAD names, as they stand at each reading. A machine that
 * was suspended has both moved by the same; one whose time was set, the second alone. */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;

__attribute__((constructor)) static void find(void)
{
    const char *path = getenv("CLOCKS_AHEAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *numbers = mmap(NULL, 2 * sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (numbers != MAP_FAILED)
        ahead = numbers;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && ahead && clock == CLOCK_BOOTTIME)
        at->tv_sec += ahead[0];
    if (!failed && ahead && clock == CLOCK_REALTIME)
        at->tv_sec += ahead[1];
    return failed;
}
