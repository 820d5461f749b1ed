#!/usr/bin/env python3
"""What depends on the libfuse that the server was built with: who clears setuid, setgid and capabilities, O_TMPFILE,
statx, copies of more than 4 GiB, and how many requests a write takes.

The mount tells what it can do (`cofs stat --json`, "fuse"); what it cannot must be refused properly. What a
change costs a file's privileges is compared with the same on the filesystem that holds the image.
"""
import ctypes
import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys

import harness as h

NOBODY = 65534
BLOCK = 4096
GIB = 1 << 30
MODES = (0o6777, 0o4767, 0o6767)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
WRITES = 2000

AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
STATX_MODE, STATX_BASIC, STATX_BTIME = 0x2, 0x7ff, 0x800
STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND = 0x10, 0x20
FS_IOC_SETFLAGS, FS_IMMUTABLE, FS_APPEND = 0x40086602, 0x10, 0x20

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Statx(ctypes.Structure):
    _fields_ = [("mask", ctypes.c_uint32), ("blksize", ctypes.c_uint32), ("attributes", ctypes.c_uint64),
                ("nlink", ctypes.c_uint32), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32),
                ("mode", ctypes.c_uint16), ("pad", ctypes.c_uint16), ("ino", ctypes.c_uint64),
                ("size", ctypes.c_uint64), ("blocks", ctypes.c_uint64), ("attributes_mask", ctypes.c_uint64),
                ("atime", ctypes.c_int64 * 2), ("btime", ctypes.c_int64), ("btime_ns", ctypes.c_uint32),
                ("pad2", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 160)]


def statx(path, mask):
    result = Statx()
    checked(libc.statx(AT_FDCWD, os.fsencode(path), 0, mask, ctypes.byref(result)), f"statx {path}")
    return result


def checked(status, what):
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return status


def fallocate(path, mode, length):
    with opened(path, os.O_WRONLY) as file:
        checked(libc.fallocate(file.fileno(), mode, 0, length), f"fallocate {mode} {path}")


def opened(path, flags, mode=0o600):
    return os.fdopen(os.open(path, flags, mode), "r+b" if flags & os.O_RDWR else "wb", buffering=0)


def as_nobody(action):
    """Runs action() in a process of a user who is nobody; true if it raised nothing."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            os._exit(0)
        except BaseException as problem:  # pylint: disable=broad-except
            print(f"as nobody: {problem!r}", file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


# --- What a change costs -------------------------------------------------------------------------

def change_by_write(path):
    with opened(path, os.O_WRONLY) as file:
        file.write(b"changed")


def change_by_append(path):
    with opened(path, os.O_WRONLY | os.O_APPEND) as file:
        file.write(b"x")


def change_by_direct_write(path):
    page = mmap.mmap(-1, BLOCK)
    with opened(path, os.O_WRONLY | os.O_DIRECT) as file:
        file.write(page)


def change_by_map(path):
    with opened(path, os.O_RDWR) as file, mmap.mmap(file.fileno(), BLOCK) as memory:
        memory[0] = 65
        memory.flush()


def change_by_copy(path):
    with open(path.parent / "source", "rb") as source, opened(path, os.O_WRONLY) as file:
        h.check(os.copy_file_range(source.fileno(), file.fileno(), BLOCK, 0, 0) == BLOCK, "copied all")


CHANGES = {
    "write": change_by_write,
    "append": change_by_append,
    "direct write": change_by_direct_write,
    "map": change_by_map,
    "copy": change_by_copy,
    "truncate": lambda path: os.truncate(path, 100),
    "grow": lambda path: os.truncate(path, 100_000),
    "open with O_TRUNC": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC).close(),
    "create over it": lambda path: opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC).close(),
    "allocate": lambda path: fallocate(path, 0, 100_000),
    "punch": lambda path: fallocate(path, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, BLOCK),
    "zero": lambda path: fallocate(path, FALLOC_ZERO_RANGE, BLOCK),
}


def has_capability(path):
    try:
        os.getxattr(path, "security.capability")
        return True
    except OSError as problem:
        if problem.errno != errno.ENODATA:
            raise
        return False


def outcomes(directory):
    """{case: (mode, as a cached mode, has a capability)} after each change of a file with privileges."""
    (directory / "source").write_bytes(b"s" * 2 * BLOCK)
    os.chmod(directory / "source", 0o644)
    found = {}
    for name, change in CHANGES.items():
        for who in ("nobody", "root"):
            for mode in MODES:
                for capability in (False, True):
                    path = directory / f"{name}.{who}.{mode:o}.{capability}".replace(" ", "-")
                    path.write_bytes(b"f" * 2 * BLOCK)
                    os.chmod(path, mode)
                    if capability:
                        os.setxattr(path, "security.capability", CAPABILITY)
                    os.stat(path)
                    case = f"{name} by {who}, mode {mode:o}{' and a capability' if capability else ''}"
                    if who == "root":
                        change(path)
                    else:
                        h.check(as_nobody(lambda p=path, c=change: c(p)), f"{case}: failed")
                    # What the kernel goes by, which need not ask the server; and what the server says.
                    believed = statx(path, STATX_MODE).mode & 0o7777
                    found[case] = (oct(os.stat(path).st_mode & 0o7777), oct(believed), has_capability(path))
    for mode in MODES:
        path = directory / f"chown.{mode:o}"
        path.write_bytes(b"")
        os.chmod(path, mode)
        os.setxattr(path, "security.capability", CAPABILITY)
        os.chown(path, NOBODY, NOBODY)
        found[f"chown, mode {mode:o}"] = (oct(os.stat(path).st_mode & 0o7777),
                                          oct(statx(path, STATX_MODE).mode & 0o7777), has_capability(path))
    return found


def test_privileges(host, volume):
    features = volume.statistics()["fuse"]
    ours = volume.path("privileges")
    for place in (host, ours):
        place.mkdir()
        os.chmod(place, 0o777)
    expected, found = outcomes(host), outcomes(ours)
    h.check(expected["write by nobody, mode 6777"][0] == "0o777", "the host's filesystem clears nothing")
    h.check(expected["write by root, mode 6777"][0] == "0o6777", "the host's filesystem clears for root")
    if expected["write by nobody, mode 6767"][0] != "0o767":
        h.note("this kernel leaves setgid without group execute to writers: not compared")
        expected = {case: outcome for case, outcome in expected.items() if "6767" not in case}
    wrong = [f"{case}: {found[case]}, on the host {expected[case]}" for case in expected
             if found[case] != expected[case] and not by_kernel_alone(case, features)]
    h.check(not wrong, "privileges after\n" + "\n".join(wrong))
    h.note(f"{len(expected)} changes of files with privileges (-o {volume.options}): as on {filesystem_of(host)}")
    # And so it is on the volume.
    modes = {path.name: os.stat(path).st_mode for path in ours.iterdir()}
    volume.remount()
    for name, mode in modes.items():
        h.check(os.stat(ours / name).st_mode == mode, f"{name}: mode after a remount")


def by_kernel_alone(case, features):
    """Cases that never reach a server which is not asked to clear: the kernel's FUSE clears by an older rule, and leaves
    setgid where the group may not execute."""
    return (not features["kills_privileges"] and "6767" in case and
            case.split(" by ")[0] in ("write", "append", "direct write", "truncate", "grow"))


def filesystem_of(path):
    return h.run_command("stat", "-f", "-c", "%T", path).strip()


def effective_user(program):
    done = subprocess.run([program, "-u"], user=NOBODY, group=NOBODY, extra_groups=[], stdout=subprocess.PIPE,
                          check=True)
    return int(done.stdout)


def test_execution(volume):
    """A program that somebody changed does not run with its owner's rights, whatever mode the kernel remembers."""
    for name, change in (("write", change_by_append), ("copy", change_by_copy_of_itself)):
        program = volume.path(f"id.{name}")
        shutil.copyfile(shutil.which("id"), program)
        os.chmod(program, 0o4777)
        if effective_user(program) != 0:
            h.note("programs with setuid do not run with it here: not tested with one")
            return
        h.check(as_nobody(lambda p=program, c=change: c(p)), f"{name} into a program")
        h.check(effective_user(program) == NOBODY, f"a program runs with setuid after a {name} by nobody")


def change_by_copy_of_itself(path):
    with open(path, "rb") as source, opened(path, os.O_WRONLY) as file:
        h.check(os.copy_file_range(source.fileno(), file.fileno(), BLOCK, 0, os.stat(path).st_size) == BLOCK,
                "copied all")


# --- Requests ------------------------------------------------------------------------------------

def requests_of(volume, action):
    before = volume.statistics()["fuse"]["requests"]
    idle = volume.statistics()["fuse"]["requests"] - before  # what asking costs
    start = volume.statistics()["fuse"]["requests"]
    action()
    return volume.statistics()["fuse"]["requests"] - start - idle


def test_requests_of_writes(volume, features):
    def write_blocks(file):
        for i in range(WRITES):
            os.pwrite(file.fileno(), b"w" * BLOCK, i * BLOCK)

    with opened(volume.path("written"), os.O_RDWR | os.O_CREAT) as file:
        write_blocks(file)
        per_write = requests_of(volume, lambda: write_blocks(file)) / WRITES
    h.note(f"requests per write of a block: {per_write:.3f}")
    wanted = 1 if features["kills_privileges"] else 2
    h.check(per_write < wanted + 0.05, f"a write takes {per_write:.3f} requests, not {wanted}")


# --- O_TMPFILE, statx, long copies ---------------------------------------------------------------

def test_unnamed_files(volume, features):
    def make(flags=0):
        return opened(volume.mount_point, os.O_RDWR | os.O_TMPFILE | flags, 0o640)

    def give_name(file, name):
        checked(libc.linkat(AT_FDCWD, f"/proc/self/fd/{file.fileno()}".encode(), AT_FDCWD,
                            os.fsencode(volume.path(name)), AT_SYMLINK_FOLLOW), f"linkat {name}")

    def refused(number, action):
        try:
            action()
        except OSError as problem:
            h.check(problem.errno == number, f"refused with {problem}")
        else:
            raise h.Failure("not refused")

    if not features["unnamed_files"]:
        refused(errno.EOPNOTSUPP, make)
        h.note("O_TMPFILE: refused, as this library must")
        return
    names = set(os.listdir(volume.mount_point))
    content = os.urandom(300_000)
    with make() as file:
        file.write(content)
        h.check(os.fstat(file.fileno()).st_nlink == 0, "an unnamed file has no link")
        h.check(stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o640, "mode of an unnamed file")
        h.check(set(os.listdir(volume.mount_point)) == names, "an unnamed file has a name")
        give_name(file, "named")
        h.check(os.fstat(file.fileno()).st_nlink == 1, "a file that got its name has a link")
        refused(errno.EEXIST, lambda: give_name(file, "named"))
        os.fsync(file.fileno())
    with make(os.O_EXCL) as file:
        refused(errno.ENOENT, lambda: give_name(file, "never"))
    # What never got a name is gone with the server, and its space too.
    with make() as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
        volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(volume.path("named").read_bytes() == content, "content of a file that got its name")
    h.check(set(os.listdir(volume.mount_point)) == names | {"named"}, "names after a crash")
    h.note("O_TMPFILE and linkat: as they should, also over a crash")


def test_statx(volume, features):
    path = volume.path("born")
    path.write_bytes(b"1")
    born = os.stat(path).st_mtime
    os.utime(path, (1, 1))
    path.write_bytes(b"2")
    found = statx(path, STATX_BASIC | STATX_BTIME)
    h.check(found.mode == os.stat(path).st_mode and found.ino == os.stat(path).st_ino and found.size == 1, "statx")
    if not features["statx"]:
        h.check(found.mask & STATX_BTIME == 0, "a birth time from a library that cannot tell it")
        h.note("statx: no birth time, as this library must")
        return
    h.check(found.mask & STATX_BTIME != 0, "statx tells no birth time")
    h.check(abs(found.btime + found.btime_ns / 1e9 - born) < 1, f"birth time {found.btime}, not {born}")
    both = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND
    if found.attributes_mask & both != both:
        h.note("statx: birth time (this kernel does not pass on the attributes of chattr)")
        return
    h.check(found.attributes & both == 0, "attributes that nobody set")
    for flag, attribute in ((FS_IMMUTABLE, STATX_ATTR_IMMUTABLE), (FS_APPEND, STATX_ATTR_APPEND), (0, 0)):
        set_flags(path, flag)
        h.check(statx(path, STATX_BASIC).attributes & both == attribute, f"attribute {attribute:#x} after chattr")
    h.note("statx: birth time and attributes")


def set_flags(path, flags):
    with open(path, "rb") as file:
        value = ctypes.c_int(flags)
        checked(libc.ioctl(file.fileno(), ctypes.c_ulong(FS_IOC_SETFLAGS), ctypes.byref(value)), "FS_IOC_SETFLAGS")


def test_long_copy(volume, features):
    length = 5 * GIB + 12345
    marks = {0: b"start", 3 * GIB - 2: b"middle", 4 * GIB - 3: b"at four", length - 3: b"end"}
    with opened(volume.path("long"), os.O_RDWR | os.O_CREAT) as source, \
            opened(volume.path("long.copy"), os.O_RDWR | os.O_CREAT) as target:
        os.ftruncate(source.fileno(), length)
        for offset, text in marks.items():
            os.pwrite(source.fileno(), text[:length - offset], offset)
        os.fsync(source.fileno())
        pieces = []

        def copy():
            while sum(pieces) < length:
                done = sum(pieces)
                pieces.append(os.copy_file_range(source.fileno(), target.fileno(), length - done, done, done))
                h.check(pieces[-1] > 0, f"a copy ended at {done}")

        requests = requests_of(volume, copy)
        for offset, text in marks.items():
            wanted = text[:length - offset]
            h.check(os.pread(target.fileno(), len(wanted), offset) == wanted, f"copied bytes at {offset}")
        h.check(os.fstat(target.fileno()).st_size == length, "size of a long copy")
    if features["copies_64"]:
        h.check(pieces == [length], f"pieces of a long copy: {pieces}")
    else:
        h.check(max(pieces) < 4 * GIB, f"pieces of a long copy: {pieces}")
    h.note(f"a copy of {length} bytes: {len(pieces)} calls, {requests} requests")


def test(space):
    if os.geteuid() != 0:
        h.skip("needs root: becomes another user, sets capabilities")
    os.chmod(space.directory, 0o755)
    cached = space.volume(options="writeback", name="cached").mount()
    test_privileges(space.directory / "host-cached", cached)
    test_execution(cached)
    cached.umount()
    volume = space.volume(size="2G", options="clone=share").mount()
    features = volume.statistics()["fuse"]
    h.note(f"{features['library']}, protocol {features['protocol']}")
    test_privileges(space.directory / "host", volume)
    test_execution(volume)
    test_requests_of_writes(volume, features)
    test_unnamed_files(volume, features)
    test_statx(volume, features)
    test_long_copy(volume, features)
    volume.umount()
    volume.fsck()


h.run(test)
