#!/usr/bin/env python3
"""`cp -a` of /usr/share compares equal after a remount: bytes, modes, owners, times, links, xattrs.

COFS_TREE_MB: how much of it (default 200; 0: all of it).
"""
import os
import stat

import harness as h

SOURCE = "/usr/share"


def size_of(path):
    return int(h.run_command("du", "-sk", "--apparent-size", path).split()[0]) // 1024


def choose(limit_mb):
    """Top-level entries, in order of name, that fit the limit together."""
    chosen, total = [], 0
    for name in sorted(os.listdir(SOURCE)):
        path = os.path.join(SOURCE, name)
        size = size_of(path)
        if limit_mb and total + size > limit_mb:
            continue
        chosen.append(path)
        total += size
    return chosen, total


def attributes(path):
    info = os.lstat(path)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
              for name in os.listxattr(path, follow_symlinks=False)
              if name.startswith(("user.", "trusted.", "security.", "system."))}
    is_directory = stat.S_ISDIR(info.st_mode)
    return (info.st_mode, info.st_uid, info.st_gid, None if is_directory else info.st_size,
            info.st_mtime_ns, None if is_directory else info.st_nlink, xattrs)


def same_bytes(a, b):
    with open(a, "rb") as left, open(b, "rb") as right:
        while True:
            one, two = left.read(1 << 20), right.read(1 << 20)
            if one != two:
                return False
            if not one:
                return True


def compare(source, copy, inner_links):
    """Compares two trees; returns the number of objects. inner_links: (dev, ino) of hard-linked files."""
    h.check(os.path.lexists(copy), f"{copy} is missing")
    left, right = attributes(source), attributes(copy)
    # A hard link from outside the copied part cannot be in the copy.
    if left[5] != right[5]:
        left, right = left[:5] + left[6:], right[:5] + right[6:]
        inner_links.append((source, copy))
    h.check(left == right, f"{copy}: attributes {right}, of the source {left}")
    if os.path.islink(source):
        h.check(os.readlink(source) == os.readlink(copy), f"{copy}: symlink target")
        return 1
    if not os.path.isdir(source):
        h.check(not os.path.isfile(source) or same_bytes(source, copy), f"{copy}: contents differ")
        return 1
    names = sorted(os.listdir(source))
    h.check(names == sorted(os.listdir(copy)), f"{copy}: other names than {source}")
    return 1 + sum(compare(os.path.join(source, n), os.path.join(copy, n), inner_links) for n in names)


def test(space):
    limit_mb = h.number_from("COFS_TREE_MB", 200)
    paths, total_mb = choose(limit_mb)
    volume = space.volume(size=f"{max(1024, 2 * total_mb)}M").mount()
    for path in paths:
        h.run_command("cp", "-a", path, volume.path(os.path.basename(path)))
    volume.remount()
    links = []
    objects = sum(compare(path, volume.path(os.path.basename(path)), links) for path in paths)
    h.check(objects > 100, f"only {objects} objects were compared")
    h.note(f"cp -a of {total_mb} MiB, {objects} objects: equal after a remount "
           f"({len(links)} link counts differ because other links were not copied)")
    volume.umount()
    volume.fsck()


h.run(test)
