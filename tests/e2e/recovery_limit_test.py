#!/usr/bin/env python3
"""Recovery with the log near its limit (256 MiB, on a volume of 16 GiB) takes less than five seconds.

One block is overwritten and synced over and over: each sync is a chunk of the log, and hardly a tree node
gets dirty, so no checkpoint comes before the limit. The server is killed at about 90 % of it.
"""
import os
import time

import harness as h

RECOVERY_SECONDS_MAX = 5.0
LOG_BYTES_WANTED = 230 << 20
FILL_SECONDS_MAX = 25  # a checkpoint is due after 30


def test(space):
    volume = space.volume(size="16G").mount()
    fd = os.open(volume.path("counter"), os.O_CREAT | os.O_RDWR, 0o644)
    start, syncs = time.monotonic(), 0
    while h.seconds_since(start) < FILL_SECONDS_MAX:
        os.pwrite(fd, syncs.to_bytes(8, "little") * 512, 0)
        os.fsync(fd)
        syncs += 1
        if syncs % 2000 == 0 and volume.statistics()["io"]["log_bytes"] > LOG_BYTES_WANTED:
            break
    io = volume.statistics()["io"]
    volume.kill()
    os.close(fd)
    volume.clear_dead_mount()
    h.drop_caches()
    start = time.monotonic()
    volume.mount()
    recovery = h.seconds_since(start)
    info = volume.statistics()["volume"]
    with open(volume.path("counter"), "rb") as file:
        found = int.from_bytes(file.read(8), "little")
    volume.umount()
    volume.fsck()
    h.note(f"{syncs} syncs, {io['log_bytes'] >> 20} MiB of log; recovery {recovery:.3f} s "
           f"({info['replayed_commits']} commits)")
    h.check(found == syncs - 1, f"the last synced write was {syncs - 1}, found {found}")
    h.check(info["replayed_commits"] > syncs // 2, "hardly anything was replayed: a checkpoint came first")
    h.check(recovery < RECOVERY_SECONDS_MAX, f"the recovery took {recovery:.2f} s")


h.run(test)
