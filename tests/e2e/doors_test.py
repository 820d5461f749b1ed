#!/usr/bin/env python3
"""Clone calls on a mount: `cofs run` by both its methods, `cofs clone`, `cofs map`; in both clone modes.

What FICLONE, FICLONERANGE, FIDEDUPERANGE and FIEMAP answer is compared with xfs on a loop device, where
this machine has one. Programs that are not installed (a Go compiler, duperemove) leave out their part, and
a line says so.
"""
import filecmp
import json
import os
import pathlib
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

import harness as h

HERE = pathlib.Path(__file__).resolve().parent / "doors"
sys.path.insert(0, str(HERE))
METHODS = ("preload", "seccomp")
NOBODY = 65534
FIEMAP_EXTENT_SHARED = 0x2000


def run(method, *command, **options):
    return h.run_command(h.command(), "run", "--method", method, "--", *command, **options)


def same(a, b):
    h.check(filecmp.cmp(a, b, shallow=False), f"{a} and {b} differ")


def make_file(space, path, size):
    with open(path, "wb") as file:
        file.write(space.random.randbytes(size))


def programs_clone(space, volume, method, mode):
    """cp, xfs_io and filefrag, unmodified."""
    source, copy = volume.path("source"), volume.path(f"copy.{method}")
    before = volume.statistics()["copy"]
    run(method, "cp", "--reflink=always", source, copy)
    after = volume.statistics()["copy"]
    same(source, copy)
    h.check(after["host_bytes"] == before["host_bytes"], "a clone went through the host")
    if mode == "share":
        h.check(after["shared_bytes"] - before["shared_bytes"] >= 4 << 20, f"{method}: nothing was shared")
    part = volume.path(f"part.{method}")
    run(method, "xfs_io", "-f", "-c", f"reflink {source} 4096 8192 1m", part)
    h.check(part.read_bytes() == bytes(8192) + source.read_bytes()[4096:4096 + (1 << 20)], "reflink of a part")
    twin = volume.path(f"twin.{method}")
    shutil.copyfile(source, twin)
    told = run(method, "xfs_io", "-c", f"dedupe {source} 0 0 4m", twin)
    h.check("deduped 4194304/4194304" in told, f"xfs_io dedupe said: {told}")
    same(source, twin)
    told = run(method, "xfs_io", "-r", "-c", "fiemap -v", copy)
    h.check("0: [0.." in told, f"xfs_io fiemap said: {told}")
    told = run(method, "filefrag", "-v", twin)
    h.check("shared" in told, f"filefrag said: {told}")
    h.note(f"  {method}: cp, xfs_io, filefrag")


def many_at_once(volume, method):
    run(method, "sh", "-c", f"seq 0 63 | xargs -P8 -I@ cp --reflink=always {volume.path('source')} "
                            f"{volume.path('many')}.{method}.@")
    for i in range(64):
        same(volume.path("source"), volume.path(f"many.{method}.{i}"))
        os.unlink(volume.path(f"many.{method}.{i}"))
    h.note(f"  {method}: 64 cp, 8 at a time")


def long_file(volume, method):
    """More than one request carries before Linux 6.18."""
    source, copy = volume.path(f"long.{method}"), volume.path(f"long-copy.{method}")
    pieces = {at << 20: os.urandom(20_000) for at in (0, 2047, 4095, 5000)}
    with open(source, "wb") as file:
        for at, data in pieces.items():
            file.seek(at)
            file.write(data)
    run(method, "cp", "--reflink=always", source, copy)
    h.check(os.stat(copy).st_size == os.stat(source).st_size, "the size of a long clone")
    with open(copy, "rb") as file:
        for at, data in pieces.items():
            file.seek(at)
            h.check(file.read(len(data)) == data, f"a long clone differs at {at >> 20} MiB")
    os.unlink(source)
    os.unlink(copy)
    h.note(f"  {method}: a file of 5 GB")


def write_only_sources(volume, method):
    """Also where the caller is root, to whom permissions say nothing: it is the open file that counts."""
    told = run(method, sys.executable, "-c",
               f"import sys, os; sys.path.insert(0, {str(HERE)!r}); import calls; "
               f"source = os.open({str(volume.path('source'))!r}, os.O_WRONLY); "
               f"path = os.open({str(volume.path('source'))!r}, os.O_PATH); "
               f"target = os.open({str(volume.path(f'write-only.{method}'))!r}, os.O_RDWR | os.O_CREAT); "
               "os.write(target, bytes(4096)); "
               "print([calls.result_of(calls.clone, source, target), calls.result_of(calls.clone, path, target), "
               "calls.result_of(calls.dedupe, source, 0, 4096, [(target, 0)]), "
               "calls.result_of(calls.clone_range, source, 0, 4096, target, 0)])")
    # FIDEDUPERANGE says EINVAL to it, on every filesystem.
    h.check(told.strip() == str(["errno 9", "errno 9", "errno 22", "errno 9"]), f"{method}: a source opened for writing only: {told}")
    h.note(f"  {method}: sources that were not opened for reading")


def static_program(space, volume):
    program = space.directory / "clone_threads"
    if not program.exists():
        h.run_command("gcc", "-O1", "-static", "-pthread", "-o", program, HERE / "clone_threads.c")
    arguments = (program, volume.path("small"), volume.path("static"), 8, 20)
    told = h.run_command(h.command(), "run", "--method", "preload", "--", *arguments, expect=1)
    h.check("failures 160" in told, f"a static program under preload: {told}")
    told = h.run_command(h.command(), "run", "--", *arguments)  # auto takes seccomp
    h.check("failures 0" in told, f"a static program: {told}")
    for i in range(20):
        same(volume.path("small"), volume.path(f"static.7.{i}"))
    h.note("  seccomp: a static program of 8 threads")


def go_program(space, volume):
    if shutil.which("go") is None:
        h.note("  left out: a Go program (no Go compiler)")
        return
    program = space.directory / "clone_go"
    if not program.exists():
        environment = dict(os.environ, HOME=str(space.directory), GOCACHE=str(space.directory / "go"),
                           GO111MODULE="off", CGO_ENABLED="0")
        h.run_command("go", "build", "-o", program, HERE / "clone.go", env=environment)
    told = h.run_command(h.command(), "run", "--verbose", "--", program, volume.path("small"),
                         volume.path("go"), 32, 20)
    h.check("failures 0" in told and "method seccomp" in told, f"a Go program: {told}")
    for i in range(20):
        same(volume.path("small"), volume.path(f"go.31.{i}"))
    h.note("  seccomp: a Go program of 32 goroutines")


def reflink_xfs(space):
    """A mounted xfs with reflinks; None where there is no loop device."""
    image, place = space.directory / "xfs.img", space.directory / "xfs.mnt"
    place.mkdir()
    h.run_command("truncate", "-s", "400M", image)
    h.run_command("mkfs.xfs", "-q", "-m", "reflink=1", image)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        h.note(f"  left out: the comparison with xfs ({done.stderr.strip()})")
        return None
    return place


def answers(directory, *prefix):
    directory.mkdir()
    done = subprocess.run([*prefix, sys.executable, str(HERE / "calls.py"), "errors", str(directory)],
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def errors_are_those_of_xfs(space, volume):
    place = reflink_xfs(space)
    if place is None:
        return
    try:
        expected = answers(place / "calls")
        for method in METHODS:
            got = answers(volume.path(f"calls.{method}"), h.command(), "run", "--method", method, "--")
            wrong = {name: (got[name], expected[name]) for name in expected if got[name] != expected[name]}
            h.check(not wrong, f"{method}: answers that are not those of xfs: {wrong}")
            h.check(len(expected) >= 50, f"only {len(expected)} calls")
        h.note(f"  {len(expected)} answers equal those of xfs")
    finally:
        h.run_command("umount", place)


def python_calls(volume, method):
    """All four, from a program; signals come all the time.

    A kernel lets a signal's handler interrupt a call that the supervisor has not taken up yet (without effect).
    """
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(HERE)!r})
import calls
count = 0
def tick(*_):
    global count
    count += 1
def again(call, *arguments):
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            assert {method == "seccomp"}
signal.signal(signal.SIGALRM, tick)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
source = os.open({str(volume.path("source"))!r}, os.O_RDONLY)
for i in range(200):
    target = os.open({str(volume.path("signals"))!r}, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    again(calls.clone, source, target)
    again(calls.clone_range, source, 0, 8192, target, 1 << 30)
    found, mapped = again(calls.extents, target)
    assert mapped >= 2, found
    assert again(calls.dedupe, source, 0, 8192, [(target, 0)]) == [(0, 8192)]
    os.close(target)
signal.setitimer(signal.ITIMER_REAL, 0)
assert count > 0
"""
    run(method, sys.executable, "-c", code)
    with open(volume.path("signals"), "rb") as file, open(volume.path("source"), "rb") as source:
        h.check(file.read(4 << 20) == source.read(4 << 20), "clone under signals")
    h.note(f"  {method}: the four calls under a timer's signals")


def exit_statuses(space):
    for method in METHODS:
        run(method, "sh", "-c", "exit 7", expect=7)
        run(method, "no-such-command", expect=127)
        run(method, "/etc/passwd", expect=126)
        done = subprocess.run([h.command(), "run", "--method", method, "--", "sh", "-c", "kill -TERM $$"])
        h.check(done.returncode == -signal.SIGTERM, f"{method}: killed command gives {done.returncode}")
    h.run_command(h.command(), "run", expect=125)
    h.run_command(h.command(), "run", "--method", "wrong", "true", expect=125)
    # SIGPIPE is as it was: a program that writes to nobody ends.
    for method in METHODS:
        told = h.run_command("bash", "-c", f"{h.command()} run --method {method} -- sh -c 'yes; echo $? >&2' | head -1; "
                                           "echo ${PIPESTATUS[0]}")
        h.check("141" in told.split(), f"{method}: SIGPIPE: {told}")
    h.note("  exit statuses")


def wait_until(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        h.check(time.monotonic() < end, f"waited in vain: {what}")
        time.sleep(0.01)


def state_of(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def signals_and_jobs(space):
    sign = space.directory / "sign"
    script = f"trap 'echo usr1 >> {sign}' USR1; trap 'exit 9' TERM; echo $$ > {sign}; while :; do sleep 0.02; done"
    # A group of its own, with its parent outside: in an orphaned one SIGTSTP stops nobody.
    child = subprocess.Popen([h.command(), "run", "--method", "seccomp", "--", "sh", "-c", script],
                             process_group=0)

    command = None

    def stops(why):
        wait_until(lambda: os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG) is not None, why)

    try:
        wait_until(lambda: sign.exists() and sign.read_text().endswith("\n"), "the command begins")
        command = int(sign.read_text())
        child.send_signal(signal.SIGUSR1)
        wait_until(lambda: "usr1" in sign.read_text(), "the signal arrives")
        # Many times: the signals of one turn must not undo those of the next.
        for _ in range(50):
            child.send_signal(signal.SIGTSTP)
            stops("stops when the command stopped")
            h.check(state_of(command) == "T", f"the command is {state_of(command)}, not stopped")
            child.send_signal(signal.SIGCONT)
            wait_until(lambda: state_of(command) != "T", "the command continues")
            os.kill(command, signal.SIGSTOP)
            stops("stops when the command was stopped")
            os.kill(command, signal.SIGCONT)
            wait_until(lambda: state_of(child.pid) != "T", "continues with the command")
        child.send_signal(signal.SIGTERM)
        h.check(child.wait(timeout=20) == 9, f"exit status {child.returncode}")
    finally:
        child.kill()
        child.wait()
        if command is not None and pathlib.Path(f"/proc/{command}").exists():
            os.kill(command, signal.SIGKILL)  # it may be stopped, and holds our output open
    h.note("  signals are handed on, stopping and continuing too")


def keys_of_a_terminal():
    """An interrupt from the terminal goes to the command once, and we end as it does."""
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.02; done"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(h.command(), [h.command(), "run", "--method", "seccomp", "--", "sh", "-c", script])
    shown = b""

    def shows(text):
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # its other side is closed
                return text in shown
        return text in shown

    wait_until(lambda: shows(b"ready"), "the command on a terminal")
    os.write(terminal, b"\x03")
    wait_until(lambda: shows(b"interrupted"), "the interrupt")
    status = os.waitpid(child, 0)[1]
    os.close(terminal)
    h.check(os.waitstatus_to_exitcode(status) == 5 and shown.count(b"interrupted") == 1, f"{status}: {shown}")
    h.note("  a terminal's interrupt")


def file_size_signal(volume):
    """A program that does not expect it ends by SIGXFSZ; nothing was cloned."""
    for method in METHODS:
        target = volume.path(f"limited.{method}")
        target.write_bytes(b"")
        done = subprocess.run(
            [h.command(), "run", "--method", method, "--", "xfs_io", "-c",
             f"reflink {volume.path('source')} 0 1m 4096", str(target)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)), check=False)
        h.check(done.returncode == -signal.SIGXFSZ, f"{method}: exit status {done.returncode}")
        h.check(os.stat(target).st_size == 0, f"{method}: size {os.stat(target).st_size}")
    h.note("  SIGXFSZ")


def swapped_descriptors(space, volume):
    """One thread exchanges what a descriptor number means while another clones from it.

    Only the supervisor works for others; the library is in the process that it is about.
    """
    make_file(space, volume.path("one"), 200_000)
    make_file(space, volume.path("two"), 200_000)
    code = f"""
import os, random, sys, threading, time
sys.path.insert(0, {str(HERE)!r})
import calls
os.chdir({str(volume.mount_point)!r})
sys.setswitchinterval(1e-5)
number = 77
names = ("one", "two")
sources = [os.open(name, os.O_RDONLY) for name in names] + [os.open("two", os.O_WRONLY)]
data = [open(name, "rb").read() for name in names]
over = False
def swap():
    while not over:  # at random, lest it keeps step with the clones
        for fd in random.sample(sources, len(sources)):
            os.dup2(fd, number)
            time.sleep(random.choice((0, 0, 0, 1e-4)))
        os.close(number)
thread = threading.Thread(target=swap)
thread.start()
answers = {{}}
try:
    end = time.monotonic() + 60
    while sum(answers.values()) < 400 or len(answers) < 2 and time.monotonic() < end:
        target = os.open("swapped", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        answer = calls.result_of(calls.clone, number, target)
        answers[answer] = answers.get(answer, 0) + 1
        got = os.pread(target, 1 << 20, 0)
        assert got in data if answer is None else got == b"", (answer, len(got))
        os.close(target)
finally:
    over = True
    thread.join()
assert set(answers) == {{None, "errno 9"}}, answers
"""
    run("seccomp", sys.executable, "-c", code)
    h.note("  descriptors that are exchanged meanwhile")


def what_is_left_behind(space, volume):
    """The command's end is told at once; what it left behind is served on, also when the caller was killed."""
    late, source = volume.path("late"), volume.path("source")
    start = time.monotonic()
    run("seccomp", "sh", "-c", f"(sleep 2; cp --reflink=always {source} {late}.part && mv {late}.part {late}) "
                               ">/dev/null 2>&1 & exit 3", expect=3)
    h.check(h.seconds_since(start) < 2, "the exit status waited for a process in the background")
    wait_until(late.exists, "the clone of a process left behind")
    same(source, late)
    killed = volume.path("killed")
    child = subprocess.Popen([h.command(), "run", "--method", "seccomp", "--", "sh", "-c",
                              f"sleep 1; cp --reflink=always {source} {killed}.part && mv {killed}.part {killed}"])
    time.sleep(0.3)
    child.kill()
    child.wait()
    wait_until(killed.exists, "the clone after the caller was killed")
    same(source, killed)
    h.note("  processes that outlive the caller are served")


def nested(volume):
    for inner in METHODS:
        for outer in METHODS:
            target = volume.path(f"nested.{inner}.{outer}")
            run(outer, h.command(), "run", "--method", inner, "--", "cp", "--reflink=always",
                volume.path("source"), target)
            same(volume.path("source"), target)
    h.note("  run inside run")


def other_users(space, volume):
    """Without root; and a supervisor of root, whose command is someone else."""
    for place in (space.directory, volume.mount_point):
        os.chmod(place, 0o777)
    for method in METHODS:
        target = volume.path(f"nobody.{method}")
        h.run_command(h.command(), "run", "--method", method, "--", "cp", "--reflink=always",
                      volume.path("source"), target, user=NOBODY, group=NOBODY, extra_groups=[])
        same(volume.path("source"), target)
        h.check(os.stat(target).st_uid == NOBODY, "whose file it is")
        # Set-id bits go when someone writes to the file who is not privileged.
        bits = volume.path(f"bits.{method}")
        bits.write_bytes(b"")
        os.chmod(bits, 0o6777)
        run(method, "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", sys.executable, "-c",
            f"import sys, os; sys.path.insert(0, {str(HERE)!r}); import calls; "
            f"calls.clone(os.open({str(volume.path('source'))!r}, os.O_RDONLY), os.open({str(bits)!r}, os.O_RDWR))")
        same(volume.path("source"), bits)
        h.check(os.stat(bits).st_mode & 0o7777 == 0o777, f"{method}: mode {oct(os.stat(bits).st_mode)}")
        # A file of root's that may be read only: no clone into it, and no dedupe of it.
        mine = volume.path("of-root")
        shutil.copyfile(volume.path("source"), mine)
        os.chmod(mine, 0o644)
        told = run(method, "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", sys.executable, "-c",
                   f"import sys, os; sys.path.insert(0, {str(HERE)!r}); import calls; "
                   f"source = os.open({str(volume.path('source'))!r}, os.O_RDONLY); "
                   f"target = os.open({str(mine)!r}, os.O_RDONLY); "
                   "print(calls.result_of(calls.clone, source, target), "
                   "calls.dedupe(source, 0, 4096, [(target, 0)]))")
        h.check(told.strip() == "errno 9 [(-1, 0)]", f"{method}: another user's file: {told}")
    h.note("  other users")


def syncs_commit(volume):
    for method in METHODS:
        for arguments in (("sync",), ("sync", "-f", volume.path("source"))):
            # Asked before the write: else a commit by the clock in between leaves sync nothing to do.
            before = volume.statistics()["io"]["commits"]
            volume.path(f"synced.{method}").write_bytes(os.urandom(10000))
            run(method, *arguments)
            h.check(volume.statistics()["io"]["commits"] > before, f"{method}: {arguments[:2]} did not commit")
    h.note("  sync and syncfs commit")


def is_server_of(pid, image):
    """Of processes that have its name in their command line, the supervisor is not it."""
    try:
        process = pathlib.Path("/proc") / pid
        return (str(image).encode() in (process / "cmdline").read_bytes() and
                (process / "comm").read_text(encoding="utf-8").strip() != "cofs-run")
    except OSError:  # gone
        return False


def servers_leave_the_library(space):
    other = space.volume(size="128M", name="inner")
    for method in METHODS:
        run(method, h.command(), "mount", other.image, other.mount_point)
        try:
            pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_server_of(pid, other.image)]
            h.check(len(pids) == 1, f"servers: {pids}")
            maps = pathlib.Path(f"/proc/{pids[0]}/maps").read_text(encoding="utf-8")
            h.check("libcofs-ficlone" not in maps, "the server has the library loaded")
            make_file(space, other.path("a"), 100_000)
            run(method, "cp", "--reflink=always", other.path("a"), other.path("b"))
            same(other.path("a"), other.path("b"))
            # A supervisor that serves the server's own calls goes on.
            shutil.copyfile(other.path("a"), other.path("c"))
        finally:
            h.run_command(h.command(), "umount", other.mount_point)
    other.fsck()
    h.note("  a server started inside")


def clone_command(space, volume, mode):
    tree = volume.path("tree")
    (tree / "inner").mkdir(parents=True)
    make_file(space, tree / "big", 3 << 20)
    make_file(space, tree / "inner/odd", 100_001)
    make_file(space, tree / "inner/tiny", 100)
    (tree / "empty").write_bytes(b"")
    with open(tree / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end of a hole")
        file.truncate(20 << 20)
    os.symlink("inner/odd", tree / "link")
    os.link(tree / "big", tree / "inner/hard")
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(tree / "big", "user.note", b"of big")
    h.run_command("setfacl", "-m", f"u:{NOBODY}:r", tree / "inner/odd")
    os.chmod(tree / "inner/odd", 0o4751)
    os.chown(tree / "inner/tiny", 1234, 4321)
    os.utime(tree / "inner", ns=(10**18 + 5, 10**18 + 7))
    before = volume.statistics()["copy"]
    told = json.loads(h.run_command(h.command(), "clone", "-r", "--json", "-v", tree, volume.path("forest")))
    after = volume.statistics()["copy"]
    h.check(before["host_bytes"] == after["host_bytes"], "cofs clone took data through the host")
    h.check(told["files"] == 6 and told["directories"] == 2 and told["others"] == 3, f"counts: {told}")
    key = "shared_bytes" if mode == "share" else "device_copied_bytes"
    if mode == "share" or after["device_bytes"] + after["hostfile_bytes"] > before["device_bytes"] + before["hostfile_bytes"]:
        h.check(told[key] >= 3 << 20, f"{key}: {told}")
    by_cp = volume.path("by-cp")
    h.run_command("cp", "-a", tree, by_cp)
    listing = "cd $0 && find . -printf '%P %y %m %U %G %s %T@ %n %l\\n' | sort && getfacl -R . && getfattr -Rd . && find . -type f | sort | xargs sha256sum"
    listed = [h.run_command("bash", "-c", listing, place) for place in (volume.path("forest"), by_cp)]
    h.check(listed[0] == listed[1], "cofs clone -r and cp -a differ:\n" + "\n".join(
        line for pair in zip(listed[0].splitlines(), listed[1].splitlines()) if pair[0] != pair[1] for line in pair))
    h.check(os.stat(volume.path("forest/sparse")).st_blocks * 512 < 1 << 20, "a hole was filled")
    h.run_command(h.command(), "clone", "-r", tree, volume.path("forest"))  # into the directory that is there
    h.check(volume.path("forest/tree/inner/odd").exists(), "clone into a directory")
    told = h.run_command(h.command(), "clone", tree / "big", volume.path("forest/empty"), expect=1)
    h.check("--force" in told, f"overwrote: {told}")
    h.run_command(h.command(), "clone", "--force", tree / "big", volume.path("forest/empty"))
    same(tree / "big", volume.path("forest/empty"))
    told = h.run_command(h.command(), "clone", tree, volume.path("tree2"), expect=1)
    h.check("-r" in told, told)
    told = h.run_command(h.command(), "clone", "-r", tree, tree / "inner/self", expect=1)
    h.check("inside" in told, told)
    told = h.run_command(h.command(), "clone", tree / "big", space.directory / "outside", expect=1)
    h.check("cofs" in told, told)
    told = h.run_command(h.command(), "clone", "/etc/passwd", volume.path("passwd"), expect=1)
    h.check("another filesystem" in told, told)
    h.note(f"  cofs clone: {key}")


def map_command(volume):
    source = volume.path("source")
    shown = json.loads(h.run_command(h.command(), "map", "--json", source))
    h.check(sum(extent["bytes"] for extent in shown["extents"]) == shown["mapped_bytes"] >= shown["size_bytes"],
            f"map: {shown}")
    h.check(shown["size_bytes"] == os.stat(source).st_size, "size in map")
    h.check("last" in shown["extents"][-1]["flags"], "the last extent is not marked")
    h.check(shown["shared_bytes"] > 0, "dedupe shared these blocks")
    h.check("shared" in h.run_command(h.command(), "map", source), "table")
    h.run_command(h.command(), "map", "/etc/passwd", expect=1)
    h.run_command(h.command(), "map", volume.mount_point, expect=1)
    h.note("  cofs map")


def duperemove(space, volume):
    if shutil.which("duperemove") is None:
        h.note("  left out: duperemove (not installed)")
        return
    place = volume.path("dupes")
    place.mkdir()
    # It compares extents. Most of these files are one each; a segment's end may cut one.
    data = space.random.randbytes(128 << 10)
    files = [place / str(i) for i in range(10)]
    for path in files:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
    told = h.run_command(h.command(), "run", "--as-xfs", "--", "duperemove", "-dr", place, expect=None)
    shared = sum(json.loads(h.run_command(h.command(), "map", "--json", path))["shared_bytes"] for path in files)
    h.check(shared >= 5 * len(data), f"duperemove shared {shared}:\n{told}")
    for path in files:
        h.check(path.read_bytes() == data, f"{path} changed")
    h.note("  duperemove")


def sums(volume):
    return h.run_command("bash", "-c", "cd $0 && find . -type f | sort | xargs sha256sum", volume.mount_point)


def test(space):
    if os.geteuid() != 0:
        h.skip("needs root")
    h.require_programs("xfs_io", "mkfs.xfs", "filefrag", "gcc", "setpriv", "setfacl", "getfattr")
    # Paths with a space or colon cannot be preloaded, and nobody must reach the command.
    os.chmod(space.directory, 0o755)
    if not os.path.exists("/proc/sys/kernel/yama"):
        h.note("left out: kernel.yama.ptrace_scope (this kernel has no Yama)")
    exit_statuses(space)
    signals_and_jobs(space)
    keys_of_a_terminal()
    for mode in ("device", "share"):
        h.note(f"clone={mode}")
        volume = space.volume(size="1G", options=f"clone={mode},commit=300", name=mode).mount()
        make_file(space, volume.path("source"), (4 << 20) + 1000)
        make_file(space, volume.path("small"), 50_000)
        for method in METHODS:
            programs_clone(space, volume, method, mode)
            many_at_once(volume, method)
            python_calls(volume, method)
            long_file(volume, method)
            write_only_sources(volume, method)
        static_program(space, volume)
        go_program(space, volume)
        nested(volume)
        other_users(space, volume)
        what_is_left_behind(space, volume)
        file_size_signal(volume)
        swapped_descriptors(space, volume)
        syncs_commit(volume)
        clone_command(space, volume, mode)
        map_command(volume)
        duperemove(space, volume)
        if mode == "share":
            errors_are_those_of_xfs(space, volume)
            servers_leave_the_library(space)
        before = sums(volume)
        volume.remount()
        h.check(sums(volume) == before, "contents changed by a remount")
        volume.umount()
        volume.fsck()


if __name__ == "__main__":
    h.run(test)
