// The kernel's answers about tables, made by hand and damaged; and the machine's own device mapper
// where there is one.
#include "offload/device_mapper.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/dm-ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "offload/device_stack.h"
#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

// The kernel's answer, made by hand: per line 40 bytes and a text, each line at a multiple of 8.
class DmAnswer {
 public:
  void add(uint64_t first, uint64_t sectors, const char* type, const char* parameters,
           bool terminated = true) {
    dm_target_spec spec{};
    spec.sector_start = first;
    spec.length = sectors;
    strncpy(spec.target_type, type, sizeof(spec.target_type) - 1);
    size_t text_bytes = strlen(parameters) + (terminated ? 1 : 0);
    last_ = bytes.size();
    size_t next = last_ + sizeof(spec) + text_bytes;
    if (terminated) next = (next + 7) / 8 * 8;
    spec.next = static_cast<uint32_t>(next);
    bytes.resize(next);
    memcpy(bytes.data() + last_, &spec, sizeof(spec));
    memcpy(bytes.data() + last_ + sizeof(spec), parameters, text_bytes);
  }
  void set_next(uint32_t next) {
    memcpy(bytes.data() + last_ + offsetof(dm_target_spec, next), &next, sizeof(next));
  }

  std::vector<std::byte> bytes;

 private:
  size_t last_ = 0;
};

TEST(DmTableTest, IsTakenApart) {
  DmAnswer answer;
  answer.add(0, 2048, "linear", "8:16 2048");
  answer.add(2048, 77, "crypt", "aes 0 8:0 1");
  answer.add(2125, 1, "zero", "");
  auto table = parse_dm_table(answer.bytes, 3);
  ASSERT_TRUE(table.has_value()) << table.error();
  ASSERT_EQ(table->size(), 3U);
  EXPECT_EQ((*table)[0].first_sector, 0U);
  EXPECT_EQ((*table)[0].sectors, 2048U);
  EXPECT_EQ((*table)[0].type, "linear");
  EXPECT_EQ((*table)[0].parameters, "8:16 2048");
  EXPECT_EQ((*table)[1].first_sector, 2048U);
  EXPECT_EQ((*table)[1].type, "crypt");
  EXPECT_EQ((*table)[2].parameters, "");
  EXPECT_EQ(parse_dm_table({}, 0)->size(), 0U);
}

TEST(DmTableTest, MalformedAnswersAreRefused) {
  DmAnswer answer;
  answer.add(0, 2048, "linear", "8:16 2048");
  answer.add(2048, 2048, "linear", "8:16 12345678");  // 13 + 1 bytes, padded to 16
  for (size_t bytes = 0; bytes < answer.bytes.size() - 2; bytes++) {
    // At its true size, so that a look beyond the end is noticed.
    std::vector<std::byte> cut(answer.bytes.begin(),
                               answer.bytes.begin() + static_cast<ptrdiff_t>(bytes));
    EXPECT_FALSE(parse_dm_table(cut, 2).has_value()) << bytes;
  }
  EXPECT_FALSE(parse_dm_table(answer.bytes, 3).has_value());
  EXPECT_FALSE(parse_dm_table(answer.bytes, UINT32_MAX).has_value());

  for (uint32_t next : {0U, 8U, 0x7fffffffU, 0xffffffffU}) {
    DmAnswer jumps;
    jumps.add(0, 8, "linear", "8:16 0");
    jumps.add(8, 8, "linear", "8:16 8");
    jumps.set_next(next);
    jumps.add(16, 8, "linear", "8:16 16");
    EXPECT_FALSE(parse_dm_table(jumps.bytes, 3).has_value()) << next;
  }

  DmAnswer unterminated;
  unterminated.add(0, 8, "linear", "8:16 0", false);
  EXPECT_FALSE(parse_dm_table(unterminated.bytes, 1).has_value());
  DmAnswer long_type;
  long_type.add(0, 8, "linear", "8:16 0");
  memset(long_type.bytes.data() + offsetof(dm_target_spec, target_type), 'x', DM_MAX_TYPE_NAME);
  EXPECT_FALSE(parse_dm_table(long_type.bytes, 1).has_value());
}

TEST(DmTableTest, DamagedAnswersAreSurvived) {
  DmAnswer answer;
  for (uint64_t i = 0; i < 5; i++) answer.add(i * 8, 8, "linear", "8:16 2048");
  for (uint64_t seed = 0; seed < 20'000; seed++) {
    SimRandom random(seed);
    std::vector<std::byte> bytes = answer.bytes;
    for (uint64_t i = random.between(1, 6); i > 0; i--) {
      bytes[random.below(bytes.size())] = static_cast<std::byte>(random.below(256));
    }
    auto table = parse_dm_table(bytes, static_cast<uint32_t>(random.below(7)));
    if (table) {
      ASSERT_LE(table->size(), 6U);
    }
  }
}

// The first line that a command prints; nothing when it fails.
std::optional<std::string> output_of(const std::string& command) {
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  char line[256] = "";
  bool got = fscanf(pipe, "%255s", line) == 1;
  int status = pclose(pipe);
  if (status != 0) return std::nullopt;
  return got ? line : "";
}

// On the machine's device mapper, over two loop devices.
class LiveMapperTest : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    std::ifstream misc("/proc/misc");
    std::string all((std::istreambuf_iterator<char>(misc)), std::istreambuf_iterator<char>());
    if (all.find(" device-mapper\n") == std::string::npos) {
      GTEST_SKIP() << "the kernel has no device mapper";
    }
    if (!output_of("command -v dmsetup")) GTEST_SKIP() << "dmsetup is not installed";
    std::string pattern = testing::TempDir() + "cofs_mapper_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    for (std::string& loop : loops_) {
      std::string image = fmt::format("{}/image{}", directory_, &loop - loops_);
      ASSERT_TRUE(create_image(image, 16 << 20));
      auto name = output_of(fmt::format("losetup --find --show '{}'", image));
      if (!name) GTEST_SKIP() << "no loop device to be had";
      loop = *name;
    }
  }
  void TearDown() override {
    for (const std::string& name : made_) {
      EXPECT_TRUE(output_of(fmt::format("dmsetup remove --retry --noudevsync {}", name)));
    }
    for (const std::string& loop : loops_) {
      if (!loop.empty()) {
        EXPECT_TRUE(output_of("losetup -d " + loop));
      }
    }
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }
  // "7:0" of a loop device.
  std::string number_of(int loop) {
    struct stat status {};
    EXPECT_EQ(stat(loops_[loop].c_str(), &status), 0);
    return fmt::format("{}:{}", major(status.st_rdev), minor(status.st_rdev));
  }
  // The device's path.
  std::string make(const std::string& suffix, const std::string& table) {
    std::string name = fmt::format("cofs-test-{}-{}", getpid(), suffix);
    std::string file = directory_ + "/table";
    std::ofstream(file) << table;
    EXPECT_TRUE(output_of(fmt::format("dmsetup create --noudevsync {} '{}'", name, file)));
    made_.insert(made_.begin(), name);  // removed from the top
    EXPECT_TRUE(output_of(fmt::format("dmsetup mknodes --noudevsync {}", name)));
    return "/dev/mapper/" + name;
  }
  std::string reason(const std::string& path) {
    auto target = open_target(path, TargetMode::kReadOnly, std::chrono::milliseconds(500));
    if (!target) return describe(target.error());
    auto stack = read_device_stack(*target);
    return stack ? "no reason" : stack.error();
  }
  static std::expected<DmTable, std::string> table_of(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(stat(path.c_str(), &status), 0);
    return DeviceMapper().table_of(status.st_rdev);
  }

  std::string directory_;
  std::string loops_[2];
  std::vector<std::string> made_;
};

TEST_F(LiveMapperTest, LinearOverLoopDevicesNamesTheLoopDevice) {
  std::string path = make("linear", fmt::format("0 8192 linear {} 2048\n8192 4096 linear {} 8\n",
                                                number_of(0), number_of(1)));
  auto table = table_of(path);
  ASSERT_TRUE(table.has_value()) << table.error();
  ASSERT_EQ(table->size(), 2U);
  EXPECT_EQ((*table)[1].first_sector, 8192U);
  EXPECT_EQ((*table)[1].sectors, 4096U);
  EXPECT_EQ((*table)[1].type, "linear");
  EXPECT_EQ((*table)[1].parameters, number_of(1) + " 8");

  std::string loop = loops_[0].substr(loops_[0].rfind('/') + 1);
  std::string expected = loop + " is a loop device: no copy command";
  EXPECT_EQ(reason(path), expected);
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  std::string upper = make("upper", fmt::format("0 100 linear {}:{} 16\n", major(status.st_rdev),
                                                minor(status.st_rdev)));
  EXPECT_EQ(reason(upper), expected);
}

TEST_F(LiveMapperTest, OtherTypesAreNamed) {
  std::string path =
      make("striped", fmt::format("0 800 striped 2 16 {} 0 {} 0\n", number_of(0), number_of(1)));
  std::string name = path.substr(path.rfind('/') + 1);
  EXPECT_EQ(reason(path), name + ": dm-striped spreads its data");
}

// More than fits into the first answer.
TEST_F(LiveMapperTest, LongTablesAreReadWhole) {
  std::string text;
  for (uint64_t i = 0; i < 1000; i++) {
    text += fmt::format("{} 8 linear {} {}\n", i * 8, number_of(i % 2 == 0 ? 0 : 1), i * 16);
  }
  auto table = table_of(make("long", text));
  ASSERT_TRUE(table.has_value()) << table.error();
  ASSERT_EQ(table->size(), 1000U);
  EXPECT_EQ(table->back().first_sector, 7992U);
  EXPECT_EQ(table->back().parameters, number_of(1) + " 15984");
}

}  // namespace
}  // namespace cofs
