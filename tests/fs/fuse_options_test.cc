// The strict parser of mount options, sizes, and the mount table.
#include "fs/fuse_options.h"

#include <gtest/gtest.h>

#include "fs/fuse_mounts.h"

namespace cofs {
namespace {

MountOptions parsed(std::string_view text) {
  auto options = parse_mount_options(text);
  EXPECT_TRUE(options) << text << ": " << (options ? "" : options.error());
  return options ? *options : MountOptions();
}

std::string error_of(std::string_view text) {
  auto options = parse_mount_options(text);
  EXPECT_FALSE(options) << text;
  return options ? "" : options.error();
}

TEST(MountOptions, DefaultsAreThoseOfTheHeader) {
  MountOptions options = parsed("");
  EXPECT_FALSE(options.read_only);
  EXPECT_FALSE(options.writeback);
  EXPECT_TRUE(options.discard);
  EXPECT_FALSE(options.allow_other.has_value());
  EXPECT_EQ(options.commit_seconds, 5U);
  EXPECT_EQ(options.access_times, AccessTimes::kRelative);
  EXPECT_TRUE(options.kernel_options.empty());
}

TEST(MountOptions, OwnOptions) {
  MountOptions options = parsed(
      "ro,strictatime,nodiratime,writeback,commit=30,nodiscard,cache=128M,dirty=1M,"
      "allow_other,copy_engine=hostfile,clone=share");
  EXPECT_TRUE(options.read_only);
  EXPECT_EQ(options.access_times, AccessTimes::kStrict);
  EXPECT_FALSE(options.fs_options().directory_access_times);
  EXPECT_TRUE(options.kernel_options.empty());
  EXPECT_TRUE(options.writeback);
  EXPECT_EQ(options.store_options().commit_interval_ns, 30'000'000'000U);
  EXPECT_FALSE(options.store_options().discard);
  EXPECT_EQ(options.store_options().cache_bytes, 128U << 20);
  EXPECT_EQ(options.fs_options().dirty_bytes_max, 1U << 20);
  EXPECT_EQ(options.allow_other, true);
  EXPECT_EQ(options.store_options().copy.engine, "hostfile");
  EXPECT_EQ(options.store_options().copy.timeout_ns, 30'000'000'000U);
  EXPECT_EQ(options.store_options().copy_verify_percent, 1U);
  EXPECT_EQ(options.store_options().copy_measuring, CopyMeasuring::kOnce);
  EXPECT_EQ(options.fs_options().clone_mode, CloneMode::kShare);
  EXPECT_EQ(parsed("").fs_options().clone_mode, CloneMode::kDevice);
  EXPECT_EQ(parsed("clone=share,clone=device").fs_options().clone_mode, CloneMode::kDevice);
}

TEST(MountOptions, NoRecoveryIsForReadOnlyMounts) {
  EXPECT_TRUE(parsed("ro,norecovery").read_only);
  EXPECT_TRUE(parsed("norecovery,ro").read_only);
  EXPECT_TRUE(parsed("norecovery").no_recovery);
  EXPECT_FALSE(parsed("norecovery").read_only);  // the mount command knows the device
}

TEST(MountOptions, GarbageCollection) {
  EXPECT_EQ(parsed("").store_options().gc, GcMode::kAuto);
  EXPECT_EQ(parsed("gc=auto").store_options().gc, GcMode::kAuto);
  EXPECT_EQ(parsed("gc=off").store_options().gc, GcMode::kOff);
  EXPECT_EQ(parsed("gc=aggressive").store_options().gc, GcMode::kAggressive);
  EXPECT_EQ(error_of("gc=on"), "option gc=on: expected auto, off or aggressive");
}

TEST(MountOptions, LaterOptionsWin) {
  EXPECT_FALSE(parsed("ro,rw").read_only);
  EXPECT_FALSE(parsed("writeback,nowriteback").writeback);
  EXPECT_EQ(parsed("commit=1,commit=2").commit_seconds, 2U);
}

TEST(MountOptions, Transport) {
  EXPECT_EQ(parsed("").transport, FuseTransport::kDevice);
  EXPECT_EQ(parsed("io_uring").transport, FuseTransport::kRing);
  EXPECT_EQ(parsed("io_uring=force").transport, FuseTransport::kForcedRing);
  EXPECT_EQ(parsed("io_uring,noio_uring").transport, FuseTransport::kDevice);
  EXPECT_TRUE(parsed("io_uring").kernel_options.empty());
  EXPECT_FALSE(parse_mount_options("io_uring=yes").has_value());
  EXPECT_TRUE(parsed("").busy_poll);
  EXPECT_FALSE(parsed("nobusy_poll").busy_poll);
  EXPECT_TRUE(parsed("nobusy_poll,busy_poll").busy_poll);
}

TEST(MountOptions, CopyOptions) {
  StoreOptions store =
      parsed("copy_engine=nvme,copy_verify=100,copy_timeout=5,copy_measure=never").store_options();
  EXPECT_EQ(store.copy.engine, "nvme");
  EXPECT_TRUE(store.copy.allow_host);
  EXPECT_EQ(store.copy_verify_percent, 100U);
  EXPECT_EQ(store.copy.timeout_ns, 5'000'000'000U);
  EXPECT_EQ(store.copy_measuring, CopyMeasuring::kNever);
  EXPECT_EQ(parsed("copy_engine=auto").store_options().copy.engine, "");
  EXPECT_EQ(parsed("copy_measure=always").copy_measuring, CopyMeasuring::kAlways);
}

TEST(MountOptions, WordsOfMountAreKeptOrDropped) {
  MountOptions options = parsed(
      "defaults,nodev,nosuid,_netdev,nofail,x-systemd.automount,user=me,exec,"
      "noatime,,comment=a\\,b");
  EXPECT_EQ(options.kernel_options,
            (std::vector<std::string>{"nodev", "nosuid", "exec", "noatime"}));
  EXPECT_EQ(options.access_times, AccessTimes::kNone);
}

TEST(MountOptions, ErrorsNameTheOption) {
  EXPECT_NE(error_of("rw,frobnicate").find("frobnicate"), std::string::npos);
  EXPECT_NE(error_of("commit=0").find("commit=0"), std::string::npos);
  EXPECT_NE(error_of("commit=5s").find("commit=5s"), std::string::npos);
  EXPECT_NE(error_of("cache=12").find("cache=12"), std::string::npos);
  EXPECT_NE(error_of("cache=").find("cache="), std::string::npos);
  EXPECT_NE(error_of("copy_engine=fast").find("hostfile"), std::string::npos);
  EXPECT_NE(error_of("clone=yes").find("device or share"), std::string::npos);
  EXPECT_NE(error_of("ro=1").find("ro=1"), std::string::npos);
  EXPECT_NE(error_of("commit").find("commit"), std::string::npos);
}

TEST(Sizes, AreParsedExactly) {
  EXPECT_EQ(parse_size("4096"), 4096U);
  EXPECT_EQ(parse_size("64K"), 65'536U);
  EXPECT_EQ(parse_size("64k"), 65'536U);
  EXPECT_EQ(parse_size("10G"), 10ULL << 30);
  EXPECT_EQ(parse_size("10GiB"), 10ULL << 30);
  EXPECT_EQ(parse_size("100T"), 100ULL << 40);
  EXPECT_EQ(parse_size("1.5G"), 3ULL << 29);
  for (const char* text : {"", "K", "-1", "1X", "1.5", "1 G", "0x10", "99999999999999999999",
                           "16777216T", "1e3K", "nan", "infG"}) {
    EXPECT_EQ(parse_size(text), std::nullopt) << text;
  }
}

TEST(Mounts, TheRootIsListed) {
  EXPECT_TRUE(mount_at("/").has_value());
  EXPECT_FALSE(mount_at("/no/such/mount").has_value());
  EXPECT_EQ(resolve_mount_point("/proc/self/../self/.."), "/proc");
  EXPECT_EQ(resolve_mount_point("/tmp/"), "/tmp");
  EXPECT_EQ(resolve_mount_point("/no/such/directory"), "");
}

}  // namespace
}  // namespace cofs
