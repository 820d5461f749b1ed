# What xfstests must know of cofs, which it runs as FSTYP=fuse: how to make a volume (of a size), check it,
# cut its power, break its device, and what it can hold. teach-xfstests has some files of the checkout's common/
# source this at their ends, where it replaces functions by their names; no test is changed.
#
# Environment: COFS_PROG (the command). A function that is only changed for our mounts keeps its first
# definition as cofs_stock_NAME.

cofs_keep() {
	declare -F "$1" >/dev/null || return 0 # some tests read common/attr before common/rc
	declare -F "cofs_stock$1" >/dev/null || eval "cofs_stock$(declare -f "$1")"
}

cofs_server() { # MOUNT_POINT: the pid of the server of a mount
	"$COFS_PROG" stat --json "$1" 2>/dev/null | sed -n 's/.*"server_pid": *\([0-9]*\).*/\1/p' | head -n 1
}

# Every file of the device's size is a device.
cofs_bytes() { # DEVICE
	if [ -b "$1" ]; then blockdev --getsize64 "$1"; else stat -L -c %s "$1"; fi
}

# A loop device takes another size while it stays the same device; 0: that of its file.
cofs_resize_loop() { # DEVICE BYTES
	python3 -B "$(dirname "$HOST_OPTIONS")/resize-loop" "$1" "$2" || _fail "cofs: $1 takes no other size"
}

cofs_mkfs() { # DEVICE [OPTIONS]
	local device=$1
	shift
	# shellcheck disable=SC2086
	"$COFS_PROG" mkfs --force $MKFS_OPTIONS "$@" "$device"
}

# The volume must be consistent and every block of data intact. What was mounted is mounted again.
cofs_check() { # DEVICE MOUNT_FUNCTION
	local device=$1 again=$2 mounted output status
	mounted=$(findmnt -rn -o TARGET -S "$device" | head -n 1)
	if [ -n "$mounted" ] && ! _unmount "$mounted"; then
		_log_err "cofs: $device can not be unmounted to be checked"
		return 1
	fi
	output=$("$COFS_PROG" fsck --data "$device" 2>&1)
	status=$?
	if [ $status -ne 0 ]; then
		_log_err "cofs: fsck of $device ends with $status"
		echo "$output" >>"$seqres.full"
	fi
	if [ -n "$mounted" ]; then
		$again || return 1
	fi
	return $status
}

# --- common/rc ---

_fs_type() {
	_df_device "$1" | $AWK_PROG '{ print $2 }' | sed -e 's/^fuse\(blk\)\{0,1\}\(\.cofs\)\{0,1\}$/fuse/'
}

# mount(8) learns from libblkid, which does not know cofs, what a device holds; and fuse alone is no type of ours.
cofs_keep _mount
_mount() {
	local argument arguments=() typed=no before=
	for argument in "$@"; do
		case "$before $argument" in
		"-t fuse") argument=fuse$FUSE_SUBTYP ;;
		*" -t" | *" --bind" | *" --move" | *" --make-"* | *"remount"*) typed=yes ;;
		esac
		arguments+=("$argument")
		before=$argument
	done
	if [ $typed = no ] && [ -e "$1" ] && "$COFS_PROG" dump "$1" >/dev/null 2>&1; then
		arguments=(-t "fuse$FUSE_SUBTYP" "${arguments[@]}")
	fi
	cofs_stock_mount "${arguments[@]}"
}

_test_mkfs() {
	cofs_mkfs "$TEST_DEV" "$@" >/dev/null
}

_try_mkfs_dev() {
	# shellcheck disable=SC2086
	"$COFS_PROG" mkfs --force $MKFS_OPTIONS "$@"
}

_scratch_mkfs() {
	[ ! -b "$SCRATCH_DEV" ] || cofs_resize_loop "$SCRATCH_DEV" 0
	cofs_mkfs "$SCRATCH_DEV" "$@"
}

_try_scratch_mkfs_sized() { # BYTES [BLOCK_BYTES] [OPTIONS]
	local bytes=$1 block=${2:-4096}
	shift
	[ $# -eq 0 ] || shift
	[[ $bytes =~ ^[0-9]+$ && $block =~ ^[0-9]+$ ]] || _notrun "not a size: $bytes, blocks of $block"
	[ "$block" -eq 4096 ] || _notrun "cofs has blocks of 4096 bytes, not $block"
	local device_bytes
	[ ! -b "$SCRATCH_DEV" ] || cofs_resize_loop "$SCRATCH_DEV" 0
	device_bytes=$(cofs_bytes "$SCRATCH_DEV")
	[ "$bytes" -le "$device_bytes" ] || _notrun "$SCRATCH_DEV is smaller than $bytes bytes"
	if [ -b "$SCRATCH_DEV" ]; then
		cofs_resize_loop "$SCRATCH_DEV" "$bytes"
		cofs_mkfs "$SCRATCH_DEV" "$@"
		return
	fi
	cofs_mkfs "$SCRATCH_DEV" --size "$bytes" "$@" || return
	# An image file was cut to that size: for the next test the device is as large as it was.
	truncate -s "$device_bytes" "$SCRATCH_DEV"
}

_scratch_mkfs_blocksized() { # BLOCK_BYTES
	[ "$1" = 4096 ] || _notrun "cofs has blocks of 4096 bytes, not $1"
	_scratch_mkfs
}

_repair_scratch_fs() {
	"$COFS_PROG" fsck --repair "$SCRATCH_DEV"
}

_check_test_fs() {
	cofs_check "$TEST_DEV" _test_mount
}

_check_scratch_fs() {
	cofs_check "${1:-$SCRATCH_DEV}" _scratch_mount
}

_check_dev_fs() {
	cofs_check "$1" true
}

_get_device_size() { # KiB
	echo $(($(cofs_bytes "$1") >> 10))
}

_discard_max_offset_kb() { # MOUNT_POINT DEVICE: df leaves out what is not for users
	_get_device_size "$2"
}

_fstyp_has_non_default_seek_data_hole() {
	return 0
}

# Seconds are kept in 64 bits with a sign; the kernel's FUSE takes them as they are.
_filesystem_timestamp_range() {
	echo "$((1 << 63)) $(((1 << 63) - 1))"
}

_require_names_are_bytes() {
	return 0
}

# A plain FUSE mount is not told of sync(2) and syncfs(2); one of a block device is.
cofs_sync() { # PATH
	[ "$(findmnt -rn -o FSTYPE --target "$1")" = fuseblk.cofs ] || "$COFS_PROG" sync "$1" 2>/dev/null
	return 0
}

cofs_keep _sync_fs
_sync_fs() {
	cofs_stock_sync_fs "$@"
	cofs_sync "$1"
}

sync() {
	command sync "$@"
	local status=$? path
	for path in "$TEST_DIR" "$SCRATCH_MNT"; do
		mountpoint -q "$path" 2>/dev/null && cofs_sync "$path"
	done
	return $status
}
export -f sync cofs_sync

# What a login shell drops, and `cofs run` needs.
_su() {
	su --whitelist-environment=LD_PRELOAD "$@"
}

# --- dm-flakey: the power is cut by killing the server ---

cofs_keep _require_dm_target
_require_dm_target() {
	[ "$1" = flakey ] || [ "$1" = error ] || cofs_stock_require_dm_target "$@"
}

cofs_power_cut() {
	local server
	server=$(cofs_server "$SCRATCH_MNT")
	[ -n "$server" ] || _fail "cofs: $SCRATCH_MNT has no server whose power could be cut"
	kill -KILL "$server"
	while [ -e "/proc/$server/exe" ]; do sleep 0.02; done
}

if declare -F _init_flakey >/dev/null; then
	_init_flakey() {
		:
	}
	_cleanup_flakey() {
		_unmount "$SCRATCH_MNT" >/dev/null 2>&1
	}
	_load_flakey_table() {
		case "$1" in
		"$FLAKEY_DROP_WRITES") cofs_power_cut ;;
		"$FLAKEY_ERROR_WRITES") _notrun "a cut of the power is no failing write" ;;
		esac
	}
	_flakey_drop_and_remount() { # [yes: check between]
		cofs_power_cut
		_unmount "$SCRATCH_MNT"
		if [ "$1" = yes ]; then
			_check_scratch_fs
		fi
		_scratch_mount
	}
	_require_flakey_with_error_writes() {
		_notrun "a cut of the power is no failing write"
	}
fi

# --- dm-error: a loop device over the scratch device, with nothing left of it where a table of errors is wanted ---

if declare -F _dmerror_init >/dev/null; then
	_dmerror_init() {
		DMERROR_DEV=$(losetup --find --show "$SCRATCH_DEV") || _fail "cofs: no loop device for $SCRATCH_DEV"
		export DMERROR_DEV
	}
	_dmerror_mount() {
		_scratch_options mount
		# shellcheck disable=SC2046,SC2086
		_mount -t "$FSTYP$FUSE_SUBTYP" $(_common_dev_mount_options "$@") $SCRATCH_OPTIONS "$DMERROR_DEV" "$SCRATCH_MNT"
	}
	_dmerror_load_error_table() {
		cofs_resize_loop "$DMERROR_DEV" 512
	}
	_dmerror_load_working_table() {
		cofs_resize_loop "$DMERROR_DEV" 0
	}
	_dmerror_cleanup() {
		[ -n "$DMERROR_DEV" ] || return 0
		cofs_resize_loop "$DMERROR_DEV" 0
		_unmount "$SCRATCH_MNT" >/dev/null 2>&1
		losetup --detach "$DMERROR_DEV"
		unset DMERROR_DEV
	}
fi

# --- common/log: whether there is something to recover ---

if declare -F _print_logstate >/dev/null; then
	_require_logstate() {
		:
	}
	_print_logstate() {
		if "$COFS_PROG" dump "$SCRATCH_DEV" | grep -q "^last use ended cleanly"; then
			echo "clean log"
		else
			echo "dirty log"
		fi
	}
fi

# --- common/attr ---

if declare -F _acl_get_max >/dev/null; then
	# The kernel lets FUSE set ACLs of a page at most: 4 bytes of header, 8 for each entry.
	_acl_get_max() {
		echo 511
	}
fi
