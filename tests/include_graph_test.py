#!/usr/bin/env python3
"""Compares what the sources include with what the modules declare, and other rules of the frame.

Modules and their links are read from CMakeLists.txt: a source may include the headers of its own module
and of those it links, directly or through others. Outside libraries enter through the files named below
only; the core (blockmap/, fs/ without fuse_*) may use nothing that is a thread, a clock, a random number
or a file descriptor. Prints each violation as FILE:LINE: RULE and exits with 1 if there is any.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("offload", "blockmap", "fs", "tools", "tests")
LINES_MAX = 700          # of a source file
TEST_LINES_MAX = 1200    # a test file is a list of cases

# The only places where a library may be included: header pattern → pattern of the files.
DOORS = {
    r"liburing.*": r"offload/uring\.(h|cc)",
    r"xxh(ash|3)\.h": r"offload/base/checksum\.cc",
    r"(fuse3?/.*|fuse.*\.h)": r"fs/fuse_ops\.h",
    r"cofs_ring\.h": r"fs/fuse_queues\.cc|tools/bench/memory_server\.cc",
    r"libnvme.*|nvme/.*": r"offload/nvme_\w+\.(h|cc)",
    r"blkid/.*": r"offload/target(_geometry)?\.(h|cc)",
    r"linux/fs\.h|sys/ioctl\.h": r"(offload|tools|tests)/.*|fs/fuse_\w+\.(h|cc)",
    r"nlohmann/.*|CLI/.*": r"(tools|tests)/.*",
    r"spdlog/.*": r"tools/.*",
    r"seccomp\.h": r"tools/run/clone_filter\.cc",
    r"gtest/.*": r"tests/.*",
}
# Compiled within another project's sources (tools/build-libfuse), by whose headers it goes.
ELSEWHERE = "tools/libfuse/"
CORE_FORBIDDEN = {"thread", "mutex", "shared_mutex", "condition_variable", "future", "atomic", "stop_token",
                  "chrono", "random", "ctime", "time.h", "sys/time.h", "unistd.h", "fcntl.h", "pthread.h",
                  "sys/random.h", "sys/mman.h", "sys/uio.h", "fstream", "filesystem", "iostream",
                  "sys/ioctl.h", "sys/socket.h", "poll.h"}
# What a type's definition at the outermost level looks like. Linkers take one of two types with the same name for the other.
TYPE = re.compile(r"(?:template <.*> )?(?:struct|class|union|enum|enum class) (?:alignas\(.*?\) )?(\w+)(?: final)?(?: : .*)? \{")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def is_core(path):
    return path.startswith("blockmap/") or (path.startswith("fs/") and not path.startswith("fs/fuse_"))


def module_of(path):
    """The module a file belongs to, as a target of CMakeLists.txt."""
    if path.startswith("offload/base/"):
        return "cofs_base"
    if path.startswith("offload/"):
        return "cofs_offload"
    if path.startswith("blockmap/"):
        return "cofs_blockmap"
    # Plain C for programs of others: it belongs to no module, everything may include it.
    if path == "fs/cofs_ioctl.h":
        return "interface"
    if path.startswith("fs/fuse_"):
        return "cofs_fuse"
    if path.startswith("fs/"):
        return "cofs_fs"
    if path.startswith("tools/gcsim/"):
        return "cofs_gcsim"
    if path.startswith("tools/ficlone/"):
        return "cofs_ficlone"
    if path.startswith("tests/testing/"):
        return "cofs_testing"
    return {"tools": "cofs", "tests": "tests"}.get(path.split("/")[0])


def test_program(path):
    """The target of tests/MODULE/NAME_test.cc, which may link more than all tests do."""
    return "_".join(pathlib.Path(path).with_suffix("").parts[1:])


def declared_links():
    """target → the targets it links, directly or not, itself included; from the CMake files."""
    text = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "tests/CMakeLists.txt").read_text()
    text = re.sub(r"#[^\n]*", "", text)
    links = {}
    for name, rest in re.findall(r"cofs_module\((\w+)\s+\S+([^)]*)\)", text):
        if name != "name":
            linked = re.search(r"LINK\s+(.*?)(?:EXCLUDE|$)", rest, re.DOTALL)
            links.setdefault(name, set()).update(re.findall(r"\bcofs\w*\b", linked[1] if linked else ""))
    for name, rest in re.findall(r"target_link_libraries\((\$\{target\}|\w+)([^)]*)\)", text):
        name = "tests" if name == "${target}" else name
        links.setdefault(name, set()).update(set(re.findall(r"\bcofs_\w+\b", rest)) - {name})
    closed = {}

    def close(name):
        if name not in closed:
            closed[name] = {name}
            for other in links.get(name, ()):
                closed[name] |= close(other)
        return closed[name]

    for name in links:
        close(name)
    return closed


# Only one direction: later may include earlier.
ORDER = ["interface", "cofs_base", "cofs_offload", "cofs_blockmap", "cofs_gcsim", "cofs_fs", "cofs_fuse", "cofs_ficlone", "cofs", "cofs_testing",
         "tests"]


def check_links(links):
    for name, reached in links.items():
        if name not in ORDER:
            continue
        for other in reached:
            if ORDER.index(other) > ORDER.index(name):
                yield f"CMakeLists.txt:1: {name} links {other}: the wrong way"


def check_include(path, number, quote, header, links):
    place = f"{path}:{number}"
    for pattern, files in DOORS.items():
        if re.fullmatch(pattern, header) and not re.fullmatch(files, path):
            yield f"{place}: <{header}> may be included by {files} only"
    if is_core(path) and header in CORE_FORBIDDEN:
        yield f"{place}: the core may not include <{header}>"
    if quote == "<":
        return
    if not (ROOT / header).is_file():
        yield f'{place}: "{header}" is not a path from the top of the sources'
        return
    own, other = module_of(path), module_of(header)
    allowed = links.get(own, {own}) | links.get(test_program(path), set())
    if other != "interface" and other not in allowed:
        yield f'{place}: {own} includes "{header}" of {other}, which it does not link'


def check_file(path, links):
    text = (ROOT / path).read_text()
    lines = text.splitlines()
    limit = TEST_LINES_MAX if path.startswith("tests/") else LINES_MAX
    if len(lines) > limit:
        yield f"{path}:{len(lines)}: {len(lines)} lines, {limit} at most"
    for number, line in enumerate(lines, 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield f"{path}:{number}: unfinished: {line.strip()}"
        include = INCLUDE.match(line)
        if include and not path.startswith(ELSEWHERE):
            yield from check_include(path, number, include[1], include[2], links)
    if path.endswith(".h") and "#pragma once" not in text and "#ifndef" not in text:
        yield f"{path}:1: a header without a guard"


def types_of(path):
    """(namespace::name, line number) of each type that other files' types may collide with."""
    namespace, is_inside_file = "", False
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        opened = re.match(r"namespace ?([\w:]*) \{", line)
        if opened and opened[1]:
            namespace = opened[1]
        elif opened:
            is_inside_file = True
        elif line == "}  // namespace":
            is_inside_file = False
        defined = TYPE.match(line)
        if defined and not is_inside_file:
            yield f"{namespace}::{defined[1]}", number


def check_types(paths):
    first = {}
    for path in paths:
        if path.startswith("tests/"):  # each is a program of its own
            continue
        for name, number in types_of(path):
            if first.setdefault(name, path) != path:
                yield f"{path}:{number}: {name} is defined in {first[name]}, too"


def main():
    links = declared_links()
    links.setdefault("cofs_ficlone", {"cofs_ficlone"})  # links nothing: see tools/ficlone/clone_calls.h
    for name in ORDER[1:]:
        if name not in links:
            sys.exit(f"CMakeLists.txt:1: no links declared for {name}")
    violations = list(check_links(links))
    paths = sorted(str(file.relative_to(ROOT)) for top in SOURCES for ending in ("*.h", "*.cc", "*.c")
                   for file in (ROOT / top).rglob(ending))
    if len(paths) < 50:
        sys.exit(f"only {len(paths)} source files found under {ROOT}")
    for path in paths:
        violations += check_file(path, links)
    violations += check_types(paths)
    print("\n".join(violations))
    print(f"{len(paths)} files, {len(violations)} violations")
    sys.exit(1 if violations else 0)


main()
