/* A disk that fails, or a process that dies, at a chosen call: preloaded (LD_PRELOAD) into the program under test.
 *
 * Every call that changes something under FAULT_UNDER (an absolute path) is counted from 1 and, with FAULT_LOG, written down
 * as a line `N kind path [new path]`. Kinds: open (that creates or truncates), write, sync, rename, mkdir, truncate, remove,
 * link, copy. FAULT_KIND and FAULT_PATH (a part of the path) narrow what is counted. At call FAULT_AT, FAULT_HOW says what
 * happens:
 *
 *   once      this call fails with FAULT_ERRNO
 *   on        this call and all after it fail; with ENOSPC only those that need space
 *   seconds   as `on`, for FAULT_MS milliseconds
 *   before    SIGKILL in the place of the call
 *   half      half of the bytes are written, then SIGKILL
 *   after     the call, then SIGKILL
 *   later     the call, then SIGKILL after FAULT_MS milliseconds
 *   interrupt SIGINT, FAULT_MS milliseconds to notice it, then the call
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef char path_t[PATH_MAX + 64];
enum act { PASS, FAIL, HALF, AFTER };

static const char *under, *only_kind, *only_path, *how = "";
static long at, milliseconds;
static int error_number, log_fd = -1;
static atomic_long count;
static _Atomic double since;

__attribute__((constructor)) static void settings(void) {
    const char *text;
    under = getenv("FAULT_UNDER");
    only_kind = getenv("FAULT_KIND");
    only_path = getenv("FAULT_PATH");
    if ((text = getenv("FAULT_HOW"))) how = text;
    if ((text = getenv("FAULT_AT"))) at = atol(text);
    if ((text = getenv("FAULT_MS"))) milliseconds = atol(text);
    if ((text = getenv("FAULT_ERRNO"))) error_number = atoi(text);
    if ((text = getenv("FAULT_LOG"))) {
        int fd = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 700);
        syscall(SYS_close, fd);
    }
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void *die_later(void *unused) {
    usleep(milliseconds * 1000);
    die();
    return unused;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int inside(const char *path) {
    size_t n = strlen(under);
    return path && !strncmp(path, under, n) && (path[n] == 0 || path[n] == '/');
}

/* What happens to a call of this kind on these absolute paths. */
static enum act meet(const char *kind, const char *path, const char *to) {
    if (!under || !(inside(path) || inside(to))) return PASS;
    if (only_kind && strcmp(kind, only_kind)) return PASS;
    if (only_path && !strstr(path, only_path) && !(to && strstr(to, only_path))) return PASS;
    long n = atomic_fetch_add(&count, 1) + 1;
    if (log_fd >= 0) {
        char line[2 * sizeof(path_t)];
        int len = snprintf(line, sizeof line, "%ld %s %s%s%s\n", n, kind, path, to ? " " : "", to ? to : "");
        syscall(SYS_write, log_fd, line, (size_t)len);
    }
    if (!at || n < at) return PASS;
    if (!strcmp(how, "on") || !strcmp(how, "seconds")) {
        int needs_space = strcmp(kind, "sync") && strcmp(kind, "rename") && strcmp(kind, "remove");
        double started = since;
        if (started == 0) since = started = now();
        if (!strcmp(how, "seconds") && now() - started > milliseconds * 1e-3) return PASS;
        return error_number != ENOSPC || needs_space ? FAIL : PASS;
    }
    if (n > at) return PASS;
    if (!strcmp(how, "once")) return FAIL;
    if (!strcmp(how, "before")) die();
    if (!strcmp(how, "half")) return HALF;
    if (!strcmp(how, "after")) return AFTER;
    if (!strcmp(how, "interrupt")) {
        kill(getpid(), SIGINT);
        usleep(milliseconds * 1000);
    }
    if (!strcmp(how, "later")) {
        pthread_t thread;
        pthread_create(&thread, NULL, die_later, NULL);
    }
    return PASS;
}

static const char *of_fd(int fd, path_t out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX);
    out[n < 0 ? 0 : n] = 0;
    return out;
}

static const char *of_path(int folder, const char *path, path_t out) {
    if (path[0] == '/') {
        snprintf(out, sizeof(path_t), "%s", path);
        return out;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX)) out[0] = 0;
    } else {
        of_fd(folder, out);
    }
    size_t n = strlen(out);
    snprintf(out + n, sizeof(path_t) - n, "/%s", path);
    return out;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Lets a call through, or not. */
#define GUARD(kind, path, to, call)                      \
    int saved = errno;                                   \
    enum act act = meet(kind, path, to);                 \
    if (act == FAIL) return errno = error_number, -1;    \
    errno = saved;                                       \
    __typeof__(call) result = (call);                    \
    if (act == AFTER || act == HALF) die();              \
    return result

#define WRITE(name, type_of_offset, declared, ...)                                            \
    ssize_t name(int fd, const void *bytes, size_t n declared) {                              \
        path_t p;                                                                             \
        int saved = errno;                                                                    \
        enum act act = meet("write", of_fd(fd, p), NULL);                                     \
        if (act == FAIL) return errno = error_number, -1;                                     \
        errno = saved;                                                                        \
        ssize_t result = REAL(name)(fd, bytes, act == HALF ? n / 2 : n __VA_ARGS__);          \
        if (act == AFTER || act == HALF) die();                                               \
        return result;                                                                        \
    }
#define COMMA ,
WRITE(write, , )
WRITE(pwrite, off_t, COMMA off_t offset, , offset)
WRITE(pwrite64, off64_t, COMMA off64_t offset, , offset)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    path_t p;
    GUARD("write", of_fd(fd, p), NULL, REAL(writev)(fd, parts, n));
}

#define OPEN(name, folder, parameters, ...)                                                                      \
    int name(parameters const char *path, int flags, ...) {                                                      \
        va_list list;                                                                                            \
        va_start(list, flags);                                                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;                                  \
        va_end(list);                                                                                            \
        if (!(flags & (O_CREAT | O_TRUNC))) return REAL(name)(__VA_ARGS__ path, flags, mode);                    \
        path_t p;                                                                                                \
        GUARD("open", of_path(folder, path, p), NULL, REAL(name)(__VA_ARGS__ path, flags, mode));                \
    }
OPEN(open, AT_FDCWD, )
OPEN(open64, AT_FDCWD, )
OPEN(openat, folder, int folder COMMA, folder, )
OPEN(openat64, folder, int folder COMMA, folder, )

int fsync(int fd) {
    path_t p;
    GUARD("sync", of_fd(fd, p), NULL, REAL(fsync)(fd));
}

int fdatasync(int fd) {
    path_t p;
    GUARD("sync", of_fd(fd, p), NULL, REAL(fdatasync)(fd));
}

int ftruncate(int fd, off_t length) {
    path_t p;
    GUARD("truncate", of_fd(fd, p), NULL, REAL(ftruncate)(fd, length));
}

int ftruncate64(int fd, off64_t length) {
    path_t p;
    GUARD("truncate", of_fd(fd, p), NULL, REAL(ftruncate64)(fd, length));
}

int rename(const char *from, const char *to) {
    path_t p, q;
    GUARD("rename", of_path(AT_FDCWD, from, p), of_path(AT_FDCWD, to, q), REAL(rename)(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    path_t p, q;
    GUARD("rename", of_path(a, from, p), of_path(b, to, q), REAL(renameat)(a, from, b, to));
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    path_t p, q;
    GUARD("rename", of_path(a, from, p), of_path(b, to, q), REAL(renameat2)(a, from, b, to, flags));
}

int mkdir(const char *path, mode_t mode) {
    path_t p;
    GUARD("mkdir", of_path(AT_FDCWD, path, p), NULL, REAL(mkdir)(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    path_t p;
    GUARD("mkdir", of_path(folder, path, p), NULL, REAL(mkdirat)(folder, path, mode));
}

int unlink(const char *path) {
    path_t p;
    GUARD("remove", of_path(AT_FDCWD, path, p), NULL, REAL(unlink)(path));
}

int rmdir(const char *path) {
    path_t p;
    GUARD("remove", of_path(AT_FDCWD, path, p), NULL, REAL(rmdir)(path));
}

int unlinkat(int folder, const char *path, int flags) {
    path_t p;
    GUARD("remove", of_path(folder, path, p), NULL, REAL(unlinkat)(folder, path, flags));
}

int link(const char *from, const char *to) {
    path_t p, q;
    GUARD("link", of_path(AT_FDCWD, from, p), of_path(AT_FDCWD, to, q), REAL(link)(from, to));
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    path_t p, q;
    GUARD("link", of_path(a, from, p), of_path(b, to, q), REAL(linkat)(a, from, b, to, flags));
}

int symlink(const char *target, const char *path) {
    path_t p;
    GUARD("link", of_path(AT_FDCWD, path, p), NULL, REAL(symlink)(target, path));
}

ssize_t copy_file_range(int from, off64_t *i, int to, off64_t *o, size_t n, unsigned flags) {
    path_t p;
    GUARD("copy", of_fd(to, p), NULL, REAL(copy_file_range)(from, i, to, o, n, flags));
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t n);
ssize_t sendfile64(int to, int from, off64_t *offset, size_t n) {
    path_t p;
    GUARD("copy", of_fd(to, p), NULL, REAL(sendfile64)(to, from, offset, n));
}
