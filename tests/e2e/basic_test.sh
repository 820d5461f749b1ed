#!/bin/bash
# The command and a real mount, end to end: mkfs, mount, work, unmount, check, mount again.
#
# Usage: basic_test.sh COFS [DIRECTORY]; DIRECTORY (default: a new one in /tmp) holds the image and the
# mount point. Exits 77 where FUSE cannot be used, which ctest counts as skipped.
set -u

cofs=$(realpath "$1")
base=${2:-${TMPDIR:-/tmp}}
work=$(mktemp -d "$base/cofs-e2e.XXXXXX") || exit 1
image=$work/image
mnt=$work/mnt
mkdir "$mnt"
failures=0
for name in mkfs.cofs fsck.cofs mount.cofs mount.fuse.cofs; do ln -s "$cofs" "$work/$name"; done

cleanup() {
  if mountpoint -q "$mnt" 2>/dev/null || ! stat "$mnt" >/dev/null 2>&1; then
    "$cofs" umount --lazy "$mnt" 2>/dev/null
  fi
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

say() { printf '%s\n' "$*"; }
check() {  # check DESCRIPTION COMMAND…
  local what=$1
  shift
  mv -f "$work/out" "$work/previous" 2>/dev/null
  if "$@" >"$work/out" 2>&1; then
    say "ok    $what"
  else
    say "FAIL  $what (exit $?): $*"
    sed 's/^/      /' "$work/out"
    failures=$((failures + 1))
  fi
}
check_exit() {  # check_exit DESCRIPTION CODE COMMAND…
  local what=$1 want=$2 got
  shift 2
  "$@" >"$work/out" 2>&1
  got=$?
  if [ "$got" = "$want" ]; then
    say "ok    $what"
  else
    say "FAIL  $what (exit $got, not $want): $*"
    sed 's/^/      /' "$work/out"
    failures=$((failures + 1))
  fi
}
equal() { [ "$1" = "$2" ] || { echo "is '$1', should be '$2'"; return 1; }; }
output_has() { grep -q -- "$1" "$work/previous"; }  # of the command checked before
json() { "$cofs" stat --json "$mnt" | python3 -c "import json,sys; print(json.load(sys.stdin)$1)"; }
mount_it() { "$cofs" mount "$image" "$mnt" "$@"; }
umount_it() { "$cofs" umount "$mnt"; }
remount_it() { umount_it && mount_it; }
fsck_it() { "$cofs" fsck --data "$image"; }

if [ ! -c /dev/fuse ] || [ "$(id -u)" != 0 ]; then
  say "skipped: needs root and /dev/fuse"
  exit 77
fi

# --- the command itself ---
check "version" "$cofs" --version
check "help" "$cofs" --help
for command in mkfs mount umount fsck dump stat sync devcap clone map run; do
  check "$command --help" "$cofs" $command --help
done
check_exit "unknown subcommand" 1 "$cofs" frobnicate
check_exit "mkfs without an image and without --size" 1 "$cofs" mkfs "$image"
check "mkfs --size" "$cofs" mkfs --size 512M --label e2e "$image"
check "image has its size" equal "$(stat -c %s "$image")" 536870912
check_exit "mkfs refuses a volume" 1 "$cofs" mkfs "$image"
check "and says what is there" output_has "cofs volume"
check "mkfs --force, by its other name" "$work/mkfs.cofs" --force --label e2e "$image"
check "fsck of a new volume" fsck_it
check "fsck --json" bash -c "'$cofs' fsck --json '$image' | python3 -m json.tool"
check_exit "fsck of nothing" 8 "$cofs" fsck "$work/absent"
check "dump" "$cofs" dump "$image"
check "devcap --json" bash -c "'$cofs' devcap --json '$image' | python3 -m json.tool"
truncate -s 64M "$work/zeros"
check_exit "mount of something else" 32 "$cofs" mount "$work/zeros" "$mnt"
check_exit "unknown mount option" 1 "$cofs" mount "$image" "$mnt" -o frobnicate
check "and names it" output_has frobnicate
check_exit "mount on a file" 32 "$cofs" mount "$image" "$work/zeros"

# --- mounted ---
if ! mount_it; then
  say "FAIL  mount"
  exit 1
fi
say "ok    mount"
check "type in the mount table" equal "$(findmnt -n -o FSTYPE "$mnt")" fuse.cofs
check "source in the mount table" equal "$(findmnt -n -o SOURCE "$mnt")" "$image"
check_exit "second mount" 32 "$cofs" mount "$image" "$mnt"
check_exit "fsck while mounted" 8 "$cofs" fsck "$image"
check_exit "mkfs while mounted" 1 "$cofs" mkfs --force "$image"

head -c 10000000 /dev/urandom >"$work/random"
mkdir "$mnt/dir" && cp -r /usr/include/linux "$mnt/dir/" && cp "$work/random" "$mnt/random"
check "tree reads back" diff -r /usr/include/linux "$mnt/dir/linux"
check "file reads back" cmp "$work/random" "$mnt/random"
check "copy inside" cp "$mnt/random" "$mnt/copy"
check "copy is equal" cmp "$work/random" "$mnt/copy"
check "sparse file" bash -c "truncate -s 1G '$mnt/sparse' && echo end >>'$mnt/sparse' && [ \$(stat -c %b '$mnt/sparse') -lt 100 ]"
check "holes stay holes in a copy" bash -c "cp --sparse=auto '$mnt/sparse' '$mnt/sparse2' && [ \$(stat -c %b '$mnt/sparse2') -lt 3000 ] && cmp '$mnt/sparse' '$mnt/sparse2'"
check "preallocation" bash -c "fallocate -l 1M '$mnt/pre' && [ \$(stat -c %s '$mnt/pre') = 1048576 ]"
check "punched hole" bash -c "cp '$work/random' '$mnt/holed' && fallocate -p -o 1048576 -l 2097152 '$mnt/holed' && cmp -n 1048576 '$work/random' '$mnt/holed' && cmp -i 1048576 -n 2097152 '$mnt/holed' /dev/zero && cmp -i 3145728 '$work/random' '$mnt/holed'"
check "overwrite in place" bash -c "cp '$work/random' '$mnt/over'; cp '$work/random' '$work/over'; for f in '$mnt/over' '$work/over'; do dd if=/usr/bin/env of=\$f bs=1000 seek=77 conv=notrunc status=none; done; cmp '$work/over' '$mnt/over'"
check "append" bash -c "for i in \$(seq 200); do echo line \$i; done >'$work/lines'; for i in \$(seq 200); do echo line \$i >>'$mnt/lines'; done; cmp '$work/lines' '$mnt/lines'"
check "direct I/O" bash -c "dd if='$work/random' of='$mnt/direct' bs=1M count=8 oflag=direct status=none && cmp -n 8388608 '$work/random' '$mnt/direct' && dd if='$mnt/direct' bs=1M iflag=direct status=none | cmp -n 8388608 - '$work/random'"
check "hard link" bash -c "ln '$mnt/copy' '$mnt/hard' && [ \$(stat -c %h '$mnt/copy') = 2 ]"
check "symbolic link" bash -c "ln -s dir/linux '$mnt/sym' && [ \$(readlink '$mnt/sym') = dir/linux ] && [ -d '$mnt/sym' ]"
check "fifo and device" bash -c "mkfifo '$mnt/fifo' && mknod '$mnt/null' c 1 3 && echo x >'$mnt/null'"
check "rename" bash -c "mv '$mnt/copy' '$mnt/dir/moved' && cmp '$work/random' '$mnt/dir/moved' && [ ! -e '$mnt/copy' ]"
check "rename over" bash -c "cp /etc/passwd '$mnt/a' && cp /etc/hostname '$mnt/b' && mv '$mnt/b' '$mnt/a' && cmp /etc/hostname '$mnt/a'"
check_exit "rmdir of a full directory" 1 rmdir "$mnt/dir"
check "modes and owners" bash -c "chmod 640 '$mnt/a' && chown 12:34 '$mnt/a' && [ \$(stat -c %a-%u-%g '$mnt/a') = 640-12-34 ]"
check "times" bash -c "touch -d '2001-02-03 04:05:06.789' '$mnt/a' && [ \"\$(stat -c %y '$mnt/a' | cut -c-23)\" = '2001-02-03 04:05:06.789' ]"
check "extended attributes" python3 - "$mnt/a" <<'PY'
import os, sys
path = sys.argv[1]
os.setxattr(path, "user.one", b"1" * 3000)
os.setxattr(path, "user.two", b"")
assert os.getxattr(path, "user.one") == b"1" * 3000
assert sorted(os.listxattr(path)) == ["user.one", "user.two"]
os.removexattr(path, "user.two")
try:
    os.getxattr(path, "user.two")
    raise SystemExit("still there")
except OSError as error:
    assert error.errno == 61, error
PY
check "names of all kinds" python3 - "$mnt/names" <<'PY'
import os, sys
directory = sys.argv[1].encode()
os.mkdir(directory)
names = [b"x" * 255, b"\xff\xfe", "ü €".encode(), b"a b", b"-", b"\n"] + [b"f%05d" % i for i in range(3000)]
for name in names:
    os.close(os.open(directory + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
assert sorted(os.listdir(directory)) == sorted(names)
try:
    os.mkdir(directory + b"/" + b"y" * 256)
    raise SystemExit("256 bytes taken")
except OSError as error:
    assert error.errno == 36, error
for name in names[::2]:
    os.unlink(directory + b"/" + name)
assert sorted(os.listdir(directory)) == sorted(names[1::2])
PY
check "open and removed" python3 - "$mnt/gone" <<'PY'
import os, sys
path = sys.argv[1]
with open(path, "w+b") as f:
    f.write(b"still here" * 1000)
    f.flush()
    os.unlink(path)
    assert not os.path.exists(path)
    f.seek(0)
    assert f.read() == b"still here" * 1000
    assert os.fstat(f.fileno()).st_nlink == 0
PY
check "mapped memory" python3 - "$mnt/mapped" <<'PY'
import mmap, sys
with open(sys.argv[1], "w+b") as f:
    f.truncate(1 << 20)
    with mmap.mmap(f.fileno(), 1 << 20) as m:
        m[5000:5010] = b"0123456789"
        m.flush()
with open(sys.argv[1], "rb") as f:
    data = f.read()
assert data[5000:5010] == b"0123456789" and data.count(0) == (1 << 20) - 10
PY
check "seek to data and holes" python3 - "$mnt/seek" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"x" * 4096, 1 << 20)
os.ftruncate(fd, 4 << 20)
assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
for offset, whence in ((2 << 20, os.SEEK_DATA), (4 << 20, os.SEEK_HOLE)):
    try:
        os.lseek(fd, offset, whence)
        raise SystemExit("found something")
    except OSError as error:
        assert error.errno == 6, error
PY
check "fsync of a file and a directory" python3 - "$mnt" <<'PY'
import os, sys
fd = os.open(sys.argv[1] + "/synced", os.O_CREAT | os.O_WRONLY)
os.write(fd, b"durable")
os.fsync(fd)
directory = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(directory)
PY
check "permissions are the kernel's" bash -c "chmod 600 '$mnt/a'; ! setpriv --reuid 65534 --regid 65534 --clear-groups cat '$mnt/a'"
check "immutable" bash -c "cp /etc/hostname '$mnt/imm' && chattr +i '$mnt/imm' && lsattr '$mnt/imm' | grep -q -- '----i' && ! rm -f '$mnt/imm' && chattr -i '$mnt/imm' && rm '$mnt/imm'"
check "statfs" bash -c "[ \$(stat -f -c %S '$mnt') = 4096 ] && [ \$(stat -f -c %l '$mnt') = 255 ] && df '$mnt'"
check "sync" "$cofs" sync "$mnt"
check_exit "sync elsewhere" 1 "$cofs" sync /tmp
check "stat for people" "$cofs" stat "$mnt"
check "stat: bytes were written" bash -c "[ $(json '["io"]["write_bytes"]') -gt 10000000 ]"
check "stat: all contracted members" python3 - <(python3 -c 'pass'; "$cofs" stat --json "$mnt") <<'PY'
import json, sys
s = json.load(open(sys.argv[1]))
for path in ("copy.device_bytes copy.hostfile_bytes copy.shared_bytes copy.host_bytes copy.device_commands copy.refused "
             "gc.relocated_bytes gc.device_bytes gc.host_bytes gc.segments_freed io.read_bytes io.write_bytes io.flushes "
             "space.total_bytes space.live_bytes space.free_bytes write_amplification").split():
    value = s
    for part in path.split("."):
        value = value[part]
assert isinstance(s["copy"]["refused"], dict)
PY
inodes=$("$cofs" stat --json "$mnt" | python3 -c 'import json, sys; print(json.load(sys.stdin)["space"]["inodes"])')
check "df counts inodes" equal "$(df --output=iused "$mnt" | tail -n 1 | tr -d ' ')" "$inodes"
device=$(findmnt -n -o MAJ:MIN "$mnt" | tr -d ' ')
check "read-ahead was raised" equal "$(cat "/sys/class/bdi/$device/read_ahead_kb")" 1024

# --- again ---
check "unmount" umount_it
check_exit "unmount of nothing" 32 umount_it
check "fsck after the unmount" fsck_it
check "mount again" mount_it
check "tree is there" diff -r /usr/include/linux "$mnt/dir/linux"
check "data is there" cmp "$work/random" "$mnt/dir/moved"
check "attributes are there" bash -c "[ \$(stat -c %a-%u-%g '$mnt/a') = 600-12-34 ]"
check "remount read-only" "$work/mount.fuse.cofs" "$image" "$mnt" -o remount,ro
check_exit "writing is refused" 1 touch "$mnt/new"
check "remount read-write" "$work/mount.fuse.cofs" "$image" "$mnt" -n -o remount,rw
check "writing again" touch "$mnt/new"
mkdir "$work/second" "$mnt/below"
mount --make-shared "$mnt"
check "the volume at a second place" "$work/mount.fuse.cofs" "$image" "$work/second" -o ro
check "it is the same" test -e "$work/second/new"
check_exit "read-only there" 1 touch "$work/second/other"
check "a mount below the first" mount -t tmpfs none "$mnt/below"
check "is not below the second" bash -c "! mountpoint -q '$work/second/below'"
umount "$mnt/below"
mount --make-private "$mnt"
check_exit "but not twice at one place" 32 "$work/mount.fuse.cofs" "$image" "$mnt"
check "unmount of the second place waits for no server" timeout 20 "$cofs" umount "$work/second"
touch "$work/bound"
check "a bind mount of a file" mount --bind "$mnt/new" "$work/bound"
check "unmount of the bind mount waits for no server" timeout 20 "$cofs" umount "$work/bound"
check "the volume is still mounted" mountpoint -q "$mnt"
check "everything can be removed" bash -c "rm -rf '$mnt'/* && [ -z \"\$(ls -A '$mnt')\" ]"
check "unmount" umount_it
check "fsck of the emptied volume" fsck_it
check "fsck by its other name" "$work/fsck.cofs" -a "$image"
check "mount read-only" mount_it -o ro
check_exit "writing is refused" 1 touch "$mnt/new"
check "unmount" umount_it

# --- a server that is killed ---
check "mount" mount_it
cp "$work/random" "$mnt/kept" && sync "$mnt/kept"
server=$(pgrep -f -x "$cofs mount $image $mnt" | head -1)
if [ -n "$server" ]; then
  kill -9 "$server"
  check "unmount of a dead mount" umount_it
  check "fsck after a kill" fsck_it
  check "mount after a kill" mount_it
  check "what was synced is there" cmp "$work/random" "$mnt/kept"
else
  say "FAIL  the server's process was not found"
  failures=$((failures + 1))
fi
check "unmount" umount_it

# --- a terminated server unmounts ---
"$cofs" mount --foreground "$image" "$mnt" 2>"$work/log" &
server=$!
for _ in $(seq 100); do mountpoint -q "$mnt" && break; sleep 0.05; done
echo late >"$mnt/late"
kill -TERM $server
wait $server
check "a terminated server ends well" equal $? 0
check "and is unmounted" bash -c "! mountpoint -q '$mnt'"
check "fsck after it" fsck_it
check "mount" mount_it -o noatime,commit=1
check "what was written last is there" equal "$(cat "$mnt/late")" late
check "unmount" umount_it
check "final fsck" fsck_it

say "$failures failures"
[ "$failures" = 0 ]
