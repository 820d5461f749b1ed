#!/usr/bin/env python3
"""Many requests at once by /dev/fuse: one thread gathers them while that pays, with device I/O of its own; what programs
get is the same, also where the server ends in the midst of it. Never with `-o nobusy_poll`."""
import mmap
import os
import random
import subprocess
import threading
import time

import harness as h

BLOCK = 4096
BLOCKS = 4096
THREADS = 16
WANTED = 20_000
PATIENCE_SECONDS = 120
ENDINGS = 4


def session(volume):
    return volume.statistics()["fuse"]


def content(block, version):
    return (b"%d %d;" % (block, version)) * (BLOCK // len(b"%d %d;" % (block, version)) + 1)


class Load:
    """Threads that read blocks past the page cache, and each writes its own ones."""

    def __init__(self, path, seed):
        self.path = path
        self.versions = [0] * BLOCKS
        self.wrong = []
        self.stopping = False
        self.may_fail = False
        self.threads = [threading.Thread(target=self.work, args=(i, seed)) for i in range(THREADS)]

    def work(self, number, seed):
        rng = random.Random(seed + number)
        buffer = mmap.mmap(-1, BLOCK)  # aligned
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
            while not self.stopping:
                block = rng.randrange(BLOCKS // THREADS) * THREADS + number
                if rng.random() < 0.1:
                    self.versions[block] += 1
                    buffer[:] = content(block, self.versions[block])[:BLOCK]
                    os.pwrite(fd, buffer, block * BLOCK)
                else:
                    os.preadv(fd, [buffer], block * BLOCK)
                    if buffer[:] != content(block, self.versions[block])[:BLOCK]:
                        self.wrong.append(block)
            os.close(fd)
        except OSError as error:
            if not self.may_fail:
                self.wrong.append(error)

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()
        h.check(not self.wrong, f"wrong: {self.wrong[:5]}")


def lay_out(path):
    with open(path, "wb") as file:
        for block in range(BLOCKS):
            file.write(content(block, 0)[:BLOCK])
        file.flush()
        os.fsync(file.fileno())


def check_gathers(volume, path, seed):
    load = Load(path, seed).start()
    end = time.monotonic() + PATIENCE_SECONDS
    while session(volume)["gathered_requests"] < WANTED and time.monotonic() < end:
        time.sleep(0.1)
    load.stop()
    told = session(volume)
    h.check(told["gathered_requests"] >= WANTED, f"hardly gathers: {told}")
    h.note(f"{told['gathered_requests']} of {told['requests']} requests were gathered, in {told['gathering_periods']} periods")


def end_in_the_midst(volume, path, seed, by_kill):
    lay_out(path)
    load = Load(path, seed).start()
    time.sleep(0.5 + random.Random(seed).random())
    load.may_fail = True
    if by_kill:
        volume.kill()
    else:
        volume.server.terminate()
        h.check(volume.server.wait(timeout=60) == 0, "the server ended with an error")
        volume.server = None
    load.stop()
    if by_kill:
        volume.clear_dead_mount()
    volume.mount()
    h.check(os.path.getsize(path) == BLOCKS * BLOCK, "the file's size")


def unmount_in_the_midst(volume, path, seed):
    """A lazy unmount: the kernel's last word comes right after the last request. As fuseblk, where the handler of that waits."""
    with h.loop_device(volume.image) as device:
        server = subprocess.Popen([h.command(), "mount", device, volume.mount_point, "--foreground", "-o", "nodiscard"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=h.die_with_parent)
        end = time.monotonic() + PATIENCE_SECONDS
        while h.mount_type(volume.mount_point) is None and time.monotonic() < end:
            time.sleep(0.01)
        lay_out(path)
        load = Load(path, seed).start()
        time.sleep(0.5)
        h.run_command("umount", "-l", volume.mount_point)
        load.stop()
        h.check(server.wait(timeout=60) == 0, "the server ended with an error")


def test(space):
    if len(os.sched_getaffinity(0)) < 2:
        h.skip("one CPU: all threads always sleep")
    volume = space.volume(size="256M").mount()
    if not session(volume)["hears_of_sync"]:
        h.skip("this libfuse reads requests by itself")
    path = volume.path("file")
    lay_out(path)
    check_gathers(volume, path, space.seed)
    for i in range(ENDINGS):
        end_in_the_midst(volume, path, space.seed + i, by_kill=i % 2 == 1)
    volume.umount()
    for i in range(ENDINGS):
        unmount_in_the_midst(volume, path, space.seed + i)
    volume.fsck()

    volume.options = "nobusy_poll"
    volume.mount()
    lay_out(path)
    load = Load(path, space.seed).start()
    time.sleep(2)
    load.stop()
    h.check(session(volume)["gathering_periods"] == 0, "gathers though it must not")
    volume.umount()
    volume.fsck()


h.run(test)
