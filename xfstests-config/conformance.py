"""Runs tests of xfstests, and pjdfstest, on cofs, one at a time, each in namespaces of its own.

A test that takes too long is ended with all its processes and servers, and the next begins on whole volumes.
Results are compared with the list of what passes (passes/SECTION.list) and written as a table, results.csv
and results.xml (JUnit). Exit status: 0 if nothing failed and nothing left its list, 1 if something did,
2 if it could not run.
"""
import argparse
import contextlib
import csv
import dataclasses
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml

import stress

HERE = pathlib.Path(__file__).resolve().parent
USERS = ("fsgqa", "fsgqa2", "123456-fsgqa")  # that xfstests wants
SECTIONS = {  # name: (on loop devices, under cofs run)
    "image": (False, False),
    "loop": (True, False),
    "writeback": (False, False),
    "share": (False, True),
    "device": (False, True),
}
TEST_BYTES = 8 << 30
SCRATCH_BYTES = 12 << 30
RELEASE_SECONDS = 120
PASSED, FAILED, TIMED_OUT, NOT_RUN, EXCLUDED = "pass", "fail", "timeout", "notrun", "excluded"


class CanNotRun(Exception):
    """Something that is needed is not there."""


@dataclasses.dataclass
class Result:
    section: str
    name: str
    groups: list
    status: str
    seconds: float = 0.0
    detail: str = ""  # why it failed or did not run


# --- What there is to run ---

def groups_of_test(path):
    """The groups that a test names in its _begin_fstest line."""
    with open(path, errors="replace") as lines:
        for line in lines:
            match = re.match(r"\s*_begin_fstest\s+(.*)", line)
            if match:
                return match[1].split()
    return []


def find_tests(checkout):
    """name -> groups, of all tests that are for any filesystem."""
    directory = checkout / "tests/generic"
    return {f"generic/{path.name}": groups_of_test(path)
            for path in sorted(directory.glob("[0-9][0-9][0-9]"))}


def read_list(path):
    """Lines `name  # reason` -> {name: reason}; a name may stand in the sections it is for: `name [a,b]  # reason`."""
    entries = {}
    if not path.exists():
        return entries
    for line in path.read_text().splitlines():
        text, _, reason = line.partition("#")
        if text.strip():
            entries[text.strip()] = reason.strip()
    return entries


def excluded_in(section):
    out = {}
    for entry, reason in read_list(HERE / "exclude.list").items():
        match = re.fullmatch(r"(\S+)(?:\s+\[([\w,]+)\])?", entry)
        if match is None:
            raise CanNotRun(f"exclude.list: not understood: {entry}")
        if match[2] is None or section in match[2].split(","):
            out[match[1]] = reason
    return out


def slow_tests():
    """name -> how many times the time limit it may take (slow.list)."""
    out = {}
    for entry in read_list(HERE / "slow.list"):
        match = re.fullmatch(r"(\S+)\s+(\d+)", entry)
        if match is None:
            raise CanNotRun(f"slow.list: not understood: {entry}")
        out[match[1]] = int(match[2])
    return out


def choose_tests(tests, arguments):
    """Those that are named, in that order, then those of the groups."""
    wanted = {}
    for name in arguments.tests:
        full = name if "/" in name else f"generic/{name}"
        if full not in tests:
            raise CanNotRun(f"{full}: no such test in {arguments.xfstests}")
        wanted[full] = True
    for group in arguments.group:
        found = [name for name, groups in tests.items() if group in groups or group == "all"]
        if not found:
            raise CanNotRun(f"group {group}: no test has it")
        wanted |= dict.fromkeys(found, True)
    chosen = [name for name in wanted if not set(tests[name]) & set(arguments.exclude_group)]
    if not chosen:
        raise CanNotRun("no test was chosen: name tests, or -g quick, -g all")
    return chosen


# --- The machine ---

def require_machine():
    if os.geteuid() != 0:
        raise CanNotRun("the tests mount and make users: run as root")
    if not pathlib.Path("/dev/fuse").exists():
        raise CanNotRun("/dev/fuse is missing: modprobe fuse")
    for user in USERS:
        try:
            pwd.getpwnam(user)
        except KeyError:
            subprocess.run(["useradd", "--badname", "-m", user], check=True, stderr=subprocess.DEVNULL)


def sparse_file(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


@contextlib.contextmanager
def targets_for(section, directory):
    """(test, scratch): image files, or loop devices over them."""
    on_loop = SECTIONS[section][0]
    files = [sparse_file(directory / "test.img", TEST_BYTES),
             sparse_file(directory / "scratch.img", SCRATCH_BYTES)]
    devices = []
    try:
        for path in files:
            if on_loop:
                made = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", path],
                                      check=True, text=True, capture_output=True)
                devices.append(made.stdout.strip())
            else:
                devices.append(path)
        yield devices
    finally:
        if on_loop:
            for device in devices:
                subprocess.run(["losetup", "--detach", device], check=False)
        for path in files:
            os.unlink(path)


# mount(8) finds its helpers in /sbin only: they lie over it, for these processes. /tmp is their own: tests
# name files there by process ids, which are small in a namespace and meet those of another run. And df, which
# the tests use much, asks every mount: others' servers must not be waited for.
ENTER = """set -e
mount -t overlay overlay -o "lowerdir=$COFS_HELPERS:/usr/sbin" /usr/sbin
awk '{ for (i = 7; i <= NF; i++) if ($i == "-" && $(i + 1) ~ /^fuse/) print $5 }' /proc/self/mountinfo |
while read -r mount; do umount -l -i "$(printf "%b" "$mount")"; done
mount --bind "$COFS_RUN_DIR/tmp" /tmp
exec "$@"
"""


def run_isolated(command, limit_seconds, **options):
    """Runs it with its own mounts and processes; None if it had to be ended."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
         "bash", "-c", ENTER, "enter", *command],
        start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        return process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


# --- xfstests ---

class Suite:
    """Tests of one section."""

    def __init__(self, arguments, section, directory, targets, results):
        self.arguments = arguments
        self.section = section
        self.under_run = SECTIONS[section][1]
        self.slow = slow_tests()
        self.targets = targets
        self.results = results
        self.environment = dict(
            os.environ, HOST_OPTIONS=str(HERE / "local.config"), COFS_PROG=arguments.cofs,
            COFS_HELPERS=str(HERE / "helpers"),
            COFS_RUN_TEST=targets[0], COFS_RUN_SCRATCH=targets[1], COFS_RUN_DIR=str(directory),
            COFS_RUN_RESULTS=str(results), FSTESTS_ISOL="privatens", LC_ALL="C", LANGUAGE="C")
        for name in ("test", "scratch", "tmp"):
            (directory / name).mkdir(exist_ok=True)
        (directory / "tmp").chmod(0o1777)
        self.make_test_volume()

    def make_test_volume(self):
        subprocess.run([self.arguments.cofs, "mkfs", "--force", self.targets[0]], check=True,
                       stdout=subprocess.DEVNULL)

    def is_test_volume_whole(self):
        """What a killed server had under way may hold the device for a while (exit status 8)."""
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            status = subprocess.run([self.arguments.cofs, "fsck", self.targets[0]], check=False,
                                    capture_output=True).returncode
            if status != 8:
                return status == 0
            if time.monotonic() > deadline:
                raise CanNotRun(f"{self.targets[0]} is still in use, {RELEASE_SECONDS} s after a test was ended")
            time.sleep(0.5)

    def run(self, name, groups):
        base = self.results / self.section / name
        for suffix in (".out.bad", ".notrun", ".full", ".dmesg"):
            base.with_name(base.name + suffix).unlink(missing_ok=True)
        command = ["./check", "-s", self.section, name]
        if self.under_run:
            command = [self.arguments.cofs, "run", "--", *command]
        base.parent.mkdir(parents=True, exist_ok=True)
        log = base.with_name(base.name + ".log")
        for target in self.targets if SECTIONS[self.section][0] else ():  # a test before may have changed its size
            subprocess.run([HERE / "resize-loop", target, "0"], check=True)
        limit_seconds = self.arguments.time_limit * self.slow.get(name, 1)
        started = time.monotonic()
        with open(log, "wb") as output:
            status = run_isolated(command, limit_seconds, cwd=self.arguments.xfstests,
                                  env=self.environment, stdout=output, stderr=subprocess.STDOUT)
        result = Result(self.section, name, groups, PASSED, time.monotonic() - started)
        reason = base.with_name(base.name + ".notrun")
        if status is None:
            result.status = TIMED_OUT
            result.detail = f"not done after {limit_seconds:.0f} s"
        elif reason.exists():
            result.status = NOT_RUN
            result.detail = reason.read_text(errors="replace").strip()
        elif status != 0 or "Passed all" not in log.read_text(errors="replace"):
            result.status = FAILED
            result.detail = self.first_difference(name, base, log)
        self.detach_loops_over_targets()
        if result.status in (FAILED, TIMED_OUT) and not self.is_test_volume_whole():
            result.detail += "; fsck finds the volume damaged"
            shutil.copy(self.targets[0], base.with_name(base.name + ".img"))
            self.make_test_volume()
        return result

    def detach_loops_over_targets(self):
        """That a test left which was ended; its mounts are gone."""
        for target in self.targets:
            for line in subprocess.run(["losetup", "--associated", target, "--noheadings", "--output", "NAME"],
                                       check=False, capture_output=True, text=True).stdout.split():
                subprocess.run(["losetup", "--detach", line], check=False)

    def first_difference(self, name, base, log):
        bad = base.with_name(base.name + ".out.bad")
        good = self.arguments.xfstests / "tests" / f"{name}.out"
        if bad.exists() and good.exists():
            text = subprocess.run(["diff", good, bad], capture_output=True, text=True, check=False,
                                  errors="replace").stdout
            lines = [line for line in text.splitlines() if line[:1] in "<>"]
            if lines:
                return " / ".join(lines[:3])
        tail = log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in tail[-4:])


def run_xfstests(arguments):
    tests = find_tests(arguments.xfstests)
    if not tests or not (arguments.xfstests / "ltp/fsstress").exists():
        raise CanNotRun(f"{arguments.xfstests}: not a built checkout of xfstests")
    chosen = choose_tests(tests, arguments)
    subprocess.run([HERE / "teach-xfstests", arguments.xfstests], check=True)
    results = []
    for section in arguments.section:
        with tempfile.TemporaryDirectory(prefix="cofs-xfstests-", dir=arguments.directory) as made, \
                targets_for(section, pathlib.Path(made)) as targets:
            os.chmod(made, 0o755)  # the tests work there as other users, too
            suite = Suite(arguments, section, pathlib.Path(made), targets, arguments.results)
            excluded = excluded_in(section)
            for number, name in enumerate(chosen, 1):
                if name in excluded and not arguments.excluded_too:
                    result = Result(section, name, tests[name], EXCLUDED, detail=excluded[name])
                else:
                    result = suite.run(name, tests[name])
                results.append(result)
                print(f"[{number}/{len(chosen)}] {section} {name} {result.status} "
                      f"{result.seconds:.0f} s {result.detail[:150]}", flush=True)
                write_csv(results, arguments.results)
    return results


# --- pjdfstest ---

def run_pjdfstest(arguments):
    """Each file of it as one test: on an image, with a server of its own for all."""
    program = arguments.pjdfstest / "pjdfstest"
    files = sorted((arguments.pjdfstest / "tests").glob("*/*.t"))
    if not program.exists() or not files:
        raise CanNotRun(f"{arguments.pjdfstest}: not a built checkout of pjdfstest")
    results = []
    with tempfile.TemporaryDirectory(prefix="cofs-pjdfstest-", dir=arguments.directory) as made:
        directory = pathlib.Path(made)
        image = sparse_file(directory / "test.img", TEST_BYTES)
        mount = directory / "mount"
        mount.mkdir()
        subprocess.run([arguments.cofs, "mkfs", "--force", image], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([arguments.cofs, "mount", image, mount, "-o", "dev,suid,allow_other"], check=True)
        try:
            for path in files:
                result = run_pjd_file(path, mount, arguments.time_limit)
                results.append(result)
                if result.status != PASSED:
                    print(f"pjdfstest {result.name} {result.status}: {result.detail[:300]}", flush=True)
        finally:
            subprocess.run([arguments.cofs, "umount", mount], check=False)
        checked = subprocess.run([arguments.cofs, "fsck", "--data", image], check=False, text=True,
                                 capture_output=True)
        if checked.returncode != 0:
            results.append(Result("pjdfstest", "fsck", [], FAILED, detail=checked.stdout.strip()))
    return results


def run_pjd_file(path, mount, limit_seconds):
    name = f"{path.parent.name}/{path.name}"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=mount) as place:
        os.chmod(place, 0o755)  # the tests work there as other users, too
        try:
            done = subprocess.run(["bash", path], cwd=place, capture_output=True, text=True,
                                  errors="replace", timeout=limit_seconds, check=False)
        except subprocess.TimeoutExpired:
            return Result("pjdfstest", name, [path.parent.name], TIMED_OUT, time.monotonic() - started)
    plan = re.search(r"^1\.\.(\d+)", done.stdout, re.M)
    wanted = int(plan[1]) if plan else -1
    # In the Test Anything Protocol a "not ok" that is marked TODO counts as passed.
    passed = len(re.findall(r"^(?:ok\b|not ok\b.*# TODO)", done.stdout, re.M))
    wrong = [line for line in done.stdout.splitlines()
             if line.startswith("not ok") and "# TODO" not in line]
    result = Result("pjdfstest", name, [path.parent.name], PASSED, time.monotonic() - started,
                    f"{passed} of {wanted}")
    if wrong or passed != wanted:
        result.status = FAILED
        result.detail += ": " + " / ".join(wrong[:4])
    return result


# --- Reports ---

def write_csv(results, directory):
    with open(directory / "results.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["section", "test", "status", "seconds", "groups", "detail"])
        for result in results:
            rows.writerow([result.section, result.name, result.status, f"{result.seconds:.1f}",
                           " ".join(result.groups), result.detail])


def write_junit(results, directory):
    root = xml.Element("testsuites")
    for section in dict.fromkeys(result.section for result in results):
        ours = [result for result in results if result.section == section]
        suite = xml.SubElement(
            root, "testsuite", name=section, tests=str(len(ours)),
            failures=str(sum(result.status in (FAILED, TIMED_OUT) for result in ours)),
            skipped=str(sum(result.status in (NOT_RUN, EXCLUDED) for result in ours)),
            time=f"{sum(result.seconds for result in ours):.1f}")
        for result in ours:
            case = xml.SubElement(suite, "testcase", classname=section, name=result.name,
                                  time=f"{result.seconds:.1f}")
            if result.status in (FAILED, TIMED_OUT):
                xml.SubElement(case, "failure", message=printable(result.detail), type=result.status)
            elif result.status != PASSED:
                xml.SubElement(case, "skipped", message=printable(result.detail))
    xml.ElementTree(root).write(directory / "results.xml", encoding="unicode", xml_declaration=True)


def printable(text):
    return "".join(c if c.isprintable() else "?" for c in text)


def print_table(results):
    """By section and group: how many tests there are, run and pass."""
    statuses = (PASSED, FAILED, TIMED_OUT, NOT_RUN, EXCLUDED)
    print(f"\n{'section':<10} {'group':<14} {'tests':>6} {'run':>6}" + "".join(f" {s:>9}" for s in statuses))
    for section in dict.fromkeys(result.section for result in results):
        ours = [result for result in results if result.section == section]
        rows = [("(all)", ours)]
        for group in sorted({group for result in ours for group in result.groups}):
            rows.append((group, [result for result in ours if group in result.groups]))
        for group, members in rows:
            counts = {s: sum(result.status == s for result in members) for s in statuses}
            ran = counts[PASSED] + counts[FAILED] + counts[TIMED_OUT]
            print(f"{section:<10} {group:<14} {len(members):>6} {ran:>6}"
                  + "".join(f" {counts[s]:>9}" for s in statuses))
        print(f"{section:<10} took {sum(result.seconds for result in ours):.0f} s")


def compare_with_passes(results, save):
    """Prints what left or joined the lists; how many left."""
    left = 0
    for section in dict.fromkeys(result.section for result in results):
        path = HERE / "passes" / f"{section}.list"
        listed = set(read_list(path))
        ours = {result.name: result for result in results if result.section == section}
        passed = {name for name, result in ours.items() if result.status == PASSED}
        for name in sorted((listed & set(ours)) - passed):
            left += 1
            print(f"REGRESSION {section} {name}: {ours[name].status}: {ours[name].detail[:200]}")
        new = sorted(passed - listed)
        if new and not save:
            print(f"{section}: {len(new)} pass that are not in passes/{path.name} (--save-passes adds them)")
        if save:
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in sorted((listed - set(ours)) | passed)))
    return left


def hidden_by_no_tmp(text):
    """A directory that tests of xfstests can reach: each has a /tmp of its own."""
    path = pathlib.Path(text).resolve()
    if path.is_relative_to("/tmp"):
        raise argparse.ArgumentTypeError(f"{path}: the tests have a /tmp of their own: take a place outside")
    return path


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="run.sh", description="Runs xfstests and pjdfstest on cofs.",
        epilog="Example: run.sh --xfstests ~/xfstests --section image -g quick. The checkout must be built "
               "(make) and is taught by teach-xfstests first.")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="generic/001, or 001")
    parser.add_argument("-g", "--group", action="append", default=[], help="all tests of a group; all: every one")
    parser.add_argument("-x", "--exclude-group", action="append", default=[], help="but those of this group")
    parser.add_argument("--xfstests", type=hidden_by_no_tmp, default=os.environ.get("XFSTESTS_DIR"),
                        help="a built checkout (default: $XFSTESTS_DIR)")
    parser.add_argument("--pjdfstest", type=pathlib.Path, default=os.environ.get("PJDFSTEST_DIR"),
                        help="run pjdfstest, of this built checkout, instead of xfstests")
    parser.add_argument("--stress", type=float, metavar="MINUTES",
                        help="fsx and fsstress of --xfstests instead, under garbage collection and kills of the server")
    parser.add_argument("--section", action="append", choices=sorted(SECTIONS), help="default: image")
    parser.add_argument("--cofs", default=str(HERE.parent / "build/release/bin/cofs"), help="the command")
    parser.add_argument("--directory", default=os.environ.get("COFS_TEST_DIR", "/var/tmp"), type=hidden_by_no_tmp,
                        help="where images are kept: sparse files of 8 and 12 GiB (default /var/tmp)")
    parser.add_argument("--results", type=hidden_by_no_tmp, default=pathlib.Path("xfstests-results"),
                        help="what every test printed, results.csv and results.xml go here")
    parser.add_argument("--time-limit", type=float, default=300, metavar="SECONDS", help="of one test (300)")
    parser.add_argument("--excluded-too", action="store_true", help="run what exclude.list names as well")
    parser.add_argument("--save-passes", action="store_true", help="take what passes now for the list of passes")
    arguments = parser.parse_args()
    arguments.section = arguments.section or ["image"]
    arguments.cofs = str(pathlib.Path(arguments.cofs).resolve())
    return arguments


def main():
    arguments = parse_arguments()
    try:
        require_machine()
        if not os.access(arguments.cofs, os.X_OK):
            raise CanNotRun(f"{arguments.cofs}: not there: build it (tests/run), or say --cofs")
        arguments.results.mkdir(parents=True, exist_ok=True)
        if arguments.pjdfstest is not None and arguments.xfstests is None:
            results = run_pjdfstest(arguments)
        elif arguments.xfstests is not None and arguments.stress is not None:
            seed = int(os.environ.get("COFS_SEED", time.time_ns() % 1_000_000))
            print(stress.run_stress(arguments.cofs, arguments.xfstests, arguments.directory, arguments.results,
                                    arguments.stress, seed))
            return 0
        elif arguments.xfstests is not None:
            results = run_xfstests(arguments)
        else:
            raise CanNotRun("say --xfstests or --pjdfstest DIRECTORY")
    except CanNotRun as reason:
        print(f"run.sh: {reason}", file=sys.stderr)
        return 2
    except stress.StressFailed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    write_csv(results, arguments.results)
    write_junit(results, arguments.results)
    print_table(results)
    left = compare_with_passes(results, arguments.save_passes)
    failed = sum(result.status in (FAILED, TIMED_OUT) for result in results)
    print(f"{failed} failed, {left} left the list of passes; {arguments.results}/results.csv")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
