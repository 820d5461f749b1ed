// The namespace operations through FileSystem: what POSIX and Linux say about each, against a simulated
// device; then many at once; then what fsck finds and mends.
#include <gtest/gtest.h>

#include <dirent.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <set>

#include "blockmap/volume.h"
#include "fs/acl.h"
#include "fs/directory.h"
#include "fs/xattr.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kDeviceBlocks = 16'384;
constexpr uint64_t kRoot = ondisk::kRootInode;
constexpr uint32_t kNoReplace = static_cast<uint32_t>(RenameFlags::kNoReplace);
constexpr uint32_t kExchange = static_cast<uint32_t>(RenameFlags::kExchange);
constexpr uint32_t kWhiteout = static_cast<uint32_t>(RenameFlags::kWhiteout);

// kStale stands for "no error" below: no operation on names answers it.
template <class T>
Code code_of(const Result<T>& result) {
  return result ? Code::kStale : result.error().code;
}
constexpr Code kOk = Code::kStale;

class NamesTest : public testing::Test {
 protected:
  NamesTest() { start(VolumeOptions()); }

  void start(VolumeOptions options) {
    options.store.background = false;
    options.device_blocks = kDeviceBlocks;
    options_ = options;
    SimImage image = TestVolume::formatted(21, options_);
    volume_ = std::make_unique<TestVolume>(21, std::move(image), options_);
    COFS_ASSERT(volume_->open());
  }
  void remount() {
    ASSERT_TRUE(volume_->close());
    SimImage image = volume_->device.image();
    volume_ = std::make_unique<TestVolume>(22, std::move(image), options_);
    ASSERT_TRUE(volume_->open());
    volume_->settle();
  }
  void expect_clean() { EXPECT_EQ(volume_->verify(false), ""); }
  FileSystem& fs() { return volume_->fs(); }
  template <class T>
  T run(Task<T> task) {
    return volume_->run(std::move(task));
  }
  void run(Task<void> task) { volume_->run(std::move(task)); }

  uint64_t make_file(uint64_t parent, const std::string& name) {
    bool created = false;
    auto made = run(fs().create(parent, name, 0644, root_, true, &created));
    EXPECT_TRUE(made && created) << name;
    return made ? made->ino : 0;
  }
  uint64_t make_directory(uint64_t parent, const std::string& name) {
    auto made = run(fs().make_directory(parent, name, 0755, root_));
    EXPECT_TRUE(made) << name;
    return made ? made->ino : 0;
  }
  Result<> rename(uint64_t from, const std::string& name, uint64_t to, const std::string& new_name,
                  uint32_t flags = 0) {
    return run(fs().rename(from, name, to, new_name, flags));
  }
  Result<Attributes> lookup(uint64_t parent, const std::string& name) {
    return run(fs().lookup(parent, name));
  }
  uint64_t ino_of(uint64_t parent, const std::string& name) {
    auto found = lookup(parent, name);
    return found ? found->ino : 0;
  }
  Attributes stat(uint64_t ino) {
    auto attributes = run(fs().get_attributes(ino));
    EXPECT_TRUE(attributes) << ino;
    return attributes ? *attributes : Attributes();
  }
  Result<> set_xattr(uint64_t ino, const std::string& name, const std::string& value) {
    return run(fs().set_xattr(ino, name, value, false, false, root_));
  }
  Result<std::string> get_xattr(uint64_t ino, const std::string& name) {
    return run(fs().get_xattr(ino, name));
  }
  std::vector<std::string> list(uint64_t directory, uint64_t batch) {
    std::vector<std::string> names;
    uint64_t cookie = 0;
    for (;;) {
      auto entries = run(fs().read_directory(directory, cookie, batch));
      EXPECT_TRUE(entries);
      if (!entries || entries->empty()) return names;
      for (const DirectoryEntry& entry : *entries) {
        EXPECT_GT(entry.cookie, cookie);
        cookie = entry.cookie;
        names.push_back(entry.name);
      }
    }
  }

  const Caller root_{0, 0, 022};
  VolumeOptions options_;
  std::unique_ptr<TestVolume> volume_;
};

TEST_F(NamesTest, RootOfAFreshVolume) {
  const Attributes root = stat(kRoot);
  EXPECT_EQ(root.mode, S_IFDIR | 0755U);
  EXPECT_EQ(root.nlink, 2U);
  EXPECT_EQ(root.size, 0U);
  EXPECT_EQ(ino_of(kRoot, ".."), kRoot);
  EXPECT_EQ(list(kRoot, 10), (std::vector<std::string>{".", ".."}));
  expect_clean();
}

// A file handle that the kernel has forgotten is looked up so.
TEST_F(NamesTest, DotNamesTheInodeItself) {
  const uint64_t file = make_file(kRoot, "file");
  const uint64_t directory = make_directory(kRoot, "d");
  EXPECT_EQ(ino_of(file, "."), file);
  EXPECT_EQ(ino_of(directory, "."), directory);
  EXPECT_EQ(code_of(lookup(file, "..")), Code::kNotDirectory);
  EXPECT_EQ(code_of(lookup(12345, ".")), Code::kStale);
  ASSERT_TRUE(run(fs().unlink(kRoot, "file")));
  EXPECT_EQ(code_of(lookup(file, ".")), Code::kStale);
}

TEST_F(NamesTest, CreateLookupReadDirectory) {
  std::set<std::string> expected = {".", ".."};
  const uint64_t directory = make_directory(kRoot, "d");
  for (int i = 0; i < 300; i++) {
    make_file(directory, fmt::format("file{}", i));
    expected.insert(fmt::format("file{}", i));
  }
  for (uint64_t batch : {uint64_t{1}, uint64_t{7}, uint64_t{1000}}) {
    const auto names = list(directory, batch);
    EXPECT_EQ(names.size(), expected.size());
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), expected);
  }
  EXPECT_EQ(stat(directory).size, 300U);
  EXPECT_EQ(code_of(lookup(directory, "file300")), Code::kNoEntry);
  EXPECT_EQ(code_of(lookup(ino_of(directory, "file0"), "x")), Code::kNotDirectory);
  EXPECT_EQ(code_of(lookup(directory, "")), Code::kNoEntry);
  EXPECT_EQ(code_of(lookup(directory, std::string(256, 'n'))), Code::kNameTooLong);
  expect_clean();
  remount();
  EXPECT_EQ(list(ino_of(kRoot, "d"), 50).size(), expected.size());
  expect_clean();
}

TEST_F(NamesTest, CreateTwice) {
  const uint64_t ino = make_file(kRoot, "f");
  bool created = true;
  auto again = run(fs().create(kRoot, "f", 0600, root_, false, &created));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->ino, ino);
  EXPECT_FALSE(created);
  EXPECT_EQ(code_of(run(fs().create(kRoot, "f", 0600, root_, true, &created))), Code::kExists);
  make_directory(kRoot, "d");
  EXPECT_EQ(code_of(run(fs().create(kRoot, "d", 0600, root_, false, &created))),
            Code::kIsDirectory);
  EXPECT_EQ(code_of(run(fs().create(kRoot, ".", 0600, root_, false, &created))), Code::kExists);
}

TEST_F(NamesTest, OwnersModesAndSetgidDirectories) {
  const Caller user(1000, 100, 027);
  bool created = false;
  auto file = run(fs().create(kRoot, "f", 06777, user, true, &created));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->mode, S_IFREG | 06750U);
  EXPECT_EQ(file->uid, 1000U);
  EXPECT_EQ(file->gid, 100U);
  const uint64_t directory = make_directory(kRoot, "d");
  AttributeChange change;
  change.mode = 02775;
  change.gid = 500;
  ASSERT_TRUE(run(fs().set_attributes(directory, change, root_)));
  auto inside = run(fs().create(directory, "f", 0666, user, true, &created));
  ASSERT_TRUE(inside);
  EXPECT_EQ(inside->gid, 500U);
  EXPECT_EQ(inside->mode, S_IFREG | 0640U);
  auto sub = run(fs().make_directory(directory, "sub", 0777, user));
  ASSERT_TRUE(sub);
  EXPECT_EQ(sub->mode, S_IFDIR | 02750U);
  EXPECT_EQ(sub->gid, 500U);
}

TEST_F(NamesTest, NodesAndSymlinks) {
  auto device = run(fs().make_node(kRoot, "c", S_IFCHR | 0600, 0x1234'0000'0005, root_));
  ASSERT_TRUE(device);
  EXPECT_EQ(device->rdev, 0x1234'0000'0005U);
  auto fifo = run(fs().make_node(kRoot, "p", S_IFIFO | 0600, 77, root_));
  ASSERT_TRUE(fifo);
  EXPECT_EQ(fifo->rdev, 0U);
  EXPECT_EQ(code_of(run(fs().make_node(kRoot, "x", S_IFDIR | 0600, 0, root_))), Code::kInvalid);
  for (size_t length : {size_t{1}, size_t{2048}, size_t{2049}, size_t{4095}}) {
    const std::string target(length, 't');
    const std::string name = fmt::format("l{}", length);
    auto link = run(fs().make_symlink(kRoot, name, target, root_));
    ASSERT_TRUE(link);
    EXPECT_EQ(link->mode, S_IFLNK | 0777U);
    EXPECT_EQ(link->size, length);
    EXPECT_EQ(run(fs().read_symlink(link->ino)), target);
    EXPECT_TRUE(run(fs().list_xattrs(link->ino))->empty());
  }
  EXPECT_EQ(code_of(run(fs().make_symlink(kRoot, "e", "", root_))), Code::kNoEntry);
  EXPECT_EQ(code_of(run(fs().make_symlink(kRoot, "e", std::string(4096, 't'), root_))),
            Code::kNameTooLong);
  EXPECT_EQ(code_of(run(fs().read_symlink(kRoot))), Code::kInvalid);
  remount();
  EXPECT_EQ(run(fs().read_symlink(ino_of(kRoot, "l4095"))), std::string(4095, 't'));
  EXPECT_EQ(run(fs().read_symlink(ino_of(kRoot, "l2048"))), std::string(2048, 't'));
  const uint64_t gone = ino_of(kRoot, "l4095");
  ASSERT_TRUE(run(fs().unlink(kRoot, "l4095")));
  run(fs().forget(gone));
  expect_clean();
}

TEST_F(NamesTest, UnlinkAndRemoveDirectory) {
  const uint64_t directory = make_directory(kRoot, "d");
  make_file(directory, "f");
  EXPECT_EQ(stat(kRoot).nlink, 3U);
  EXPECT_EQ(code_of(run(fs().unlink(kRoot, "d"))), Code::kIsDirectory);
  EXPECT_EQ(code_of(run(fs().remove_directory(directory, "f"))), Code::kNotDirectory);
  EXPECT_EQ(code_of(run(fs().remove_directory(kRoot, "d"))), Code::kNotEmpty);
  EXPECT_EQ(code_of(run(fs().remove_directory(kRoot, "."))), Code::kInvalid);
  EXPECT_EQ(code_of(run(fs().remove_directory(kRoot, ".."))), Code::kNotEmpty);
  EXPECT_EQ(code_of(run(fs().unlink(kRoot, "none"))), Code::kNoEntry);
  ASSERT_TRUE(run(fs().unlink(directory, "f")));
  ASSERT_TRUE(run(fs().remove_directory(kRoot, "d")));
  EXPECT_EQ(stat(kRoot).nlink, 2U);
  // Still somebody's working directory: empty, and nothing can be put into it.
  EXPECT_EQ(stat(directory).nlink, 0U);
  EXPECT_EQ(code_of(lookup(directory, "f")), Code::kNoEntry);
  bool created = false;
  EXPECT_EQ(code_of(run(fs().create(directory, "f", 0600, root_, false, &created))),
            Code::kNoEntry);
  EXPECT_EQ(code_of(rename(directory, "a", kRoot, "b")), Code::kNoEntry);
  expect_clean();
  run(fs().forget(directory));
  EXPECT_EQ(code_of(run(fs().get_attributes(directory))), Code::kStale);
  expect_clean();
}

TEST_F(NamesTest, HardLinks) {
  const uint64_t ino = make_file(kRoot, "f");
  const uint64_t directory = make_directory(kRoot, "d");
  auto linked = run(fs().link(ino, directory, "g"));
  ASSERT_TRUE(linked);
  EXPECT_EQ(linked->nlink, 2U);
  EXPECT_EQ(code_of(run(fs().link(ino, directory, "g"))), Code::kExists);
  EXPECT_EQ(code_of(run(fs().link(directory, kRoot, "x"))), Code::kNotPermitted);
  ASSERT_TRUE(run(fs().unlink(kRoot, "f")));
  EXPECT_EQ(stat(ino).nlink, 1U);
  expect_clean();
  ASSERT_TRUE(run(fs().open_file(ino, OpenIntent())));
  ASSERT_TRUE(run(fs().unlink(directory, "g")));
  EXPECT_EQ(code_of(run(fs().link(ino, kRoot, "again"))), Code::kNoEntry);
  expect_clean();
  run(fs().close_file(ino));
  EXPECT_EQ(stat(ino).nlink, 0U) << "lives until it is forgotten, too";
  run(fs().forget(ino));
  EXPECT_EQ(code_of(run(fs().get_attributes(ino))), Code::kStale);
  expect_clean();
}

TEST_F(NamesTest, ForgottenFilesLiveUntilTheirLastClose) {
  const uint64_t ino = make_file(kRoot, "f");
  ASSERT_TRUE(run(fs().open_file(ino, OpenIntent())));
  ASSERT_TRUE(run(fs().open_file(ino, OpenIntent())));
  ASSERT_TRUE(run(fs().unlink(kRoot, "f")));
  run(fs().forget(ino));
  run(fs().close_file(ino));
  EXPECT_EQ(stat(ino).nlink, 0U);
  run(fs().close_file(ino));
  EXPECT_EQ(code_of(run(fs().get_attributes(ino))), Code::kStale);
  expect_clean();
}

TEST_F(NamesTest, UnnamedFiles) {
  auto unnamed = run(fs().make_unnamed(kRoot, 0600, root_));
  ASSERT_TRUE(unnamed);
  EXPECT_EQ(unnamed->nlink, 0U);
  expect_clean();
  auto linked = run(fs().link(unnamed->ino, kRoot, "named"));
  ASSERT_TRUE(linked);
  EXPECT_EQ(linked->nlink, 1U);
  run(fs().forget(unnamed->ino));
  EXPECT_EQ(ino_of(kRoot, "named"), unnamed->ino);
  auto other = run(fs().make_unnamed(kRoot, 0600, root_));
  ASSERT_TRUE(other);
  run(fs().forget(other->ino));
  EXPECT_EQ(code_of(run(fs().get_attributes(other->ino))), Code::kStale);
  expect_clean();
}

TEST_F(NamesTest, OrphansAreFreedAtTheNextMount) {
  const uint64_t file = make_file(kRoot, "f");
  const uint64_t directory = make_directory(kRoot, "d");
  ASSERT_TRUE(set_xattr(file, "user.big", std::string(60'000, 'v')));
  ASSERT_TRUE(run(fs().open_file(file, OpenIntent())));
  ASSERT_TRUE(run(fs().unlink(kRoot, "f")));
  ASSERT_TRUE(run(fs().remove_directory(kRoot, "d")));
  run(fs().close_file(file));
  remount();
  EXPECT_EQ(code_of(run(fs().get_attributes(file))), Code::kStale);
  EXPECT_EQ(code_of(run(fs().get_attributes(directory))), Code::kStale);
  EXPECT_EQ(fs().store().space().inode_count, 1U);
  expect_clean();
}

TEST_F(NamesTest, RenameFiles) {
  const uint64_t a = make_file(kRoot, "a");
  const uint64_t b = make_file(kRoot, "b");
  const uint64_t directory = make_directory(kRoot, "d");
  ASSERT_TRUE(rename(kRoot, "a", directory, "a2"));
  EXPECT_EQ(ino_of(directory, "a2"), a);
  EXPECT_EQ(code_of(lookup(kRoot, "a")), Code::kNoEntry);
  EXPECT_EQ(stat(directory).size, 1U);
  EXPECT_EQ(stat(kRoot).size, 2U);
  EXPECT_EQ(code_of(rename(directory, "a2", kRoot, "b", kNoReplace)), Code::kExists);
  ASSERT_TRUE(rename(directory, "a2", kRoot, "b"));
  EXPECT_EQ(ino_of(kRoot, "b"), a);
  EXPECT_EQ(stat(b).nlink, 0U);
  EXPECT_EQ(code_of(rename(kRoot, "none", kRoot, "x")), Code::kNoEntry);
  EXPECT_EQ(code_of(rename(kRoot, ".", kRoot, "x")), Code::kBusy);
  EXPECT_EQ(code_of(rename(kRoot, "b", kRoot, "..")), Code::kBusy);
  EXPECT_EQ(code_of(rename(kRoot, "b", kRoot, "c", 8)), Code::kInvalid);
  EXPECT_EQ(code_of(rename(kRoot, "b", kRoot, "d", kExchange | kNoReplace)), Code::kInvalid);
  ASSERT_TRUE(run(fs().link(a, kRoot, "b2")));
  ASSERT_TRUE(rename(kRoot, "b", kRoot, "b2"));
  EXPECT_EQ(stat(a).nlink, 2U) << "two names of one file: nothing happens";
  ASSERT_TRUE(rename(kRoot, "b", kRoot, "b"));
  expect_clean();
  run(fs().forget(b));
  expect_clean();
}

TEST_F(NamesTest, RenameDirectories) {
  const uint64_t a = make_directory(kRoot, "a");
  const uint64_t b = make_directory(a, "b");
  const uint64_t c = make_directory(b, "c");
  const uint64_t empty = make_directory(kRoot, "empty");
  make_file(kRoot, "f");
  EXPECT_EQ(code_of(rename(kRoot, "a", c, "x")), Code::kInvalid);
  EXPECT_EQ(code_of(rename(kRoot, "a", a, "x")), Code::kInvalid);
  EXPECT_EQ(code_of(rename(b, "c", kRoot, "a")), Code::kNotEmpty);
  EXPECT_EQ(code_of(rename(kRoot, "a", kRoot, "f")), Code::kNotDirectory);
  EXPECT_EQ(code_of(rename(kRoot, "f", kRoot, "a")), Code::kIsDirectory);
  EXPECT_EQ(stat(kRoot).nlink, 4U);
  ASSERT_TRUE(rename(a, "b", kRoot, "empty"));
  EXPECT_EQ(ino_of(kRoot, "empty"), b);
  EXPECT_EQ(ino_of(b, ".."), kRoot);
  EXPECT_EQ(stat(kRoot).nlink, 4U);
  EXPECT_EQ(stat(a).nlink, 2U);
  EXPECT_EQ(stat(empty).nlink, 0U);
  ASSERT_TRUE(rename(kRoot, "empty", a, "moved"));
  EXPECT_EQ(stat(kRoot).nlink, 3U);
  EXPECT_EQ(stat(a).nlink, 3U);
  expect_clean();
}

TEST_F(NamesTest, ExchangeAndWhiteout) {
  const uint64_t directory = make_directory(kRoot, "d");
  const uint64_t sub = make_directory(directory, "sub");
  const uint64_t file = make_file(kRoot, "f");
  EXPECT_EQ(code_of(rename(kRoot, "f", directory, "none", kExchange)), Code::kNoEntry);
  EXPECT_EQ(code_of(rename(kRoot, "d", directory, "sub", kExchange)), Code::kInvalid);
  EXPECT_EQ(code_of(rename(directory, "sub", kRoot, "d", kExchange)), Code::kInvalid);
  ASSERT_TRUE(rename(kRoot, "f", directory, "sub", kExchange));
  EXPECT_EQ(ino_of(kRoot, "f"), sub);
  EXPECT_EQ(ino_of(directory, "sub"), file);
  EXPECT_EQ(ino_of(sub, ".."), kRoot);
  EXPECT_EQ(stat(kRoot).nlink, 4U);
  EXPECT_EQ(stat(directory).nlink, 2U);
  expect_clean();
  ASSERT_TRUE(rename(directory, "sub", kRoot, "g", kWhiteout));
  auto whiteout = lookup(directory, "sub");
  ASSERT_TRUE(whiteout);
  EXPECT_EQ(whiteout->mode, static_cast<uint32_t>(S_IFCHR));
  EXPECT_EQ(whiteout->rdev, 0U);
  EXPECT_EQ(whiteout->nlink, 1U);
  EXPECT_EQ(stat(directory).size, 1U);
  EXPECT_EQ(ino_of(kRoot, "g"), file);
  ASSERT_TRUE(rename(kRoot, "g", kRoot, "g2", kWhiteout | kNoReplace));
  expect_clean();
  remount();
  expect_clean();
}

TEST_F(NamesTest, TimesFollowPosix) {
  const uint64_t directory = make_directory(kRoot, "d");
  const uint64_t file = make_file(directory, "f");
  const auto pass = [&] { volume_->pass(1'000'000'000); };
  const Attributes before = stat(directory);
  const Attributes file_before = stat(file);
  pass();
  ASSERT_TRUE(run(fs().link(file, directory, "g")));
  EXPECT_GT(stat(directory).modify_time, before.modify_time);
  EXPECT_GT(stat(directory).change_time, before.change_time);
  EXPECT_GT(stat(file).change_time, file_before.change_time);
  EXPECT_EQ(stat(file).modify_time, file_before.modify_time);
  pass();
  AttributeChange change;
  change.mode = 0600;
  ASSERT_TRUE(run(fs().set_attributes(file, change, root_)));
  EXPECT_GT(stat(file).change_time, stat(directory).change_time);
  EXPECT_EQ(stat(file).birth_time, file_before.birth_time);
  WallTime odd;
  odd.seconds = -7;
  odd.nanoseconds = 999'999'999;
  AttributeChange times;
  times.modify_time = odd;
  ASSERT_TRUE(run(fs().set_attributes(file, times, root_)));
  remount();
  EXPECT_EQ(stat(file).modify_time, odd);
}

TEST_F(NamesTest, ChownClearsPrivileges) {
  const uint64_t file = make_file(kRoot, "f");
  AttributeChange mode;
  mode.mode = 06755;
  ASSERT_TRUE(run(fs().set_attributes(file, mode, root_)));
  ASSERT_TRUE(set_xattr(file, "security.capability", "capable"));
  AttributeChange owner;
  owner.uid = 5;
  ASSERT_TRUE(run(fs().set_attributes(file, owner, root_)));
  EXPECT_EQ(stat(file).mode, S_IFREG | 0755U);
  EXPECT_EQ(code_of(get_xattr(file, "security.capability")), Code::kNoAttribute);
  AttributeChange both;
  both.gid = 7;
  both.mode = 02755;
  ASSERT_TRUE(run(fs().set_attributes(file, both, root_)));
  EXPECT_EQ(stat(file).mode, S_IFREG | 02755U);
  AttributeChange size;
  size.size = 10;
  EXPECT_EQ(code_of(run(fs().set_attributes(kRoot, size, root_))), Code::kIsDirectory);
  expect_clean();
}

TEST_F(NamesTest, ImmutableAndAppendOnly) {
  const uint64_t directory = make_directory(kRoot, "d");
  const uint64_t file = make_file(directory, "f");
  make_file(make_directory(directory, "full"), "inside");
  AttributeChange flags;
  flags.flags = ondisk::kInodeImmutable;
  ASSERT_TRUE(run(fs().set_attributes(file, flags, root_)));
  AttributeChange mode;
  mode.mode = 0600;
  const Code denied = Code::kNotPermitted;
  OpenIntent truncating;
  truncating.truncate = true;
  OpenIntent writing;
  writing.write = true;
  OpenIntent appending = writing;
  appending.append = true;
  AttributeChange touched;
  touched.modify_time = WallTime{1, 0};
  EXPECT_EQ(code_of(run(fs().set_attributes(file, mode, root_))), denied);
  EXPECT_EQ(code_of(run(fs().unlink(directory, "f"))), denied);
  EXPECT_EQ(code_of(run(fs().link(file, kRoot, "g"))), denied);
  EXPECT_EQ(code_of(rename(directory, "f", kRoot, "g")), denied);
  EXPECT_EQ(code_of(set_xattr(file, "user.a", "b")), denied);
  EXPECT_EQ(code_of(run(fs().open_file(file, truncating))), denied);
  EXPECT_EQ(code_of(run(fs().open_file(file, writing))), denied);
  EXPECT_EQ(code_of(run(fs().open_file(file, appending))), denied);
  EXPECT_TRUE(run(fs().open_file(file, OpenIntent()))) << "to read";
  run(fs().close_file(file));
  flags.flags = ondisk::kInodeAppend;
  ASSERT_TRUE(run(fs().set_attributes(file, flags, root_)));
  EXPECT_EQ(code_of(run(fs().open_file(file, writing))), denied);
  EXPECT_TRUE(run(fs().open_file(file, appending)));
  run(fs().close_file(file));
  EXPECT_EQ(code_of(run(fs().set_attributes(file, touched, root_))), denied);
  touched.times_are_now = true;
  EXPECT_TRUE(run(fs().set_attributes(file, touched, root_)));
  flags.flags = 0;
  ASSERT_TRUE(run(fs().set_attributes(file, flags, root_)));
  flags.flags = ondisk::kInodeAppend;
  ASSERT_TRUE(run(fs().set_attributes(directory, flags, root_)));
  make_file(directory, "more");
  EXPECT_EQ(code_of(run(fs().unlink(directory, "f"))), denied);
  EXPECT_EQ(code_of(run(fs().remove_directory(directory, "full"))), denied) << "said first, as Linux does";
  flags.flags = ondisk::kInodeImmutable;
  ASSERT_TRUE(run(fs().set_attributes(directory, flags, root_)));
  bool created = false;
  EXPECT_EQ(code_of(run(fs().create(directory, "x", 0600, root_, true, &created))), denied);
  flags.flags = ondisk::kInodeHasXattrs;
  EXPECT_EQ(code_of(run(fs().set_attributes(directory, flags, root_))), Code::kNotSupported);
  remount();
  EXPECT_EQ(stat(directory).flags, ondisk::kInodeImmutable);
}

TEST_F(NamesTest, Xattrs) {
  const uint64_t file = make_file(kRoot, "f");
  EXPECT_EQ(code_of(get_xattr(file, "user.a")), Code::kNoAttribute);
  for (size_t length : {size_t{0}, size_t{1}, size_t{2048}, size_t{2049}, size_t{65'536}}) {
    const std::string value(length, static_cast<char>('a' + length % 26));
    ASSERT_TRUE(set_xattr(file, fmt::format("user.{}", length), value));
    ASSERT_TRUE(set_xattr(file, "user.same", value));
    EXPECT_EQ(get_xattr(file, "user.same"), value);
    EXPECT_EQ(get_xattr(file, fmt::format("user.{}", length)), value);
  }
  EXPECT_EQ(run(fs().list_xattrs(file))->size(), 6U);
  ASSERT_TRUE(set_xattr(file, "user.same", "short"));
  expect_clean();
  EXPECT_EQ(code_of(set_xattr(file, "user.x", std::string(65'537, 'v'))), Code::kTooBig);
  EXPECT_EQ(code_of(set_xattr(file, "user.", "v")), Code::kInvalid);
  EXPECT_EQ(code_of(set_xattr(file, "other.a", "v")), Code::kNotSupported);
  EXPECT_EQ(code_of(set_xattr(file, "cofs.symlink", "v")), Code::kNotSupported);
  EXPECT_EQ(code_of(set_xattr(file, "user." + std::string(251, 'n'), "v")), Code::kRange);
  ASSERT_TRUE(set_xattr(file, "user." + std::string(250, 'n'), "v"));
  EXPECT_EQ(code_of(run(fs().set_xattr(file, "user.same", "v", true, false, root_))),
            Code::kExists);
  EXPECT_EQ(code_of(run(fs().set_xattr(file, "user.new", "v", false, true, root_))),
            Code::kNoAttribute);
  auto fifo = run(fs().make_node(kRoot, "p", S_IFIFO | 0600, 0, root_));
  EXPECT_EQ(code_of(set_xattr(fifo->ino, "user.a", "v")), Code::kNotPermitted);
  EXPECT_EQ(code_of(get_xattr(fifo->ino, "user.a")), Code::kNoAttribute);
  EXPECT_EQ(code_of(set_xattr(fifo->ino, "trusted.a", "v")), kOk);
  remount();
  EXPECT_EQ(get_xattr(file, "user.same"), "short");
  const auto names = run(fs().list_xattrs(file));
  for (const std::string& name : *names) {
    EXPECT_EQ(code_of(run(fs().remove_xattr(file, name))), kOk) << name;
    EXPECT_EQ(code_of(run(fs().remove_xattr(file, name))), Code::kNoAttribute) << name;
  }
  EXPECT_TRUE(run(fs().list_xattrs(file))->empty());
  expect_clean();
}

std::string acl_value(uint16_t owner, uint16_t user, uint16_t group, uint16_t mask,
                      uint16_t other) {
  Acl acl;
  acl.add(Acl::Entry(Acl::kUserObj, owner, UINT32_MAX));
  acl.add(Acl::Entry(Acl::kUser, user, 1000));
  acl.add(Acl::Entry(Acl::kGroupObj, group, UINT32_MAX));
  acl.add(Acl::Entry(Acl::kMask, mask, UINT32_MAX));
  acl.add(Acl::Entry(Acl::kOther, other, UINT32_MAX));
  return acl.serialize();
}

TEST_F(NamesTest, AclsAndModesFollowEachOther) {
  const std::string access(kAccessAclName);
  const uint64_t file = make_file(kRoot, "f");
  ASSERT_TRUE(set_xattr(file, access, acl_value(7, 6, 5, 4, 0)));
  EXPECT_EQ(stat(file).mode, S_IFREG | 0740U);
  AttributeChange mode;
  mode.mode = 0666;
  ASSERT_TRUE(run(fs().set_attributes(file, mode, root_)));
  auto changed = Acl::parse(*get_xattr(file, access));
  ASSERT_TRUE(changed);
  EXPECT_EQ(changed->mode_bits(), 0666U);
  EXPECT_EQ(changed->entries()[2].permissions, 5) << "the group's own entry stays";
  Acl plain;
  plain.add(Acl::Entry(Acl::kUserObj, 6, 0));
  plain.add(Acl::Entry(Acl::kGroupObj, 4, 0));
  plain.add(Acl::Entry(Acl::kOther, 4, 0));
  ASSERT_TRUE(set_xattr(file, access, plain.serialize()));
  EXPECT_EQ(stat(file).mode, S_IFREG | 0644U);
  EXPECT_EQ(code_of(get_xattr(file, access)), Code::kNoAttribute) << "equal to the mode: not stored";
  EXPECT_EQ(code_of(run(fs().remove_xattr(file, access))), kOk);
  EXPECT_EQ(code_of(set_xattr(file, access, "jun")), Code::kInvalid);
  EXPECT_EQ(code_of(set_xattr(file, std::string(kDefaultAclName), acl_value(7, 6, 5, 4, 0))),
            Code::kAccess);
  mode.mode = 02755;
  ASSERT_TRUE(run(fs().set_attributes(file, mode, root_)));
  const Caller stranger(1000, 1000, 0);
  ASSERT_TRUE(run(fs().set_xattr(file, access, acl_value(7, 7, 5, 5, 5), false, false, stranger)));
  EXPECT_EQ(stat(file).mode, S_IFREG | 0755U) << "setgid goes, as with chmod";
  expect_clean();
}

TEST_F(NamesTest, DefaultAclsAreInherited) {
  const uint64_t directory = make_directory(kRoot, "d");
  const std::string inherited = acl_value(7, 7, 7, 5, 0);
  ASSERT_TRUE(set_xattr(directory, std::string(kDefaultAclName), inherited));
  const Caller user(1000, 100, 077);
  bool created = false;
  auto file = run(fs().create(directory, "f", 0664, user, true, &created));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->mode, S_IFREG | 0640U) << "the umask does not count";
  auto acl = Acl::parse(*get_xattr(file->ino, std::string(kAccessAclName)));
  ASSERT_TRUE(acl);
  EXPECT_EQ(acl->mode_bits(), 0640U);
  EXPECT_EQ(code_of(get_xattr(file->ino, std::string(kDefaultAclName))), Code::kNoAttribute);
  auto sub = run(fs().make_directory(directory, "sub", 0777, user));
  ASSERT_TRUE(sub);
  EXPECT_EQ(sub->mode, S_IFDIR | 0750U);
  EXPECT_EQ(get_xattr(sub->ino, std::string(kDefaultAclName)), inherited);
  auto link = run(fs().make_symlink(directory, "l", "t", user));
  EXPECT_EQ(link->mode, S_IFLNK | 0777U);
  expect_clean();
}

TEST_F(NamesTest, EntriesBehindOthersOfTheSameHash) {
  // Two names with one hash cannot be made at will; a record can be moved to a later place of its chain.
  const uint64_t directory = make_directory(kRoot, "d");
  const uint64_t file = make_file(directory, "f");
  for (int i = 0; i < 5; i++) make_file(directory, fmt::format("x{}", i));
  const Key first = Key::dirent(directory, name_hash("f"), 0);
  const Key later = Key::dirent(directory, name_hash("f"), 3);
  const auto move = [](Store* store, Key from, Key to) -> Task<Result<>> {
    auto value = co_await store->get(from);
    COFS_CO_TRY(value);
    auto transaction = co_await store->begin(Cost(0, 300), SpaceClass::kUser);
    COFS_CO_TRY(transaction);
    transaction->erase(from);
    transaction->put(to, **value);
    auto applied = co_await transaction->apply();
    co_return applied;
  };
  ASSERT_TRUE(run(move(&fs().store(), first, later)));
  EXPECT_EQ(ino_of(directory, "f"), file);
  EXPECT_EQ(list(directory, 1).size(), 8U);
  bool created = false;
  EXPECT_EQ(code_of(run(fs().create(directory, "f", 0600, root_, true, &created))), Code::kExists);
  ASSERT_TRUE(rename(directory, "f", directory, "f2"));
  ASSERT_TRUE(rename(directory, "f2", directory, "f"));
  ASSERT_TRUE(run(fs().unlink(directory, "f")));
  expect_clean();
}

// --- Many at once --------------------------------------------------------------------------------

struct Storm {
  FileSystem* fs = nullptr;
  SimRandom random{0};
  std::vector<uint64_t> directories;
  int running = 0;
  uint64_t done = 0;
  Storm() = default;
};

Task<> storm_worker(Storm* storm, int operations) {
  const Caller caller(0, 0, 0);
  for (int i = 0; i < operations; i++) {
    SimRandom& random = storm->random;
    const uint64_t a = storm->directories[random.below(storm->directories.size())];
    const uint64_t b = storm->directories[random.below(storm->directories.size())];
    const std::string name = fmt::format("n{}", random.below(6));
    const std::string other = fmt::format("n{}", random.below(6));
    bool good = false;
    bool created = false;
    switch (random.below(8)) {
      case 0: {
        auto made = co_await storm->fs->create(a, name, 0644, caller, true, &created);
        good = made.has_value();
        break;
      }
      case 1: {
        auto made = co_await storm->fs->make_directory(a, name, 0755, caller);
        good = made.has_value();
        if (made && storm->directories.size() < 12) storm->directories.push_back(made->ino);
        break;
      }
      case 2: {
        auto found = co_await storm->fs->lookup(a, name);
        auto gone = co_await storm->fs->unlink(a, name);
        good = gone.has_value();
        if (good && found) co_await storm->fs->forget(found->ino);
        break;
      }
      case 3: {
        auto gone = co_await storm->fs->remove_directory(a, name);
        good = gone.has_value();
        break;
      }
      case 4: {
        auto found = co_await storm->fs->lookup(a, name);
        if (!found) break;
        auto linked = co_await storm->fs->link(found->ino, b, other);
        good = linked.has_value();
        break;
      }
      default: {
        const uint32_t flags = random.below(3) == 0 ? kExchange : 0;
        auto moved = co_await storm->fs->rename(a, name, b, other, flags);
        good = moved.has_value();
        break;
      }
    }
    if (good) storm->done++;
  }
  storm->running--;
}

TEST_F(NamesTest, ManyAtOnceLeaveAConsistentTree) {
  for (uint64_t seed = 1; seed <= 12; seed++) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    volume_.reset();
    VolumeOptions options;
    options.store.background = false;
    options.device_blocks = kDeviceBlocks;
    options.fs.inodes_cached_max = 8;
    options_ = options;
    volume_ = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options_), options_);
    ASSERT_TRUE(volume_->open());
    Storm storm;
    storm.fs = &fs();
    storm.random = SimRandom(seed);
    storm.directories = {kRoot};
    storm.running = 6;
    for (int i = 0; i < 6; i++) spawn(volume_->world.executor, storm_worker(&storm, 120));
    const auto wait = [](Storm* all, Clock* clock) -> Task<Result<>> {
      while (all->running > 0) {
        TimerRequest timer;
        timer.due_ns = clock->monotonic_ns() + 1'000'000;
        co_await sleep_until(*clock, timer);
      }
      co_return Result<>();
    };
    ASSERT_TRUE(run(wait(&storm, &volume_->world.clock)));
    EXPECT_GT(storm.done, 100U);
    expect_clean();
    remount();
    expect_clean();
  }
}

// --- fsck ----------------------------------------------------------------------------------------

class RepairTest : public NamesTest {
 protected:
  // Changes records behind the filesystem's back: puts (with a value) or erases.
  void damage(Key key, std::optional<std::vector<std::byte>> value) {
    const auto change = [](Store* store, Key where,
                           const std::vector<std::byte>* bytes) -> Task<Result<>> {
      auto transaction = co_await store->begin(Cost(0, 500), SpaceClass::kUser);
      COFS_CO_TRY(transaction);
      if (bytes != nullptr) {
        transaction->put(where, *bytes);
      } else {
        transaction->erase(where);
      }
      auto applied = co_await transaction->apply();
      co_return applied;
    };
    ASSERT_TRUE(run(change(&fs().store(), key, value ? &*value : nullptr)));
  }
  std::vector<std::byte> record(Key key) {
    auto value = run(fs().store().get(key));
    COFS_ASSERT(value && *value);
    return **value;
  }
  void change_inode(uint64_t ino, const std::function<void(ondisk::Inode&)>& change) {
    std::vector<std::byte> value = record(Key::inode(ino));
    ondisk::Inode header;
    std::memcpy(&header, value.data(), sizeof(header));
    change(header);
    std::memcpy(value.data(), &header, sizeof(header));
    damage(Key::inode(ino), value);
  }
  // The damage must be found and mended, and be visible on the next mount only as mended.
  void expect_mended(const std::string& problem) {
    remount_keeping_orphans();
    EXPECT_NE(volume_->verify(false).find(problem), std::string::npos) << volume_->verify(false);
    auto changed = run(fs().repair());
    ASSERT_TRUE(changed);
    EXPECT_GT(*changed, 0U);
    expect_clean();
    remount();
    expect_clean();
  }
  void remount_keeping_orphans() {
    ASSERT_TRUE(volume_->close());
    SimImage image = volume_->device.image();
    volume_ = std::make_unique<TestVolume>(22, std::move(image), options_);
    ASSERT_TRUE(volume_->open());
  }
};

// Also what volumes of before preallocated blocks were counted have in their superblocks.
TEST_F(RepairTest, Counters) {
  const uint64_t file = make_file(kRoot, "f");
  ASSERT_TRUE(run(fs().allocate(file, AllocateMode::kAllocate, 0, 50 * kBlockBytes)));
  ASSERT_TRUE(volume_->close());
  SimImage image = volume_->device.image();
  std::vector<std::byte> block(kBlockBytes);
  Geometry geometry;
  VolumeState state;
  image.read(65536 / kBlockBytes, block.data());
  ASSERT_TRUE(parse_superblock(block, image.block_count(), geometry, state));
  EXPECT_EQ(state.unwritten_blocks, 50U);
  state.unwritten_blocks = 0;
  state.inode_count += 3;
  state.live_data_blocks += 5;
  state.sequence++;  // it is the newest
  encode_superblock(geometry, state, block);
  for (int copy = 0; copy < 3; copy++) {
    image.write(geometry.superblock_block(copy), block.data());
  }
  volume_ = std::make_unique<TestVolume>(22, std::move(image), options_);
  ASSERT_TRUE(volume_->open());
  EXPECT_NE(volume_->verify(false).find("the count of inodes is 5, should be 2"), std::string::npos)
      << volume_->verify(false);
  auto changed = run(fs().repair());
  ASSERT_TRUE(changed);
  EXPECT_EQ(*changed, 3U);
  expect_clean();
  remount();
  expect_clean();
  EXPECT_EQ(fs().store().space().preallocated_blocks, 52U);
}

TEST_F(RepairTest, LinkCounts) {
  const uint64_t file = make_file(kRoot, "f");
  make_directory(kRoot, "d");
  remount();
  change_inode(file, [](ondisk::Inode& inode) { inode.nlink = 7; });
  change_inode(kRoot, [](ondisk::Inode& inode) { inode.nlink = 9; inode.size = 1; });
  expect_mended("counts 7 links, has 1");
  EXPECT_EQ(stat(file).nlink, 1U);
  EXPECT_EQ(stat(kRoot).nlink, 3U);
  EXPECT_EQ(stat(kRoot).size, 2U);
}

TEST_F(RepairTest, DanglingAndBrokenEntries) {
  const uint64_t file = make_file(kRoot, "f");
  make_file(kRoot, "g");
  make_file(kRoot, "h");
  remount();
  damage(Key::inode(file), std::nullopt);
  damage(Key::dirent(kRoot, name_hash("g"), 0), std::vector<std::byte>(3));
  const Key third = Key::dirent(kRoot, name_hash("h"), 0);
  damage(third, encode_entry("h", ino_of(kRoot, "h"), DT_SOCK));
  expect_mended("which does not exist");
  EXPECT_EQ(code_of(lookup(kRoot, "f")), Code::kNoEntry);
  EXPECT_EQ(code_of(lookup(kRoot, "h")), kOk);
  EXPECT_EQ(list(ino_of(kRoot, "lost+found"), 10).size(), 3U) << "the file that g named";
}

TEST_F(RepairTest, LostFilesAndDirectories) {
  const uint64_t directory = make_directory(kRoot, "d");
  const uint64_t inside = make_file(directory, "inside");
  remount();
  damage(Key::dirent(kRoot, name_hash("d"), 0), std::nullopt);
  expect_mended("has no name");
  const uint64_t found = ino_of(kRoot, "lost+found");
  EXPECT_EQ(ino_of(found, fmt::format("#{}", directory)), directory);
  EXPECT_EQ(ino_of(directory, "inside"), inside);
  EXPECT_EQ(ino_of(directory, ".."), found);
}

TEST_F(RepairTest, CyclesOfDirectories) {
  const uint64_t a = make_directory(kRoot, "a");
  const uint64_t b = make_directory(a, "b");
  remount();
  damage(Key::dirent(kRoot, name_hash("a"), 0), std::nullopt);
  damage(Key::dirent(b, name_hash("a"), 0), encode_entry("a", a, DT_DIR));
  expect_mended("directory inside itself");
  EXPECT_EQ(ino_of(kRoot, "lost+found") != 0, true);
  EXPECT_EQ(stat(a).nlink + stat(b).nlink, 5U);
}

TEST_F(RepairTest, OrphanRecords) {
  const uint64_t file = make_file(kRoot, "f");
  remount();
  damage(Key::orphan(file), std::vector<std::byte>());
  damage(Key::orphan(99'999), std::vector<std::byte>());
  expect_mended("has a name and an orphan record");
  EXPECT_EQ(ino_of(kRoot, "f"), file);
}

TEST_F(RepairTest, BrokenXattrs) {
  const uint64_t file = make_file(kRoot, "f");
  ASSERT_TRUE(set_xattr(file, "user.long", std::string(10'000, 'v')));
  ASSERT_TRUE(set_xattr(file, "user.good", "kept"));
  remount();
  damage(Key::xattr(file, xattr_hash("user.long"), 2), std::nullopt);
  EXPECT_EQ(code_of(get_xattr(file, "user.long")), Code::kCorrupt);
  expect_mended("attribute with missing parts");
  EXPECT_EQ(get_xattr(file, "user.good"), "kept");
  EXPECT_EQ(code_of(get_xattr(file, "user.long")), Code::kNoAttribute);
}

}  // namespace
}  // namespace cofs
