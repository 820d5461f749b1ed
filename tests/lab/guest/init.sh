#!/bin/busybox sh
# The first process of a lab guest. It puts together the guest's root (the host's, read-only, under a
# writable layer in memory), runs the job that the host left in the share, and switches off.
# The share: `run` is what to do, `out` what it printed, `status` its exit status, `dmesg` the kernel's log.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bb=/bin/busybox

give_up() {
  echo "lab: $*"
  $bb poweroff -f
}

$bb mount -t proc proc /proc
$bb mkdir /host /layer /new
for module in /modules/*; do $bb insmod "$module" || give_up "no module $module"; done
share="trans=virtio,version=9p2000.L,msize=512000"
$bb mount -t 9p -o "$share,ro,cache=loose" hostroot /host || give_up "the host's root cannot be mounted"
$bb mount -t tmpfs -o mode=755 tmpfs /layer && $bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new ||
  give_up "the root cannot be put together"
$bb mount -t proc proc /new/proc
$bb mount -t sysfs sysfs /new/sys
$bb mount -t devtmpfs devtmpfs /new/dev
$bb ln -sf /proc/self/fd /new/dev/fd
$bb mount -t tmpfs tmpfs /new/run
$bb mkdir -p /new/run/share
$bb mount -t 9p -o "$share,cache=none" share /new/run/share || give_up "the share cannot be mounted"
$bb chroot /new /bin/sh /run/share/run >/new/run/share/out 2>&1 </new/dev/null
status=$?
$bb dmesg >/new/run/share/dmesg
echo "$status" >/new/run/share/status
$bb poweroff -f
