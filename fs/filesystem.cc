#include "fs/filesystem.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "fs/clones.h"
#include "fs/files.h"
#include "fs/names.h"

namespace cofs {

namespace {
constexpr uint32_t kRootMode = S_IFDIR | 0755;
// At most: where the device does not take writes, nothing is freed before it does.
constexpr uint64_t kFreeWaitNs = 200'000'000;
constexpr uint64_t kInodesPerBlock = 4;  // statfs: what a free block is worth in small files
}  // namespace

FileSystem::FileSystem(std::unique_ptr<Store> store, Environment environment, FsOptions options)
    : environment_(environment), options_(options), store_(std::move(store)) {
  options_.read_only = options_.read_only || store_->read_only();
  inodes_ = std::make_unique<InodeTable>(*store_, environment_, options_.inodes_cached_max);
  files_ = std::make_unique<Files>(*store_, *inodes_, environment_, options_, *this);
  names_ = std::make_unique<Names>(*store_, *inodes_, *files_, environment_, options_);
  jobs_ = std::make_unique<Jobs>(*store_);
  clones_ =
      std::make_unique<Clones>(*store_, *inodes_, *files_, *names_, environment_, options_);
  store_->set_client(this);
}

FileSystem::~FileSystem() = default;

Task<Result<>> FileSystem::format(Environment environment, FormatOptions options, uint32_t uid,
                                  uint32_t gid) {
  auto formatted = co_await Store::format(environment, options);
  COFS_CO_TRY(formatted);
  StoreOptions store_options;
  store_options.background = false;
  auto store = co_await Store::open(environment, store_options);
  COFS_CO_TRY(store);
  FileSystem filesystem(std::move(*store), environment, FsOptions());
  auto made = co_await filesystem.make_root(uid, gid);
  if (!made) {
    co_await filesystem.abandon();
    co_return made;
  }
  auto closed = co_await filesystem.close();
  co_return closed;
}

Task<Result<>> FileSystem::make_root(uint32_t uid, uint32_t gid) {
  const uint64_t bytes = sizeof(ondisk::Key) + sizeof(ondisk::Inode);
  auto transaction = co_await store_->begin(Cost(0, bytes), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  const InodeRef root = inodes_->create_root(kRootMode);
  root->uid = uid;
  root->gid = gid;
  inodes_->collect(*transaction);
  auto applied = co_await transaction->apply();
  co_return applied;
}

Task<Result<std::unique_ptr<FileSystem>>> FileSystem::open(std::unique_ptr<Store> store,
                                                           Environment environment,
                                                           FsOptions options) {
  std::unique_ptr<FileSystem> filesystem(
      new FileSystem(std::move(store), environment, std::move(options)));
  auto ready = co_await filesystem->prepare();
  if (!ready) {
    co_await filesystem->abandon();
    co_return fail(ready.error());
  }
  if (!filesystem->options_.read_only) {
    spawn(environment.executor, filesystem->names_->free_orphans());
  }
  co_return std::move(filesystem);
}

// Checks the root, and completes long operations that a crash interrupted.
Task<Result<>> FileSystem::prepare() {
  auto root = co_await inodes_->get(ondisk::kRootInode);
  if (!root && root.error().code != Code::kStale) co_return fail(root.error());
  if (!root || !(*root)->is_directory()) {
    co_return fail(Code::kCorrupt, "no root directory", ondisk::kRootInode);
  }
  if (options_.read_only) co_return Result<>();
  auto finished = co_await files_->finish_logged_operations();
  co_return finished;
}

Task<Result<>> FileSystem::close() {
  store_->stop_waiting();
  co_await jobs_->stop();
  co_await names_->drain();
  Result<> result;
  if (!options_.read_only && !store_->shut_down()) result = co_await store_->commit();
  co_await files_->drain();
  auto closed = co_await store_->close();
  co_return result ? closed : result;
}

Task<> FileSystem::abandon() {
  store_->stop_waiting();
  jobs_->cancel_all();
  names_->leave_forgotten();
  co_await names_->drain();
  co_await files_->drain();
  co_await store_->abandon();
  co_await jobs_->stop();  // they find the store shut down, so that nothing more was written
}

// --- Names ---------------------------------------------------------------------------------------

Task<Result<Attributes>> FileSystem::lookup(uint64_t parent, std::string name) {
  return names_->lookup(parent, std::move(name));
}

Task<Result<Attributes>> FileSystem::create(uint64_t parent, std::string name, uint32_t mode,
                                            Caller caller, bool exclusive, bool* created) {
  return names_->create(parent, std::move(name), mode, std::move(caller), exclusive, created);
}

Task<Result<Attributes>> FileSystem::make_node(uint64_t parent, std::string name, uint32_t mode,
                                               uint64_t rdev, Caller caller) {
  if (S_ISDIR(mode) || S_ISLNK(mode)) mode = S_IFMT;  // not a node: refused as an unknown type
  return names_->make_node(parent, std::move(name), mode, rdev, std::string(), std::move(caller));
}

Task<Result<Attributes>> FileSystem::make_directory(uint64_t parent, std::string name,
                                                    uint32_t mode, Caller caller) {
  return names_->make_node(parent, std::move(name), S_IFDIR | (mode & 07777), 0, std::string(),
                           std::move(caller));
}

Task<Result<Attributes>> FileSystem::make_symlink(uint64_t parent, std::string name,
                                                  std::string target, Caller caller) {
  return names_->make_node(parent, std::move(name), S_IFLNK | 0777, 0, std::move(target),
                           std::move(caller));
}

Task<Result<Attributes>> FileSystem::make_unnamed(uint64_t parent, uint32_t mode, Caller caller) {
  return names_->make_unnamed(parent, mode, std::move(caller));
}

Task<Result<Attributes>> FileSystem::link(uint64_t ino, uint64_t new_parent,
                                          std::string new_name) {
  return names_->link(ino, new_parent, std::move(new_name));
}

Task<Result<>> FileSystem::unlink(uint64_t parent, std::string name) {
  return names_->unlink(parent, std::move(name), false);
}

Task<Result<>> FileSystem::remove_directory(uint64_t parent, std::string name) {
  return names_->unlink(parent, std::move(name), true);
}

Task<Result<>> FileSystem::rename(uint64_t parent, std::string name, uint64_t new_parent,
                                  std::string new_name, uint32_t flags) {
  return names_->rename(parent, std::move(name), new_parent, std::move(new_name), flags);
}

Task<Result<std::string>> FileSystem::read_symlink(uint64_t ino) {
  return names_->read_symlink(ino);
}

Task<Result<std::vector<DirectoryEntry>>> FileSystem::read_directory(uint64_t ino, uint64_t cookie,
                                                                     uint64_t limit) {
  return names_->read_directory(ino, cookie, limit);
}

// --- Attributes ----------------------------------------------------------------------------------

Task<Result<Attributes>> FileSystem::get_attributes(uint64_t ino) {
  return names_->get_attributes(ino);
}

Task<Result<Attributes>> FileSystem::set_attributes(uint64_t ino, AttributeChange change,
                                                    Caller caller) {
  return names_->set_attributes(ino, std::move(change), std::move(caller));
}

Task<Result<std::string>> FileSystem::get_xattr(uint64_t ino, std::string name) {
  return names_->get_xattr(ino, std::move(name));
}

Task<Result<>> FileSystem::set_xattr(uint64_t ino, std::string name, std::string value,
                                     bool create_only, bool replace_only, Caller caller) {
  return names_->set_xattr(ino, std::move(name), std::move(value), create_only, replace_only,
                           std::move(caller));
}

Task<Result<std::vector<std::string>>> FileSystem::list_xattrs(uint64_t ino) {
  return names_->list_xattrs(ino);
}

Task<Result<>> FileSystem::remove_xattr(uint64_t ino, std::string name) {
  return names_->remove_xattr(ino, std::move(name));
}

// --- Open files ----------------------------------------------------------------------------------

Task<Result<Attributes>> FileSystem::open_file(uint64_t ino, OpenIntent intent) {
  return names_->open_file(ino, intent);
}

Task<> FileSystem::close_file(uint64_t ino, uint64_t handle) {
  clones_->file_closed(handle);
  return names_->close_file(ino);
}

bool FileSystem::lost_privileges(uint64_t ino) const {
  const Inode* inode = inodes_->find_resident(ino);
  return inode != nullptr && inode->lost_privileges;
}

Task<> FileSystem::forget(uint64_t ino) { return names_->forget(ino); }

// --- Data ----------------------------------------------------------------------------------------

Task<Result<ReadData>> FileSystem::read(uint64_t ino, uint64_t offset, uint32_t length) {
  return files_->read(ino, offset, length);
}

Task<Result<>> FileSystem::write(uint64_t ino, WriteData data, bool append, Unprivileged kill_privileges) {
  return files_->write(ino, std::move(data), append, kill_privileges);
}
Task<Result<>> FileSystem::write_direct(uint64_t ino, WriteData data, Unprivileged kill_privileges) {
  return files_->write_direct(ino, std::move(data), kill_privileges);
}

Task<Result<>> FileSystem::allocate(uint64_t ino, AllocateMode mode, uint64_t offset,
                                    uint64_t length, Unprivileged kill_privileges) {
  return files_->allocate(ino, mode, offset, length, kill_privileges);
}

Task<Result<uint64_t>> FileSystem::seek_data(uint64_t ino, uint64_t offset) {
  return files_->seek(ino, offset, true);
}

Task<Result<uint64_t>> FileSystem::seek_hole(uint64_t ino, uint64_t offset) {
  return files_->seek(ino, offset, false);
}

Task<Result<CopyResult>> FileSystem::copy_range(CopyRequest request) {
  return clones_->copy_range(std::move(request));
}

Task<Result<CopyResult>> FileSystem::copy_range(uint64_t source, uint64_t source_offset,
                                                uint64_t target, uint64_t target_offset,
                                                uint64_t length, uint64_t source_handle,
                                                Unprivileged kill_privileges) {
  CopyRequest request;
  request.source = source;
  request.source_offset = source_offset;
  request.target = target;
  request.target_offset = target_offset;
  request.length = length;
  request.source_handle = source_handle;
  request.kill_privileges = kill_privileges;
  return clones_->copy_range(request);
}

// --- Clones --------------------------------------------------------------------------------------

Task<Result<CloneMode>> FileSystem::clone_mode_for(uint64_t ino) { return clones_->mode_for(ino); }

Task<Result<>> FileSystem::announce_clone(OpenFile source, Announcement announcement) {
  return clones_->announce(source, announcement);
}

Task<Result<DedupeToken>> FileSystem::make_dedupe_token(OpenFile source) {
  return clones_->make_token(source);
}

Task<Result<DedupeResult>> FileSystem::dedupe(OpenFile target, DedupeRequest request,
                                              Caller caller) {
  return clones_->dedupe(target, request, std::move(caller));
}

Task<Result<FileMap>> FileSystem::map_file(uint64_t ino, uint64_t start, uint64_t length,
                                           uint64_t limit, bool sync) {
  return files_->map_extents(ino, start, length, limit, sync);
}

uint64_t FileSystem::shared_bytes() const { return files_->shared_bytes(); }

// --- Durability and reports ----------------------------------------------------------------------

Task<Result<>> FileSystem::sync() { return store_->commit(); }

Task<Result<>> FileSystem::sync_file(uint64_t ino) {
  auto committed = co_await store_->commit();
  COFS_CO_TRY(committed);
  if (Inode* inode = inodes_->find_resident(ino)) inode->synced_ns = environment_.clock.monotonic_ns();
  co_return Result<>();
}

Task<Result<>> FileSystem::sync_volume() {
  auto committed = co_await store_->commit();
  const StallReport stall = store_->stall();
  const bool is_news = stall.count != std::exchange(stalls_told_, stall.count);
  COFS_CO_TRY(committed);
  if (is_news) {
    co_return fail(Code::kIo, "writes had failed since the last syncfs; all is durable now", stall.error.where);
  }
  co_return Result<>();
}

Task<> FileSystem::free_removed() { co_await names_->free_now(kFreeWaitNs); }

Task<FsStatistics> FileSystem::statistics() {
  co_await free_removed();
  const SpaceReport space = store_->space();
  FsStatistics out;
  out.total_blocks = space.total_blocks;
  // The total has no reserves in it, so neither has what is free of it.
  out.free_blocks = space.available_blocks;
  out.available_blocks = space.available_blocks;
  out.free_inodes = space.available_blocks * kInodesPerBlock;
  out.inodes = space.inode_count + out.free_inodes;
  co_return out;
}

// --- CommitClient, DataSink ----------------------------------------------------------------------

Task<Result<>> FileSystem::flush_dirty_data() { return files_->flush_dirty_data(); }

void FileSystem::collect_data(Transaction& transaction) { files_->collect_data(transaction); }

void FileSystem::collecting_failed() { files_->collecting_failed(); }

uint64_t FileSystem::inode_bytes_bound() const { return inodes_->collect_bytes_bound(); }

void FileSystem::collect_inodes(Transaction& transaction) { inodes_->collect(transaction); }

void FileSystem::mapped_blocks_changed(uint64_t ino, int64_t delta) {
  // Whoever changes a mapping holds the inode; only fsck's repair maps files that nobody holds.
  Inode* inode = inodes_->find_resident(ino);
  if (inode == nullptr || delta == 0) return;
  inode->blocks += static_cast<uint64_t>(delta);  // wraps as a subtraction where delta is negative
  inodes_->mark_dirty(*inode);
}

Task<bool> FileSystem::free_space() { return names_->free_now(UINT64_MAX); }

void FileSystem::data_written(uint64_t token, const Result<>& result, uint64_t first_virtual) {
  files_->data_written(token, result, first_virtual);
}

}  // namespace cofs
