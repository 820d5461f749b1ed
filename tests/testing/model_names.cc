// The namespace half of the model: names, links, attributes, extended attributes.
#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>

#include "tests/testing/model_fs.h"

namespace cofs {
namespace {

constexpr uint32_t kUmask = 022;
constexpr uint64_t kXattrValueMax = 65536;
constexpr uint64_t kNameMax = 255;
constexpr uint32_t kNoReplace = static_cast<uint32_t>(RenameFlags::kNoReplace);
constexpr uint32_t kExchange = static_cast<uint32_t>(RenameFlags::kExchange);
constexpr uint32_t kWhiteout = static_cast<uint32_t>(RenameFlags::kWhiteout);

uint32_t type_bits(OperationKind kind, uint32_t mode) {
  switch (kind) {
    case OperationKind::kMakeDirectory: return S_IFDIR;
    case OperationKind::kMakeSymlink: return S_IFLNK;
    case OperationKind::kMakeNode: return mode & S_IFMT;
    default: return S_IFREG;
  }
}

// Whether objects of this type may carry attributes of this name.
std::vector<Code> xattr_name_errors(const std::string& name, const ModelNode& node) {
  if (name.size() > kNameMax) return {Code::kRange};
  if (name.starts_with("user.")) {
    if (node.is_regular() || node.is_directory()) return {};
    return {Code::kNotPermitted};
  }
  if (name.starts_with("trusted.") || name.starts_with("security.")) return {};
  return {Code::kNotSupported};
}

}  // namespace

uint32_t ModelState::child_group(uint32_t parent) const {
  return (node(parent).mode & S_ISGID) != 0 ? node(parent).gid : 0;
}

ModelAnswer ModelState::make(const Operation& op) {
  Answer answer;
  const Walk place = walk(op.path);
  answer.errors = place.errors;
  if (!answer.errors.empty()) return answer;
  if (place.node) {
    // Not exclusive: a regular file is returned as it is.
    const bool may_exist = op.kind == OperationKind::kCreate && (op.flags & 1) != 0;
    const ModelNode& there = node(*place.node);
    if (may_exist && there.is_directory()) {
      answer.errors = {Code::kIsDirectory};
    } else if (!may_exist || !there.is_regular()) {
      answer.errors = {Code::kExists};
    }
    return answer;
  }
  ModelNode made;
  const bool directory = op.kind == OperationKind::kMakeDirectory;
  const uint32_t type = type_bits(op.kind, op.mode);
  made.mode = type | (op.mode & 07777 & ~kUmask);
  if (op.kind == OperationKind::kMakeSymlink) {
    made.mode = S_IFLNK | 0777;
    made.target = op.text;
    made.size = op.text.size();
  }
  made.gid = child_group(place.parent);
  if (directory && (node(place.parent).mode & S_ISGID) != 0) made.mode |= S_ISGID;
  made.nlink = directory ? 2 : 1;
  made.parent = directory ? place.parent : 0;
  if (type == S_IFCHR || type == S_IFBLK) made.rdev = op.offset;
  const uint32_t number = add(std::move(made));
  ModelNode& parent = edit(place.parent);
  parent.entries[place.name] = number;
  if (directory) parent.nlink++;
  touch(place.parent);
  return answer;
}

ModelAnswer ModelState::make_unnamed(const Operation& op) {
  Answer answer;
  const Walk place = walk(op.path);
  answer.errors = place.errors;
  if (answer.errors.empty() && !place.node) answer.errors = {Code::kNoEntry};
  if (!answer.errors.empty()) return answer;
  if (!node(*place.node).is_directory()) {
    answer.errors = {Code::kNotDirectory};
    return answer;
  }
  ModelNode made;
  made.mode = S_IFREG | (op.mode & 07777 & ~kUmask);
  made.gid = child_group(*place.node);
  made.linkable = true;
  slots_.at(static_cast<size_t>(op.slot)) = static_cast<int32_t>(add(std::move(made)));
  return answer;
}

ModelAnswer ModelState::link(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  const Walk to = walk(op.path2);
  answer.errors = to.errors;
  if (node(*number).is_directory()) answer.errors.push_back(Code::kNotPermitted);
  if (to.node) answer.errors.push_back(Code::kExists);
  if (node(*number).nlink == 0 && !node(*number).linkable) answer.errors.push_back(Code::kNoEntry);
  if (!answer.errors.empty()) return answer;
  edit(*number).nlink++;
  edit(*number).linkable = false;
  edit(to.parent).entries[to.name] = *number;
  touch(to.parent);
  return answer;
}

ModelAnswer ModelState::remove(const Operation& op) {
  Answer answer;
  const Walk place = walk(op.path);
  answer.errors = place.errors;
  if (answer.errors.empty() && !place.node) answer.errors = {Code::kNoEntry};
  if (!answer.errors.empty()) return answer;
  const bool directory = node(*place.node).is_directory();
  if (op.kind == OperationKind::kUnlink) {
    if (directory) answer.errors = {Code::kIsDirectory};
  } else if (!directory) {
    answer.errors = {Code::kNotDirectory};
  } else if (!node(*place.node).entries.empty()) {
    answer.errors = {Code::kNotEmpty};
  }
  if (!answer.errors.empty()) return answer;
  ModelNode& parent = edit(place.parent);
  parent.entries.erase(place.name);
  if (directory) parent.nlink--;
  touch(place.parent);
  drop_link(*place.node);
  return answer;
}

std::vector<Code> ModelState::rename_errors(const Operation& op, const Walk& from,
                                            const Walk& to) const {
  const bool exchange = (op.flags & kExchange) != 0;
  if ((op.flags & ~(kNoReplace | kExchange | kWhiteout)) != 0) return {Code::kInvalid};
  if (exchange && (op.flags & (kNoReplace | kWhiteout)) != 0) return {Code::kInvalid};
  std::vector<Code> errors = from.errors;
  errors.insert(errors.end(), to.errors.begin(), to.errors.end());
  if (!errors.empty()) return errors;
  if (!from.node) return {Code::kNoEntry};
  if ((op.flags & kNoReplace) != 0 && to.node) return {Code::kExists};
  if (exchange && !to.node) return {Code::kNoEntry};
  auto is_above = [&](uint32_t upper, uint32_t lower) {
    for (uint32_t at = lower;; at = node(at).parent) {
      if (at == upper) return true;
      if (at == kRoot) return false;
    }
  };
  const ModelNode& source = node(*from.node);
  if (source.is_directory() && is_above(*from.node, to.parent)) return {Code::kInvalid};
  if (!to.node) return {};
  const ModelNode& target = node(*to.node);
  if (target.is_directory() && is_above(*to.node, from.parent)) {
    if (exchange) return {Code::kInvalid};
    return source.is_directory() ? std::vector<Code>{Code::kNotEmpty}
                                 : std::vector<Code>{Code::kNotEmpty, Code::kIsDirectory};
  }
  if (exchange || *from.node == *to.node) return {};
  if (source.is_directory() && !target.is_directory()) return {Code::kNotDirectory};
  if (!source.is_directory() && target.is_directory()) return {Code::kIsDirectory};
  if (target.is_directory() && !target.entries.empty()) return {Code::kNotEmpty};
  return {};
}

void ModelState::exchange(const Walk& from, const Walk& to) {
  edit(from.parent).entries[from.name] = *to.node;
  edit(to.parent).entries[to.name] = *from.node;
  const std::pair<uint32_t, std::pair<uint32_t, uint32_t>> moves[] = {
      {*from.node, {from.parent, to.parent}}, {*to.node, {to.parent, from.parent}}};
  for (const auto& [number, parents] : moves) {
    if (!node(number).is_directory()) continue;
    edit(parents.first).nlink--;
    edit(parents.second).nlink++;
    edit(number).parent = parents.second;
    touch(number);
  }
}

ModelAnswer ModelState::rename(const Operation& op) {
  Answer answer;
  const Walk from = walk(op.path);
  const Walk to = walk(op.path2);
  answer.errors = rename_errors(op, from, to);
  if (!answer.errors.empty()) return answer;
  if (to.node && *from.node == *to.node) return answer;  // two names of one file: nothing happens
  touch(from.parent);
  touch(to.parent);
  if ((op.flags & kExchange) != 0) {
    exchange(from, to);
    return answer;
  }
  const bool directory = node(*from.node).is_directory();
  edit(from.parent).entries.erase(from.name);
  if (directory) {
    edit(from.parent).nlink--;
    if (to.node) edit(to.parent).nlink--;
    edit(to.parent).nlink++;
    edit(*from.node).parent = to.parent;
    touch(*from.node);
  }
  edit(to.parent).entries[to.name] = *from.node;
  if (to.node) drop_link(*to.node);
  if ((op.flags & kWhiteout) != 0) {
    ModelNode whiteout;
    whiteout.mode = S_IFCHR;
    whiteout.gid = child_group(from.parent);
    whiteout.nlink = 1;
    const uint32_t number = add(std::move(whiteout));
    edit(from.parent).entries[from.name] = number;
  }
  return answer;
}

ModelAnswer ModelState::set_attributes(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  ModelNode& changed = edit(*number);
  if (op.kind == OperationKind::kChmod) {
    changed.mode = (changed.mode & S_IFMT) | (op.mode & 07777);
  } else if (op.kind == OperationKind::kChown) {
    changed.uid = static_cast<uint32_t>(op.offset);
    if (changed.is_regular()) changed.change_owner();
    changed.gid = static_cast<uint32_t>(op.offset2);
  } else {
    WallTime time;
    time.seconds = static_cast<int64_t>(op.offset);
    time.nanoseconds = static_cast<uint32_t>(op.offset % 1'000'000'000);
    changed.modify_time = time;
  }
  return answer;
}

ModelAnswer ModelState::xattr(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  const auto& xattrs = node(*number).xattrs;
  if (op.kind == OperationKind::kListXattrs) {
    for (const auto& [name, value] : xattrs) answer.expected.names.push_back(name);
    return answer;
  }
  const auto found = xattrs.find(op.text);
  const bool present = found != xattrs.end();
  const bool changing = op.kind != OperationKind::kGetXattr;
  if (!present && (op.kind != OperationKind::kSetXattr)) answer.errors = {Code::kNoAttribute};
  const std::vector<Code> name_errors = xattr_name_errors(op.text, node(*number));
  if (!name_errors.empty()) {
    answer.errors.insert(answer.errors.end(), name_errors.begin(), name_errors.end());
  }
  if (changing && op.length > kXattrValueMax) answer.errors.push_back(Code::kTooBig);
  if (op.kind == OperationKind::kSetXattr) {
    if ((op.flags & 1) != 0 && present) answer.errors.push_back(Code::kExists);
    if ((op.flags & 2) != 0 && !present) answer.errors.push_back(Code::kNoAttribute);
  }
  if (!answer.errors.empty()) return answer;
  if (op.kind == OperationKind::kGetXattr) {
    answer.expected.bytes = found->second;
  } else if (op.kind == OperationKind::kRemoveXattr) {
    edit(*number).xattrs.erase(op.text);
  } else {
    edit(*number).xattrs[op.text] = pattern_bytes(op.seed, 0, op.length);
  }
  return answer;
}

ModelAnswer ModelState::read_directory(const Operation& op) const {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  if (!node(*number).is_directory()) {
    answer.errors = {Code::kNotDirectory};
    return answer;
  }
  for (const auto& [name, child] : node(*number).entries) {
    answer.expected.entries.emplace_back(name, static_cast<uint8_t>(IFTODT(node(child).mode)));
  }
  return answer;
}

ModelAnswer ModelState::inquire(const Operation& op) const {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  answer.node = nodes_[*number];
  if (op.kind == OperationKind::kReadSymlink) {
    if (!answer.node->is_symlink()) answer.errors = {Code::kInvalid};
    answer.expected.bytes = answer.node->target;
  }
  return answer;
}

}  // namespace cofs
