// The file half of the model: bytes, sizes, holes, copies.
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "offload/base/checksum.h"
#include "tests/testing/model_fs.h"

namespace cofs {
namespace {

constexpr uint64_t kSizeMax = INT64_MAX;

bool all_zero(const ModelBlock& block) {
  return block.bytes[0] == 0 &&
         std::memcmp(block.bytes.data(), block.bytes.data() + 1, kBlockBytes - 1) == 0;
}

// What reading or writing something that is no regular file may say.
std::vector<Code> wrong_type_errors(const ModelNode& node) {
  if (node.is_directory()) return {Code::kIsDirectory, Code::kInvalid, Code::kNotSupported};
  return {Code::kInvalid, Code::kNotSupported, Code::kNotPermitted};
}

}  // namespace

void ModelNode::drop_privileges(std::optional<uint32_t> group) {
  change_owner();
  if (group != gid) mode &= ~static_cast<uint32_t>(S_ISGID);
}

void ModelNode::change_owner() {
  const bool executable = (mode & S_IXGRP) != 0;
  mode &= ~static_cast<uint32_t>(executable ? S_ISUID | S_ISGID : S_ISUID);
}

std::string ModelNode::read(uint64_t offset, uint64_t length) const {
  if (offset >= size) return {};
  length = std::min(length, size - offset);
  std::string bytes(length, '\0');
  auto block = blocks.lower_bound(offset >> kBlockShift);
  for (; block != blocks.end(); ++block) {
    const uint64_t start = block->first << kBlockShift;
    if (start >= offset + length) break;
    const uint64_t from = std::max(start, offset);
    const uint64_t to = std::min(start + kBlockBytes, offset + length);
    std::memcpy(bytes.data() + (from - offset), block->second->bytes.data() + (from - start),
                to - from);
  }
  return bytes;
}

void ModelNode::edit_block(uint64_t block, uint64_t from, std::string_view bytes) {
  auto fresh = std::make_shared<ModelBlock>();
  auto found = blocks.find(block);
  if (found == blocks.end()) {
    fresh->bytes.fill(0);
  } else {
    fresh->bytes = found->second->bytes;
  }
  std::memcpy(fresh->bytes.data() + from, bytes.data(), bytes.size());
  if (all_zero(*fresh)) {
    blocks.erase(block);
    return;
  }
  fresh->hash = block_hash(reinterpret_cast<const std::byte*>(fresh->bytes.data()));
  blocks[block] = std::move(fresh);
}

void ModelNode::write(uint64_t offset, std::string_view bytes) {
  uint64_t done = 0;
  while (done < bytes.size()) {
    const uint64_t at = offset + done;
    const uint64_t from = at % kBlockBytes;
    const uint64_t n = std::min<uint64_t>(kBlockBytes - from, bytes.size() - done);
    edit_block(at >> kBlockShift, from, bytes.substr(done, n));
    done += n;
  }
  if (!bytes.empty()) size = std::max(size, offset + bytes.size());
}

void ModelNode::zero(uint64_t offset, uint64_t length) {
  const uint64_t end = length > UINT64_MAX - offset ? UINT64_MAX : offset + length;
  auto block = blocks.lower_bound(offset >> kBlockShift);
  while (block != blocks.end() && (block->first << kBlockShift) < end) {
    const uint64_t number = block->first;
    const uint64_t start = number << kBlockShift;
    ++block;
    const uint64_t from = std::max(start, offset);
    const uint64_t to = std::min(start + kBlockBytes, end);
    edit_block(number, from - start, std::string(to - from, '\0'));
  }
}

void ModelNode::resize(uint64_t new_size) {
  if (new_size < size) zero(new_size, UINT64_MAX - new_size);
  size = new_size;
}

std::optional<uint64_t> ModelNode::next_nonzero_block(uint64_t offset) const {
  auto block = blocks.lower_bound(offset >> kBlockShift);
  if (block == blocks.end()) return std::nullopt;
  return std::max(offset, block->first << kBlockShift);
}

ModelAnswer ModelState::open_close(const Operation& op) {
  Answer answer;
  const auto slot = static_cast<size_t>(op.slot);
  if (op.kind == OperationKind::kClose) {
    const int32_t number = std::exchange(slots_.at(slot), kClosed);
    const auto closed = static_cast<uint32_t>(number);
    if (nodes_[closed]->nlink == 0 && !open_anywhere(closed)) nodes_[closed] = nullptr;
    return answer;
  }
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  slots_.at(slot) = static_cast<int32_t>(*number);
  if ((op.flags & 1) != 0) {
    ModelNode& node = edit(*number);
    node.resize(0);
    node.modify_time.reset();
  }
  return answer;
}

ModelAnswer ModelState::write(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  const bool append = op.kind == OperationKind::kAppend;
  const uint64_t offset = append ? node(*number).size : op.offset;
  if (!node(*number).is_regular()) {
    answer.errors = wrong_type_errors(node(*number));
  } else if (offset > kSizeMax || op.length > kSizeMax - offset) {
    answer.errors = {Code::kFileTooBig, Code::kInvalid};
  }
  if (!answer.errors.empty()) return answer;
  ModelNode& file = edit(*number);
  file.write(offset, pattern_bytes(op.seed, append ? 0 : op.offset, op.length));
  file.modify_time.reset();
  if ((op.flags & 1) != 0) file.drop_privileges();
  return answer;
}

ModelAnswer ModelState::truncate(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  if (!node(*number).is_regular()) {
    answer.errors = wrong_type_errors(node(*number));
    return answer;
  }
  if (op.offset > kSizeMax) {
    answer.errors = {Code::kFileTooBig, Code::kInvalid};
    return answer;
  }
  ModelNode& file = edit(*number);
  file.resize(op.offset);
  file.modify_time.reset();
  file.drop_privileges(0);  // the group of the test's caller
  return answer;
}

ModelAnswer ModelState::allocate(const Operation& op) {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  if (!node(*number).is_regular()) {
    answer.errors = wrong_type_errors(node(*number));
  } else if (op.length == 0) {
    answer.errors = {Code::kInvalid};
  } else if (op.offset > kSizeMax || op.length > kSizeMax - op.offset) {
    answer.errors = {Code::kFileTooBig, Code::kInvalid};
  }
  if (!answer.errors.empty()) return answer;
  ModelNode& file = edit(*number);
  file.modify_time.reset();
  file.drop_privileges();
  const auto mode = static_cast<AllocateMode>(op.flags);
  const uint64_t end = op.offset + op.length;
  if (mode == AllocateMode::kPunchHole || mode == AllocateMode::kZeroRange ||
      mode == AllocateMode::kZeroKeepSize) {
    file.zero(op.offset, op.length);
  }
  if ((mode == AllocateMode::kAllocate || mode == AllocateMode::kZeroRange) && end > file.size) {
    file.resize(end);
  }
  return answer;
}

std::optional<ModelState::TwoFiles> ModelState::two_files(const Operation& op,
                                                          Answer& answer) const {
  const std::optional<uint32_t> source = file_of(op, answer.errors);
  if (!source) return std::nullopt;
  const Walk to = walk(op.path2);
  if (!to.errors.empty() || !to.node) {
    answer.errors = to.errors.empty() ? std::vector<Code>{Code::kNoEntry} : to.errors;
    return std::nullopt;
  }
  for (const uint32_t number : {*source, *to.node}) {
    if (node(number).is_regular()) continue;
    answer.errors = wrong_type_errors(node(number));
    return std::nullopt;
  }
  TwoFiles files;
  files.source = *source;
  files.target = *to.node;
  return files;
}

// The rules of FICLONERANGE: whole blocks, or up to the source's end.
bool ModelState::clone_allowed(const Operation& op, TwoFiles files) const {
  const uint64_t source_size = node(files.source).size;
  if (op.length == 0) return true;
  if (op.offset % kBlockBytes != 0 || op.offset2 % kBlockBytes != 0) return false;
  if (op.offset > source_size || op.length > source_size - op.offset) return false;
  if (op.offset2 > kSizeMax || op.length > kSizeMax - op.offset2) return false;
  if (op.length % kBlockBytes != 0 && (op.offset + op.length != source_size ||
                                       op.offset2 + op.length < node(files.target).size)) {
    return false;
  }
  return files.source != files.target || op.offset2 + op.length <= op.offset ||
         op.offset + op.length <= op.offset2;
}

ModelAnswer ModelState::dedupe(const Operation& op) const {
  Answer answer;
  const std::optional<TwoFiles> files = two_files(op, answer);
  if (!files) return answer;
  const uint64_t target_size = node(files->target).size;
  if (!clone_allowed(op, *files) || op.offset2 > target_size ||
      op.length > target_size - op.offset2 ||
      (op.length % kBlockBytes != 0 && op.offset2 + op.length != target_size)) {
    if (op.length != 0) answer.errors = {Code::kInvalid};
    return answer;
  }
  const bool same = node(files->source).read(op.offset, op.length) ==
                    node(files->target).read(op.offset2, op.length);
  answer.expected.value = same ? op.length : 0;
  return answer;
}

ModelAnswer ModelState::copy(const Operation& op, std::optional<uint64_t> copied) {
  Answer answer;
  const std::optional<TwoFiles> files = two_files(op, answer);
  if (!files) return answer;
  const uint32_t source = files->source;
  const uint32_t target = files->target;
  if (op.kind == OperationKind::kClone && !clone_allowed(op, *files)) {
    answer.errors = {Code::kInvalid};
    return answer;
  }
  const uint64_t available = node(source).size > op.offset ? node(source).size - op.offset : 0;
  const uint64_t length = std::min(available, op.length);
  if (source == target && op.offset2 + length > op.offset && op.offset2 < op.offset + length) {
    answer.errors = {Code::kInvalid};
    return answer;
  }
  const uint64_t done = std::min(length, copied.value_or(length));
  answer.expected.value = length;  // mismatch() allows less, but not 0
  if (done == 0) return answer;
  const std::string bytes = node(source).read(op.offset, done);
  ModelNode& file = edit(target);
  file.write(op.offset2, bytes);
  file.modify_time.reset();
  file.drop_privileges();
  return answer;
}

std::vector<ModelState> ModelState::partial_copies(const Operation& op, uint64_t bytes) const {
  std::vector<ModelState> states;
  std::vector<uint64_t> ends;
  for (const uint64_t offset : {op.offset, op.offset2}) {
    for (uint64_t end = kBlockBytes - offset % kBlockBytes; end < bytes; end += kBlockBytes) {
      ends.push_back(end);
    }
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  for (const uint64_t end : ends) {
    ModelState state = *this;
    const ModelAnswer answer = state.copy(op, end);
    if (!answer.errors.empty()) break;
    states.push_back(std::move(state));
  }
  return states;
}

ModelAnswer ModelState::read(const Operation& op) const {
  Answer answer;
  const std::optional<uint32_t> number = file_of(op, answer.errors);
  if (!number) return answer;
  if (!node(*number).is_regular()) {
    answer.errors = wrong_type_errors(node(*number));
    return answer;
  }
  answer.node = nodes_[*number];
  if (op.kind == OperationKind::kRead) {
    answer.expected.bytes = node(*number).read(op.offset, op.length);
  } else if (op.offset >= node(*number).size) {
    answer.errors = {Code::kNoSuchOffset};
  }
  return answer;
}

}  // namespace cofs
