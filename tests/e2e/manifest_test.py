#!/usr/bin/env python3
"""A program makes files durable and notes them outside; kill -9 of the server loses none of them.

Each operation (create, overwrite, append, rename, remove, make a directory) ends with the fsync that
POSIX wants for it, and is noted as begun and as done on another filesystem. After a kill the tree must be
what the done operations made; only the one that was under way may be there or not.
COFS_KILL_ROUNDS: kills (default 20; 100 in a full run).
"""
import hashlib
import json
import os
import random
import sys
import time

import harness as h

START_SECONDS_MAX = 60
FILES_MAX = 200


def content(seed, size):
    return random.Random(seed).randbytes(size)


def write_file(path, flags, data):
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
    finally:
        os.close(fd)


def choose_operation(choice, files, directories, serial):
    """The next operation as data, so that checker and writer need not agree on anything else."""
    # Many kills must not fill the volume: with many files, more go than come.
    kinds = ["create" if len(files) < FILES_MAX else "remove"] * 4
    kinds += ["overwrite", "append", "append", "rename", "remove"] if files else []
    kind = choice.choice(kinds + (["directory"] if len(directories) < 20 else []))
    operation = {"serial": serial, "kind": kind, "seed": choice.getrandbits(32)}
    operation["size"] = choice.choice([0, 17, 700, 2048, 4096, 5000, 30000, 300000])
    if kind in ("create", "directory"):
        operation["name"] = f"{choice.choice(directories)}/{kind[0]}{serial}"
    else:
        operation["name"] = choice.choice(sorted(files))
    if kind == "rename":
        operation["target"] = f"{choice.choice(directories)}/r{serial}"
    return operation


def perform(root, operation):
    path = f"{root}/{operation['name']}"
    kind = operation["kind"]
    data = content(operation["seed"], operation["size"])
    if kind == "create":
        write_file(path, os.O_CREAT | os.O_EXCL, data)
        h.fsync_directory(os.path.dirname(path))
    elif kind == "overwrite":
        write_file(path, os.O_TRUNC, data)
    elif kind == "append":
        write_file(path, os.O_APPEND, data)
    elif kind == "rename":
        target = f"{root}/{operation['target']}"
        os.rename(path, target)
        h.fsync_directory(os.path.dirname(target))
    elif kind == "remove":
        os.unlink(path)
        h.fsync_directory(os.path.dirname(path))
    elif kind == "directory":
        os.mkdir(path)
        h.fsync_directory(os.path.dirname(path))


def apply_to_model(files, directories, operation):
    """What the operation does, on {name: bytes} and a list of directories."""
    name, kind = operation["name"], operation["kind"]
    data = content(operation["seed"], operation["size"])
    if kind in ("create", "overwrite"):
        files[name] = data
    elif kind == "append":
        files[name] = files[name] + data
    elif kind == "rename":
        files[operation["target"]] = files.pop(name)
    elif kind == "remove":
        del files[name]
    elif kind == "directory":
        directories.append(name)


def helper(root, manifest_path, seed):
    """Performs operations until the filesystem dies. The manifest tells where to go on."""
    files, directories, serial, _ = read_manifest(manifest_path)
    choice = random.Random(int(seed))
    with open(manifest_path, "a", encoding="ascii", buffering=1) as manifest:
        while True:
            serial += 1
            operation = choose_operation(choice, files, directories, serial)
            manifest.write(json.dumps({"begin": operation}) + "\n")
            perform(root, operation)
            manifest.write(json.dumps({"done": serial}) + "\n")
            apply_to_model(files, directories, operation)


def read_manifest(path):
    """What must be there: (files, directories, last serial, the operation that was under way)."""
    files, directories, serial, pending = {}, ["."], 0, None
    if not os.path.exists(path):
        return files, directories, serial, pending
    with open(path, encoding="ascii") as manifest:
        for line in manifest:
            entry = json.loads(line)
            if "begin" in entry:
                pending = entry["begin"]
                serial = pending["serial"]
            elif "done" in entry:
                apply_to_model(files, directories, pending)
                pending = None
            else:  # the checker says what became of a pending operation
                pending = None
                if entry["found"] == "whole":
                    apply_to_model(files, directories, entry["operation"])
                elif entry["found"] == "other":
                    files[entry["name"]] = bytes.fromhex(entry["data"])
    return files, directories, serial, pending


def read_tree(root):
    files, directories = {}, ["."]
    for directory, names, leaves in os.walk(root, onerror=raise_error):
        relative = os.path.relpath(directory, root)
        prefix = "." if relative == "." else f"./{relative}"
        directories += [f"{prefix}/{name}" for name in names]
        for name in leaves:
            with open(os.path.join(directory, name), "rb") as file:
                files[f"{prefix}/{name}"] = file.read()
    return files, directories


def raise_error(error):
    raise error


def digest(data):
    return f"{len(data)} bytes {hashlib.sha1(data).hexdigest()[:12]}"


def check_tree(root, manifest_path):
    """Compares; notes in the manifest what became of the operation under way. Returns the done ones."""
    files, directories, serial, pending = read_manifest(manifest_path)
    found_files, found_directories = read_tree(root)
    touched = {pending["name"], pending.get("target")} if pending else set()
    for name in set(files) | set(found_files):
        if name in touched:
            continue
        h.check(name in found_files, f"{name} was durable and is lost")
        h.check(name in files, f"{name} was removed and is back")
        h.check(files[name] == found_files[name],
                f"{name}: {digest(found_files[name])}, should be {digest(files[name])}")
    h.check(set(found_directories) - touched == set(directories) - touched, "directories differ")
    if pending is None:
        return serial
    verdict = judge_pending(files, directories, found_files, found_directories, pending)
    with open(manifest_path, "a", encoding="ascii") as manifest:
        manifest.write(json.dumps(verdict) + "\n")
    return serial - 1


def judge_pending(files, directories, found_files, found_directories, pending):
    name = pending["name"]
    if (found_files.get(name) == files.get(name) and (name in found_directories) == (name in directories)
            and pending.get("target") not in found_files):
        return {"found": "nothing"}
    after_files, after_directories = dict(files), list(directories)
    apply_to_model(after_files, after_directories, pending)
    if all(found_files.get(n) == after_files.get(n) for n in (name, pending.get("target")) if n) and (
            (name in found_directories) == (name in after_directories)):
        return {"found": "whole", "operation": pending}
    # Data was on its way: a prefix of what the system calls of this operation made.
    h.check(pending["kind"] in ("create", "overwrite", "append") and name in found_files,
            f"{pending['kind']} of {name} was under way: neither before nor after")
    whole, data = after_files[name], found_files[name]
    h.check(data == whole[:len(data)], f"{name}: {digest(data)} is no prefix of {digest(whole)}")
    h.check(pending["kind"] != "append" or len(data) >= len(files[name]), f"{name}: lost older bytes")
    return {"found": "other", "name": name, "data": data.hex()}


def test(space):
    rounds = h.number_from("COFS_KILL_ROUNDS", 20)
    volume = space.volume(size="1G", options="commit=1").mount()
    manifest = space.directory / "manifest"
    total = 0
    for _ in range(rounds):
        before = read_manifest(manifest)[2]
        writer = space.start_self(volume.mount_point, manifest, space.random.getrandbits(32))
        deadline = time.monotonic() + START_SECONDS_MAX
        while read_manifest(manifest)[2] < before + 3:
            h.check(writer.poll() is None, f"the writer ended before the kill ({writer.poll()})")
            h.check(time.monotonic() < deadline, "the writer gets nothing done")
            time.sleep(0.01)
        time.sleep(space.random.uniform(0, 0.5))
        h.check(writer.poll() is None, f"the writer ended before the kill ({writer.poll()})")
        held = os.open(volume.mount_point, os.O_RDONLY)
        volume.kill()
        h.check(writer.wait(timeout=60) == 3, "the writer did not end by an I/O error")
        volume.clear_dead_mount()  # in use as it is
        os.close(held)
        volume.mount()
        total += check_tree(volume.mount_point, manifest) - before
    h.check(total >= 2 * rounds, f"only {total} operations in {rounds} rounds: nothing was exercised")
    volume.umount()
    volume.fsck()
    h.note(f"manifest: {rounds} kills of the server, {total} durable operations, none lost")


if h.helper_arguments() is not None:
    try:
        helper(*h.helper_arguments())
    except OSError:
        sys.exit(3)  # the filesystem is gone: what the test waits for
h.run(test)
