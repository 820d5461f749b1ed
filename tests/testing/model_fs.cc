#include "tests/testing/model_fs.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr size_t kNameMax = 255;

uint64_t hash_text(std::string_view text) {
  return checksum64(std::as_bytes(std::span(text.data(), text.size())), 77);
}

// Deleting, cutting off, asking and syncing must work on a full volume too.
bool may_lack_space(const Operation& op, const ModelState& state) {
  switch (op.kind) {
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory:
    case OperationKind::kClose:
    case OperationKind::kRemoveXattr:
    case OperationKind::kSync:
    case OperationKind::kCheckpoint: return false;
    case OperationKind::kTruncate: {
      const auto found = op.slot < 0 ? state.find(op.path) : std::nullopt;
      return !found || op.offset > state.node(*found).size;
    }
    default: return changes_tree(op.kind) || op.kind == OperationKind::kDedupe;
  }
}

}  // namespace

bool ModelNode::is_directory() const { return S_ISDIR(mode); }
bool ModelNode::is_regular() const { return S_ISREG(mode); }
bool ModelNode::is_symlink() const { return S_ISLNK(mode); }

uint64_t ModelNode::content_hash() const {
  uint64_t hash = mix64(mode, (uint64_t{uid} << 32) | gid);
  hash = mix64(hash, (uint64_t{nlink} << 32) ^ rdev);
  hash = mix64(hash, size);
  hash = mix64(hash, hash_text(target));
  for (const auto& [name, value] : xattrs) hash += mix64(hash_text(name), hash_text(value) + 1);
  for (const auto& [block, content] : blocks) hash += mix64(block + 3, content->hash);
  return hash;
}

ModelState::ModelState() {
  slots_.fill(kClosed);
  ModelNode root;
  root.mode = S_IFDIR | 0755;
  root.nlink = 2;
  add(std::move(root));
}

uint32_t ModelState::add(ModelNode node) {
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i] != nullptr) continue;
    nodes_[i] = std::make_shared<ModelNode>(std::move(node));
    return i;
  }
  nodes_.push_back(std::make_shared<ModelNode>(std::move(node)));
  return static_cast<uint32_t>(nodes_.size() - 1);
}

ModelNode& ModelState::edit(uint32_t number) {
  std::shared_ptr<const ModelNode>& node = nodes_.at(number);
  if (node.use_count() != 1) node = std::make_shared<ModelNode>(*node);
  // Made by make_shared<ModelNode>, and nobody else sees it.
  return const_cast<ModelNode&>(*node);
}

ModelState::Walk ModelState::walk(const std::string& path) const {
  Walk walk;
  uint32_t at = kRoot;
  if (path == "/") {
    walk.node = kRoot;
    return walk;
  }
  size_t start = 1;
  while (true) {
    const size_t end = std::min(path.find('/', start), path.size());
    walk.parent = at;
    walk.name = path.substr(start, end - start);
    if (!node(at).is_directory()) {
      walk.errors = {Code::kNotDirectory};
      return walk;
    }
    if (walk.name.size() > kNameMax) {
      walk.errors = {Code::kNameTooLong};
      return walk;
    }
    const auto found = node(at).entries.find(walk.name);
    const bool last = end == path.size();
    if (found == node(at).entries.end()) {
      if (!last) walk.errors = {Code::kNoEntry};
      return walk;
    }
    at = found->second;
    if (last) {
      walk.node = at;
      return walk;
    }
    start = end + 1;
  }
}

std::optional<uint32_t> ModelState::find(const std::string& path) const {
  const Walk found = walk(path);
  return found.errors.empty() ? found.node : std::nullopt;
}

std::optional<uint32_t> ModelState::file_of(const Operation& op, std::vector<Code>& errors) const {
  if (op.slot >= 0 && op.kind != OperationKind::kOpen) {
    const int32_t number = slots_.at(static_cast<size_t>(op.slot));
    COFS_ASSERT(number != kClosed);
    return static_cast<uint32_t>(number);
  }
  const Walk found = walk(op.path);
  errors = found.errors;
  if (errors.empty() && !found.node) errors = {Code::kNoEntry};
  return errors.empty() ? found.node : std::nullopt;
}

void ModelState::touch(uint32_t directory) { edit(directory).modify_time.reset(); }

bool ModelState::open_anywhere(uint32_t number) const {
  return std::find(slots_.begin(), slots_.end(), static_cast<int32_t>(number)) != slots_.end();
}

void ModelState::drop_link(uint32_t number) {
  ModelNode& node = edit(number);
  node.nlink = node.is_directory() ? 0 : node.nlink - 1;
  if (node.nlink == 0 && !open_anywhere(number)) nodes_[number] = nullptr;
}

void ModelState::close_all() {
  for (int32_t& slot : slots_) {
    if (slot == kClosed) continue;
    const auto number = static_cast<uint32_t>(std::exchange(slot, kClosed));
    if (nodes_[number] != nullptr && nodes_[number]->nlink == 0) nodes_[number] = nullptr;
  }
}

ModelAnswer ModelState::perform(const Operation& op, std::optional<uint64_t> copied) {
  switch (op.kind) {
    case OperationKind::kCreate:
    case OperationKind::kMakeDirectory:
    case OperationKind::kMakeNode:
    case OperationKind::kMakeSymlink: return make(op);
    case OperationKind::kMakeUnnamed: return make_unnamed(op);
    case OperationKind::kLink: return link(op);
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory: return remove(op);
    case OperationKind::kRename: return rename(op);
    case OperationKind::kOpen:
    case OperationKind::kClose: return open_close(op);
    case OperationKind::kWrite:
    case OperationKind::kAppend: return write(op);
    case OperationKind::kTruncate: return truncate(op);
    case OperationKind::kAllocate: return allocate(op);
    case OperationKind::kCopyRange:
    case OperationKind::kClone: return copy(op, copied);
    case OperationKind::kDedupe: return dedupe(op);
    case OperationKind::kChmod:
    case OperationKind::kChown:
    case OperationKind::kSetTimes: return set_attributes(op);
    case OperationKind::kSetXattr:
    case OperationKind::kRemoveXattr:
    case OperationKind::kGetXattr:
    case OperationKind::kListXattrs: return xattr(op);
    case OperationKind::kReadDirectory: return read_directory(op);
    case OperationKind::kStat:
    case OperationKind::kReadSymlink: return inquire(op);
    case OperationKind::kRead:
    case OperationKind::kSeekData:
    case OperationKind::kSeekHole: return read(op);
    case OperationKind::kStatfs:
    case OperationKind::kSync:
    case OperationKind::kCheckpoint:
    case OperationKind::kPass: break;
  }
  return {};
}

std::string ModelState::check(const Operation& op, const OperationResult& result) {
  ModelState after = *this;
  const std::optional<uint64_t> copied =
      result.ok() ? std::optional<uint64_t>(result.value) : std::nullopt;
  const ModelAnswer answer = after.perform(op, copied);
  const bool full = result.error && result.error->code == Code::kNoSpace;
  if (full && answer.errors.empty() && may_lack_space(op, *this)) return "";
  std::string wrong = mismatch(op, answer, result);
  if (wrong.empty() && result.ok()) *this = std::move(after);
  return wrong;
}

std::vector<std::string> ModelState::paths(bool (*wanted)(const ModelNode&)) const {
  std::vector<std::string> found;
  std::vector<std::pair<uint32_t, std::string>> stack{{kRoot, ""}};
  while (!stack.empty()) {
    const auto [number, path] = stack.back();
    stack.pop_back();
    for (const auto& [name, child] : node(number).entries) {
      const std::string full = path + "/" + name;
      if (wanted(node(child))) found.push_back(full);
      if (node(child).is_directory()) stack.emplace_back(child, full);
    }
  }
  return found;
}

ModelState ModelState::subtree(uint32_t directory) const {
  ModelState tree = *this;
  tree.close_all();
  tree.nodes_[kRoot] = nodes_.at(directory);
  return tree;
}

uint64_t ModelState::hash_below(uint32_t number) const {
  uint64_t hash = node(number).content_hash();
  for (const auto& [name, child] : node(number).entries) {
    hash += mix64(hash_text(name), hash_below(child));
  }
  return mix64(hash, 5);
}

uint64_t ModelState::tree_hash() const { return hash_below(kRoot); }

}  // namespace cofs
