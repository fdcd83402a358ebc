/* Counts the file operations of a process within one folder, and lets the n-th one fail.
 *
 * Preloaded (LD_PRELOAD), it stands before the C library for Python, Rust and C++ alike. `faults_plan` says which
 * operation is the one, and what happens: nothing (they are counted), the process is killed before it, or after half of
 * a write, or from then on there is no room on the disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FULL };
enum { FILES = 65536, LONGEST = 4096 };

static char folder[LONGEST];
static int mode = COUNT, record = -1;
static long wanted = 0, counted = 0;
static unsigned char ours[FILES]; /* descriptors of files that are open to be written */

#define NEXT(name) ((__typeof__(&name))next(#name))
static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

/* The operations that a child process does from now on, within a folder given by its absolute path; each is written to
 * a file, a line an operation. */
void faults_plan(const char *within, int what, long number, const char *to) {
  record = NEXT(open)(to, O_CREAT | O_WRONLY | O_APPEND, 0600);
  snprintf(folder, sizeof folder, "%s", within);
  mode = what, wanted = number, counted = 0;
  memset(ours, 0, sizeof ours);
}

static int within(int at, const char *path) {
  char whole[2 * LONGEST], base[LONGEST] = "";
  if (!folder[0] || !path) return 0;
  if (path[0] != '/') {
    if (at == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
      if (readlink(link, base, sizeof base - 1) < 0) return 0;
    }
  }
  snprintf(whole, sizeof whole, "%s%s%s", base, base[0] ? "/" : "", path);
  return strncmp(whole, folder, strlen(folder)) == 0;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Counts an operation; returns whether there is no room for it. */
static int counts(const char *name, const char *path) {
  char line[LONGEST + 64];
  long number = __sync_add_and_fetch(&counted, 1);
  int length = snprintf(line, sizeof line, "%s %s\n", name, path ? path : "");
  if (record >= 0) NEXT(write)(record, line, (size_t)length);
  if (mode == KILL && number == wanted) die();
  return mode == FULL && number >= wanted;
}

static int no_room(void) {
  errno = ENOSPC;
  return -1;
}

static int keeps(int file, int is_ours) {
  if (file >= 0 && file < FILES) ours[file] = (unsigned char)is_ours;
  return file;
}

#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define RIGHTS(flags, last)                    \
  mode_t rights = 0;                           \
  if ((flags) & (O_CREAT | O_TMPFILE)) {       \
    va_list more;                              \
    va_start(more, last);                      \
    rights = (mode_t)va_arg(more, unsigned);   \
    va_end(more);                              \
  }

#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    RIGHTS(flags, flags)                                                  \
    int mine = WRITES(flags) && within(AT_FDCWD, path);                   \
    if (mine && counts(#name, path) && (flags & O_CREAT)) return no_room(); \
    return keeps(NEXT(name)(path, flags, rights), mine);                  \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                      \
  int name(int at, const char *path, int flags, ...) {                    \
    RIGHTS(flags, flags)                                                  \
    int mine = WRITES(flags) && within(at, path);                         \
    if (mine && counts(#name, path) && (flags & O_CREAT)) return no_room(); \
    return keeps(NEXT(name)(at, path, flags, rights), mine);              \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                        \
  FILE *name(const char *path, const char *how) {                          \
    int mine = strpbrk(how, "wa+") != NULL && within(AT_FDCWD, path);      \
    if (mine && counts(#name, path)) return errno = ENOSPC, (FILE *)NULL;  \
    FILE *file = NEXT(name)(path, how);                                    \
    if (file) keeps(fileno(file), mine);                                   \
    return file;                                                           \
  }
FOPEN(fopen)
FOPEN(fopen64)

int close(int file) {
  keeps(file, 0);
  return NEXT(close)(file);
}

static int is_ours(int file) { return file >= 0 && file < FILES && ours[file]; }

ssize_t write(int file, const void *bytes, size_t count) {
  if (!is_ours(file)) return NEXT(write)(file, bytes, count);
  int full = counts("write", NULL);
  if (mode == TEAR && counted == wanted) {
    NEXT(write)(file, bytes, count / 2);
    die();
  }
  if (full && (counted > wanted || count < 2)) return no_room();
  return NEXT(write)(file, bytes, full ? count / 2 : count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  if (is_ours(file) && counts("writev", NULL)) return no_room();
  return NEXT(writev)(file, parts, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t place) {
  if (is_ours(file) && counts("pwrite64", NULL)) return no_room();
  return NEXT(pwrite64)(file, bytes, count, place);
}

int fallocate64(int file, int how, off64_t place, off64_t count) {
  if (is_ours(file) && counts("fallocate64", NULL)) return no_room();
  return NEXT(fallocate64)(file, how, place, count);
}

#define PLAIN(name, declared, given, path, is_within)  \
  int name declared {                                  \
    if (is_within) counts(#name, path);                \
    return NEXT(name) given;                           \
  }
PLAIN(ftruncate, (int file, off_t size), (file, size), NULL, is_ours(file))
PLAIN(ftruncate64, (int file, off64_t size), (file, size), NULL, is_ours(file))
PLAIN(fsync, (int file), (file), NULL, is_ours(file))
PLAIN(rename, (const char *from, const char *to), (from, to), to, within(AT_FDCWD, from) || within(AT_FDCWD, to))
PLAIN(renameat, (int f, const char *from, int t, const char *to), (f, from, t, to), to, within(f, from) || within(t, to))
PLAIN(link, (const char *from, const char *to), (from, to), to, within(AT_FDCWD, to))
PLAIN(linkat, (int f, const char *from, int t, const char *to, int how), (f, from, t, to, how), to, within(t, to))
PLAIN(unlink, (const char *path), (path), path, within(AT_FDCWD, path))
PLAIN(unlinkat, (int at, const char *path, int how), (at, path, how), path, within(at, path))
PLAIN(rmdir, (const char *path), (path), path, within(AT_FDCWD, path))
PLAIN(chmod, (const char *path, mode_t rights), (path, rights), path, within(AT_FDCWD, path))

int mkdir(const char *path, mode_t rights) {
  struct stat found;
  if (within(AT_FDCWD, path) && counts("mkdir", path) && stat(path, &found)) return no_room();
  return NEXT(mkdir)(path, rights);
}
