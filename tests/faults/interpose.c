/* Faults at the n-th change that a process makes below one folder: preloaded, so that what libraries write natively is
   met, too. Nothing happens until `arm` is called (see laboratory.py); each change is noted in a file of its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, FSYNC = 4, RENAME = 8, UNLINK = 16, MKDIR = 32, READ = 64 };
enum { WATCH, KILL, TEAR, FAIL, SIGNAL };

static char prefix[PATH_MAX];
static int noting = -1, action, number, kinds, lasting;
static long at = -1, met;

void arm(const char *folder, int note_to, long when, int what, int value, int which, int stays) {
    strncpy(prefix, folder, sizeof prefix - 1);
    noting = note_to, action = what, number = value, kinds = which, lasting = stays, at = when, met = 0;
}

void disarm(void) { prefix[0] = 0; }

static const char *absolute(int dir, const char *path, char *buffer) {
    if (path && path[0] == '/') return path;
    char link[64];
    snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (length < 0) length = 0;
    buffer[length] = 0;
    if (path && *path) snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return buffer;
}

/* What becomes of a change: 0 it goes on, 1 it fails with `number`, 2 half of it is done before the end. */
static int meet(int kind, int dir, const char *path, const char *to) {
    char buffer[PATH_MAX], line[2 * PATH_MAX + 64];
    struct stat about = {0};
    if (!prefix[0] || !(kind & kinds)) return 0;
    int before = errno;
    const char *full = absolute(dir, path, buffer);
    errno = before;
    if (strncmp(full, prefix, strlen(prefix))) return 0;
    long place = __atomic_fetch_add(&met, 1, __ATOMIC_SEQ_CST);
    if (!path) fstat(dir, &about);
    errno = before;
    int length = snprintf(line, sizeof line, "%d\t%lu\t%ld\t%s\t%s\n", kind, (unsigned long)about.st_ino,
                          (long)about.st_size, full, to ? to : "");
    int strikes = at >= 0 && (lasting ? place >= at : place == at);
    if (!(strikes && action == KILL) && noting >= 0) syscall(SYS_write, noting, line, length);
    if (!strikes || action == WATCH) return 0;
    if (action == KILL) syscall(SYS_kill, getpid(), SIGKILL);
    if (action == SIGNAL) { syscall(SYS_kill, getpid(), number); return 0; }
    if (action == TEAR) return 2;
    errno = number;
    return 1;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define OPENER(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
    int fate = writes(flags) ? meet(OPEN, AT_FDCWD, path, 0) : 0; \
    if (fate == 1) return -1; \
    int done = real(path, flags, mode); \
    if (fate == 2) die(); \
    return done; }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name) \
int name(int dir, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
    int fate = writes(flags) ? meet(OPEN, dir, path, 0) : 0; \
    if (fate == 1) return -1; \
    int done = real(dir, path, flags, mode); \
    if (fate == 2) die(); \
    return done; }
OPENER_AT(openat)
OPENER_AT(openat64)

#define FILE_OPENER(name) \
FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, #name, const char *, const char *); \
    int fate = strpbrk(mode, "wa+") ? meet(OPEN, AT_FDCWD, path, 0) : 0; \
    if (fate == 1) return 0; \
    FILE *done = real(path, mode); \
    if (fate == 2) die(); \
    return done; }
FILE_OPENER(fopen)
FILE_OPENER(fopen64)

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    int fate = meet(WRITE, fileno(file), 0, 0);
    if (fate == 1) return 0;
    if (fate == 2) { real(data, size, count / 2, file); fflush(file); die(); }
    return real(data, size, count, file);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int fate = meet(WRITE, fd, 0, 0);
    if (fate == 1) return -1;
    if (fate == 2) { real(fd, data, size / 2); die(); }
    return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *data, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int fate = meet(WRITE, fd, 0, 0);
    if (fate == 1) return -1;
    if (fate == 2) { real(fd, data, count / 2); die(); }
    return real(fd, data, count);
}

#define WRITER_AT(name) \
ssize_t name(int fd, const void *data, size_t size, off_t place) { \
    REAL(ssize_t, #name, int, const void *, size_t, off_t); \
    int fate = meet(WRITE, fd, 0, 0); \
    if (fate == 1) return -1; \
    if (fate == 2) { real(fd, data, size / 2, place); die(); } \
    return real(fd, data, size, place); }
WRITER_AT(pwrite)
WRITER_AT(pwrite64)

#define COPIER(name) \
ssize_t name(int to, int from, off_t *offset, size_t size) { \
    REAL(ssize_t, #name, int, int, off_t *, size_t); \
    int fate = meet(WRITE, to, 0, 0); \
    if (fate == 1) return -1; \
    if (fate == 2) { real(to, from, offset, size / 2); die(); } \
    return real(to, from, offset, size); }
COPIER(sendfile)
COPIER(sendfile64)

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    return meet(READ, fd, 0, 0) == 1 ? -1 : real(fd, data, size);
}

#define PLAIN(type, name, kind, declared, given, dir, path, to) \
type name declared { \
    static type (*real) declared; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    int fate = meet(kind, dir, path, to); \
    if (fate == 1) return -1; \
    type done = real given; \
    if (fate == 2) die(); \
    return done; }
PLAIN(int, fsync, FSYNC, (int fd), (fd), fd, 0, 0)
PLAIN(int, fdatasync, FSYNC, (int fd), (fd), fd, 0, 0)
PLAIN(int, ftruncate, WRITE, (int fd, off_t size), (fd, size), fd, 0, 0)
PLAIN(int, ftruncate64, WRITE, (int fd, off_t size), (fd, size), fd, 0, 0)
PLAIN(int, rename, RENAME, (const char *from, const char *to), (from, to), AT_FDCWD, from, to)
PLAIN(int, renameat, RENAME, (int a, const char *from, int b, const char *to), (a, from, b, to), a, from, to)
PLAIN(int, unlink, UNLINK, (const char *path), (path), AT_FDCWD, path, 0)
PLAIN(int, rmdir, UNLINK, (const char *path), (path), AT_FDCWD, path, 0)
PLAIN(int, unlinkat, UNLINK, (int dir, const char *path, int flags), (dir, path, flags), dir, path, 0)
PLAIN(int, mkdir, MKDIR, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 0)
PLAIN(int, mkdirat, MKDIR, (int dir, const char *path, mode_t mode), (dir, path, mode), dir, path, 0)
