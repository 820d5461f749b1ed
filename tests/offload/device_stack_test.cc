// What lies under a block device: on trees of sysfs and tables made up here, against a model that
// goes sector by sector, and on the machine's own device mapper where there is one.
#include "offload/device_stack.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

namespace files = std::filesystem;

constexpr uint64_t kSectorsPerBlock = kBlockBytes / 512;

dev_t device_number(const std::string& text) {
  unsigned major_number = 0;
  unsigned minor_number = 0;
  sscanf(text.c_str(), "%u:%u", &major_number, &minor_number);
  return makedev(major_number, minor_number);
}

// Tables as dmsetup shows them: "0 2048 linear 8:0 63", one target a line.
class FakeTables final : public DmTableReader {
 public:
  void set(const std::string& number, const std::string& text) {
    tables_[device_number(number)] = text;
  }
  std::expected<DmTable, std::string> table_of(dev_t device) override {
    auto found = tables_.find(device);
    if (found == tables_.end()) return std::unexpected("cannot read its table: Permission denied");
    DmTable table;
    std::istringstream lines(found->second);
    DmTarget target;
    while (lines >> target.first_sector >> target.sectors >> target.type) {
      std::getline(lines, target.parameters);
      if (target.parameters.starts_with(' ')) target.parameters.erase(0, 1);
      table.push_back(target);
    }
    return table;
  }

 private:
  std::map<dev_t, std::string> tables_;
};

// A sysfs of its own in a temporary directory.
class StackTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "cofs_stack_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    files::create_directories(root_ / "dev/block");
    files::create_directories(root_ / "bus/scsi/drivers/sd");
    files::create_directories(root_ / "bus/scsi/drivers/sr");
  }
  void TearDown() override { files::remove_all(root_); }

  void write(const files::path& path, const std::string& text) {
    files::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  files::path add_device(const std::string& path, const std::string& number, uint64_t sectors) {
    files::path whole = root_ / "devices" / path;
    write(whole / "dev", number);
    write(whole / "size", std::to_string(sectors));
    files::create_directory_symlink(files::path("../../devices") / path,
                                    root_ / "dev/block" / number);
    return whole;
  }
  void add_disk(const std::string& name, const std::string& number, uint64_t sectors,
                const std::string& lba_bytes = "512", const std::string& driver = "sd") {
    files::path path = add_device(name, number, sectors);
    write(path / "queue/logical_block_size", lba_bytes);
    if (!name.starts_with("sd") && !name.starts_with("sr")) return;
    files::create_directories(path / "device");
    files::create_directory_symlink(root_ / "bus/scsi/drivers" / driver, path / "device/driver");
  }
  void add_partition(const std::string& path, const std::string& number, uint64_t start,
                     uint64_t sectors) {
    files::path whole = add_device(path, number, sectors);
    write(whole / "partition", "1");
    write(whole / "start", std::to_string(start));
  }
  void add_mapped(const std::string& kernel_name, const std::string& number, uint64_t sectors,
                  const std::string& name, const std::string& table) {
    write(add_device(kernel_name, number, sectors) / "dm/name", name);
    tables_.set(number, table);
  }
  // Of `sectors`, as the target's own size; that of sysfs when 0.
  std::expected<DeviceStack, std::string> read(const std::string& number, uint64_t sectors = 0) {
    if (sectors == 0) std::ifstream(root_ / "dev/block" / number / "size") >> sectors;
    return read_device_stack(device_number(number), sectors * 512,
                             StackSources{root_.string(), &tables_});
  }
  std::string reason(const std::string& number, uint64_t sectors = 0) {
    auto stack = read(number, sectors);
    return stack ? "no reason" : stack.error();
  }

  files::path root_;
  FakeTables tables_;
};

void expect_region(const DeviceStack& stack, size_t index, BlockRange blocks, uint32_t disk,
                   uint64_t disk_byte) {
  ASSERT_LT(index, stack.regions.size());
  EXPECT_EQ(stack.regions[index].blocks, blocks) << "region " << index;
  EXPECT_EQ(stack.regions[index].disk, disk) << "region " << index;
  EXPECT_EQ(stack.regions[index].disk_byte, disk_byte) << "region " << index;
}

TEST_F(StackTest, WholeDisksAreOneRegion) {
  add_disk("nvme0n1", "259:0", 80'000, "4096");
  auto nvme = read("259:0");
  ASSERT_TRUE(nvme.has_value()) << nvme.error();
  ASSERT_EQ(nvme->disks.size(), 1U);
  EXPECT_EQ(nvme->disks[0].kind, DiskKind::kNvme);
  EXPECT_EQ(nvme->disks[0].name, "nvme0n1");
  EXPECT_EQ(nvme->disks[0].number, makedev(259, 0));
  EXPECT_EQ(nvme->disks[0].lba_bytes, 4096U);
  ASSERT_EQ(nvme->regions.size(), 1U);
  expect_region(*nvme, 0, {0, 10'000}, 0, 0);
  EXPECT_TRUE(nvme->copy_regions(10'000).empty());

  add_disk("sdb", "8:16", 80'007);  // the last block is not whole
  auto scsi = read("8:16");
  ASSERT_TRUE(scsi.has_value()) << scsi.error();
  EXPECT_EQ(scsi->disks[0].kind, DiskKind::kScsi);
  expect_region(*scsi, 0, {0, 10'000}, 0, 0);
  EXPECT_TRUE(scsi->copy_regions(10'000).empty());
}

TEST_F(StackTest, PartitionsAddTheirStart) {
  add_disk("nvme1n2", "259:3", 100'000);
  add_partition("nvme1n2/nvme1n2p1", "259:4", 63, 16'000);
  auto stack = read("259:4");
  ASSERT_TRUE(stack.has_value()) << stack.error();
  EXPECT_EQ(stack->disks[0].name, "nvme1n2");
  ASSERT_EQ(stack->regions.size(), 1U);
  expect_region(*stack, 0, {0, 2000}, 0, 63 * 512);
  EXPECT_TRUE(stack->copy_regions(2000).empty());
}

TEST_F(StackTest, LinearVolumeOverTwoDisks) {
  add_disk("nvme0n1", "259:0", 100'000);
  add_disk("nvme1n1", "259:1", 100'000);
  // The first piece ends in the middle of block 100.
  add_mapped("dm-0", "253:0", 1600, "vg0-data",
             "0 804 linear 259:0 2048\n804 796 linear 259:1 4\n");
  auto stack = read("253:0");
  ASSERT_TRUE(stack.has_value()) << stack.error();
  ASSERT_EQ(stack->disks.size(), 2U);
  ASSERT_EQ(stack->regions.size(), 2U);
  expect_region(*stack, 0, {0, 100}, 0, 2048 * 512);
  expect_region(*stack, 1, {101, 99}, 1, 8 * 512);

  auto regions = stack->copy_regions(200);
  ASSERT_EQ(regions.size(), 2U);
  EXPECT_EQ(regions[1].blocks, (BlockRange{101, 99}));
  EXPECT_EQ(regions[1].disk, 1U);
}

TEST_F(StackTest, LocateStaysWithinOneRegion) {
  DeviceStack stack;
  stack.disks.resize(2);
  stack.regions = {{{10, 5}, 1, 512}, {{15, 5}, 0, 1 << 20}, {{30, 10}, 1, 1 << 21}};
  auto byte_of = [&](BlockRange range) -> int64_t {
    auto found = stack.locate(range);
    return found ? static_cast<int64_t>(found->byte) : -1;
  };
  EXPECT_EQ(byte_of({9, 1}), -1);
  EXPECT_EQ(byte_of({9, 2}), -1);
  EXPECT_EQ(byte_of({10, 5}), 512);
  EXPECT_EQ(byte_of({12, 3}), 512 + 2 * 4096);
  EXPECT_EQ(byte_of({12, 4}), -1);
  EXPECT_EQ(byte_of({15, 5}), 1 << 20);
  EXPECT_EQ(byte_of({20, 1}), -1);
  EXPECT_EQ(byte_of({29, 2}), -1);
  EXPECT_EQ(byte_of({39, 1}), (1 << 21) + 9 * 4096);
  EXPECT_EQ(byte_of({40, 1}), -1);
  EXPECT_EQ(byte_of({UINT64_MAX, 1}), -1);
  EXPECT_EQ(byte_of({32, UINT64_MAX}), -1);
  EXPECT_EQ(stack.locate({31, 1})->disk, 1U);
}

TEST_F(StackTest, VolumesOnPartitionsAndOnVolumes) {
  add_disk("sda", "8:0", 1'000'000);
  add_partition("sda/sda1", "8:1", 2048, 100'000);
  add_partition("sda/sda2", "8:2", 200'000, 100'000);
  add_mapped("dm-0", "253:0", 16'000, "vg-lower", "0 8000 linear 8:2 800\n8000 8000 linear 8:1 0");
  add_mapped("dm-1", "253:1", 4000, "vg-upper", "0 4000 linear 253:0 6000");
  auto stack = read("253:1");
  ASSERT_TRUE(stack.has_value()) << stack.error();
  ASSERT_EQ(stack->disks.size(), 1U);
  ASSERT_EQ(stack->regions.size(), 2U);
  expect_region(*stack, 0, {0, 250}, 0, (200'000 + 800 + 6000) * 512);
  expect_region(*stack, 1, {250, 250}, 0, 2048 * 512);
}

TEST_F(StackTest, PiecesThatContinueEachOtherAreOne) {
  add_disk("sda", "8:0", 1'000'000);
  add_partition("sda/sda1", "8:1", 0, 2003);
  add_partition("sda/sda2", "8:2", 2003, 2000);
  // Two partitions that touch, and cut within a block; then the disk itself.
  add_mapped("dm-0", "253:0", 4000, "joined",
             "0 1003 linear 8:1 1000\n1003 2000 linear 8:2 0\n3003 997 linear 8:0 4003");
  auto stack = read("253:0");
  ASSERT_TRUE(stack.has_value()) << stack.error();
  ASSERT_EQ(stack->regions.size(), 1U);
  expect_region(*stack, 0, {0, 500}, 0, 1000 * 512);
}

TEST_F(StackTest, OtherDisksEndItByName) {
  const std::pair<const char*, const char*> others[] = {
      {"loop0", "loop0 is a loop device: no copy command"},
      {"md127", "md127 is a software RAID: no copy command"},
      {"zram1", "zram1 is a compressed RAM disk: no copy command"},
      {"nullb0", "nullb0 is a null_blk device: no copy command"},
      {"vda", "vda is a virtio disk: no copy command"},
      {"nbd3", "nbd3 is a network block device: no copy command"},
      {"sr0", "sr0 is an optical disc: no copy command"},
      {"nvme0c0n1", "nvme0c0n1 is a disk of an unknown kind: no copy command"},
      {"nvme0n", "nvme0n is a disk of an unknown kind: no copy command"},
      {"sdx", "sdx is a disk of an unknown kind: no copy command"},  // not by the driver sd
      {"strange", "strange is a disk of an unknown kind: no copy command"},
  };
  unsigned minor_number = 0;
  for (auto [name, expected] : others) {
    std::string number = fmt::format("7:{}", minor_number++);
    add_disk(name, number, 8000, "512", "sr");
    EXPECT_EQ(reason(number), expected);
  }
  add_partition("loop0/loop0p1", "259:9", 8, 800);
  EXPECT_EQ(reason("259:9"), "loop0 is a loop device: no copy command");
  add_mapped("dm-0", "253:0", 800, "vol", "0 800 linear 7:4 0");
  EXPECT_EQ(reason("253:0"), "vda is a virtio disk: no copy command");
}

TEST_F(StackTest, OtherMappingsEndItByType) {
  add_disk("sda", "8:0", 100'000);
  add_mapped("dm-0", "253:0", 800, "vg0-secret",
             "0 800 crypt aes-xts-plain64 :64:logon:cryptsetup:x 0 8:0 4096");
  EXPECT_EQ(reason("253:0"), "vg0-secret: dm-crypt transforms its data");
  add_mapped("dm-1", "253:1", 800, "fast", "0 800 striped 2 16 8:0 0 8:0 4096");
  EXPECT_EQ(reason("253:1"), "fast: dm-striped spreads its data");
  add_mapped("dm-2", "253:2", 1600, "half", "0 800 linear 8:0 0\n800 800 error");
  EXPECT_EQ(reason("253:2"), "half: dm-error is no linear mapping");
  // Seen through from above: what is below is named.
  add_mapped("dm-3", "253:3", 400, "upper", "0 400 linear 253:0 8");
  EXPECT_EQ(reason("253:3"), "vg0-secret: dm-crypt transforms its data");
}

TEST_F(StackTest, DisksOfDifferentKindsEndIt) {
  add_disk("sda", "8:0", 100'000);
  add_disk("nvme0n1", "259:0", 100'000);
  add_mapped("dm-0", "253:0", 1600, "mixed", "0 800 linear 8:0 0\n800 800 linear 259:0 0");
  EXPECT_EQ(reason("253:0"), "sda and nvme0n1 take different commands");
}

TEST_F(StackTest, TablesThatContradictEndIt) {
  add_disk("sda", "8:0", 100'000);
  unsigned minor_number = 0;
  auto reason_of = [&](const std::string& table) {
    std::string number = fmt::format("253:{}", minor_number);
    add_mapped(fmt::format("dm-{}", minor_number), number, 1600, "vol", table);
    minor_number++;
    return reason(number);
  };
  const std::string invalid = "vol: its table is not valid";
  EXPECT_EQ(reason_of("0 1600 linear 8:0 0"), "no reason");
  EXPECT_EQ(reason_of(""), "vol: its table is not as long as the device");
  EXPECT_EQ(reason_of("0 1592 linear 8:0 0"), "vol: its table is not as long as the device");
  EXPECT_EQ(reason_of("0 1608 linear 8:0 0"), invalid);
  EXPECT_EQ(reason_of("8 1592 linear 8:0 0"), invalid);
  EXPECT_EQ(reason_of("0 800 linear 8:0 0\n808 792 linear 8:0 4096"), invalid);  // a gap
  EXPECT_EQ(reason_of("0 800 linear 8:0 0\n792 808 linear 8:0 4096"), invalid);  // an overlap
  EXPECT_EQ(reason_of("800 800 linear 8:0 0\n0 800 linear 8:0 4096"), invalid);  // out of order
  EXPECT_EQ(reason_of("0 0 linear 8:0 0\n0 1600 linear 8:0 0"), invalid);
  EXPECT_EQ(reason_of("0 18446744073709551615 linear 8:0 0"), invalid);
  for (const char* parameters :
       {"", "8:0", "8:0 ", "8:0 x", "8:0 -1", "8:0 0 0", "8:0  0", "8:0 0x10", ":0 0", "8: 0",
        "8:0:0 0", "8:1048576 0", "4096:0 0", "/dev/sda 0", "8:0 18446744073709551615",
        "8:0 18446744073709551616", "8:0 36028797018963968"}) {
    EXPECT_EQ(reason_of(fmt::format("0 1600 linear {}", parameters)), invalid) << parameters;
  }
  EXPECT_EQ(reason_of("0 1600 linear 8:0 98401"), "sda: what is on it reaches beyond its end");
  EXPECT_EQ(reason_of("0 1600 linear 8:0 100001"), "sda: what is on it reaches beyond its end");
  EXPECT_EQ(reason_of("0 1600 linear 8:77 0"), "device 8:77 is not in sysfs");
  EXPECT_EQ(reason_of("0 800 linear 8:0 0\n800 800 linear 8:0 792"),
            "a part of sda is mapped twice");
  EXPECT_EQ(reason_of("0 800 linear 8:0 800\n800 800 linear 8:0 8"),
            "a part of sda is mapped twice");

  add_device("dm-99", "253:99", 1600);
  write(root_ / "devices/dm-99/dm/uuid", "");  // no name, and no table for us
  EXPECT_EQ(reason("253:99"), "dm-99: cannot read its table: Permission denied");
}

TEST_F(StackTest, CirclesEnd) {
  add_mapped("dm-0", "253:0", 1600, "one", "0 800 linear 253:1 800\n800 800 linear 253:1 0");
  add_mapped("dm-1", "253:1", 1600, "two", "0 800 linear 253:0 800\n800 800 linear 253:0 0");
  EXPECT_EQ(reason("253:0"), "too many devices upon each other");
}

TEST_F(StackTest, DeepStacksEndOnlyWhereTheyAreTooDeep) {
  add_disk("sda", "8:0", 1600);
  add_mapped("dm-0", "253:0", 1600, "dm-0", "0 1600 linear 8:0 0");
  for (int i = 1; i < 20; i++) {
    add_mapped(fmt::format("dm-{}", i), fmt::format("253:{}", i), 1600, "",
               fmt::format("0 1600 linear 253:{} 0", i - 1));
  }
  EXPECT_EQ(reason("253:15"), "no reason");
  EXPECT_EQ(reason("253:16"), "too many devices upon each other");
}

TEST_F(StackTest, TooManyPiecesEndIt) {
  add_disk("sda", "8:0", 10'000'000);
  std::string table;
  for (uint64_t i = 0; i < 70'000; i++) {
    table += fmt::format("{} 8 linear 8:0 {}\n", i * 8, i * 16);
  }
  add_mapped("dm-0", "253:0", 560'000, "crumbs", table);
  EXPECT_EQ(reason("253:0"), "the target lies in too many pieces");
}

TEST_F(StackTest, SysfsThatContradictsEndsIt) {
  EXPECT_EQ(reason("8:0", 8000), "device 8:0 is not in sysfs");
  add_disk("sda", "8:0", 80'000);
  EXPECT_EQ(reason("8:0", 8000), "sda: it has another size in sysfs");
  for (const char* size :
       {"", "0", "-8", "8000 ", "0x100", "36028797018963968", "99999999999999999999"}) {
    write(root_ / "devices/sda/size", size);
    EXPECT_EQ(reason("8:0", 8000), "sda: its size in sysfs is not valid") << size;
  }
  write(root_ / "devices/sda/size", "80000");
  for (const char* bytes : {"0", "256", "513", "1536", "8192"}) {
    write(root_ / "devices/sda/queue/logical_block_size", bytes);
    EXPECT_EQ(reason("8:0"), fmt::format("sda: logical blocks of {} bytes cannot be used", bytes));
  }
  write(root_ / "devices/sda/queue/logical_block_size", "4096");
  EXPECT_EQ(reason("8:0"), "no reason");

  add_partition("sda/sda1", "8:1", 8, 800);
  EXPECT_EQ(reason("8:1"), "no reason");
  for (const char* start : {"", "x", "-1", "36028797018963968"}) {
    write(root_ / "devices/sda/sda1/start", start);
    EXPECT_EQ(reason("8:1"), "sda1: its place in sysfs is not valid") << start;
  }
  write(root_ / "devices/sda/sda1/start", "79201");
  EXPECT_EQ(reason("8:1"), "sda: what is on it reaches beyond its end");
  write(root_ / "devices/sda/sda1/start", "63");
  EXPECT_EQ(reason("8:1"), "sda: a piece does not begin at a logical block");
  write(root_ / "devices/sda/sda1/start", "8");
  write(root_ / "devices/sda/dev", "none");
  EXPECT_EQ(reason("8:1"), "sda1: its place in sysfs is not valid");
}

TEST_F(StackTest, NoWholeBlockInOnePieceEndsIt) {
  add_disk("sda", "8:0", 80'000);
  std::string table;
  for (uint64_t i = 0; i < 100; i++) table += fmt::format("{} 7 linear 8:0 {}\n", i * 7, i * 16);
  add_mapped("dm-0", "253:0", 700, "crumbs", table);
  EXPECT_EQ(reason("253:0"), "no block of the target lies in one piece");
}

// Volumes on volumes on partitions, made at random; each knows where its sectors are, one by one.
class RandomStack {
 public:
  struct Sector {
    uint32_t disk = 0;
    uint64_t at = 0;
    bool continues(const Sector& before) const {
      return disk == before.disk && at == before.at + 1;
    }
  };
  struct Volume {
    std::string number;
    std::vector<Sector> sectors;
  };

  // Cuts what the volumes below have into pieces, puts these in any order, and deals them out to
  // new ones.
  std::vector<Volume> mapped_over(const std::vector<Volume>& below, uint64_t volumes,
                                  SimRandom& random, std::vector<std::string>& tables) {
    struct Cut {
      const Volume* on;
      uint64_t at;
      uint64_t count;
    };
    std::vector<Cut> cuts;
    for (const Volume& volume : below) {
      for (uint64_t at = 0; at < volume.sectors.size();) {
        uint64_t count = std::min<uint64_t>(random.between(1, 120), volume.sectors.size() - at);
        if (random.below(5) != 0) cuts.push_back(Cut{&volume, at, count});
        at += count;
      }
    }
    // Mostly in order, so that some pieces continue each other.
    for (size_t i = 1; i < cuts.size(); i++) {
      if (random.below(3) == 0) std::swap(cuts[i], cuts[random.below(i + 1)]);
    }
    std::vector<Volume> made(volumes);
    tables.assign(volumes, "");
    for (size_t i = 0; i < cuts.size(); i++) {
      size_t to = i * volumes / cuts.size();
      tables[to] += fmt::format("{} {} linear {} {}\n", made[to].sectors.size(), cuts[i].count,
                                cuts[i].on->number, cuts[i].at);
      auto first = cuts[i].on->sectors.begin() + static_cast<ptrdiff_t>(cuts[i].at);
      made[to].sectors.insert(made[to].sectors.end(), first,
                              first + static_cast<ptrdiff_t>(cuts[i].count));
    }
    return made;
  }
};

TEST_F(StackTest, EqualsTheSectorBySectorModel) {
  uint64_t inside = 0;
  uint64_t outside = 0;
  for (uint64_t seed = 0; seed < 100; seed++) {
    files::remove_all(root_);
    files::create_directories(root_ / "dev/block");
    tables_ = {};
    SimRandom random(seed);
    RandomStack model;
    std::vector<RandomStack::Volume> layer;
    uint64_t disks = random.between(1, 3);
    std::vector<std::string> names;
    for (uint64_t disk = 0; disk < disks; disk++) {
      uint64_t sectors = random.between(500, 3000);
      names.push_back(fmt::format("nvme{}n1", disk));
      std::string number = fmt::format("259:{}", disk * 10);
      add_disk(names.back(), number, sectors);
      uint64_t start = random.below(2) == 0 ? 0 : random.below(300);
      RandomStack::Volume volume{number, {}};
      if (start != 0) {
        volume.number = fmt::format("259:{}", disk * 10 + 1);
        sectors -= start;
        add_partition(fmt::format("nvme{}n1/nvme{}n1p1", disk, disk), volume.number, start,
                      sectors);
      }
      for (uint64_t i = 0; i < sectors; i++) {
        volume.sectors.push_back({static_cast<uint32_t>(disk), start + i});
      }
      layer.push_back(std::move(volume));
    }
    uint64_t layers = random.between(1, 3);
    unsigned minor_number = 0;
    for (uint64_t i = 0; i < layers; i++) {
      std::vector<std::string> tables;
      uint64_t volumes = i + 1 == layers ? 1 : random.between(1, 2);
      layer = model.mapped_over(layer, volumes, random, tables);
      for (size_t j = 0; j < layer.size(); j++) {
        layer[j].number = fmt::format("253:{}", minor_number);
        add_mapped(fmt::format("dm-{}", minor_number++), layer[j].number, layer[j].sectors.size(),
                   "", tables[j]);
      }
    }
    const std::vector<RandomStack::Sector>& sectors = layer.front().sectors;
    auto stack = read(layer.front().number);
    ASSERT_TRUE(stack.has_value()) << stack.error() << ", seed " << seed;
    for (size_t i = 1; i < stack->regions.size(); i++) {
      ASSERT_LE(stack->regions[i - 1].blocks.end(), stack->regions[i].blocks.start);
    }
    uint64_t blocks = sectors.size() / kSectorsPerBlock;
    ASSERT_LE(stack->regions.back().blocks.end(), blocks);
    for (uint64_t i = 0; i < 2 * blocks; i++) {
      // Every block, then ranges.
      BlockRange range{i, 1};
      if (i >= blocks) {
        range.start = random.below(blocks);
        range.count = random.between(1, std::min<uint64_t>(20, blocks - range.start));
      }
      uint64_t first = range.start * kSectorsPerBlock;
      bool in_one_piece = true;
      for (uint64_t s = first + 1; s < range.end() * kSectorsPerBlock; s++) {
        in_one_piece = in_one_piece && sectors[s].continues(sectors[s - 1]);
      }
      auto location = stack->locate(range);
      ASSERT_EQ(location.has_value(), in_one_piece) << "seed " << seed << " block " << range.start;
      (in_one_piece ? inside : outside) += 1;
      if (!location) continue;
      ASSERT_EQ(location->byte, sectors[first].at * 512) << "seed " << seed;
      ASSERT_EQ(stack->disks[location->disk].name, names[sectors[first].disk]) << "seed " << seed;
    }
  }
  EXPECT_GT(inside, 10'000U);  // the seeds show both
  EXPECT_GT(outside, 10'000U);
}

}  // namespace
}  // namespace cofs
