// ACLs: parsing, and their tie to mode bits, against plain restatements of the POSIX.1e rules.
#include "fs/acl.h"

#include <gtest/gtest.h>

#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

using Entry = Acl::Entry;

Acl minimal(uint16_t owner, uint16_t group, uint16_t other) {
  Acl acl;
  acl.add(Entry(Acl::kUserObj, owner, UINT32_MAX));
  acl.add(Entry(Acl::kGroupObj, group, UINT32_MAX));
  acl.add(Entry(Acl::kOther, other, UINT32_MAX));
  return acl;
}

Acl extended(uint16_t owner, uint16_t user, uint16_t group, uint16_t mask, uint16_t other) {
  Acl acl;
  acl.add(Entry(Acl::kUserObj, owner, UINT32_MAX));
  acl.add(Entry(Acl::kUser, user, 1000));
  acl.add(Entry(Acl::kGroupObj, group, UINT32_MAX));
  acl.add(Entry(Acl::kMask, mask, UINT32_MAX));
  acl.add(Entry(Acl::kOther, other, UINT32_MAX));
  return acl;
}

uint16_t permissions(const Acl& acl, uint16_t tag) {
  for (const Entry& entry : acl.entries()) {
    if (entry.tag == tag) return entry.permissions;
  }
  return 0xffff;
}

TEST(Acl, ParsesWhatItSerializes) {
  const Acl acl = extended(7, 6, 5, 4, 0);
  auto parsed = Acl::parse(acl.serialize());
  ASSERT_TRUE(parsed);
  ASSERT_EQ(parsed->entries().size(), 5U);
  EXPECT_EQ(parsed->serialize(), acl.serialize());
  EXPECT_EQ(parsed->entries()[1].id, 1000U);
}

TEST(Acl, BytesAreLinuxs) {
  // The value that setfacl -m u::rw,g::r,o::- makes on a little-endian machine.
  const unsigned char expected[] = {2,    0,    0,    0,    1,    0, 6, 0, 0xff, 0xff,
                                    0xff, 0xff, 4,    0,    4,    0, 0xff, 0xff, 0xff, 0xff,
                                    0x20, 0,    0,    0,    0xff, 0xff, 0xff, 0xff};
  EXPECT_EQ(minimal(6, 4, 0).serialize(),
            std::string(reinterpret_cast<const char*>(expected), sizeof(expected)));
}

TEST(Acl, RefusesWhatTheKernelRefuses) {
  const auto code = [](const std::string& value) {
    auto parsed = Acl::parse(value);
    return parsed ? Code::kStale : parsed.error().code;
  };
  const std::string good = extended(7, 6, 5, 4, 0).serialize();
  EXPECT_EQ(code(""), Code::kInvalid);
  EXPECT_EQ(code(good.substr(0, 3)), Code::kInvalid);
  EXPECT_EQ(code(good.substr(0, good.size() - 1)), Code::kInvalid);
  EXPECT_EQ(code(good.substr(0, good.size() - 8)), Code::kInvalid) << "no kOther";
  std::string other_version = good;
  other_version[0] = 1;
  EXPECT_EQ(code(other_version), Code::kNotSupported);
  Acl no_mask;
  no_mask.add(Entry(Acl::kUserObj, 7, 0));
  no_mask.add(Entry(Acl::kUser, 7, 5));
  no_mask.add(Entry(Acl::kGroupObj, 7, 0));
  no_mask.add(Entry(Acl::kOther, 7, 0));
  EXPECT_EQ(code(no_mask.serialize()), Code::kInvalid);
  Acl order;
  order.add(Entry(Acl::kGroupObj, 7, 0));
  order.add(Entry(Acl::kUserObj, 7, 0));
  order.add(Entry(Acl::kOther, 7, 0));
  EXPECT_EQ(code(order.serialize()), Code::kInvalid);
  EXPECT_EQ(code(minimal(8, 0, 0).serialize()), Code::kInvalid);
  auto empty = Acl::parse(good.substr(0, 4));
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->empty());
}

TEST(Acl, MutatedBytesNeverCrash) {
  const std::string good = extended(7, 6, 5, 4, 0).serialize();
  SimRandom random(5);
  int accepted = 0;
  for (int i = 0; i < 20'000; i++) {
    std::string bytes = good;
    const uint64_t changes = 1 + random.below(3);
    for (uint64_t k = 0; k < changes; k++) {
      bytes[random.below(bytes.size())] = static_cast<char>(random.next());
    }
    if (random.below(4) == 0) bytes.resize(random.below(bytes.size() + 1));
    auto parsed = Acl::parse(bytes);
    if (!parsed) continue;
    accepted++;
    auto again = Acl::parse(parsed->serialize());
    ASSERT_TRUE(again);
    EXPECT_EQ(again->serialize(), parsed->serialize());
  }
  EXPECT_GT(accepted, 0);
}

TEST(Acl, ModeBitsShowTheMask) {
  EXPECT_EQ(minimal(7, 5, 4).mode_bits(), 0754U);
  EXPECT_TRUE(minimal(7, 5, 4).equals_mode());
  EXPECT_EQ(extended(7, 6, 5, 4, 0).mode_bits(), 0740U);
  EXPECT_FALSE(extended(7, 6, 5, 4, 0).equals_mode());
}

TEST(Acl, ChmodChangesMaskNotGroup) {
  Acl acl = extended(7, 6, 5, 4, 0);
  acl.apply_mode(0623);
  EXPECT_EQ(permissions(acl, Acl::kUserObj), 6);
  EXPECT_EQ(permissions(acl, Acl::kUser), 6);
  EXPECT_EQ(permissions(acl, Acl::kGroupObj), 5);
  EXPECT_EQ(permissions(acl, Acl::kMask), 2);
  EXPECT_EQ(permissions(acl, Acl::kOther), 3);
  EXPECT_EQ(acl.mode_bits(), 0623U);
  Acl small = minimal(7, 7, 7);
  small.apply_mode(0640);
  EXPECT_EQ(permissions(small, Acl::kGroupObj), 4);
}

TEST(Acl, CreationTakesTheIntersection) {
  for (uint32_t mode = 0; mode < 01000; mode++) {
    Acl acl = extended(7, 6, 5, 4, 1);
    EXPECT_EQ(acl.create(02000 | mode), 02000 | (mode & 0741U));
    EXPECT_EQ(permissions(acl, Acl::kGroupObj), 5);
    EXPECT_EQ(permissions(acl, Acl::kUser), 6);
    EXPECT_EQ(acl.mode_bits(), mode & 0741U);
    Acl small = minimal(6, 5, 4);
    EXPECT_EQ(small.create(mode), mode & 0654U);
    EXPECT_TRUE(small.equals_mode());
  }
}

TEST(Acl, PermissionsAreThoseOfTheFirstClass) {
  constexpr uint16_t kRead = 4;
  constexpr uint16_t kWrite = 2;
  constexpr uint32_t kOwner = 10;
  constexpr uint32_t kGroup = 20;
  Caller in_group(99, kGroup, 0);
  Caller by_supplement(99, 1, 0);
  by_supplement.groups = {kGroup};
  const Caller stranger(99, 1, 0);
  const Acl small = minimal(4, 2, 6);
  EXPECT_TRUE(small.permits(kRead, kOwner, kGroup, Caller(kOwner, kGroup, 0)));
  EXPECT_FALSE(small.permits(kWrite, kOwner, kGroup, Caller(kOwner, kGroup, 0)));  // not as a group
  EXPECT_TRUE(small.permits(kWrite, kOwner, kGroup, in_group));
  EXPECT_TRUE(small.permits(kWrite, kOwner, kGroup, by_supplement));
  EXPECT_FALSE(small.permits(kRead, kOwner, kGroup, in_group));  // not as others
  EXPECT_TRUE(small.permits(kRead | kWrite, kOwner, kGroup, stranger));
  // The mask limits the named user and the group, not the others.
  const Acl masked = extended(7, 6, 6, 4, 6);
  uint32_t named = 0;
  for (const Acl::Entry& entry : masked.entries()) {
    if (entry.tag == Acl::kUser) named = entry.id;
  }
  EXPECT_TRUE(masked.permits(kRead, kOwner, kGroup, Caller(named, 1, 0)));
  EXPECT_FALSE(masked.permits(kWrite, kOwner, kGroup, Caller(named, 1, 0)));
  EXPECT_FALSE(masked.permits(kWrite, kOwner, kGroup, in_group));
  EXPECT_TRUE(masked.permits(kWrite, kOwner, kGroup, stranger));
}

}  // namespace
}  // namespace cofs
