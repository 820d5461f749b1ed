// FileSystem::repair(): mends what NamespaceCheck finds. Entries and counters are put right, inodes
// without a name go to /lost+found under "#<number>". Nothing else may use the filesystem meanwhile.

#include <sys/stat.h>

#include <string>

#include "fs/directory.h"
#include "fs/filesystem.h"
#include "fs/fs_check.h"
#include "fs/names.h"

namespace cofs {

namespace {

constexpr int kPassesMax = 8;  // mending one thing can bring up another (an emptied directory, …)
constexpr uint64_t kBlockEnd = uint64_t{1} << 51;  // beyond every file block

class Repairer {
 public:
  Repairer(Store& store, InodeTable& inodes, Names& names, Environment& environment)
      : store_(store), inodes_(inodes), names_(names), environment_(environment) {}

  // Errors: those of changing the tree. *changed: whether something was mended.
  Task<Result<>> mend(const Finding* finding, bool* changed);

 private:
  Task<Result<>> mend_counter(const Finding* finding);
  Task<Result<>> mend_record(const Finding* finding);
  Task<Result<>> mend_entry_type(const Finding* finding);
  Task<Result<>> attach(const Finding* finding);
  Task<Result<InodeRef>> lost_and_found();

  Store& store_;
  InodeTable& inodes_;
  Names& names_;
  Environment& environment_;
};

Task<Result<>> Repairer::mend(const Finding* finding, bool* changed) {
  *changed = finding->repairable();
  if (!*changed) co_return Result<>();
  Result<> result;
  switch (finding->kind) {
    case Finding::kLinkCount:
    case Finding::kDirectorySize:
    case Finding::kParent:
    case Finding::kBlocks: result = co_await mend_counter(finding); break;
    case Finding::kEntryType: result = co_await mend_entry_type(finding); break;
    case Finding::kUnreachable:
    case Finding::kDetachedCycle: result = co_await attach(finding); break;
    default: result = co_await mend_record(finding); break;
  }
  if (result) environment_.journal.write(Severity::kInfo, "repaired: " + finding->what);
  co_return result;
}

Task<Result<>> Repairer::mend_counter(const Finding* finding) {
  auto inode = co_await inodes_.get(finding->ino);
  COFS_CO_TRY(inode);
  switch (finding->kind) {
    case Finding::kLinkCount: (*inode)->nlink = static_cast<uint32_t>(finding->value); break;
    case Finding::kDirectorySize: (*inode)->size = finding->value; break;
    case Finding::kParent: (*inode)->parent = finding->value; break;
    default: (*inode)->blocks = finding->value; break;
  }
  inodes_.mark_dirty(**inode);
  co_return Result<>();
}

Task<Result<>> Repairer::mend_record(const Finding* finding) {
  InodeRef pinned;  // a mapping's change is counted in the inode
  if (finding->kind == Finding::kBeyondEnd) {
    auto inode = co_await inodes_.get(finding->ino);
    COFS_CO_TRY(inode);
    pinned = *inode;
  }
  auto transaction = co_await store_.begin(Cost(0, sizeof(ondisk::Key)), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  switch (finding->kind) {
    case Finding::kMissingOrphan: transaction->put(Key::orphan(finding->ino), {}); break;
    case Finding::kExtraOrphan: transaction->erase(Key::orphan(finding->ino)); break;
    case Finding::kBeyondEnd:
      transaction->map_extent(finding->ino, finding->value, kBlockEnd - finding->value, 0, 0);
      break;
    default: transaction->erase(finding->key); break;
  }
  auto applied = co_await transaction->apply();
  co_return applied;
}

Task<Result<>> Repairer::mend_entry_type(const Finding* finding) {
  auto value = co_await store_.get(finding->key);
  COFS_CO_TRY(value);
  if (!value->has_value()) co_return Result<>();
  auto record = decode_entry(finding->key, **value);
  COFS_CO_TRY(record);
  const std::vector<std::byte> fixed =
      encode_entry(record->name, record->ino, static_cast<uint8_t>(finding->value));
  auto transaction = co_await store_.begin(Cost(), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  transaction->put(finding->key, fixed);
  auto applied = co_await transaction->apply();
  co_return applied;
}

Task<Result<InodeRef>> Repairer::lost_and_found() {
  const Caller root(0, 0, 0);
  const std::string name = "lost+found";
  auto found = co_await names_.lookup(ondisk::kRootInode, name);
  if (!found && found.error().code == Code::kNoEntry) {
    found = co_await names_.make_node(ondisk::kRootInode, name, S_IFDIR | 0700, 0, std::string(),
                                      root);
  }
  COFS_CO_TRY(found);
  auto inode = co_await inodes_.get(found->ino);
  COFS_CO_TRY(inode);
  if (!(*inode)->is_directory()) {
    co_return fail(Code::kNotDirectory, "/lost+found", found->ino);
  }
  co_return inode;
}

// Gives an inode the name /lost+found/#<number>. The next pass corrects its own link count.
Task<Result<>> Repairer::attach(const Finding* finding) {
  auto directory = co_await lost_and_found();
  COFS_CO_TRY(directory);
  auto inode = co_await inodes_.get(finding->ino);
  COFS_CO_TRY(inode);
  const std::string name = "#" + std::to_string(finding->ino);
  auto slot = co_await find_entry(store_, (*directory)->ino, &name);
  COFS_CO_TRY(slot);
  if (slot->found || slot->full()) co_return fail(Code::kExists, "/lost+found", finding->ino);
  auto transaction =
      co_await store_.begin(Cost(0, entry_cost_bytes(name)), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  if (finding->kind == Finding::kDetachedCycle) transaction->erase(finding->key);
  put_entry(*transaction, (*directory)->ino, *slot, name, finding->ino,
            entry_type((*inode)->mode));
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);
  (*directory)->size++;
  if ((*inode)->is_directory()) {
    (*directory)->nlink++;
    (*inode)->parent = (*directory)->ino;
    inodes_.mark_dirty(**inode);
  }
  inodes_.mark_dirty(**directory);
  co_return Result<>();
}

}  // namespace

Task<Result<uint64_t>> FileSystem::repair() {
  if (options_.read_only) co_return fail(Code::kReadOnly, "repair");
  co_await names_->settle();
  Repairer repairer(*store_, *inodes_, *names_, environment_);
  const VerifyOptions quiet;
  VerifyOptions mend;
  mend.mend_counters = true;
  auto counted = co_await store_->verify(mend);
  COFS_CO_TRY(counted);
  uint64_t total = counted->counters_mended;
  for (int pass = 0; pass < kPassesMax; pass++) {
    auto committed = co_await store_->commit();
    COFS_CO_TRY(committed);
    NamespaceCheck check(*store_, *inodes_);
    auto checked = co_await check.run(&quiet);
    COFS_CO_TRY(checked);
    uint64_t mended = 0;
    for (const Finding& finding : check.findings()) {
      bool changed = false;
      auto result = co_await repairer.mend(&finding, &changed);
      COFS_CO_TRY(result);
      if (changed) mended++;
    }
    total += mended;
    if (mended == 0) break;
  }
  auto committed = co_await store_->commit();
  COFS_CO_TRY(committed);
  co_return total;
}

}  // namespace cofs
