#!/usr/bin/env python3
"""gcsim, quickly: what it finds lies where the analysis and other simulations of the same policies say, its table,
CSV and JSON say the same, wrong arguments are one line, and the plot is drawn where gnuplot is there.

    gcsim_test.py GCSIM
"""
import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

GCSIM = sys.argv[1]
SMALL = ["--volume", "300M", "--segment", "256K", "--utilisation", "0.8"]
UNIFORM_AT_80 = 2.69   # analytic, greedy
HOT_COLD_AT_80 = 2.06  # 10/90: cost-benefit of 30 with survivors apart, in 1,200 segments of 256 pages
failures = []


def run(*arguments):
    return subprocess.run([GCSIM, *arguments], capture_output=True, text=True, timeout=500)


def expect(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


def outcome(*arguments):
    done = run(*arguments)
    if done.returncode != 0:
        sys.exit(f"gcsim {' '.join(arguments)}: {done.returncode}: {done.stderr}")
    return done.stdout


def amplification():
    cells = json.loads(outcome(*SMALL, "--policy", "cofs,fifo-one-log,cofs-born", "--json"))["cells"]
    found = {(cell["skew"], cell["policy"]): cell["write_amplification"] for cell in cells}
    print(found)
    expect(len(found) == 6, "a cell of each skew and policy")
    ours = found["uniform", "cofs"]
    expect(0.9 * UNIFORM_AT_80 < ours < 1.1 * UNIFORM_AT_80, f"uniform: {ours}")
    skewed = found["10/90", "cofs"]
    expect(1.3 < skewed < HOT_COLD_AT_80, f"10/90: {skewed}")
    expect(found["10/90", "fifo-one-log"] > 1.6 * skewed, "the policy makes a difference")
    expect(found["uniform", "cofs-born"] > 1.02 * ours, "age of the newest block is worse where all is alike")
    for cell in cells:
        expect(abs(cell["analytic_uniform_greedy"] - UNIFORM_AT_80) < 0.01, "the analytic value")
        for result in cell["results"]:
            again = (result["user_pages"] + result["moved_pages"]) / result["user_pages"]
            expect(abs(again - cell["write_amplification"]) < 1e-9, "what was counted adds up")


def formats():
    arguments = [*SMALL[:4], "--utilisation", "0.5,0.8", "--skew", "5/95,zipf:0.9", "--warm-up", "1", "--measure",
                 "1", "--seeds", "2", "--first-seed", "7"]
    table = outcome(*arguments)
    expect(table == outcome(*arguments), "a seed tells the run")
    text = outcome(*arguments, "--csv")
    expect(text != outcome(*arguments[:-1], "70", "--csv"), "another seed is another run")
    rows = list(csv.DictReader(io.StringIO(text)))
    expect(len(rows) == 4, "a row of each cell")
    lines = {}
    for line in table.splitlines():
        match = re.fullmatch(r"(\S.*?)((?: +[0-9.]+){2})", line)
        if match:
            lines[match[1]] = [float(number) for number in match[2].split()]
    expect(lines.get("write amplification at") == [0.5, 0.8], f"the table's head: {table}")
    expect(lines.get("uniform analytic, greedy") == [1.26, 2.69], f"the analytic line: {table}")
    for skew in ("5/95", "zipf:0.9"):
        numbers = [float(row["write_amplification"]) for row in rows if row["skew"] == skew]
        shown = lines.get(skew + " cofs", [])
        expect(len(shown) == 2 and all(abs(a - b) < 0.0051 for a, b in zip(shown, numbers)),
               f"{skew}: the table says {shown}, the CSV {numbers}")
    expect("2 seeds" in table and "256 KiB" in table and "1200 segments" in table, "the table says what it is of")


def refusals():
    for arguments, said in (
            (["--utilisation", "1.5"], "utilisation"),
            (["--utilisation", "0.9999"], "free"),
            (["--volume", "10M"], "segments"),
            (["--skew", "10"], "skew"),
            (["--skew", "0/90"], "percentages"),
            (["--skew", "zipf:-1"], "zipf"),
            (["--policy", "best"], "policy"),
            (["--page", "3K"], "4K"),
            (["--segment", "64M", "--page", "48M"], "whole pages"),
            (["--volume", "100T"], "pages"),
            (["--measure", "0"], "measure"),
            (["--seeds", "0"], "seeds"),
            (["--json", "--csv"], "excludes"),
            (["--nonsense"], "nonsense")):
        done = run(*arguments)
        expect(done.returncode == 1 and done.stderr.count("\n") == 1 and said in done.stderr and not done.stdout,
               f"{arguments}: {done.returncode} {done.stderr!r}")
    full = run("--volume", "300M", "--segment", "256K", "--utilisation", "0.989")
    expect(full.returncode == 1 and "utilisation" in full.stderr, f"nothing gains: {full.returncode} {full.stderr!r}")
    helped = run("--help")
    expect(helped.returncode == 0 and "--utilisation" in helped.stdout, "--help")


def plot():
    arguments = [*SMALL[:4], "--utilisation", "0.5,0.7", "--warm-up", "0", "--measure", "0.1"]
    with tempfile.TemporaryDirectory() as directory:
        done = run(*arguments, "--plot", directory + "/plots")
        if shutil.which("gnuplot") is None:
            expect(done.returncode == 1 and "tools/install --bench" in done.stderr, f"no gnuplot: {done.stderr!r}")
            print("gnuplot is not there: only the error was tested")
            return
        expect(done.returncode == 0, f"plot: {done.stderr}")
        drawn = pathlib.Path(directory, "plots")
        svg = (drawn / "gc-write-amplification.svg").read_text()
        xml.etree.ElementTree.fromstring(svg)
        expect("10/90 cofs" in svg and "analytic" in svg, "the plot names its curves")
        png = (drawn / "gc-write-amplification.png").read_bytes()
        expect(png.startswith(b"\x89PNG") and len(png) > 5000, "the PNG")


amplification()
formats()
refusals()
plot()
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
