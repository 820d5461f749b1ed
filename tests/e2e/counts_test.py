#!/usr/bin/env python3
"""What operations cost in counts, which do not depend on how busy the machine is: requests, device writes, flushes, bytes,
and allocations in the server.

Each case says what one operation takes; the test fails where it takes more, and where it takes less, too: then the case
is to be put right, so that what was won stays won. Counts that others on this machine can add to (somebody drops all
caches, say) are taken again before they are believed.
"""
import contextlib
import fcntl
import json
import mmap
import os
import pathlib
import shutil
import sqlite3
import struct
import threading
import time

import harness as h

BLOCK = 4096
MIB = 1 << 20
MANY = 400             # operations of each case
BIG_BYTES = 64 * MIB
WRITERS = 8
WRITER_FSYNCS = 150
ATTEMPTS_MAX = 4
SETTLE_SECONDS = 0.02
SETTLE_SECONDS_MAX = 5
TOLERANCE = 0.02       # requests per operation: what opening the file once costs, and the like
# When the kernel forgets an inode is its own affair; asking for the statistics is an ioctl.
IGNORED = ("forget", "forget_multi", "ioctl")
GET_STATISTICS, PAGE_BYTES, PAGE_HEAD_BYTES = 3 << 30 | 16024 << 16 | 0xCF << 8 | 2, 16024, 24  # fs/cofs_ioctl.h
# Nothing but what is asked for: no commits by the clock, no collection in idle time.
OPTIONS = "commit=300,gc=off,noatime"

SHARED_FLUSHES_MAX = 0.9
SHARED_WRITES_MAX = 2
SHARE_BYTES_MAX = MIB
COPY_METADATA_BYTES_MAX = MIB
# SQLite's own writes differ with its version; what is asked beside them must not grow.
SQLITE_WAL = {"write": (2, 4), "fsync": 1}
SQLITE_DELETE = {"lookup": 1, "create": 1, "write": (8, 14), "fsync": (2, 3), "fsyncdir": 1, "release": 1, "unlink": 1,
                 "getattr": (2, 5), "getxattr": (2, 4), "setattr": (0, 1)}
SQLITE_DELETE_FLUSHES = (3, 4)
# What the kernel adds by itself, whatever the server does: it looks a new name up before it has the file created; a directory
# that changed has its attributes asked for before the next permission check in it; so has a file that was written, at
# the next fstat(); and each time attributes came, security.capability is asked for before the next write (Linux 6.18).
ASKED_OF_A_NEW_FILE = {"lookup": 1, "getattr": 1, "getxattr": 1}
# Of heap memory in the server, at most, per operation: as measured, and a twentieth. (With a libfuse by which a write takes
# two requests they are not compared.)
ALLOCATIONS = {"write": 45, "read": 14, "fsync": 68, "create": 20, "lookup": 15}

ALLOCATION_COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
static atomic_ulong before_start;
static atomic_ulong* counter = &before_start;
__attribute__((constructor)) static void start(void) {
  const char* path = getenv("COFS_ALLOCATIONS");
  int fd = path ? open(path, O_RDWR) : -1;
  if (fd < 0) return;
  void* page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (page != MAP_FAILED) counter = page;
}
static void count(void) { atomic_fetch_add_explicit(counter, 1, memory_order_relaxed); }
void* malloc(size_t size) { count(); return __libc_malloc(size); }
void* calloc(size_t n, size_t size) { count(); return __libc_calloc(n, size); }
void* realloc(void* old, size_t size) { count(); return __libc_realloc(old, size); }
void* aligned_alloc(size_t alignment, size_t size) { count(); return __libc_memalign(alignment, size); }
int posix_memalign(void** result, size_t alignment, size_t size) {
  count();
  *result = __libc_memalign(alignment, size);
  return *result ? 0 : 12;
}
"""


class Allocations:
    """How often the server asked for heap memory, by a library that stands before the C library's malloc."""

    def __init__(self, directory):
        self.page = None
        compiler = shutil.which("cc")
        if compiler is None:
            h.note("allocations are not counted: there is no C compiler")
            return
        directory = pathlib.Path(directory)
        source, library, self.file = directory / "count.c", directory / "count.so", directory / "allocations"
        source.write_text(ALLOCATION_COUNTER, encoding="ascii")
        h.run_command(compiler, "-O2", "-shared", "-fPIC", "-o", library, source)
        self.file.write_bytes(bytes(4096))
        with open(self.file, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 4096)
        self.environment = {"LD_PRELOAD": str(library), "COFS_ALLOCATIONS": str(self.file)}

    @contextlib.contextmanager
    def counted(self):
        """What is started inside has its allocations counted."""
        if self.page is None:
            yield
            return
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                del os.environ[name]

    def now(self):
        return None if self.page is None else struct.unpack_from("Q", self.page)[0]


def statistics_of(fd):
    """As `cofs stat --json` has it, but by one request (or two) on a file that is open already."""
    text, snapshot, total = b"", 0, 1
    while len(text) < total:
        page = bytearray(struct.pack("QIIII", snapshot, len(text), 0, 0, 0).ljust(PAGE_BYTES, b"\0"))
        fcntl.ioctl(fd, GET_STATISTICS, page)
        snapshot, _, length, total, _ = struct.unpack_from("QIIII", page)
        text += page[PAGE_HEAD_BYTES:PAGE_HEAD_BYTES + length]
    return json.loads(text)


class Counts:
    """The difference of two moments."""

    def __init__(self, before, after, allocations):
        self.requests = {kind: count - before["requests"].get(kind, 0) for kind, count in after["requests"].items()
                         if kind not in IGNORED and count != before["requests"].get(kind, 0)}
        self.io = {name: after["io"][name] - before["io"][name] for name in after["io"]}
        self.copy = {name: after["copy"][name] - before["copy"][name]
                     for name in ("device_bytes", "hostfile_bytes", "shared_bytes", "host_bytes")}
        self.allocations = allocations


class Guard:
    """Measures, compares with what is expected, and remembers what was wrong."""

    def __init__(self, volume, allocations):
        self.volume, self.allocations = volume, allocations
        self.fd = os.open(volume.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        self.wrong = []

    def close(self):
        os.close(self.fd)

    def statistics(self):
        return statistics_of(self.fd)

    def settled(self):
        """Once no request comes any more: close(2) returns before the server is told."""
        def requests(figures):
            return {kind: count for kind, count in figures["requests"].items() if kind not in IGNORED}
        last = self.statistics()
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)
            now = self.statistics()
            if requests(now) == requests(last):
                return now
            last = now
        raise h.Failure("somebody else uses this mount: its requests do not end")

    def counts_of(self, action):
        before = self.settled()
        start = self.allocations.now()
        action()
        time.sleep(SETTLE_SECONDS)
        allocations = None if start is None else self.allocations.now() - start
        return Counts(before, self.settled(), allocations)

    def case(self, name, count, prepare, action, judge):
        """prepare(attempt) once for each attempt, then action(attempt) of `count` operations; judge(counts) returns what is
        wrong, and what is to be printed."""
        problems, text = [], ""
        for attempt in range(ATTEMPTS_MAX):
            if prepare:
                prepare(attempt)
            problems, text = judge(self.counts_of(lambda n=attempt: action(n)), count)
            if not problems:
                break
        h.note(f"{name:<34} {text}")
        self.wrong += [f"{name}: {problem}" for problem in problems]


def text_of(value):
    return f"{value:.3f}".rstrip("0").rstrip(".")


def expect(requests=None, writes=None, flushes=None, allocations=None, bytes_per_byte=None):
    """A judge. requests: exactly, per operation, or (least, most). writes, flushes: (least, most) per operation.
    A write that needs no flush after it counts as both. allocations: at most. bytes_per_byte: (size of the data, most written for each of its bytes)."""
    def judge(counts, count):
        problems, texts = [], []

        def compare(what, found, least, most):
            texts.append(f"{what} {text_of(found)}")
            if not least - TOLERANCE <= found <= most + TOLERANCE:
                limit = text_of(most) if least == most else f"{text_of(least)} to {text_of(most)}"
                problems.append(f"{what}: {text_of(found)}, not {limit}"
                                + ("" if found > most else ": put this test right, so that it stays so"))
        if requests is not None:
            for kind in sorted({*requests, *counts.requests}):
                wanted = requests.get(kind, 0)
                least, most = wanted if isinstance(wanted, tuple) else (wanted, wanted)
                compare(kind, counts.requests.get(kind, 0) / count, least, most)
            if not requests and not counts.requests:
                texts.append("no request")
        if writes is not None:
            compare("device writes", counts.io["writes"] / count, *writes)
        if flushes is not None:
            compare("flushes", (counts.io["flushes"] + counts.io["durable_writes"]) / count, *flushes)
        if bytes_per_byte is not None:
            size, most = bytes_per_byte
            compare("bytes written per byte", counts.io["write_bytes"] / size, 1 if most >= 1 else 0, most)
        if allocations is not None and counts.allocations is not None:
            compare("allocations", counts.allocations / count, 0, allocations)
        return problems, ", ".join(texts)
    return judge


@contextlib.contextmanager
def opened(path, flags):
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


# --- The cases ---

def test_data(guard, per_write):
    path = guard.volume.path("data")
    path.write_bytes(os.urandom(MANY * BLOCK))
    with opened(path, os.O_RDWR) as fd:
        def write_blocks(_):
            for i in range(MANY):
                os.pwrite(fd, b"w" * BLOCK, i * BLOCK)
            os.fsync(fd)  # their placing counts, too
        guard.case("write of 4 KiB", MANY, write_blocks, write_blocks,
                   expect({"write": 1, "fsync": 1 / MANY, **per_write}, allocations=ALLOCATIONS.get("write")))

        def read_blocks(_):
            for i in range(MANY):
                os.pread(fd, BLOCK, i * BLOCK)
        guard.case("read of 4 KiB, cached", MANY, read_blocks, read_blocks, expect({}))
    memory = mmap.mmap(-1, BLOCK)
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        def read_direct(_):
            for i in range(MANY):
                os.preadv(fd, [memory], i * BLOCK)
        guard.case("read of 4 KiB, O_DIRECT", MANY, read_direct, read_direct,
                   expect({"read": 1}, allocations=ALLOCATIONS.get("read")))
    with opened(guard.volume.path("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
        def append(_):
            for _ in range(MANY):
                os.write(fd, b"l" * BLOCK)
                os.fsync(fd)
        guard.case("append of 4 KiB and fsync", MANY, append, append,
                   expect({"write": 1, "fsync": 1, **per_write}, writes=(1, 2), flushes=(1, 1),
                          allocations=ALLOCATIONS.get("fsync")))

        def sync_again(_):
            for _ in range(MANY):
                os.fsync(fd)
        guard.case("fsync of nothing", MANY, None, sync_again, expect({"fsync": 1}, writes=(0, 0), flushes=(0, 0)))


def test_large(guard, per_write):
    piece = os.urandom(MIB)
    count = BIG_BYTES // MIB

    def write_all(attempt):
        with opened(guard.volume.path(f"big{attempt}"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY) as fd:
            for _ in range(count):
                os.write(fd, piece)
            os.fsync(fd)

    def remove(attempt):
        for i in range(attempt):
            guard.volume.path(f"big{i}").unlink(missing_ok=True)
        os.sync()
    once = 1 / count
    added = {kind: most * once for kind, most in ASKED_OF_A_NEW_FILE.items()}
    guard.case("write of 1 MiB, sequential", count, remove, write_all,
               expect({"write": 1, "create": once, "fsync": once, "release": once, **added, **per_write},
                      flushes=(once, once), bytes_per_byte=(BIG_BYTES, 1.02)))
    memory = mmap.mmap(-1, MIB)
    memory[:] = piece
    with opened(guard.volume.path("direct"), os.O_CREAT | os.O_WRONLY | os.O_DIRECT) as fd:
        def write_direct(_):
            for i in range(count):
                os.pwrite(fd, memory, i * MIB)
        # Each is one write to the device; in segments of 2 MiB half of them end one: that is another, and its footer's.
        guard.case("write of 1 MiB, O_DIRECT", count, write_direct, write_direct,
                   expect({"write": 1, **per_write}, writes=(1, 2.1), flushes=(0, 0), bytes_per_byte=(BIG_BYTES, 1.01)))


def test_cold_read(guard):
    count = BIG_BYTES // MIB
    path = next(p for p in (guard.volume.path(f"big{i}") for i in range(ATTEMPTS_MAX)) if p.exists())
    fd = os.open(path, os.O_RDONLY)
    try:
        def forget(_):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

        def read_all(_):
            for i in range(count):
                os.pread(fd, MIB, i * MIB)
        # Reading ahead begins small: the first megabyte comes in two.
        guard.case("read of 1 MiB, sequential", count, forget, read_all, expect({"read": 1 + 1 / count}))
    finally:
        os.close(fd)


def test_names(guard):
    directory = guard.volume.path("names")
    directory.mkdir()

    def names(attempt):
        return [str(directory / f"f{attempt}-{i}") for i in range(MANY)]

    def create(attempt):
        for name in names(attempt):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    guard.case("create and close", MANY, None, create,
               expect({"lookup": 1, "create": 1, "release": 1, "getattr": 1}, writes=(0, 0),
                      allocations=ALLOCATIONS.get("create")))
    present = [name for attempt in range(ATTEMPTS_MAX) for name in names(attempt) if os.path.exists(name)][:MANY]

    def stat(_):
        for name in present:
            os.stat(name)
    guard.case("stat, warm", MANY, stat, stat, expect({}))

    def open_and_close(_):
        for name in present:
            os.close(os.open(name, os.O_RDONLY))
    guard.case("open and close", MANY, stat, open_and_close, expect({"open": 1, "release": 1}))

    def look_for_nothing(_):
        for name in present:
            os.path.exists(name + ".none")
    guard.case("stat of no file, warm", MANY, look_for_nothing, look_for_nothing, expect({}))

    def rename(attempt):
        for i, name in enumerate(present):
            new = str(directory / f"r{attempt}-{i}")
            os.rename(name, new)
            present[i] = new
    guard.case("rename", MANY, stat, rename, expect({"lookup": 1, "rename": 1, "getattr": 1}, writes=(0, 0)))

    def unlink(attempt):
        for i, name in enumerate(present):
            os.unlink(name)
            present[i] = f"{directory}/u{attempt + 1}-{i}"

    def make_again(attempt):
        for i in range(MANY):
            present[i] = f"{directory}/u{attempt}-{i}"
            with open(present[i], "wb"):
                pass
    guard.case("unlink", MANY, make_again, unlink, expect({"unlink": 1, "getattr": 1}, writes=(0, 0)))


def test_cold_stat(guard):
    """After a new mount the kernel knows nothing: one request for each name."""
    def stat(attempt):
        for name in cold_files(guard.volume, attempt):
            os.stat(name)
    guard.case("stat, cold", MANY, None, stat, expect({"lookup": 1}, allocations=ALLOCATIONS.get("lookup")))


def cold_files(volume, attempt):
    return [volume.path(f"cold{attempt}", f"f{i}") for i in range(MANY)]


def make_cold_files(volume):
    for attempt in range(ATTEMPTS_MAX):
        volume.path(f"cold{attempt}").mkdir()
        for path in cold_files(volume, attempt):
            path.write_bytes(b"")


def test_concurrent_fsync(guard):
    """Those that come while one is under way share the next: fewer flushes than callers."""
    def append_all(attempt):
        def append(number):
            with opened(guard.volume.path(f"w{attempt}-{number}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
                for _ in range(WRITER_FSYNCS):
                    os.write(fd, b"l" * BLOCK)
                    os.fsync(fd)
        threads = [threading.Thread(target=append, args=(i,)) for i in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    guard.case(f"append and fsync, {WRITERS} writers", WRITERS * WRITER_FSYNCS, None, append_all,
               expect(writes=(0, SHARED_WRITES_MAX), flushes=(0, SHARED_FLUSHES_MAX)))


def test_sqlite(guard, mode, requests, flushes):
    connection = sqlite3.connect(guard.volume.path(f"{mode}.db"), isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")

    def insert(_):
        for i in range(MANY):
            connection.execute("INSERT INTO t (text) VALUES (?)", (f"row {i:080}",))
    guard.case(f"SQLite transaction, {mode}", MANY, insert, insert, expect(requests, flushes=flushes))
    connection.close()


def copied(volume, number, share):
    directory = volume.path("share" if share else "device")
    if not directory.exists():
        directory.mkdir()
        os.setxattr(directory, "user.cofs.clone", b"share" if share else b"device")
    with opened(volume.path("source"), os.O_RDONLY) as source, \
            opened(directory / f"copy{number}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC) as target:
        length = os.fstat(source).st_size
        h.check(os.copy_file_range(source, target, length, 0, 0) == length, "a copy is short")
        os.fsync(target)


def test_copies(guard):
    path = guard.volume.path("source")
    with open(path, "wb") as file:
        for _ in range(BIG_BYTES // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())

    def judge(counts, _):
        text = ", ".join(f"{name} {value}" for name, value in counts.copy.items() if value) + \
            f", written {counts.io['write_bytes']}, read {counts.io['read_bytes']}"
        return [], text

    def judge_share(counts, _):
        problems, text = judge(counts, _)
        if counts.requests.get("copy_file_range") != 1:
            problems.append(f"requests: {counts.requests}")
        if counts.copy["host_bytes"] or counts.copy["shared_bytes"] != BIG_BYTES:
            problems.append(f"{counts.copy['host_bytes']} bytes went through the host")
        if counts.io["write_bytes"] > SHARE_BYTES_MAX or counts.io["read_bytes"] > SHARE_BYTES_MAX:
            problems.append(f"{counts.io['write_bytes']} bytes written and {counts.io['read_bytes']} read, "
                            f"not {SHARE_BYTES_MAX} at most")
        return problems, text

    def judge_copy(counts, _):
        problems, text = judge(counts, _)
        if counts.requests.get("copy_file_range") != 1:
            problems.append(f"requests: {counts.requests}")
        moved = sum(counts.copy[name] for name in ("device_bytes", "hostfile_bytes", "host_bytes"))
        if moved != BIG_BYTES:
            problems.append(f"{moved} bytes copied for {BIG_BYTES}")
        # What the copy engine moves is not among io's bytes.
        if counts.io["write_bytes"] > COPY_METADATA_BYTES_MAX:
            problems.append(f"{counts.io['write_bytes']} bytes written beside it, not {COPY_METADATA_BYTES_MAX} at most")
        return problems, text
    guard.case("copy of 64 MiB, clone=share", 1, None, lambda n: copied(guard.volume, n, True), judge_share)
    guard.case("copy of 64 MiB, clone=device", 1, None, lambda n: copied(guard.volume, n, False), judge_copy)


def test(space):
    allocations = Allocations(space.directory)
    volume = space.volume(size="2G", options=OPTIONS)
    with allocations.counted():
        volume.mount()
    per_write = {} if volume.statistics()["fuse"]["kills_privileges"] else {"getxattr": 1}
    if per_write:
        ALLOCATIONS.clear()
    make_cold_files(volume)
    guard = Guard(volume, allocations)
    try:
        test_data(guard, per_write)
        test_large(guard, per_write)
        test_cold_read(guard)
        test_names(guard)
        test_concurrent_fsync(guard)
        asked = {kind: (1, SQLITE_DELETE["write"][1]) for kind in per_write}
        test_sqlite(guard, "wal", {**SQLITE_WAL, **asked}, (1, 1))
        test_sqlite(guard, "delete", {**SQLITE_DELETE, **asked}, SQLITE_DELETE_FLUSHES)
        test_copies(guard)
    finally:
        guard.close()
    wrong = guard.wrong
    volume.umount()
    with allocations.counted():
        volume.mount()
    guard = Guard(volume, allocations)
    try:
        test_cold_stat(guard)
    finally:
        guard.close()
    wrong += guard.wrong
    volume.umount()
    volume.fsck()
    h.check(not wrong, "counts:\n" + "\n".join(wrong))


h.run(test)
