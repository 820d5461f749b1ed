// Comparing: a tree with the model, an answer with the one that is wanted.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "tests/testing/model_fs.h"

namespace cofs {
namespace {

std::string names_of(const std::vector<Code>& codes) {
  if (codes.empty()) return "success";
  std::string text;
  for (const Code code : codes) text += (text.empty() ? "" : " or ") + std::string(name_of(code));
  return text;
}

std::string differing_attributes(const ModelNode& model, const ModelNode& tree) {
  std::string text;
  auto compare = [&](const char* what, uint64_t wanted, uint64_t got) {
    if (wanted != got) text += fmt::format(" {} is {}, wanted {};", what, got, wanted);
  };
  if (model.mode != tree.mode) {
    text += fmt::format(" mode is {:o}, wanted {:o};", tree.mode, model.mode);
  }
  compare("uid", model.uid, tree.uid);
  compare("gid", model.gid, tree.gid);
  compare("nlink", model.nlink, tree.nlink);
  compare("rdev", model.rdev, tree.rdev);
  if (!model.is_directory()) compare("size", model.size, tree.size);
  if (model.modify_time && model.modify_time != tree.modify_time) {
    text += fmt::format(" mtime is {}.{:09}, wanted {}.{:09};",
                        tree.modify_time ? tree.modify_time->seconds : 0,
                        tree.modify_time ? tree.modify_time->nanoseconds : 0,
                        model.modify_time->seconds, model.modify_time->nanoseconds);
  }
  return text;
}

std::string differing_blocks(const ModelNode& model, const ModelNode& tree) {
  auto a = model.blocks.begin();
  auto b = tree.blocks.begin();
  while (a != model.blocks.end() || b != tree.blocks.end()) {
    const bool a_first = b == tree.blocks.end() || (a != model.blocks.end() && a->first < b->first);
    const bool b_first = a == model.blocks.end() || (b != tree.blocks.end() && b->first < a->first);
    if (a_first) return fmt::format(" block {} is zeros, wanted data", a->first);
    if (b_first) return fmt::format(" block {} is not zeros, wanted zeros", b->first);
    if (a->second->hash != b->second->hash || a->second->bytes != b->second->bytes) {
      const auto differing = std::mismatch(a->second->bytes.begin(), a->second->bytes.end(),
                                           b->second->bytes.begin());
      return fmt::format(" block {} has wrong bytes from byte {}", a->first,
                         differing.first - a->second->bytes.begin());
    }
    ++a;
    ++b;
  }
  return "";
}

std::string differing_content(const ModelNode& model, const ModelNode& tree) {
  std::string text = differing_attributes(model, tree);
  if (model.target != tree.target) text += " the link's target differs;";
  if (model.xattrs != tree.xattrs) {
    text += fmt::format(" xattrs differ ({}, wanted {});", tree.xattrs.size(),
                        model.xattrs.size());
  }
  return text + differing_blocks(model, tree);
}

std::string differing_entries(const ModelNode& model, const ModelNode& tree) {
  for (const auto& [name, child] : model.entries) {
    if (!tree.entries.contains(name)) return fmt::format(" entry '{}' is missing", name);
  }
  for (const auto& [name, child] : tree.entries) {
    if (!model.entries.contains(name)) return fmt::format(" entry '{}' is too much", name);
  }
  return "";
}

// --- Answers ---

std::string wrong_stat(const ModelNode& model, const Attributes& attributes) {
  ModelNode got;
  got.mode = attributes.mode;
  got.uid = attributes.uid;
  got.gid = attributes.gid;
  got.nlink = attributes.nlink;
  got.rdev = attributes.rdev;
  got.size = attributes.size;
  got.modify_time = attributes.modify_time;
  return differing_attributes(model, got);
}

// No byte that is not zero may lie in what is called a hole.
std::string wrong_seek_data(const ModelNode& file, uint64_t offset, const OperationResult& result) {
  const std::optional<uint64_t> data = file.next_nonzero_block(offset);
  if (!result.ok()) {
    if (result.error->code != Code::kNoSuchOffset) return " error " + describe(*result.error);
    return data ? fmt::format(" no data found, but there is some at {}", *data) : "";
  }
  if (result.value < offset || result.value >= file.size) {
    return fmt::format(" found data at {}", result.value);
  }
  return data && *data < result.value
             ? fmt::format(" found data at {}, but there is some at {}", result.value, *data)
             : "";
}

std::string wrong_seek_hole(const ModelNode& file, uint64_t offset, const OperationResult& result) {
  if (!result.ok()) return " error " + describe(*result.error);
  if (result.value < offset || result.value > file.size) {
    return fmt::format(" found a hole at {}", result.value);
  }
  if (result.value == file.size) return "";
  const std::optional<uint64_t> data = file.next_nonzero_block(result.value);
  const bool inside = data && *data / kBlockBytes == result.value / kBlockBytes;
  return inside ? fmt::format(" found a hole at {}, which is data", result.value) : "";
}

std::string wrong_entries(const ModelAnswer& answer, const OperationResult& result) {
  auto entries = result.entries;
  std::sort(entries.begin(), entries.end());
  if (entries == answer.expected.entries) return "";  // the model's are sorted by name
  return fmt::format(" {} entries or their types are wrong (wanted {})", entries.size(),
                     answer.expected.entries.size());
}

std::string wrong_answer(const Operation& op, const ModelAnswer& answer,
                         const OperationResult& result) {
  switch (op.kind) {
    case OperationKind::kStat: return wrong_stat(*answer.node, result.attributes);
    case OperationKind::kReadDirectory: return wrong_entries(answer, result);
    case OperationKind::kListXattrs: {
      auto names = result.names;
      std::sort(names.begin(), names.end());
      return names == answer.expected.names ? "" : " the list of attributes is wrong";
    }
    case OperationKind::kDedupe:
      return result.value == answer.expected.value
                 ? ""
                 : fmt::format(" {} bytes are the same, wanted {}", result.value,
                               answer.expected.value);
    case OperationKind::kCopyRange:
    case OperationKind::kClone: {
      const uint64_t wanted = answer.expected.value;
      const bool fine = result.value <= wanted && (result.value != 0 || wanted == 0);
      return fine ? "" : fmt::format(" copied {} bytes of {}", result.value, wanted);
    }
    case OperationKind::kStatfs: {
      const FsStatistics& space = result.statistics;
      const bool fine = space.available_blocks <= space.free_blocks &&
                        space.free_blocks <= space.total_blocks && space.total_blocks != 0;
      return fine ? ""
                  : fmt::format(" {} available, {} free, {} in all", space.available_blocks,
                                space.free_blocks, space.total_blocks);
    }
    case OperationKind::kRead:
    case OperationKind::kReadSymlink:
    case OperationKind::kGetXattr: {
      if (result.bytes == answer.expected.bytes) return "";
      if (result.bytes.size() != answer.expected.bytes.size()) {
        return fmt::format(" {} bytes, wanted {}", result.bytes.size(),
                           answer.expected.bytes.size());
      }
      const auto differing = std::mismatch(result.bytes.begin(), result.bytes.end(),
                                           answer.expected.bytes.begin());
      return fmt::format(" wrong bytes from {}", differing.first - result.bytes.begin());
    }
    default: return "";
  }
}

}  // namespace

std::string mismatch(const Operation& op, const ModelAnswer& answer,
                     const OperationResult& result) {
  std::string wrong;
  if (op.kind == OperationKind::kSeekData && answer.node && answer.errors.empty()) {
    wrong = wrong_seek_data(*answer.node, op.offset, result);
  } else if (op.kind == OperationKind::kSeekHole && answer.node && answer.errors.empty()) {
    wrong = wrong_seek_hole(*answer.node, op.offset, result);
  } else if (!answer.errors.empty() || !result.ok()) {
    const bool wanted = result.error && std::find(answer.errors.begin(), answer.errors.end(),
                                                  result.error->code) != answer.errors.end();
    if (!wanted) {
      wrong = fmt::format(" {}, wanted {}", result.ok() ? "success" : describe(*result.error),
                          names_of(answer.errors));
    }
  } else {
    wrong = wrong_answer(op, answer, result);
  }
  return wrong.empty() ? "" : describe(op) + ":" + wrong;
}

std::string difference(const ModelState& model, const ModelState& tree) {
  std::map<uint32_t, uint32_t> twin;  // node of the model → node of the tree
  std::map<uint32_t, uint32_t> back;
  struct Pair {
    uint32_t model;
    uint32_t tree;
    std::string path;
  };
  std::vector<Pair> stack{{ModelState::kRoot, ModelState::kRoot, ""}};
  while (!stack.empty()) {
    const Pair at = stack.back();
    stack.pop_back();
    const std::string where = at.path.empty() ? "/" : at.path;
    const auto known = twin.emplace(at.model, at.tree);
    const auto known_back = back.emplace(at.tree, at.model);
    if (known.first->second != at.tree || known_back.first->second != at.model) {
      return where + " is (or is not) another name of a file";
    }
    if (!known.second) continue;
    const ModelNode& a = model.node(at.model);
    const ModelNode& b = tree.node(at.tree);
    const std::string wrong = differing_content(a, b) + differing_entries(a, b);
    if (!wrong.empty()) return where + ":" + wrong;
    for (const auto& [name, child] : a.entries) {
      stack.push_back({child, b.entries.at(name), at.path + "/" + name});
    }
  }
  return "";
}

std::string describe(const ModelState& state) {
  std::string text;
  auto paths = state.paths([](const ModelNode&) { return true; });
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    const ModelNode& node = state.node(*state.find(path));
    text += fmt::format("  {} mode={:o} nlink={} size={} blocks={} xattrs={}\n", path, node.mode,
                        node.nlink, node.size, node.blocks.size(), node.xattrs.size());
  }
  return text;
}

}  // namespace cofs
