#!/usr/bin/env python3
"""A device that fails under a mount: what waits for it is told, nothing hangs and no wrong byte is read. Where it comes
back everything goes on and nothing is lost; where it does not, the mount ends, and the next one has all that was synced.
And one that is write-protected. So do the tests of xfstests that ask for dm-error, here without it: a loop device is cut
to nothing (xfstests-config/resize-loop).
"""
import contextlib
import errno
import mmap
import os
import signal
import time

import harness as h

BLOCK = 4096
SIZE = 2 << 20
RESIZE = h.ROOT / "xfstests-config/resize-loop"
LEFT_BYTES = 512  # less than a block
HEAL_SECONDS_MAX = 30   # it is tried again every two
PROMPT_SECONDS_MAX = 20


def resize(device, size):
    h.run_command(RESIZE, device, size)


def error_of(action):
    """The errno of an action that must fail."""
    try:
        action()
    except OSError as problem:
        return problem.errno
    return 0


def write_and_sync(path, content):
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), content, 0)
        os.fsync(file.fileno())


def write_directly(path, content):
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    page[:] = content[:BLOCK]
    try:
        os.pwrite(fd, page, 0)
    finally:
        os.close(fd)


def write_large_directly(path, content, skip=0):
    """One write(2) past the cache, from so many bytes behind a page's start; its errno, or 0.

    Where that is not 0 the kernel makes requests of it that do not end with a block.
    """
    memory = mmap.mmap(-1, len(content) + BLOCK)
    memory[skip:skip + len(content)] = content
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        return error_of(lambda: os.pwrite(fd, memoryview(memory)[skip:skip + len(content)], 0))
    finally:
        os.close(fd)


def check_no_wrong_block(path, old, new):
    """Reads past the kernel's cache: each block is the old one or the new one, or an error."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    try:
        for start in range(0, SIZE, BLOCK):
            with contextlib.suppress(OSError):
                if os.preadv(fd, [page], start) == BLOCK:
                    h.check(page[:] in (old[start:start + BLOCK], new[start:start + BLOCK]),
                            f"other bytes at {start} after the failure")
    finally:
        os.close(fd)


def state_of(volume):
    return volume.statistics()["writing"]["state"]


def begin(space, volume, old):
    """A mount with a file of these bytes, synced; and others to come."""
    volume.mount()
    volume.path("file").write_bytes(old)
    h.fsync_directory(volume.mount_point)
    return volume.path("file"), space.random.randbytes(SIZE)


def fail_under(volume, device, path, new):
    """The device fails while the file is written anew."""
    resize(device, LEFT_BYTES)
    for attempt in ("a failed fsync", "a second fsync"):
        h.check(error_of(lambda: write_and_sync(path, new)) == errno.EIO, f"{attempt} said nothing")
    h.check(error_of(lambda: volume.path("later").mkdir() or h.fsync_directory(volume.mount_point)) == errno.EIO,
            "a directory was made durable without a device")
    h.check(state_of(volume) == "stalled", f"the state is {state_of(volume)}")
    h.check(error_of(lambda: write_directly(path, new)) == errno.EIO, "a direct write said nothing")


def heals(space, volume, device, by_fsync):
    """The device comes back: all is there, also what was written while it was away."""
    old = space.random.randbytes(SIZE)
    path, new = begin(space, volume, old)
    fail_under(volume, device, path, new)
    check_no_wrong_block(path, old, new)
    resize(device, 0)
    if by_fsync:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    deadline = time.monotonic() + HEAL_SECONDS_MAX
    while state_of(volume) != "ok":
        h.check(not by_fsync and time.monotonic() < deadline, "the device is back, and the volume still waits")
        time.sleep(0.1)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    figures = volume.statistics()["writing"]
    h.check(figures["stalls"] >= 1 and "last_stall_error" in figures, f"{figures}")
    # What was synced now is there after the server was killed.
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(path.read_bytes() == new, "what was written while the device failed is not there")
    h.check(volume.path("later").is_dir(), "a directory that was made meanwhile is not there")
    volume.path("later").rmdir()
    volume.umount()
    volume.fsck()


def ends(space, volume, device, how):
    """The mount ends before the device is back: it has what was synced."""
    old = space.random.randbytes(SIZE)
    path, new = begin(space, volume, old)
    fail_under(volume, device, path, new)
    if how == "umount":
        h.run_command(h.command(), "umount", volume.mount_point)
    else:
        volume.server.send_signal(signal.SIGTERM)
    status = volume.server.wait(timeout=h.COMMAND_SECONDS_MAX)
    volume.server = None
    h.check(status == 1, f"the server ended with {status}")
    h.check("the mount ended while the device refused writes" in volume.log.read_text(), "the log has no word of it")
    resize(device, 0)
    volume.mount()
    h.check(path.read_bytes() == old, "what was synced is not there after the failure")
    h.check(not volume.path("later").exists(), "a directory came back that was refused")
    volume.umount()
    volume.fsck()


def large_direct_write(space, volume, device, preallocated, skip):
    """The first write that the device refuses is a large direct one: it says so, and changes nothing."""
    old = bytes(SIZE) if preallocated else space.random.randbytes(SIZE)
    path, new = begin(space, volume, b"" if preallocated else old)
    if preallocated:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
            os.fsync(file.fileno())
    # Without a small request at the end.
    length = SIZE - BLOCK if skip else SIZE
    new = new[:length]
    resize(device, LEFT_BYTES)
    h.check(write_large_directly(path, new, skip) == errno.EIO, "a large direct write said nothing")
    resize(device, 0)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        h.check(file.read() == old, "a direct write that failed has changed the file")
    h.check(write_large_directly(path, new, skip) == 0, "a direct write failed when the device was back")
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(path.read_bytes() == new + old[length:], "what a direct write wrote is not there")
    volume.umount()
    volume.fsck()


def full_memory(space, volume, device):
    """A writer for whom there is no room in memory is refused and does not hang."""
    volume.options = "dirty=4M"
    volume.mount()
    path = volume.path("large")
    path.touch()
    h.fsync_directory(volume.mount_point)
    resize(device, LEFT_BYTES)
    content = space.random.randbytes(BLOCK * 16)
    started = time.monotonic()
    accepted = 0
    with open(path, "r+b", buffering=0) as file:
        while accepted < 64 << 20:
            error = error_of(lambda: os.pwrite(file.fileno(), content, accepted))
            if error:
                break
            accepted += len(content)
        h.check(error == errno.EIO, f"after {accepted} bytes: {os.strerror(error)}")
        h.check(time.monotonic() - started < PROMPT_SECONDS_MAX, "it took long")
        resize(device, 0)
        os.fsync(file.fileno())
    volume.remount()
    h.check(path.read_bytes()[:accepted] == content * (accepted // len(content)), "other bytes")
    path.unlink()
    volume.umount()
    volume.options = ""


def full_host(space):
    """The filesystem under an image runs full, and is enlarged."""
    host = space.directory / "host"
    host.mkdir()
    h.run_command("mount", "-t", "tmpfs", "-o", "size=24M", "none", host)
    try:
        volume = h.Volume(host, size="128M", name="image")
        try:
            volume.mount()
            path = volume.path("file")
            content = space.random.randbytes(40 << 20)
            with open(path, "wb", buffering=0) as file:
                for start in range(0, len(content), 1 << 20):
                    os.pwrite(file.fileno(), content[start:start + (1 << 20)], start)
                h.check(error_of(lambda: os.fsync(file.fileno())) == errno.EIO, "no error where there is no room")
                h.check(state_of(volume) == "stalled", f"the state is {state_of(volume)}")
                h.run_command("mount", "-o", "remount,size=200M", host)
                os.fsync(file.fileno())
            volume.kill()
            volume.clear_dead_mount()
            volume.mount()
            h.check(path.read_bytes() == content, "other bytes")
            volume.umount()
            volume.fsck()
        finally:
            volume.dispose()
    finally:
        h.run_command("umount", "-l", host)


def write_protected(volume, device):
    """A device that says beforehand that it can't be written is mounted read-only."""
    h.run_command("blockdev", "--setro", device)
    volume.mount()
    h.check(volume.path("file").exists(), "the file is not there")
    h.check(os.statvfs(volume.mount_point).f_flag & os.ST_RDONLY != 0, "not mounted read-only")
    h.check(error_of(volume.path("later").mkdir) == errno.EROFS, "mkdir on a write-protected device")
    volume.umount()
    h.run_command("blockdev", "--setrw", device)


def write_protected_after_a_crash(volume, device):
    """Such a device that was not unmounted is shown to whoever asks for a read-only mount, and else refused."""
    refused = h.run_command(h.command(), "mount", device, volume.mount_point, "-o", "norecovery", expect=1)
    h.check("only together with ro" in refused, refused)
    volume.mount()
    volume.path("synced").write_bytes(b"synced")
    h.fsync_directory(volume.mount_point)
    volume.kill()
    volume.clear_dead_mount()
    h.run_command("blockdev", "--setro", device)
    refused = h.run_command(h.command(), "mount", device, volume.mount_point, expect=32)
    h.check("write-protected and was not unmounted" in refused and "-o ro" in refused and refused.count("\n") == 1, refused)
    h.check(h.mount_type(volume.mount_point) is None, "refused, and mounted")
    for options in ("ro", "norecovery"):
        volume.options = options
        volume.mount()
        h.check(volume.path("synced").read_bytes() == b"synced", f"not as after a recovery with {options}")
        h.check(os.statvfs(volume.mount_point).f_flag & os.ST_RDONLY != 0, "not mounted read-only")
        volume.umount()
    volume.options = ""
    h.run_command("blockdev", "--setrw", device)
    volume.mount()
    h.check(volume.path("synced").read_bytes() == b"synced", "lost by a look at it")
    volume.umount()
    volume.fsck()


def test(space):
    full_host(space)
    volume = space.volume(size="256M", name="device")
    with h.loop_device(volume.image) as device:
        volume.image = device
        try:
            heals(space, volume, device, by_fsync=True)
            heals(space, volume, device, by_fsync=False)
            ends(space, volume, device, "umount")
            ends(space, volume, device, "SIGTERM")
            large_direct_write(space, volume, device, preallocated=False, skip=0)
            large_direct_write(space, volume, device, preallocated=True, skip=512)
            full_memory(space, volume, device)
            write_protected(volume, device)
            write_protected_after_a_crash(volume, device)
        finally:
            volume.dispose()


h.run(test)
