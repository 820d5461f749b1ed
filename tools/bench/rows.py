"""The rows of the comparison, in the order in which they run, and the figures that each is to reach.

A row measures one thing on one mounted peer and returns the value in the row's unit; later rows use what
earlier ones made (`needs`). Copies and mount times are in copies.py. The figures are those that the project
set itself; report.py says which are reached.
"""
import os
import random
import shutil
import sqlite3

import copies
from machine import MIB, command, timed
from row import Row, Target, each
from work import DIRECTORIES, NotApplicable

FUSE = ("fuse2fs", "ntfs-3g", "passthrough_hp")
OTHERS = ("fuse2fs", "ntfs-3g")
KILL_FILES = 2_000


# --- Data ---

def sequential_write(work):
    job = work.fio("w", rw="write", bs="1M", size=work.big_bytes, ioengine="psync", end_fsync=1)
    return work.big_bytes / MIB / (job["job_runtime"] / 1000)


def sequential_read(work):
    job = work.fio("r", rw="read", bs="1M", size=work.big_bytes, ioengine="psync")
    return work.big_bytes / MIB / (job["job_runtime"] / 1000)


def random_read(depth):
    def measure(work):
        engine = {"ioengine": "psync"} if depth == 1 else {"ioengine": "io_uring", "iodepth": depth}
        job = work.fio("rr", rw="randread", bs="4k", size=work.big_bytes, direct=1, time_based=1,
                       runtime=work.seconds, **engine)
        return job["read"]["iops"]
    return measure


def random_write(work):
    job = work.fio("rw", rw="randwrite", bs="4k", size=work.big_bytes, io_size=work.random_bytes,
                   ioengine="psync", end_fsync=1)
    return work.random_bytes / 4096 / (job["job_runtime"] / 1000)


def append_fsync(work):
    def append():
        fd = os.open(work.directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        data = random.Random(2).randbytes(4096)
        for _ in range(work.appends):
            os.write(fd, data)
            os.fsync(fd)
        os.close(fd)
    return work.appends / timed(append)


# --- Names ---

def create_files(work):
    for i in range(DIRECTORIES):
        (work.directory / f"d{i}").mkdir()
    names = work.names()

    def create():
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        work.make_durable()
    return work.files / timed(create)


def stat_files(work):
    names = work.names()
    return work.files / timed(lambda: [os.stat(name) for name in names])


def unlink_files(work):
    names = work.names()

    def unlink():
        for name in names:
            os.unlink(name)
        work.make_durable()
    return work.files / timed(unlink)


# --- Trees ---

def untar(work):
    (work.directory / "tree").mkdir()

    def extract():
        command("tar", "-xf", work.tree.tar, "-C", work.directory / "tree")
        work.make_durable()
    return timed(extract)


def git_clone(work):
    work.tree.make_repository()

    def clone():
        command("git", "clone", "-q", work.tree.repository, work.directory / "clone")
        work.make_durable()
    return timed(clone)


def remove_tree(work):
    def remove():
        command("rm", "-rf", work.directory / "tree")
        work.make_durable()
    seconds = timed(remove)
    shutil.rmtree(work.directory / "clone", ignore_errors=True)  # what git made is not measured here
    return seconds


# --- SQLite ---

def transactions(mode):
    def measure(work):
        connection = sqlite3.connect(work.directory / f"{mode}.db", isolation_level=None)
        if connection.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] != mode:
            raise NotApplicable(f"SQLite does not take journal_mode={mode} there")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")

        def insert():
            for i in range(work.transactions):
                connection.execute("INSERT INTO t (text) VALUES (?)", (f"row {i:080}",))
        seconds = timed(insert)
        count = connection.execute("SELECT count(*) FROM t").fetchone()[0]
        connection.close()
        if count != work.transactions:
            raise RuntimeError(f"{count} rows of {work.transactions}")
        return work.transactions / seconds
    return measure


# --- Mounting; these end the mount, so they come last ---

def mount_clean(work):
    work.peer.stop()
    return timed(work.peer.start)


def mount_after_kill(work):
    """After files were made that nobody asked to have durable."""
    if work.peer.kernel or not work.peer.makes_format:
        raise NotApplicable("no server whose death leaves anything to recover")
    (work.directory / "killed").mkdir()
    for i in range(KILL_FILES):
        with open(work.directory / "killed" / str(i), "wb") as file:
            file.write(b"not synced")
    work.peer.kill()
    return timed(work.peer.start)


METADATA = each(2, *OTHERS)
ROWS = [
    Row("sequential write", "MiB/s", sequential_write, each(1, "passthrough_hp") + each(1.5, "ntfs-3g") +
        each(4, "fuse2fs"), data=True, note="1 MiB writes of a new file, and its fsync"),
    Row("sequential read, cold", "MiB/s", sequential_read, each(1, "passthrough_hp") + each(1.5, "ntfs-3g") +
        each(4, "fuse2fs"), needs="sequential write", cold=True, data=True, note="1 MiB reads of that file"),
    Row("4 KiB random read, 1", "/s", random_read(1), [Target(1, FUSE)], needs="sequential write", cold=True,
        data=True, note="O_DIRECT, one at a time"),
    Row("4 KiB random read, 16", "/s", random_read(16), [Target(2, FUSE),
        Target(bound=100_000, only_with="io_uring")], needs="sequential write", cold=True, data=True,
        note="O_DIRECT, 16 in flight (io_uring)"),
    Row("4 KiB random write", "/s", random_write, [Target(2, OTHERS)], needs="sequential write", data=True,
        note="through the page cache, and the fsync after them"),
    Row("append + fsync", "/s", append_fsync, each(1, "ext4"), note="4 KiB each, one file, one process"),
    Row("create", "/s", create_files, METADATA + each(1, "passthrough_hp"), files=True,
        note="empty files in 20 directories, and making them durable"),
    Row("stat, cold", "/s", stat_files, METADATA + each(1, "passthrough_hp"), needs="create", cold=True, files=True,
        note="of each file, after the caches were dropped"),
    Row("unlink", "/s", unlink_files, METADATA + each(1, "passthrough_hp"), needs="create", files=True,
        note="of each file, and making that durable"),
    Row("untar + sync", "s", untar, METADATA, note="a source tree of 4,300 files, some 40 MB"),
    Row("git clone + sync", "s", git_clone, METADATA, note="of a local repository with these files"),
    Row("rm -rf + sync", "s", remove_tree, METADATA, needs="untar + sync", note="of the tree that was unpacked"),
    Row("SQLite WAL", "/s", transactions("wal"), each(0.5, "ext4") + [Target(1.3, FUSE)],
        note="one-row transactions, synchronous=FULL"),
    Row("SQLite DELETE", "/s", transactions("delete"), each(0.5, "ext4") + [Target(1.3, FUSE)],
        note="one-row transactions, synchronous=FULL"),
    Row("copy + sync", "s", copies.copy_file, each(1, "ext4"), prepare=copies.make_source, cold=True, data=True,
        transport=False,
        note="`cp` of a file; cofs moves it through the host here, the kernel's filesystems by `--reflink=never`"),
    Row("clone, cp", "ms", copies.clone_by_cp, prepare=copies.make_source, transport=False,
        note="clone=share: the whole process `cp`; on xfs and btrfs `--reflink=always`"),
    Row("clone, call", "ms", copies.clone_by_call, [Target(bound=10)], prepare=copies.make_source,
        transport=False,
        note="the system calls alone"),
    Row("clone, server", "ms", copies.clone_in_server, [Target(bound=10)], prepare=copies.make_source,
        transport=False,
        note="processor time of the server's threads for it"),
    *copies.IMAGE_ROWS,
    Row("mount, clean", "s", mount_clean, [Target(bound=0.2)], transport=False, note="until the mount answers"),
    Row("mount, after kill -9", "s", mount_after_kill, [Target(bound=5)], transport=False,
        note="the same after its server was killed over 2,000 new files"),
]


def choose(words):
    """The rows with one of these words in their names, and what they need."""
    if not words:
        return ROWS
    wanted = {row.name for row in ROWS if any(word.strip() in row.name for word in words.split(","))}
    wanted |= {row.needs for row in ROWS if row.name in wanted and row.needs}
    return [row for row in ROWS if row.name in wanted]
