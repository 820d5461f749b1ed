// Handlers of the ioctls about clones (cofs_ioctl.h, 16 … 31). None of them changes a byte of a file; the
// clone itself is a copy_file_range.
#include <algorithm>
#include <cstring>
#include <memory>

#include "fs/cofs_ioctl.h"
#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// The layouts are an interface: the same for every compiler and word size.
static_assert(sizeof(cofs_query) == 64 && sizeof(cofs_announce) == 64);
static_assert(sizeof(cofs_dedupe_token) == 16 && sizeof(cofs_dedupe) == 72);
static_assert(sizeof(cofs_map_extent) == 32 && sizeof(cofs_map) == 48 + 400 * 32);
static_assert(_IOC_SIZE(COFS_IOC_MAP) == sizeof(cofs_map));
static_assert(sizeof(cofs_tune) == 32);

template <class T>
bool all_zero(const T& field) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&field);
  return std::all_of(bytes, bytes + sizeof(field), [](unsigned char byte) { return byte == 0; });
}

// Replies with a structure; most are too large for a coroutine's frame.
template <class T>
void reply_structure(FuseServer& server, fuse_req_t request, std::unique_ptr<T> out) {
  reply(server, [request, data = std::move(out)] {
    fuse_reply_ioctl(request, 0, data.get(), sizeof(T));
  });
}

void reply_done(FuseServer& server, fuse_req_t request) {
  reply(server, [request] { fuse_reply_ioctl(request, 0, nullptr, 0); });
}

Task<void> query(FuseServer& server, fuse_req_t request, uint64_t ino) {
  Result<CloneMode> mode = co_await server.fs().clone_mode_for(ino);
  if (!mode) {
    reply_error(server, request, mode.error());
    co_return;
  }
  auto out = std::make_unique<cofs_query>();
  out->version = COFS_IOCTL_VERSION;
  out->block_bytes = kBlockBytes;
  out->clone_mode = *mode == CloneMode::kShare ? COFS_CLONE_SHARE : COFS_CLONE_DEVICE;
  out->features = server.features().copies_64 ? COFS_FEATURE_COPY_64 : 0;
  reply_structure(server, request, std::move(out));
}

Task<void> announce(FuseServer& server, fuse_req_t request, OpenFile source,
                    Announcement announcement) {
  Result<> announced = co_await server.fs().announce_clone(source, announcement);
  if (!announced) {
    reply_error(server, request, announced.error());
    co_return;
  }
  reply_done(server, request);
}

Task<void> make_token(FuseServer& server, fuse_req_t request, OpenFile source) {
  Result<DedupeToken> token = co_await server.fs().make_dedupe_token(source);
  if (!token) {
    reply_error(server, request, token.error());
    co_return;
  }
  auto out = std::make_unique<cofs_dedupe_token>();
  static_assert(sizeof(out->token) == sizeof(DedupeToken));
  std::memcpy(out->token, token->data(), sizeof(out->token));
  reply_structure(server, request, std::move(out));
}

Task<void> dedupe(FuseServer& server, fuse_req_t request, OpenFile target, DedupeRequest asked,
                  Caller caller) {
  Result<DedupeResult> result = co_await server.fs().dedupe(target, asked, std::move(caller));
  if (!result) {
    reply_error(server, request, result.error());
    co_return;
  }
  auto out = std::make_unique<cofs_dedupe>();
  std::memcpy(out->token, asked.token.data(), sizeof(out->token));
  out->source_offset = asked.source_offset;
  out->target_offset = asked.target_offset;
  out->length = asked.length;
  out->bytes_deduped = result->bytes;
  out->status = result->same ? COFS_DEDUPE_SAME : COFS_DEDUPE_DIFFERS;
  reply_structure(server, request, std::move(out));
}

uint32_t flags_of(const MappedPiece& piece) {
  return (piece.last ? COFS_EXTENT_LAST : 0U) | (piece.delayed ? COFS_EXTENT_DELAYED : 0U) |
         (piece.unwritten ? COFS_EXTENT_UNWRITTEN : 0U) |
         (piece.is_inline ? COFS_EXTENT_INLINE : 0U) | (piece.shared ? COFS_EXTENT_SHARED : 0U);
}

Task<void> map_file(FuseServer& server, fuse_req_t request, uint64_t ino, uint64_t from,
                    uint64_t length, uint32_t flags) {
  Result<FileMap> map = co_await server.fs().map_file(ino, from, length, COFS_MAP_EXTENTS,
                                                      (flags & COFS_MAP_SYNC) != 0);
  if (!map) {
    reply_error(server, request, map.error());
    co_return;
  }
  auto out = std::make_unique<cofs_map>();
  out->start = from;
  out->length = length;
  out->flags = flags;
  out->count = static_cast<uint32_t>(map->pieces.size());
  out->more = map->more ? 1 : 0;
  for (size_t i = 0; i < map->pieces.size(); i++) {
    const MappedPiece& piece = map->pieces[i];
    cofs_map_extent& extent = out->extents[i];
    extent.logical = piece.logical;
    extent.physical = piece.physical;
    extent.length = piece.length;
    extent.flags = flags_of(piece);
  }
  reply_structure(server, request, std::move(out));
}

Task<void> set_clone_mode(FuseServer& server, fuse_req_t request, CloneMode mode) {
  server.fs().set_clone_mode(mode);
  reply_done(server, request);
  co_return;
}

// --- Requests, checked as far as they can be by themselves ---

void on_announce(fuse_req_t request, uint64_t ino, FileHandle file, const cofs_announce& in) {
  if (!all_zero(in.reserved)) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  Announcement announcement;
  announcement.source_offset = in.source_offset;
  announcement.length = in.length;
  announcement.target_ino = in.target_ino;
  announcement.target_offset = in.target_offset;
  start(request, announce, file.open_file(ino), announcement);
}

void on_dedupe(fuse_req_t request, uint64_t ino, FileHandle file, const cofs_dedupe& in) {
  if (in.reserved0 != 0 || !all_zero(in.reserved)) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  if (server_of(request).options().read_only) {
    fuse_reply_err(request, EROFS);
    return;
  }
  DedupeRequest asked;
  std::memcpy(asked.token.data(), in.token, asked.token.size());
  asked.source_offset = in.source_offset;
  asked.target_offset = in.target_offset;
  asked.length = in.length;
  // Groups matter only where neither the open file nor the owner allows it.
  start(request, dedupe, file.open_file(ino), asked,
        file.writable ? caller_of(request) : caller_with_groups_of(request));
}

void on_map(fuse_req_t request, uint64_t ino, FileHandle file, const cofs_map& in) {
  if ((in.flags & ~COFS_MAP_SYNC) != 0 || in.reserved != 0 || !all_zero(in.reserved2)) {
    fuse_reply_err(request, EINVAL);
  } else if (file.open != 0 && !file.readable && !file.writable) {
    fuse_reply_err(request, EBADF);
  } else {
    start(request, map_file, ino, uint64_t{in.start}, uint64_t{in.length}, uint32_t{in.flags});
  }
}

void on_tune(fuse_req_t request, const cofs_tune& in) {
  if (fuse_req_ctx(request)->uid != 0) {
    fuse_reply_err(request, EPERM);
  } else if (in.setting != COFS_TUNE_CLONE_MODE || in.reserved0 != 0 || !all_zero(in.reserved) ||
             in.value > COFS_CLONE_SHARE) {
    fuse_reply_err(request, EINVAL);
  } else {
    start(request, set_clone_mode,
          in.value == COFS_CLONE_SHARE ? CloneMode::kShare : CloneMode::kDevice);
  }
}

// The structure that came with the request; the kernel sends as many bytes as the number declares, but
// whoever speaks the protocol may send others.
template <class T>
std::unique_ptr<T> structure_from(fuse_req_t request, const void* in, size_t in_size) {
  if (in_size != sizeof(T)) {
    fuse_reply_err(request, EINVAL);
    return nullptr;
  }
  auto structure = std::make_unique<T>();
  std::memcpy(structure.get(), in, sizeof(T));
  return structure;
}

}  // namespace

bool on_clone_ioctl(fuse_req_t request, uint64_t ino, unsigned command, FileHandle file,
                    const void* in, size_t in_size, size_t out_size) {
  const bool returns = (_IOC_DIR(command) & _IOC_READ) != 0;
  switch (command) {
    case COFS_IOC_QUERY:
    case COFS_IOC_ANNOUNCE:
    case COFS_IOC_DEDUPE_TOKEN:
    case COFS_IOC_DEDUPE:
    case COFS_IOC_MAP:
    case COFS_IOC_TUNE: break;
    default: return false;
  }
  if (returns && out_size < _IOC_SIZE(command)) {
    fuse_reply_err(request, EINVAL);
    return true;
  }
  switch (command) {
    case COFS_IOC_QUERY: start(request, query, ino); break;
    case COFS_IOC_ANNOUNCE:
      if (auto asked = structure_from<cofs_announce>(request, in, in_size)) {
        on_announce(request, ino, file, *asked);
      }
      break;
    case COFS_IOC_DEDUPE_TOKEN: start(request, make_token, file.open_file(ino)); break;
    case COFS_IOC_DEDUPE:
      if (auto asked = structure_from<cofs_dedupe>(request, in, in_size)) {
        on_dedupe(request, ino, file, *asked);
      }
      break;
    case COFS_IOC_MAP:
      if (auto asked = structure_from<cofs_map>(request, in, in_size)) {
        on_map(request, ino, file, *asked);
      }
      break;
    default:
      if (auto asked = structure_from<cofs_tune>(request, in, in_size)) on_tune(request, *asked);
      break;
  }
  return true;
}

}  // namespace cofs
