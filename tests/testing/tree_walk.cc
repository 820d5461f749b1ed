#include "tests/testing/tree_walk.h"

#include <fmt/format.h>
#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "blockmap/ondisk.h"

namespace cofs {
namespace {

constexpr uint64_t kReadWholeMax = 256 * 1024;
constexpr uint64_t kReadBytes = 128 * 1024;
constexpr uint64_t kEntriesPerCall = 7;   // small, so that the cookies are used
constexpr uint64_t kEntriesMax = 100'000;  // of a directory that never ends

// What the walk has seen, by inode number.
struct Reading {
  ModelState state;
  std::map<uint64_t, uint32_t> numbers;
};

ModelNode node_of(const Attributes& attributes) {
  ModelNode node;
  node.mode = attributes.mode;
  node.uid = attributes.uid;
  node.gid = attributes.gid;
  node.nlink = attributes.nlink;
  node.rdev = attributes.rdev;
  node.modify_time = attributes.modify_time;
  if (!node.is_directory()) node.size = attributes.size;
  return node;
}

Task<Result<>> read_range(FileSystem& fs, uint64_t ino, uint64_t start, uint64_t end,
                          ModelNode* node) {
  for (uint64_t offset = start; offset < end;) {
    const uint64_t wanted = std::min(kReadBytes, end - offset);
    auto data = co_await fs.read(ino, offset, static_cast<uint32_t>(wanted));
    COFS_CO_TRY(data);
    if (data->length != wanted) co_return fail(Code::kCorrupt, "test: short read", offset);
    node->write(offset, std::string_view(reinterpret_cast<const char*>(data->data()), wanted));
    offset += wanted;
  }
  co_return Result<>();
}

Task<Result<>> read_data(FileSystem& fs, uint64_t ino, ModelNode* node) {
  const uint64_t size = node->size;
  if (size <= kReadWholeMax) {
    auto done = co_await read_range(fs, ino, 0, size, node);
    co_return done;
  }
  uint64_t offset = 0;
  while (offset < size) {
    auto start = co_await fs.seek_data(ino, offset);
    if (!start) {
      if (start.error().code != Code::kNoSuchOffset) co_return fail(start.error());
      break;
    }
    auto end = co_await fs.seek_hole(ino, *start);
    COFS_CO_TRY(end);
    if (*start < offset || *end <= *start || *end > size) {
      co_return fail(Code::kCorrupt, "test: SEEK_DATA and SEEK_HOLE contradict each other", offset);
    }
    auto done = co_await read_range(fs, ino, *start, *end, node);
    COFS_CO_TRY(done);
    offset = *end;
  }
  node->size = size;
  co_return Result<>();
}

Task<Result<>> read_xattrs(FileSystem& fs, uint64_t ino, ModelNode* node) {
  auto names = co_await fs.list_xattrs(ino);
  COFS_CO_TRY(names);
  for (const std::string& name : *names) {
    auto value = co_await fs.get_xattr(ino, name);
    COFS_CO_TRY(value);
    if (!node->xattrs.emplace(name, *value).second) {
      co_return fail(Code::kCorrupt, "test: an attribute is listed twice", ino);
    }
  }
  co_return Result<>();
}

Task<Result<std::vector<DirectoryEntry>>> read_entries(FileSystem& fs, uint64_t ino) {
  std::vector<DirectoryEntry> all;
  uint64_t cookie = 0;
  while (true) {
    auto entries = co_await fs.read_directory(ino, cookie, kEntriesPerCall);
    COFS_CO_TRY(entries);
    if (entries->empty()) break;
    for (DirectoryEntry& entry : *entries) {
      if (entry.cookie <= cookie || all.size() > kEntriesMax) {
        co_return fail(Code::kCorrupt, "test: cookies do not ascend", ino);
      }
      cookie = entry.cookie;
      all.push_back(std::move(entry));
    }
  }
  if (all.size() < 2 || all[0].name != "." || all[1].name != "..") {
    co_return fail(Code::kCorrupt, "test: a directory without . and ..", ino);
  }
  all.erase(all.begin(), all.begin() + 2);
  co_return all;
}

// The object's number in the state; *fresh tells that it was not seen before.
Task<Result<uint32_t>> read_object(FileSystem& fs, uint64_t ino, Reading* reading, bool* fresh) {
  const auto known = reading->numbers.find(ino);
  *fresh = known == reading->numbers.end();
  if (!*fresh) co_return known->second;
  auto attributes = co_await fs.get_attributes(ino);
  COFS_CO_TRY(attributes);
  ModelNode node = node_of(*attributes);
  auto xattrs = co_await read_xattrs(fs, ino, &node);
  COFS_CO_TRY(xattrs);
  if (node.is_symlink()) {
    auto target = co_await fs.read_symlink(ino);
    COFS_CO_TRY(target);
    node.target = *target;
  } else if (node.is_regular()) {
    auto data = co_await read_data(fs, ino, &node);
    COFS_CO_TRY(data);
  }
  uint32_t number = ModelState::kRoot;
  if (ino == ondisk::kRootInode) {
    reading->state.edit(number) = std::move(node);
  } else {
    number = reading->state.add(std::move(node));
  }
  reading->numbers[ino] = number;
  co_return number;
}

// --- Damaged volumes ---

// One object of the model and the inode that the volume shows in its place.
struct Suspect {
  uint32_t number = 0;
  uint64_t ino = 0;
  std::string path;
};

class Inspector {
 public:
  Inspector(FileSystem& fs, const ModelState& model, bool any_answer)
      : fs_(fs), model_(model), any_answer_(any_answer) {}

  Task<DamageReport> inspect() {
    std::vector<Suspect> stack{Suspect{ModelState::kRoot, ondisk::kRootInode, ""}};
    while (!stack.empty() && report_.wrong.empty()) {
      const Suspect at = stack.back();
      stack.pop_back();
      co_await attributes(at);
      co_await xattrs(at);
      const ModelNode& node = model_.node(at.number);
      if (node.is_regular()) co_await data(at);
      if (node.is_symlink()) co_await target(at);
      if (node.is_directory()) co_await entries(at, &stack);
    }
    co_return report_;
  }

 private:
  // Counts an answer; true if it may be looked at.
  template <class T>
  bool answered(const Result<T>& result) {
    report_.answers++;
    if (!result && result.error().code != Code::kNoSuchOffset) report_.errors++;
    return result.has_value();
  }
  void wrong(const Suspect& at, const std::string& what) {
    if (report_.wrong.empty() && !any_answer_) report_.wrong = at.path + ": " + what;
  }

  Task<> attributes(const Suspect& at) {
    auto attributes = co_await fs_.get_attributes(at.ino);
    if (!answered(attributes)) co_return;
    const ModelNode& node = model_.node(at.number);
    const bool same = attributes->mode == node.mode && attributes->uid == node.uid &&
                      attributes->gid == node.gid && attributes->nlink == node.nlink &&
                      attributes->rdev == node.rdev &&
                      (node.is_directory() || attributes->size == node.size);
    if (!same) wrong(at, "wrong attributes");
  }

  Task<> xattrs(const Suspect& at) {
    auto names = co_await fs_.list_xattrs(at.ino);
    if (!answered(names)) co_return;
    const auto& wanted = model_.node(at.number).xattrs;
    if (names->size() != wanted.size()) wrong(at, "wrong list of attributes");
    for (const std::string& name : *names) {
      auto value = co_await fs_.get_xattr(at.ino, name);
      if (!answered(value)) continue;
      const auto found = wanted.find(name);
      if (found == wanted.end() || found->second != *value) wrong(at, "wrong attribute " + name);
    }
  }

  Task<> target(const Suspect& at) {
    auto target = co_await fs_.read_symlink(at.ino);
    if (!answered(target)) co_return;
    if (*target != model_.node(at.number).target) wrong(at, "wrong target");
  }

  Task<> data(const Suspect& at) {
    const ModelNode& node = model_.node(at.number);
    const uint64_t end = std::min(node.size, kReadWholeMax);
    for (uint64_t offset = 0; offset < end; offset += kBlockBytes) {
      auto data = co_await fs_.read(at.ino, offset, kBlockBytes);
      if (!answered(data)) continue;
      std::string bytes;
      if (data->length != 0) {
        bytes.assign(reinterpret_cast<const char*>(data->data()), data->length);
      }
      if (bytes != node.read(offset, kBlockBytes)) {
        wrong(at, fmt::format("wrong bytes at {}", offset));
      }
    }
    auto hole = co_await fs_.seek_hole(at.ino, 0);
    answered(hole);
    auto found = co_await fs_.seek_data(at.ino, 0);
    answered(found);
    const std::optional<uint64_t> real = node.next_nonzero_block(0);
    if (found && real && *found > *real) wrong(at, "SEEK_DATA skips data");
  }

  Task<> entries(const Suspect& at, std::vector<Suspect>* stack) {
    auto entries = co_await read_entries(fs_, at.ino);
    const auto& wanted = model_.node(at.number).entries;
    if (answered(entries)) {
      if (entries->size() != wanted.size()) wrong(at, "wrong number of entries");
      for (const DirectoryEntry& entry : *entries) {
        if (!wanted.contains(entry.name)) wrong(at, "unknown entry " + entry.name);
      }
    }
    for (const auto& [name, child] : wanted) {
      auto found = co_await fs_.lookup(at.ino, name);
      if (answered(found)) {
        Suspect next{child, found->ino, at.path + "/" + name};
        stack->push_back(next);
      } else if (found.error().code == Code::kNoEntry) {
        wrong(at, "says that there is no " + name);
      }
    }
  }

  FileSystem& fs_;
  const ModelState& model_;
  const bool any_answer_;
  DamageReport report_;
};

}  // namespace

Task<Result<ModelState>> read_tree(FileSystem& fs) {
  Reading reading;
  bool fresh = false;
  auto root = co_await read_object(fs, ondisk::kRootInode, &reading, &fresh);
  COFS_CO_TRY(root);
  std::vector<std::pair<uint64_t, uint32_t>> stack{{ondisk::kRootInode, *root}};
  while (!stack.empty()) {
    const auto [ino, number] = stack.back();
    stack.pop_back();
    auto entries = co_await read_entries(fs, ino);
    COFS_CO_TRY(entries);
    for (const DirectoryEntry& entry : *entries) {
      auto child = co_await read_object(fs, entry.ino, &reading, &fresh);
      COFS_CO_TRY(child);
      const ModelNode& node = reading.state.node(*child);
      if (IFTODT(node.mode) != entry.type) {
        co_return fail(Code::kCorrupt, "test: an entry's type is not the object's", entry.ino);
      }
      auto looked_up = co_await fs.lookup(ino, entry.name);
      COFS_CO_TRY(looked_up);
      if (looked_up->ino != entry.ino) {
        co_return fail(Code::kCorrupt, "test: lookup and readdir contradict each other", entry.ino);
      }
      if (!reading.state.edit(number).entries.emplace(entry.name, *child).second) {
        co_return fail(Code::kCorrupt, "test: an entry is listed twice", ino);
      }
      if (!node.is_directory()) continue;
      if (!fresh) co_return fail(Code::kCorrupt, "test: a directory has two names", entry.ino);
      stack.emplace_back(entry.ino, *child);
    }
  }
  co_return std::move(reading.state);
}

Task<DamageReport> compare_damaged(FileSystem& fs, const ModelState& model, bool any_answer) {
  Inspector inspector(fs, model, any_answer);
  auto report = co_await inspector.inspect();
  co_return report;
}

}  // namespace cofs
