#!/usr/bin/env python3
"""docs/ONDISK.md and blockmap/ondisk.h say the same: every structure, every field, offset and size.

    tests/ondisk_document_test.py           compares, prints each difference, exits with 1 if there is any
    tests/ondisk_document_test.py --tables  prints the tables as the document should have them
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {"uint8_t": 1, "le16": 2, "le32": 4, "le64": 8}


def structures(text):
    """{name: (bytes, [(offset, bytes, field)])} of the header's text."""
    constants = {name: int(value) for name, value in re.findall(r"(k\w+) = (\d+);", text)}
    sizes, found = dict(SIZES), {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\}", text, re.DOTALL):
        offset, fields = 0, []
        for kind, field, count in re.findall(r"^\s*(\w+) (\w+)(?:\[(\w+)\])?;", body, re.MULTILINE):
            number = 1 if not count else int(count) if count.isdigit() else constants[count]
            size = sizes[kind] * number
            fields.append((offset, size, field))
            offset += size
        found[name] = (offset, fields)
        sizes[name] = offset
    return found


def documented(text):
    """The same from the document: a heading `### Name (N bytes`, then a table."""
    found = {}
    for name, size, body in re.findall(r"^### (\w+) \((\d+) bytes[^\n]*\n(.*?)(?=^##|\Z)", text,
                                       re.DOTALL | re.MULTILINE):
        rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", body, re.MULTILINE)
        found[name] = (int(size), [(int(offset), int(count), field) for offset, count, field in rows])
    return found


def main():
    header = structures((ROOT / "blockmap/ondisk.h").read_text())
    if "--tables" in sys.argv:
        for name, (size, fields) in header.items():
            print(f"\n### {name} ({size} bytes)\n\n| offset | bytes | field | meaning |\n|---|---|---|---|")
            for offset, count, field in fields:
                print(f"| {offset} | {count} | `{field}` | |")
        return 0
    document = documented((ROOT / "docs/ONDISK.md").read_text())
    problems = [f"{name}: not in docs/ONDISK.md" for name in header if name not in document]
    problems += [f"{name}: not in blockmap/ondisk.h" for name in document if name not in header]
    for name in header.keys() & document.keys():
        if header[name] != document[name]:
            here, there = set(header[name][1]), set(document[name][1])
            problems.append(f"{name}: {header[name][0]} bytes in the header, {document[name][0]} in the document; "
                            f"only in the header {sorted(here - there)}, only there {sorted(there - here)}")
    print("\n".join(sorted(problems)))
    print(f"{len(header)} structures, {len(problems)} differences")
    return 1 if problems or len(header) < 20 else 0


sys.exit(main())
