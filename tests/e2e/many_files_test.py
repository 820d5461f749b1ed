#!/usr/bin/env python3
"""A volume with many files mounts cleanly in under a second, and recovers from a kill in under five.

COFS_MANY_FILES: how many (default 100,000; 1,000,000 in a full run).
"""
import os
import time

import harness as h

PER_DIRECTORY = 1000
CLEAN_SECONDS_MAX = 1.0
RECOVERY_SECONDS_MAX = 5.0
CHURN_SECONDS = 8


def make_files(root, count):
    for i in range(count):
        directory = f"{root}/d{i // PER_DIRECTORY}"
        if i % PER_DIRECTORY == 0:
            os.mkdir(directory)
        os.close(os.open(f"{directory}/file-{i:07}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def timed_mount(volume):
    start = time.monotonic()
    volume.mount()
    return h.seconds_since(start)


def churn(volume):
    """Fills the log: small files with data, made durable now and then, until the time is over."""
    root = volume.path("churn")
    root.mkdir()
    start, i = time.monotonic(), 0
    while h.seconds_since(start) < CHURN_SECONDS:
        with open(root / f"c{i}", "wb") as file:
            file.write(os.urandom(3000))
        i += 1
        if i % 500 == 0:
            h.fsync_directory(root)
    return i


def test(space):
    count = h.number_from("COFS_MANY_FILES", 100_000)
    volume = space.volume(size="4G").mount()
    start = time.monotonic()
    make_files(volume.mount_point, count)
    made = h.seconds_since(start)
    volume.umount()
    h.drop_caches()
    clean = timed_mount(volume)
    h.check(os.stat(volume.path(f"d{(count - 1) // PER_DIRECTORY}", f"file-{count - 1:07}")).st_size == 0,
            "the last file")
    churned = churn(volume)
    volume.kill()
    volume.clear_dead_mount()
    h.drop_caches()
    recovery = timed_mount(volume)
    info = volume.statistics()["volume"]
    volume.umount()
    volume.fsck(data=False)
    h.note(f"{count} files made in {made:.1f} s; clean mount {clean:.3f} s; kill after {churned} more, "
           f"recovery {recovery:.3f} s ({info['replayed_commits']} commits, "
           f"{info['replayed_log_bytes'] >> 10} KiB of log)")
    h.check(clean < CLEAN_SECONDS_MAX, f"the clean mount took {clean:.2f} s")
    h.check(recovery < RECOVERY_SECONDS_MAX, f"the recovery took {recovery:.2f} s")
    h.check(not info["was_clean"], "the kill left a clean volume: nothing was recovered")


h.run(test)
