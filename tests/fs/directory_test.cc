// Directory entry records: hashes, cookies, chains, and what is refused.
#include "fs/directory.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

constexpr uint64_t kGoldenLostFound = 0x4292ef1fd80c8530;
constexpr uint64_t kGoldenReadme = 0x7bf3fdc165374a60;

Key key_of(uint64_t directory, std::string_view name, uint16_t n) {
  return Key::dirent(directory, name_hash(name), n);
}

TEST(Directory, HashesLeaveRoomForChainAndSign) {
  std::set<uint64_t> hashes;
  for (int i = 0; i < 50'000; i++) {
    const uint64_t hash = name_hash("name" + std::to_string(i));
    EXPECT_EQ(hash % kEntryChainMax, 0U);
    EXPECT_GT(hash, kCookieDotDot);
    EXPECT_LE(hash + kEntryChainMax - 1, static_cast<uint64_t>(INT64_MAX));
    hashes.insert(hash);
  }
  EXPECT_EQ(hashes.size(), 50'000U);
}

TEST(Directory, HashIsPartOfTheFormat) {
  // Entries on existing volumes are found by these values: they must never change.
  EXPECT_EQ(name_hash("a"), name_hash("a"));
  EXPECT_NE(name_hash("a"), name_hash("b"));
  EXPECT_EQ(name_hash("lost+found"), kGoldenLostFound);
  EXPECT_EQ(name_hash("README.md"), kGoldenReadme);
}

TEST(Directory, NamesAreChecked) {
  const auto code = [](std::string_view name) {
    auto checked = check_name(name);
    return checked ? Code::kStale : checked.error().code;
  };
  EXPECT_EQ(code(""), Code::kNoEntry);
  EXPECT_EQ(code(std::string(255, 'x')), Code::kStale);
  EXPECT_EQ(code(std::string(256, 'x')), Code::kNameTooLong);
  EXPECT_EQ(code("a/b"), Code::kInvalid);
  EXPECT_EQ(code(std::string_view("a\0b", 3)), Code::kInvalid);
  EXPECT_EQ(code("\xff\x80 \n"), Code::kStale) << "names are bytes";
}

TEST(Directory, TypesAreThoseOfReaddir) {
  EXPECT_EQ(entry_type(S_IFREG | 0644), DT_REG);
  EXPECT_EQ(entry_type(S_IFDIR), DT_DIR);
  EXPECT_EQ(entry_type(S_IFLNK | 0777), DT_LNK);
  EXPECT_EQ(entry_type(S_IFSOCK), DT_SOCK);
}

TEST(Directory, RecordsRoundTripAndMutationsAreRefused) {
  SimRandom random(11);
  for (int i = 0; i < 2000; i++) {
    std::string name(1 + random.below(255), 'x');
    for (char& c : name) {
      do {
        c = static_cast<char>(random.next());
      } while (c == '/' || c == '\0');
    }
    if (is_dot_name(name)) continue;
    const Key key = key_of(7, name, static_cast<uint16_t>(random.below(kEntryChainMax)));
    std::vector<std::byte> value = encode_entry(name, 42 + static_cast<uint64_t>(i), DT_FIFO);
    auto record = decode_entry(key, value);
    ASSERT_TRUE(record);
    EXPECT_EQ(record->name, name);
    EXPECT_EQ(record->ino, 42 + static_cast<uint64_t>(i));
    EXPECT_EQ(record->type, DT_FIFO);

    // Anything but the inode number and a still known type is noticed.
    const size_t at = random.below(value.size());
    const std::byte before = value[at];
    value[at] ^= static_cast<std::byte>(1U << random.below(8));
    auto changed = decode_entry(key, value);
    if (at >= 9) {
      EXPECT_FALSE(changed) << "byte " << at;
    }
    value[at] = before;
    value.pop_back();
    EXPECT_FALSE(decode_entry(key, value));
  }
  EXPECT_FALSE(decode_entry(key_of(7, "x", kEntryChainMax), encode_entry("x", 5, DT_REG)));
  EXPECT_FALSE(decode_entry(key_of(7, ".", 0), encode_entry(".", 5, DT_DIR)));
  EXPECT_FALSE(decode_entry(key_of(7, "x", 0), encode_entry("x", 0, DT_REG)));
  EXPECT_FALSE(decode_entry(key_of(7, "x", 0), encode_entry("x", 5, DT_UNKNOWN)));
}

TEST(Directory, ChainFindsTheFirstGap) {
  EntryChain chain("wanted");
  EXPECT_EQ(chain.slot().n, 0);
  for (const uint16_t n : {uint16_t{0}, uint16_t{1}, uint16_t{3}}) {
    auto more = chain.add(key_of(7, "other", n), encode_entry("other", 5, DT_REG));
    ASSERT_TRUE(more);
    EXPECT_TRUE(*more);
  }
  EXPECT_FALSE(chain.slot().found);
  EXPECT_EQ(chain.slot().n, 2);
  EXPECT_FALSE(chain.slot().full());
}

TEST(Directory, ChainFindsTheNameBehindGaps) {
  EntryChain chain("wanted");
  ASSERT_TRUE(chain.add(key_of(7, "other", 2), encode_entry("other", 5, DT_REG)));
  auto more = chain.add(key_of(7, "wanted", 9), encode_entry("wanted", 6, DT_DIR));
  ASSERT_TRUE(more);
  EXPECT_FALSE(*more);
  EXPECT_TRUE(chain.slot().found);
  EXPECT_EQ(chain.slot().n, 9);
  EXPECT_EQ(chain.slot().ino, 6U);
  EXPECT_EQ(chain.slot().key(7), key_of(7, "wanted", 9));
}

TEST(Directory, ChainCanBeFull) {
  EntryChain chain("wanted");
  for (uint16_t n = 0; n < kEntryChainMax; n++) {
    ASSERT_TRUE(chain.add(key_of(7, "other", n), encode_entry("other", 5, DT_REG)));
  }
  EXPECT_TRUE(chain.slot().full());
}

}  // namespace
}  // namespace cofs
