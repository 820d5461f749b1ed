#include "fs/clones.h"

#include <algorithm>
#include <utility>

namespace cofs {

namespace {

bool overlap(uint64_t a, uint64_t b, uint64_t length) {
  return a < b + length && b < a + length;
}

}  // namespace

Clones::Clones(Store& store, InodeTable& inodes, Files& files, Names& names,
               Environment& environment, FsOptions& options)
    : store_(store), inodes_(inodes), files_(files), names_(names), environment_(environment),
      options_(options) {}

Task<Result<>> Clones::lock_pair(LockedPair* pair) {
  Inode& source = *pair->source;
  Inode& target = *pair->target;
  if (source.ino < target.ino) pair->first = co_await source.lock.lock_shared();
  pair->second = co_await target.lock.lock_exclusive();
  if (source.ino > target.ino) pair->first = co_await source.lock.lock_shared();
  if (source.deleted) co_return fail(Code::kStale, "copy source", source.ino);
  if (target.deleted) co_return fail(Code::kStale, "copy target", target.ino);
  co_return Result<>();
}

Task<Result<CloneMode>> Clones::mode_for(uint64_t ino) {
  auto inode = co_await inodes_.get(ino);
  COFS_CO_TRY(inode);
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_shared();
  auto choice = co_await names_.clone_choice(**inode);
  COFS_CO_TRY(choice);
  co_return clone_mode_of(*choice, options_.clone_mode);
}

// --- Copies ------------------------------------------------------------------------------------

Task<Result<CopyResult>> Clones::copy_range(CopyRequest request) {
  LockedPair pair;
  auto source = co_await files_.get_file(request.source);
  COFS_CO_TRY(source);
  auto target = co_await files_.get_file(request.target);
  COFS_CO_TRY(target);
  pair.source = *source;
  pair.target = *target;
  auto room = co_await files_.make_room();
  COFS_CO_TRY(room);
  auto locked = co_await lock_pair(&pair);
  COFS_CO_TRY(locked);
  auto choice = co_await names_.clone_choice(**target);
  COFS_CO_TRY(choice);
  const CloneMode mode = clone_mode_of(*choice, options_.clone_mode);
  const AnnouncedRef announced = find_announced(request);
  CopyResult copied;
  if (announced) {
    announced->users++;
    auto done = co_await copy_announced(&pair, request, announced, mode);
    announced->users--;
    if (announced->over) end(announced);
    COFS_CO_TRY(done);
    copied = *done;
  } else {
    const CopyPolicy policy = mode == CloneMode::kShare ? CopyPolicy::kShare : CopyPolicy::kCopy;
    auto done = co_await files_.copy_locked(pair.source, pair.target, request, policy);
    COFS_CO_TRY(done);
    copied.bytes = *done;
  }
  if (copied.bytes != 0) files_.copied(pair.source, pair.target);
  co_return copied;
}

Task<Result<CopyResult>> Clones::copy_announced(LockedPair* pair, CopyRequest request,
                                                AnnouncedRef announced, CloneMode mode) {
  const Announcement& said = announced->said;
  CopyPolicy policy = CopyPolicy::kStrictShare;
  uint64_t bytes_max = UINT64_MAX;
  if (mode == CloneMode::kDevice && files_.device_copies()) {
    policy = CopyPolicy::kStrictDevice;
    bytes_max = options_.copy_bytes_max;
  }
  request.length = std::min(request.length, announced->source_end() - request.source_offset);
  const bool ends_inside = request.source_offset + request.length < announced->source_end();
  if (request.source_offset % kBlockBytes != 0 || (ends_inside && request.length % kBlockBytes != 0)) {
    co_return fail(Code::kInvalid, "a piece of a clone that is not made of whole blocks", request.source);
  }
  if (!announced->torn) co_return fail(announced->torn.error());
  if (!announced->snapshot) {
    auto checked = check_range(said, *pair->source, *pair->target);
    COFS_CO_TRY(checked);
    if (std::min(request.length, bytes_max) < said.length) {
      auto taken = co_await take_snapshot(pair, announced.get(), request.abandoned);
      COFS_CO_TRY(taken);
    }
  }
  // Nobody else knows the snapshot, so its lock is free; the numbers ascend, since it is the newest.
  InodeRef source = pair->source;
  SharedMutex::Guard guard;
  if (announced->snapshot) {
    source = announced->snapshot;
    guard = co_await source->lock.lock_shared();
  }
  auto done = co_await files_.copy_locked(source, pair->target, request, policy);
  COFS_CO_TRY(done);
  announced->add_done(request.source_offset, *done);
  if (announced->all_done()) {
    announced->over = true;
  } else if (!announced->snapshot) {
    announced->torn = co_await take_snapshot(pair, announced.get(), request.abandoned);
  }
  CopyResult copied;
  copied.bytes = *done;
  co_return copied;
}

// The source as it is now, in a file without a name that a crash leaves to the next mount to free.
Task<Result<>> Clones::take_snapshot(LockedPair* pair, Announced* announced,
                                    std::function<bool()> abandoned) {
  auto made = co_await names_.make_temporary();
  COFS_CO_TRY(made);
  const InodeRef temporary = *made;
  Result<> result;
  {
    const SharedMutex::Guard guard = co_await temporary->lock.lock_exclusive();
    const Announcement& said = announced->said;
    for (uint64_t done = 0; result && done < said.length;) {
      CopyRequest part;
      part.source = pair->source->ino;
      part.target = temporary->ino;
      part.source_offset = part.target_offset = said.source_offset + done;
      part.length = said.length - done;
      part.abandoned = abandoned;
      auto shared =
          co_await files_.copy_locked(pair->source, temporary, part, CopyPolicy::kStrictShare);
      if (!shared) {
        result = fail(shared.error());
      } else if (*shared == 0) {
        result = fail(Code::kIo, "a snapshot for a clone ended early", pair->source->ino);
      } else {
        done += *shared;
      }
    }
  }
  if (result) {
    announced->snapshot = temporary;
  } else {
    names_.free_temporary(temporary->ino);
  }
  co_return result;
}

// --- Announcements -----------------------------------------------------------------------------

bool Clones::Announced::covers(const CopyRequest& request) const {
  return request.target == said.target_ino && request.source_offset >= said.source_offset &&
         request.source_offset < source_end() &&
         request.target_offset - said.target_offset == request.source_offset - said.source_offset;
}

void Clones::Announced::add_done(uint64_t from, uint64_t bytes) {
  uint64_t to = from + bytes;
  auto next = done.upper_bound(from);
  if (next != done.begin() && std::prev(next)->second >= from) {
    --next;
    from = next->first;
  }
  while (next != done.end() && next->first <= to) {
    to = std::max(to, next->second);
    next = done.erase(next);
  }
  // What is not remembered leaves the announcement to end with its open file.
  if (done.size() < kPartsApartMax) done[from] = to;
}

bool Clones::Announced::all_done() const {
  return done.size() == 1 && done.begin()->first == said.source_offset &&
         done.begin()->second == source_end();
}

Clones::AnnouncedRef Clones::find_announced(const CopyRequest& request) {
  if (request.source_handle == 0 || open_files_.empty()) return nullptr;
  const auto file = open_files_.find(request.source_handle);
  if (file == open_files_.end() || file->second.ino != request.source) return nullptr;
  for (const AnnouncedRef& announced : file->second.announced) {
    if (!announced->over && announced->covers(request)) return announced;
  }
  return nullptr;
}

// Nothing more follows. What a piece under way still needs goes with that piece.
void Clones::end(const AnnouncedRef& announced) {
  announced->over = true;
  if (announced->users != 0) return;
  for (auto& [handle, file] : open_files_) std::erase(file.announced, announced);
  if (!announced->snapshot) return;
  const uint64_t ino = announced->snapshot->ino;
  announced->snapshot = InodeRef();
  names_.free_temporary(ino);
}

Result<> Clones::check_source(const Announcement& said, const Inode& source) {
  constexpr uint64_t kEndMax = INT64_MAX;
  if (said.source_offset % kBlockBytes != 0 || said.target_offset % kBlockBytes != 0) {
    return fail(Code::kInvalid, "clone: offsets that are not multiples of the block size", source.ino);
  }
  if (said.source_offset > kEndMax || said.length > kEndMax - said.source_offset ||
      said.target_offset > kEndMax || said.length > kEndMax - said.target_offset) {
    return fail(Code::kInvalid, "clone: offsets beyond the largest file", source.ino);
  }
  const uint64_t source_end = said.source_offset + said.length;
  if (source_end > source.size) return fail(Code::kInvalid, "clone: beyond the source's end", source.ino);
  if (said.length % kBlockBytes != 0 && source_end != source.size) {
    return fail(Code::kInvalid, "clone: part of a block that is not the last one", source.ino);
  }
  if (source.ino == said.target_ino && overlap(said.source_offset, said.target_offset, said.length)) {
    return fail(Code::kInvalid, "clone onto itself", source.ino);
  }
  return {};
}

Result<> Clones::check_range(const Announcement& said, const Inode& source, const Inode& target) {
  auto checked = check_source(said, source);
  if (!checked) return checked;
  if (said.length % kBlockBytes != 0 && said.target_offset + said.length < target.size) {
    return fail(Code::kInvalid, "clone: part of a block inside the target", target.ino);
  }
  return {};
}

Task<Result<>> Clones::announce(OpenFile source, Announcement announcement) {
  auto source_inode = co_await files_.get_file(source.ino);
  COFS_CO_TRY(source_inode);
  if (!source.readable) co_return fail(Code::kBadHandle, "clone: not open for reading", source.ino);
  if (announcement.length != 0) {
    auto checked = check_source(announcement, **source_inode);
    COFS_CO_TRY(checked);
  }
  PerOpenFile& file = open_files_[source.handle];
  file.ino = source.ino;
  std::vector<AnnouncedRef> replaced;
  for (const AnnouncedRef& old : file.announced) {
    if (old->said.target_ino == announcement.target_ino) replaced.push_back(old);
  }
  for (const AnnouncedRef& old : replaced) {
    std::erase(file.announced, old);
    end(old);
  }
  if (announcement.length == 0) co_return Result<>();
  if (file.announced.size() >= kPerOpenFileMax) {
    co_return fail(Code::kBusy, "clone: too many announcements of one open file", source.ino);
  }
  auto announced = std::make_shared<Announced>();
  announced->said = announcement;
  file.announced.push_back(std::move(announced));
  co_return Result<>();
}

void Clones::file_closed(uint64_t handle) {
  if (open_files_.empty()) return;
  const auto found = open_files_.find(handle);
  if (found == open_files_.end()) return;
  const PerOpenFile file = std::move(found->second);
  open_files_.erase(found);
  for (const DedupeToken& token : file.tokens) tokens_.erase(token);
  for (const AnnouncedRef& announced : file.announced) end(announced);
}

// --- Dedupe ------------------------------------------------------------------------------------

Task<Result<DedupeToken>> Clones::make_token(OpenFile source) {
  auto inode = co_await files_.get_file(source.ino);
  COFS_CO_TRY(inode);
  if (!source.readable) co_return fail(Code::kBadHandle, "dedupe: not open for reading", source.ino);
  PerOpenFile& file = open_files_[source.handle];
  file.ino = source.ino;
  if (file.tokens.size() >= kPerOpenFileMax) {
    co_return fail(Code::kBusy, "dedupe: too many tokens of one open file", source.ino);
  }
  DedupeToken token{};
  environment_.random.fill_secret(std::as_writable_bytes(std::span(token)));
  file.tokens.push_back(token);
  tokens_[token] = source.handle;
  co_return token;
}

Task<Result<bool>> Clones::may_dedupe(OpenFile target, Inode* inode, Caller caller) {
  if (target.writable || caller.uid == 0 || caller.uid == inode->uid) co_return true;
  co_return co_await names_.may_write(*inode, std::move(caller));
}

Task<Result<DedupeResult>> Clones::dedupe(OpenFile target, DedupeRequest request, Caller caller) {
  const auto token = tokens_.find(request.token);
  if (token == tokens_.end()) co_return fail(Code::kInvalid, "dedupe: unknown token", target.ino);
  PerOpenFile& file = open_files_.at(token->second);
  const uint64_t source_ino = file.ino;
  std::erase(file.tokens, request.token);
  tokens_.erase(token);

  LockedPair pair;
  auto source_inode = co_await files_.get_file(source_ino);
  COFS_CO_TRY(source_inode);
  auto target_inode = co_await files_.get_file(target.ino);
  COFS_CO_TRY(target_inode);
  pair.source = *source_inode;
  pair.target = *target_inode;
  auto locked = co_await lock_pair(&pair);
  COFS_CO_TRY(locked);
  auto allowed = co_await may_dedupe(target, pair.target.get(), std::move(caller));
  COFS_CO_TRY(allowed);
  if (!*allowed) co_return fail(Code::kNotPermitted, "dedupe: the target may not be written", target.ino);
  if ((pair.target->flags & ondisk::kInodeImmutable) != 0) {
    co_return fail(Code::kNotPermitted, "dedupe: the target is immutable", target.ino);
  }
  if (store_.read_only()) co_return fail(Code::kReadOnly, "dedupe", target.ino);
  DedupeResult result;
  if (request.length == 0) co_return result;
  Announcement range;
  range.source_offset = request.source_offset;
  range.target_offset = request.target_offset;
  range.target_ino = target.ino;
  range.length = std::min(request.length, kDedupeBytesMax);
  auto checked = check_range(range, *pair.source, *pair.target);
  COFS_CO_TRY(checked);
  const uint64_t target_end = range.target_offset + range.length;
  if (target_end > pair.target->size || (range.length % kBlockBytes != 0 && target_end != pair.target->size)) {
    co_return fail(Code::kInvalid, "dedupe: beyond the target's end, or part of a block", target.ino);
  }
  auto same = co_await files_.share_if_same(pair.source, pair.target, range.source_offset,
                                            range.target_offset, range.length);
  COFS_CO_TRY(same);
  result.same = *same;
  result.bytes = *same ? range.length : 0;
  co_return result;
}

}  // namespace cofs
