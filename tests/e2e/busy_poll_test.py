#!/usr/bin/env python3
"""How the server waits for requests by /dev/fuse: it polls while a program asks for one thing after the other, costs nothing while
nobody does, and never polls with `-o nobusy_poll`; what programs get is the same."""
import os
import time

import harness as h

FILES = 500
PATIENCE_SECONDS = 120
IDLE_SECONDS = 2
IDLE_PROCESSOR_SECONDS_MAX = 0.2


def session(volume):
    return volume.statistics()["fuse"]


def processor_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_after_the_other(directory):
    for i in range(FILES):
        path = f"{directory}/{i}"
        with open(path, "xb") as file:
            file.write(b"%d" % i)
    names = sorted(os.listdir(directory), key=int)
    h.check(names == [str(i) for i in range(FILES)], "names are missing")
    for name in names:
        path = f"{directory}/{name}"
        h.check(open(path, "rb").read() == name.encode(), f"{path}: other data")
        os.unlink(path)


def test(space):
    volume = space.volume(size="256M").mount()
    directory = f"{volume.mount_point}/d"
    os.mkdir(directory)
    if not session(volume)["hears_of_sync"]:
        h.skip("this libfuse reads requests by itself")
    if len(os.sched_getaffinity(0)) > 1:
        end = time.monotonic() + PATIENCE_SECONDS
        while session(volume)["polled_requests"] < 10 * FILES and time.monotonic() < end:
            one_after_the_other(directory)
        told = session(volume)
        h.check(told["polled_requests"] >= 10 * FILES, f"hardly polls: {told}")
        h.note(f"{told['polled_requests']} of {told['requests']} requests were polled for, in {told['polling_periods']} periods")
    before = processor_seconds(volume.server.pid)
    time.sleep(IDLE_SECONDS)
    spent = processor_seconds(volume.server.pid) - before
    h.check(spent <= IDLE_PROCESSOR_SECONDS_MAX, f"{spent} s of the processor while nobody asked")
    volume.umount()

    volume.options = "nobusy_poll"
    volume.mount()
    for _ in range(5):
        one_after_the_other(directory)
    h.check(session(volume)["polling_periods"] == 0, "polls though it must not")
    volume.umount()
    volume.fsck()


h.run(test)
