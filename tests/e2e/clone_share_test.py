#!/usr/bin/env python3
"""clone=share on a mount: plain cp shares blocks, announced clones, dedupe and maps by their ioctls, and
all of it whole after a remount, a kill of the server, and fsck.
"""
import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
import time

import harness as h

MIB = 1 << 20
BLOCK = 4096
TYPE = 0xCF


def ioctl_number(direction, number, size):
    return direction << 30 | size << 16 | TYPE << 8 | number


READ, WRITE = 2, 1
QUERY = ioctl_number(READ, 16, 64)
ANNOUNCE = ioctl_number(WRITE, 17, 64)
DEDUPE_TOKEN = ioctl_number(READ, 18, 16)
DEDUPE = ioctl_number(READ | WRITE, 19, 72)
MAP = ioctl_number(READ | WRITE, 20, 48 + 400 * 32)
TUNE = ioctl_number(WRITE, 21, 32)
SHARE, DEVICE = 1, 0
SHARED, LAST = 0x10, 0x1


def call(fd, number, data):
    """ioctl with a structure; what it became."""
    buffer = bytearray(data)
    fcntl.ioctl(fd, number, buffer, True)
    return bytes(buffer)


def query(path):
    with opened(path, os.O_RDONLY) as fd:
        return struct.unpack_from("<IIII", call(fd, QUERY, bytes(64)))


def announce(fd, source_offset, length, target, target_offset):
    call(fd, ANNOUNCE, struct.pack("<QQQQ32x", source_offset, length, os.fstat(target).st_ino, target_offset))


def dedupe(source, source_offset, target, target_offset, length):
    """(bytes, status)"""
    token = call(source, DEDUPE_TOKEN, bytes(16))
    data = token + struct.pack("<QQQQiI16x", source_offset, target_offset, length, 0, -1, 0)
    return struct.unpack_from("<Qi", call(target, DEDUPE, data), 40)


def extents(path):
    """[(logical, physical, length, flags)]"""
    found, start = [], 0
    with opened(path, os.O_RDONLY) as fd:
        while True:
            data = struct.pack("<QQIIII16x", start, 1 << 62, 1, 0, 0, 0) + bytes(400 * 32)
            out = call(fd, MAP, data)
            count, more = struct.unpack_from("<II", out, 20)
            page = [struct.unpack_from("<QQQI", out, 48 + 32 * i) for i in range(count)]
            found += page
            if not more:
                return found
            start = page[-1][0] + page[-1][2]


def tune(path, value):
    with opened(path, os.O_RDONLY) as fd:
        call(fd, TUNE, struct.pack("<IIQ16x", 1, 0, value))


@contextlib.contextmanager
def opened(path, flags, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def clone(source, target, piece=None):
    """As cp --reflink=always would: announce, then copy until all is there."""
    with opened(source, os.O_RDONLY) as src, opened(target, os.O_WRONLY | os.O_CREAT) as dst:
        length = os.fstat(src).st_size
        announce(src, 0, length, dst, 0)
        done = 0
        while done < length:
            n = os.copy_file_range(src, dst, min(piece or length, length - done), done, done)
            h.check(n > 0, "a clone that stands still")
            done += n


def expect_error(number, what, function, *arguments):
    try:
        function(*arguments)
    except OSError as problem:
        h.check(problem.errno == number, f"{what}: {problem}, not {errno.errorcode[number]}")
        return
    raise h.Failure(f"{what}: it should have failed with {errno.errorcode[number]}")


def test_plain_copies(space, volume):
    data = space.random.randbytes(64 * MIB + 777)
    volume.path("a").write_bytes(data)
    h.run_command(h.command(), "sync", volume.mount_point)
    free = os.statvfs(volume.mount_point).f_bavail
    before = volume.statistics()
    for i in range(10):
        h.run_command("cp", "--reflink=auto", volume.path("a"), volume.path(f"copy{i}"))
    after = volume.statistics()
    shared = after["copy"]["shared_bytes"] - before["copy"]["shared_bytes"]
    blocks = -(-len(data) // BLOCK)
    h.check(shared == 10 * blocks * BLOCK, f"10 copies shared {shared} bytes, not {10 * blocks * BLOCK}")
    h.check(after["copy"]["host_bytes"] == before["copy"]["host_bytes"], "a copy went through the host")
    h.check(after["space"]["live_bytes"] == before["space"]["live_bytes"], "copies took blocks")
    h.check(after["space"]["shared_bytes"] == blocks * BLOCK, "space.shared_bytes")
    h.check(after["space"]["saved_bytes"] == 10 * blocks * BLOCK, "space.saved_bytes")
    used = (free - os.statvfs(volume.mount_point).f_bavail) * BLOCK
    h.check(used < 4 * MIB, f"ten copies of 64 MiB took {used} bytes of what is available")
    h.check(os.stat(volume.path("copy3")).st_blocks == os.stat(volume.path("a")).st_blocks, "st_blocks")
    h.check(volume.path("copy3").read_bytes() == data, "a copy differs")
    first = extents(volume.path("a"))
    h.check(first and all(e[3] & SHARED for e in first), f"the source is not shared: {first[:3]}")
    h.check(first[-1][3] & LAST, "no last extent")
    h.check(extents(volume.path("copy7")) == first, "the copy lies elsewhere")
    # A change stays where it is made.
    with open(volume.path("copy3"), "r+b") as file:
        file.seek(10 * MIB + 1)
        file.write(b"changed")
    h.check(volume.path("a").read_bytes() == data, "the source changed with its copy")
    h.check(volume.path("copy4").read_bytes() == data, "a copy changed with another one")
    return data


def test_strict_clones(space, volume, data):
    volume.path("device").mkdir()
    os.setxattr(volume.path("device"), "user.cofs.clone", b"device")
    h.check(query(volume.path("device"))[2] == DEVICE, "the attribute does not count")
    h.check(query(volume.mount_point)[2] == SHARE, "the mount's mode")
    expect_error(errno.EINVAL, "a wrong mode", os.setxattr, volume.path("device"), "user.cofs.clone", b"no")
    before = volume.statistics()["copy"]
    clone(volume.path("a"), volume.path("strict"))
    clone(volume.path("a"), volume.path("pieces"), piece=7 * MIB)
    clone(volume.path("a"), volume.path("device/strict"))
    after = volume.statistics()["copy"]
    for name in ("strict", "pieces", "device/strict"):
        h.check(volume.path(name).read_bytes() == data, f"{name} differs")
        h.check(os.getxattr(volume.path(name), "user.cofs.clone") == b"device"
                if "/" in name else True, "the attribute was not inherited")
    h.check(after["host_bytes"] == before["host_bytes"], "a strict clone went through the host")
    moved = sum(after[k] - before[k] for k in ("shared_bytes", "device_bytes", "hostfile_bytes"))
    # "pieces": once for its snapshot, once for the pieces.
    h.check(moved == 4 * -(-len(data) // BLOCK) * BLOCK, f"{moved} bytes were cloned")
    with opened(volume.path("a"), os.O_RDONLY) as src, opened(volume.path("strict"), os.O_RDWR) as dst:
        expect_error(errno.EINVAL, "unaligned", announce, src, 1, BLOCK, dst, 0)
        expect_error(errno.EINVAL, "beyond the end", announce, src, 0, 1 << 40, dst, 0)
        announce(src, 0, 0, dst, 0)
    with opened(volume.path("a"), os.O_WRONLY) as src, opened(volume.path("strict"), os.O_RDWR) as dst:
        expect_error(errno.EBADF, "not readable", announce, src, 0, BLOCK, dst, 0)


def test_dedupe(space, volume, data):
    volume.path("twin").write_bytes(data)
    with opened(volume.path("a"), os.O_RDONLY) as src, opened(volume.path("twin"), os.O_RDWR) as dst:
        before = os.fstat(dst)
        h.check(dedupe(src, 0, dst, 0, len(data)) == (len(data), 0), "equal files were not deduplicated")
        after = os.fstat(dst)
        h.check((before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns),
                "dedupe changed a time")
        os.pwrite(dst, b"other", 5 * MIB)
        h.check(dedupe(src, 0, dst, 0, 16 * MIB) == (0, 1), "different ranges were said to be equal")
        token = call(src, DEDUPE_TOKEN, bytes(16))
        request = struct.pack("<QQQQiI16x", 6 * MIB, 6 * MIB, BLOCK, 0, -1, 0)
        call(dst, DEDUPE, token + request)
        expect_error(errno.EINVAL, "a token used twice", call, dst, DEDUPE, token + request)
        expect_error(errno.EINVAL, "a guessed token", call, dst, DEDUPE, os.urandom(16) + request)
        # Used up also where it brought nothing, and on whatever file it was tried.
        token = call(src, DEDUPE_TOKEN, bytes(16))
        with opened(volume.path("a"), os.O_RDWR) as other:
            expect_error(errno.EINVAL, "a part of a block", call, other, DEDUPE,
                         token + struct.pack("<QQQQiI16x", 0, 1, BLOCK, 0, -1, 0))
        expect_error(errno.EINVAL, "a token that was tried", call, dst, DEDUPE, token + request)
        # It dies with the open file that it came from, not with others of that file.
        brief = os.open(volume.path("a"), os.O_RDONLY)
        token = call(brief, DEDUPE_TOKEN, bytes(16))
        os.close(brief)
        time.sleep(0.3)  # the kernel tells of the last close later
        expect_error(errno.EINVAL, "a token of a closed file", call, dst, DEDUPE, token + request)
    with opened(volume.path("a"), os.O_WRONLY) as src:
        expect_error(errno.EBADF, "a token of a file that cannot be read", call, src, DEDUPE_TOKEN, bytes(16))
    h.check(extents(volume.path("twin"))[0][3] & SHARED, "nothing is shared after a dedupe")
    if os.geteuid() == 0:
        test_strangers(volume)


def test_strangers(volume):
    """Another user: reads both files, and may neither share another's blocks away nor tune."""
    os.chmod(volume.mount_point, 0o755)
    directory = os.open(volume.mount_point, os.O_RDONLY)  # a stranger could not walk there
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.fchdir(directory)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with opened("a", os.O_RDONLY) as src, opened("twin", os.O_RDONLY) as dst:
                expect_error(errno.EPERM, "dedupe by a stranger", dedupe, src, 0, dst, 0, BLOCK)
                expect_error(errno.EPERM, "tune by a stranger", tune, "a", DEVICE)
        except BaseException as problem:  # pylint: disable=broad-except
            print(f"as nobody: {problem}", flush=True)
            status = 1
        os._exit(status)
    os.close(directory)
    h.check(os.waitpid(child, 0)[1] == 0, "a stranger was not refused")


def test_probes(volume):
    """Announcements tell nothing of files that their caller cannot open; nor do they reach other opens or targets."""
    secret = volume.path("secret")
    secret.write_bytes(b"x" * 10 * BLOCK)
    os.chmod(secret, 0)
    own = volume.path("own")
    own.write_bytes(os.urandom(4 * BLOCK))
    os.chmod(own, 0o644)
    targets = [os.stat(secret).st_ino, os.stat(volume.mount_point).st_ino, 1 << 40, 0, (1 << 64) - 1]
    os.chmod(volume.mount_point, 0o755)
    directory = os.open(volume.mount_point, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.fchdir(directory)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            expect_error(errno.EACCES, "a secret file", os.open, "secret", os.O_RDONLY)
            with opened("own", os.O_RDONLY) as src:
                for ino in targets:
                    for offset in (0, 4 * BLOCK, 1 << 40):
                        call(src, ANNOUNCE, struct.pack("<QQQQ32x", 0, 4 * BLOCK, ino, offset))
        except BaseException as problem:  # pylint: disable=broad-except
            print(f"as nobody: {problem}", flush=True)
            status = 1
        os._exit(status)
    os.close(directory)
    h.check(os.waitpid(child, 0)[1] == 0, "an announcement told one target from another")
    # Of two opens and two targets, the one that was meant is strict: it ends inside a block of the target, which
    # only a plain copy may.
    for name in ("left", "right"):
        volume.path(name).write_bytes(bytes(8 * BLOCK))
    odd = volume.path("odd")
    odd.write_bytes(os.urandom(BLOCK + 10))
    with opened(odd, os.O_RDONLY) as src, opened(odd, os.O_RDONLY) as twin, \
            opened(volume.path("left"), os.O_RDWR) as left, opened(volume.path("right"), os.O_RDWR) as right:
        announce(src, 0, BLOCK + 10, left, 0)
        h.check(os.copy_file_range(twin, left, BLOCK + 10, 0, 0) == BLOCK + 10, "another open of the source")
        h.check(os.copy_file_range(src, right, BLOCK + 10, 0, 0) == BLOCK + 10, "another target")
        expect_error(errno.EINVAL, "a strict clone inside a block", os.copy_file_range, src, left, BLOCK + 10, 0, 0)


def test_long_clone(volume):
    """More than one request can carry: all of it is the source as it was at the first one."""
    pieces = {at << 20: os.urandom(3 * BLOCK) for at in (0, 2047, 4094, 5000, 9000)}
    with opened(volume.path("long"), os.O_RDWR | os.O_CREAT) as src, \
            opened(volume.path("long-clone"), os.O_RDWR | os.O_CREAT) as dst:
        for at, data in pieces.items():
            os.pwrite(src, data, at)
        os.fsync(src)
        length = os.fstat(src).st_size
        h.check(length > 9000 << 20, "a long file")
        announce(src, 0, length, dst, 0)
        at_once = query(volume.path("long"))[3] & 1  # COFS_FEATURE_COPY_64
        done, calls = 0, 0
        while done < length:
            n = os.copy_file_range(src, dst, length - done, done, done)
            h.check(n > 0, "a long clone that stands still")
            done, calls = done + n, calls + 1
            for at in pieces:
                os.pwrite(src, bytes(BLOCK), at)
        h.check((calls == 1) == bool(at_once), f"{calls} requests, but COFS_FEATURE_COPY_64 is {at_once}")
        for at, data in pieces.items():
            h.check(os.pread(dst, len(data), at) == data, f"another state at {at >> 20} MiB")
        h.check(os.fstat(dst).st_size == length, "the size of a long clone")
    h.note(f"  9 GB in {calls} requests")


def test_tune(volume):
    tune(volume.mount_point, DEVICE)
    h.check(query(volume.path("a"))[2] == DEVICE, "tune does not count")
    before = volume.statistics()["copy"]["shared_bytes"]
    h.run_command("cp", "--reflink=auto", volume.path("a"), volume.path("independent"))
    h.check(volume.statistics()["copy"]["shared_bytes"] == before, "clone=device shared")
    tune(volume.mount_point, SHARE)


def test_synchronous_copy(volume):
    """A copy into a file opened with O_DSYNC is durable when it returns."""
    with opened(volume.path("a"), os.O_RDONLY) as src, \
            opened(volume.path("durable"), os.O_WRONLY | os.O_CREAT | os.O_DSYNC) as dst:
        n = os.copy_file_range(src, dst, 8 * MIB, 0, 0)
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(volume.path("durable").stat().st_size == n, "an O_DSYNC copy was lost with the server")


def test(space):
    h.check(ctypes.sizeof(ctypes.c_void_p) == 8, "64-bit only")
    volume = space.volume(size="2G", options="clone=share,gc=aggressive")
    volume.mount()
    data = test_plain_copies(space, volume)
    test_strict_clones(space, volume, data)
    test_dedupe(space, volume, data)
    test_long_clone(volume)
    if os.geteuid() == 0:
        test_probes(volume)
    test_tune(volume)
    volume.remount()
    for name in ("a", "copy9", "strict", "pieces"):
        h.check(volume.path(name).read_bytes() == data, f"{name} differs after a remount")
    test_synchronous_copy(volume)
    for i in range(10):
        os.unlink(volume.path(f"copy{i}"))
    h.check(volume.path("a").read_bytes() == data, "the source went with its copies")
    volume.umount()
    volume.fsck()


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    h.run(test)
