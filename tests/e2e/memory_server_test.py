#!/usr/bin/env python3
"""The server that does nothing (tools/bench/memory_server.cc) does what a benchmark's programs ask for: else its figures
would be of something else. By /dev/fuse, by one thread of it, and by io_uring where that is allowed.
"""
import contextlib
import os
import pathlib
import shutil
import sqlite3
import subprocess
import time

import harness as h

RING_SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
NAMES = 700
START_SECONDS_MAX = 20
PROGRAM = pathlib.Path(h.command()).with_name("memory_server")


@contextlib.contextmanager
def served(device, mount_point, word):
    server = subprocess.Popen([PROGRAM, device, mount_point, *([word] if word else [])])
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while h.mount_type(mount_point) is None:
            h.check(server.poll() is None and time.monotonic() < deadline, "memory_server does not mount")
            time.sleep(0.01)
        yield
        h.run_command("umount", mount_point)
        h.check(server.wait(timeout=START_SECONDS_MAX) == 0, "memory_server ended with an error")
    finally:
        server.kill()
        server.wait()
        if h.mount_type(mount_point) is not None:
            h.run_command("umount", "-l", mount_point)


def names(top):
    """Some of many names go while they are listed; those that stay are listed once."""
    directory = top / "names"
    directory.mkdir()
    for i in range(NAMES):
        (directory / f"name-{i}").touch()
    h.drop_caches()
    for entry in os.scandir(directory):
        if int(entry.name.split("-")[1]) % 2:
            os.unlink(entry.path)
    h.check(sorted(os.listdir(directory)) == sorted(f"name-{i}" for i in range(0, NAMES, 2)), "names")
    (directory / "name-0").rename(top / "moved")
    os.link(top / "moved", directory / "again")
    h.check(os.stat(top / "moved").st_nlink == 2, "a second name")
    os.symlink("moved", top / "symlink")
    h.check(os.readlink(top / "symlink") == "moved", "a symbolic link")
    shutil.rmtree(directory)
    h.check(os.stat(top / "moved").st_nlink == 1 and not directory.exists(), "a removed directory")


def data(top):
    path, bytes_written = top / "data", bytearray(os.urandom(3_000_000))
    path.write_bytes(bytes_written)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"within", 1_234_567)
        bytes_written[1_234_567:1_234_573] = b"within"
        os.truncate(path, 2_000_001)
        os.truncate(path, 3_000_000)
        os.fsync(file.fileno())
    h.drop_caches()
    h.check(path.read_bytes() == bytes_written[:2_000_001] + bytes(999_999), "data")


def database(top):
    for mode in ("wal", "delete"):
        connection = sqlite3.connect(top / f"{mode}.db", isolation_level=None)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (number)")
        for i in range(50):
            connection.execute("INSERT INTO t VALUES (?)", (i,))
        h.check(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), f"a database in mode {mode}")
        connection.close()


def test(space):
    if os.geteuid() != 0:
        h.skip("needs root: mounts a block device")
    if not PROGRAM.exists():
        h.skip(f"no {PROGRAM.name} was built beside {h.command()}")
    volume = space.volume(size="64M")
    words = ["", "one_thread"]
    if RING_SWITCH.exists() and RING_SWITCH.read_text().strip() == "Y":
        words.append("io_uring")
    with h.loop_device(volume.image) as device:
        for word in words:
            with served(device, volume.mount_point, word):
                for case in (names, data, database):
                    case(volume.mount_point)
            h.note(f"  served{' ' if word else ''}{word}")


h.run(test)
