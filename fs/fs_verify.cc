#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>

#include "fs/directory.h"
#include "fs/filesystem.h"
#include "fs/fs_check.h"
#include "fs/names.h"
#include "fs/xattr.h"

namespace cofs {

namespace {

constexpr uint64_t kProgressRecords = 65'536;
constexpr size_t kProblemsKept = 1000;

// printf's conversions for 64-bit numbers.
unsigned long long num(uint64_t value) { return value; }

}  // namespace

bool Finding::repairable() const {
  switch (kind) {
    case kUnreadableInode:
    case kStrayRecord:
    case kUnknownRecord:
    case kBadExtent: return false;
    default: return true;
  }
}

bool NamespaceCheck::Node::directory() const { return (mode & S_IFMT) == S_IFDIR; }

Finding& NamespaceCheck::add(Finding::Kind kind, uint64_t ino, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  Finding& finding = findings_.emplace_back();
  finding.kind = kind;
  finding.ino = ino;
  finding.what = "inode " + std::to_string(ino) + ": " + text;
  return finding;
}

Task<Result<>> NamespaceCheck::read_keys(Key from, Key to, std::unordered_set<uint64_t>* out) {
  std::function<bool(const Key&, Bytes)> take = [out](const Key& key, Bytes) {
    out->insert(key.id);
    return true;
  };
  auto scanned = co_await store_.scan(from, to, UINT64_MAX, take);
  co_return scanned;
}

Task<Result<>> NamespaceCheck::run(const VerifyOptions* options) {
  auto read = co_await read_keys(Key::orphan(0), Key::orphan(UINT64_MAX), &orphans_);
  COFS_CO_TRY(read);
  read = co_await read_keys(Key::logged_op(0), Key::logged_op(UINT64_MAX), &truncating_);
  COFS_CO_TRY(read);

  std::function<bool(const Key&, Bytes)> take = [this, options](const Key& key, Bytes value) {
    visit(key, value);
    if (options->progress && records_ % kProgressRecords == 0) {
      options->progress(inode_count_, store_.space().inode_count);
    }
    return true;
  };
  const Key end(ondisk::KeySpace::kVmap, 0, static_cast<ondisk::KeyType>(0));
  auto scanned = co_await store_.scan(Key::inode(0), end, UINT64_MAX, take);
  COFS_CO_TRY(scanned);
  end_xattr();
  check_entries();
  std::vector<uint64_t> inos;  // in order, so that reports and repairs can be compared
  inos.reserve(nodes_.size());
  for (const auto& [ino, node] : nodes_) inos.push_back(ino);
  std::ranges::sort(inos);
  for (uint64_t ino : inos) check_node(ino, nodes_.at(ino));
  check_reachable();
  for (uint64_t ino : orphans_) {
    const auto it = nodes_.find(ino);
    if (it == nodes_.end() || !it->second.exists) {
      add(Finding::kExtraOrphan, ino, "orphan record without an inode");
    }
  }
  co_return Result<>();
}

void NamespaceCheck::visit(const Key& key, Bytes value) {
  records_++;
  if (key.type != ondisk::KeyType::kXattr) end_xattr();
  switch (key.type) {
    case ondisk::KeyType::kInode: return visit_inode(key, value);
    case ondisk::KeyType::kXattr: return visit_xattr(key, value);
    case ondisk::KeyType::kExtent: return visit_extent(key, value);
    case ondisk::KeyType::kDirent: return visit_entry(key, value);
    default:
      add(Finding::kUnknownRecord, key.id, "record of unknown type %d",
          static_cast<int>(key.type));
  }
}

void NamespaceCheck::visit_inode(const Key& key, Bytes value) {
  inode_count_++;
  if (key.offset != 0 || key.n != 0) {
    add(Finding::kUnreadableInode, key.id, "inode record under a wrong key");
    return;
  }
  Node& node = nodes_[key.id];
  node.exists = true;
  Inode inode(inodes_, store_.environment().executor, key.id);
  auto decoded = decode_inode(value, inode);
  if (!decoded) {
    add(Finding::kUnreadableInode, key.id, "%s", decoded.error().what);
    return;
  }
  node.mode = inode.mode;
  node.nlink = inode.nlink;
  node.size = inode.size;
  node.parent = inode.parent;
  node.blocks = inode.blocks;
}

// Parts of one attribute follow each other; visit() ends the last one.
void NamespaceCheck::visit_xattr(const Key& key, Bytes value) {
  if (!nodes_[key.id].exists) add(Finding::kStrayRecord, key.id, "attribute without an inode");
  auto part = decode_xattr(key, value);
  if (!part) {
    end_xattr();
    add(Finding::kBadXattr, key.id, "%s", part.error().what).key = key;
    return;
  }
  const bool continues = xattr_.parts_left > 0 && xattr_.ino == key.id &&
                         xattr_.hash == key.offset && xattr_.next_n == key.n;
  if (continues) {
    xattr_.parts_left--;
    xattr_.next_n++;
    return;
  }
  end_xattr();
  if (key.n % kXattrPartsMax != 0) {
    add(Finding::kBadXattr, key.id, "part of an attribute without its start").key = key;
    return;
  }
  xattr_.ino = key.id;
  xattr_.hash = key.offset;
  xattr_.next_n = static_cast<uint16_t>(key.n + 1);
  xattr_.parts_left = static_cast<uint16_t>(xattr_parts(part->value_bytes) - 1);
  xattr_.first = key;
}

void NamespaceCheck::end_xattr() {
  if (xattr_.parts_left > 0) {
    add(Finding::kBadXattr, xattr_.ino, "attribute with missing parts").key = xattr_.first;
  }
  xattr_.parts_left = 0;
}

void NamespaceCheck::visit_extent(const Key& key, Bytes value) {
  Node& node = nodes_[key.id];
  if (!node.exists) add(Finding::kStrayRecord, key.id, "extent without an inode");
  ondisk::Extent extent;
  if (value.size() != sizeof(extent)) {
    add(Finding::kBadExtent, key.id, "extent at block %llu has a wrong length", num(key.offset));
    return;
  }
  std::memcpy(&extent, value.data(), sizeof(extent));
  const bool unwritten = (extent.flags & ondisk::kExtentUnwritten) != 0;
  const uint64_t count = extent.count;
  if (count == 0 || count > ondisk::kExtentBlocksMax || key.n != 0 ||
      (extent.flags & ~ondisk::kExtentFlagsKnown) != 0 || unwritten != (extent.virtual_block == 0)) {
    add(Finding::kBadExtent, key.id, "extent at block %llu breaks its rules", num(key.offset));
    return;
  }
  const uint64_t start = key.offset;
  if (extent_ino_ == key.id && start < extent_end_) {
    add(Finding::kBadExtent, key.id, "extents overlap at block %llu", num(start));
  }
  extent_ino_ = key.id;
  extent_end_ = start + count;
  node.mapped += count;
  const uint64_t end_of_file = blocks_of_bytes(node.size);
  if (node.exists && !unwritten && extent_end_ > end_of_file && !truncating_.contains(key.id)) {
    const uint64_t from = std::max(start, end_of_file);
    add(Finding::kBeyondEnd, key.id, "data beyond the end, at block %llu", num(from)).value = from;
  }
}

void NamespaceCheck::visit_entry(const Key& key, Bytes value) {
  Node& directory = nodes_[key.id];
  if (!directory.exists) add(Finding::kStrayRecord, key.id, "entry without a directory");
  auto record = decode_entry(key, value);
  if (!record) {
    add(Finding::kBadEntry, key.id, "entry %llx breaks its rules", num(key.offset)).key = key;
    return;
  }
  Entry& entry = entries_.emplace_back();
  entry.key = key;
  entry.ino = record->ino;
  entry.type = record->type;
}

void NamespaceCheck::check_entries() {
  for (const Entry& entry : entries_) {
    const uint64_t parent = entry.key.id;
    const auto it = nodes_.find(entry.ino);
    if (it == nodes_.end() || !it->second.exists) {
      add(Finding::kDanglingEntry, parent, "an entry names inode %llu, which does not exist",
          num(entry.ino))
          .key = entry.key;
      continue;
    }
    Node& node = it->second;
    if (node.directory() && (node.entries > 0 || entry.ino == ondisk::kRootInode)) {
      add(Finding::kSecondEntry, parent, "a second entry for directory %llu", num(entry.ino)).key =
          entry.key;
      continue;
    }
    if (node.mode != 0 && entry.type != entry_type(node.mode)) {
      Finding& finding = add(Finding::kEntryType, parent, "the entry for inode %llu has type %u",
                             num(entry.ino), entry.type);
      finding.key = entry.key;
      finding.value = entry_type(node.mode);
    }
    if (node.entries++ == 0) {
      node.entry_directory = parent;
      node.entry_key = entry.key;
    }
    Node& directory = nodes_[parent];
    directory.children++;
    if (node.directory()) directory.subdirectories++;
  }
}

void NamespaceCheck::check_node(uint64_t ino, const Node& node) {
  if (!node.exists || node.mode == 0) return;  // already reported
  if (node.mapped != node.blocks) {
    add(Finding::kBlocks, ino, "counts %llu blocks, has %llu", num(node.blocks), num(node.mapped))
        .value = node.mapped;
  }
  const bool orphan = orphans_.contains(ino);
  if (node.directory()) check_directory(ino, node);
  if (!node.directory() && node.children > 0) {
    add(Finding::kUnknownRecord, ino, "entries in what is not a directory");
  }
  if (ino == ondisk::kRootInode) return;
  if (node.entries == 0 && node.nlink != 0) {
    if (orphan) {
      add(Finding::kLinkCount, ino, "has %u links, but no name", node.nlink).value = 0;
    } else {
      add(Finding::kUnreachable, ino, "has no name");
    }
    return;
  }
  if (node.entries == 0 && !orphan) {
    add(Finding::kMissingOrphan, ino, "has no name, and no orphan record");
  }
  if (node.entries > 0 && orphan) {
    add(Finding::kExtraOrphan, ino, "has a name and an orphan record");
  }
  if (!node.directory() && node.nlink != node.entries) {
    add(Finding::kLinkCount, ino, "counts %u links, has %llu", node.nlink, num(node.entries))
        .value = node.entries;
  }
}

void NamespaceCheck::check_directory(uint64_t ino, const Node& node) {
  const bool named = node.entries > 0 || ino == ondisk::kRootInode;
  const uint64_t links = node.subdirectories + 2;
  if (named && node.nlink != links) {
    add(Finding::kLinkCount, ino, "counts %u links, has %llu", node.nlink, num(links)).value =
        links;
  }
  if (node.size != node.children) {
    add(Finding::kDirectorySize, ino, "counts %llu entries, has %llu", num(node.size),
        num(node.children))
        .value = node.children;
  }
  const uint64_t parent = ino == ondisk::kRootInode ? ino : node.entry_directory;
  if (named && node.parent != parent) {
    add(Finding::kParent, ino, "names directory %llu as its parent, is in %llu", num(node.parent),
        num(parent))
        .value = parent;
  }
}

// Follows the entries upwards from each directory. What has no name was reported before; a directory
// with a name that does not come to the root is in a cycle, or below one.
void NamespaceCheck::check_reachable() {
  std::unordered_set<uint64_t> settled = {ondisk::kRootInode};
  std::vector<uint64_t> inos;
  for (const auto& [ino, node] : nodes_) {
    if (node.exists && node.directory()) inos.push_back(ino);
  }
  std::ranges::sort(inos);
  for (uint64_t start : inos) {
    std::vector<uint64_t> path;
    std::unordered_set<uint64_t> on_path;
    uint64_t at = start;
    while (!settled.contains(at) && !on_path.contains(at)) {
      path.push_back(at);
      on_path.insert(at);
      const auto it = nodes_.find(at);
      if (it == nodes_.end() || it->second.entries == 0) break;
      at = it->second.entry_directory;
    }
    if (on_path.contains(at) && nodes_.at(at).entries > 0) {
      add(Finding::kDetachedCycle, at, "directory inside itself").key = nodes_.at(at).entry_key;
    }
    settled.insert(path.begin(), path.end());
  }
}

Task<Result<VerifyReport>> FileSystem::verify(VerifyOptions options) {
  co_await names_->settle();
  if (!options_.read_only) {
    auto committed = co_await store_->commit();
    COFS_CO_TRY(committed);
  }
  auto report = co_await store_->verify(options);
  COFS_CO_TRY(report);
  NamespaceCheck check(*store_, *inodes_);
  auto checked = co_await check.run(&options);
  COFS_CO_TRY(checked);
  report->inodes = check.inode_count();
  report->problem_count += check.findings().size();
  for (const Finding& finding : check.findings()) {
    if (report->problems.size() >= kProblemsKept) break;
    VerifyProblem& problem = report->problems.emplace_back();
    problem.what = finding.what;
    problem.repairable = finding.repairable();
  }
  co_return report;
}

}  // namespace cofs
