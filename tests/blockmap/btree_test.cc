// The tree against std::map: readers interleaved with a writer and with checkpoints, tiny caches,
// failing reads, abandoned checkpoints, and the accounting of images.
#include "blockmap/btree.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "blockmap/node.h"
#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kVolumeKey = 0x5eed;
using Value = std::vector<std::byte>;
using Found = std::optional<TreeEntry>;

// --- Node images in memory, read with or without a wait -----------------------------------------

class NodeStore final : public NodeReader {
 public:
  NodeStore(BufferPool& buffers, uint64_t seed) : buffers_(buffers), random_(seed) {}

  Task<Result<BufferRef>> read_node(NodePointer pointer) override {
    if (random_() % 100 < wait_percent) co_await Pause{*this};
    reads++;
    if (reads == fail_at || random_() % 1000 < fail_permille) {
      failures++;
      co_return fail(Code::kIo, "test read", pointer.address[0]);
    }
    auto it = images.find(pointer.address[0]);
    if (it == images.end()) co_return fail(Code::kChecksum, "no such image", pointer.address[0]);
    if (checksum64(it->second, kVolumeKey) != pointer.checksum) {
      co_return fail(Code::kChecksum, "stale image", pointer.address[0]);
    }
    BufferRef buffer = buffers_.allocate(static_cast<uint32_t>(it->second.size() / kBlockBytes));
    std::memcpy(buffer->data(), it->second.data(), it->second.size());
    co_return buffer;
  }

  bool idle() const { return waiting_.empty(); }
  void resume_one() {
    std::swap(waiting_[random_() % waiting_.size()], waiting_.back());
    const std::coroutine_handle<> handle = waiting_.back();
    waiting_.pop_back();
    handle.resume();
  }

  std::map<uint64_t, std::vector<std::byte>> images;
  uint64_t wait_percent = 70;
  uint64_t fail_permille = 0;
  uint64_t fail_at = 0;
  uint64_t reads = 0;
  uint64_t failures = 0;

 private:
  struct Pause {
    explicit Pause(NodeStore& s) : store(s) {}
    NodeStore& store;
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> handle) { store.waiting_.push_back(handle); }
    void await_resume() {}
  };
  BufferPool& buffers_;
  std::mt19937_64 random_;
  std::vector<std::coroutine_handle<>> waiting_;
};

template <class T>
Task<void> store_result(Task<T> task, std::optional<T>& result) {
  T value = co_await std::move(task);
  result.emplace(std::move(value));
}

// Runs one operation to its end, and whatever else waits meanwhile.
template <class T>
T run(NodeStore& store, Task<T> task) {
  std::optional<T> result;
  detach(store_result(std::move(task), result)).resume();
  while (!result) {
    COFS_ASSERT(!store.idle());
    store.resume_one();
  }
  return std::move(*result);
}

// --- The model ----------------------------------------------------------------------------------

// A value is known by a tag: size and bytes follow from it.
// Odd tags are small.
Value value_of(uint64_t tag) {
  static constexpr uint32_t kSizes[] = {0, 8, 20, 60, 200, 700, 1500, 2560};
  Value value(tag % 2 == 0 ? kSizes[tag / 2 % 8] : kSizes[tag / 2 % 4]);
  for (size_t i = 0; i < value.size(); i++)
    value[i] = static_cast<std::byte>(tag * 7 + i * (tag | 1));
  return value;
}

using Model = std::map<Key, uint64_t>;

// One change, with what was there before, so that earlier states can be had back.
struct Mutation {
  Mutation(const Key& k, std::optional<uint64_t> t) : key(k), tag(t) {}
  Key key;
  std::optional<uint64_t> tag;
  std::optional<uint64_t> previous;

  static void set(Model& model, const Key& key, const std::optional<uint64_t>& tag) {
    if (tag) {
      model[key] = *tag;
    } else {
      model.erase(key);
    }
  }
};

bool same(const Found& found, const Model& model, Model::const_iterator it, bool exists) {
  if (!exists || it == model.end()) return !found;
  return found && found->key == it->first && found->value == value_of(it->second);
}

bool is_first(const Found& found, const Model& model, const Key& from, const Key& to) {
  const auto it = model.lower_bound(from);
  return same(found, model, it, it != model.end() && it->first < to);
}

bool is_last(const Found& found, const Model& model, const Key& from, const Key& to) {
  auto it = model.upper_bound(to);
  if (it == model.begin()) return !found;
  --it;
  return same(found, model, it, it->first >= from);
}

struct Options {
  uint64_t seed = 1;
  uint32_t node_bytes = 4096;
  uint64_t cache_nodes = 4;
  uint64_t keys = 1500;
  uint64_t prefill = 0;  // keys put before anything else
  uint64_t large_percent = 20;
  uint64_t checkpoint_percent = 8;
  uint64_t write_percent = 30;
  int steps = 8000;
  uint64_t fail_permille = 0;
  uint64_t abandon_percent = 20;
};

// --- The world: one tree, its store, a writer, readers and checkpoints ---------------------------

class World {
 public:
  explicit World(const Options& options)
      : options_(options),
        random_(options.seed),
        buffers_(0),
        store_(buffers_, options.seed * 31),
        tree_(std::make_unique<BTree>(store_, buffers_, tree_options())) {}

  TreeOptions tree_options() const {
    TreeOptions options;
    options.node_bytes = options_.node_bytes;
    options.cache_bytes = options_.cache_nodes * (options_.node_bytes + 600);
    options.volume_key = kVolumeKey;
    return options;
  }

  void run_all() {
    for (uint64_t i = 0; i < options_.prefill; i++) {
      const Key key = random_key();
      const uint64_t tag = random_tag();
      EXPECT_TRUE(run(store_, tree_->put(key, value_of(tag))));
      apply(Mutation(key, tag));
    }
    store_.fail_permille = options_.fail_permille;
    for (int step = 0; step < options_.steps && !testing::Test::HasFatalFailure(); step++) {
      phase_erase_ = step / 2000 % 2 == 1;
      const uint64_t choice = random_() % 100;
      if (!store_.idle() && random_() % 2 == 0) {
        store_.resume_one();
      } else if (choice < options_.write_percent) {
        if (!writing_) detach(write()).resume();
      } else if (choice < 100 - options_.checkpoint_percent) {
        if (readers_ < 6) detach(read()).resume();
      } else {
        checkpoint_step();
      }
      if (step % 64 == 0) tree_->check_invariants();
    }
    settle();
    compare(*tree_, model_);
  }

  uint64_t mutations() const { return log_.size(); }
  uint64_t checkpoints = 0;
  uint64_t abandoned = 0;
  uint64_t failed_writes = 0;
  uint64_t failed_reads = 0;

 private:
  Key random_key() {
    const uint64_t n = random_() % options_.keys;
    switch (n % 4) {
      case 0: return Key::inode(n);
      case 1: return Key::extent(n / 16, n % 16 * 4);
      case 2: return Key::vmap(n);
      default: return Key::dirent(n / 8, n * 0x9e3779b9, static_cast<uint16_t>(n % 3));
    }
  }

  uint64_t random_tag() {
    return random_() << 1 | (random_() % 100 < options_.large_percent ? 0 : 1);
  }

  // Changes one key; the model follows in the same instant as the tree.
  Task<void> write() {
    writing_ = true;
    const bool erase = random_() % 100 < (phase_erase_ ? 80u : 20u);
    Key key = random_key();
    if (erase && random_() % 2 == 0 && !model_.empty()) {  // runs of neighbours, to empty nodes
      auto it = model_.lower_bound(last_erased_);
      if (it == model_.end()) it = model_.begin();
      key = it->first;
      last_erased_ = key;
    }
    if (erase) {
      auto result = co_await tree_->erase(key);
      if (result) {
        EXPECT_EQ(*result, model_.contains(key));
        apply(Mutation(key, std::nullopt));
      }
      failed_writes += result ? 0 : 1;
    } else {
      const uint64_t tag = random_tag();
      const Value value = value_of(tag);
      auto task = tree_->put(key, value);
      auto result = co_await std::move(task);
      if (result) apply(Mutation(key, tag));
      failed_writes += result ? 0 : 1;
    }
    writing_ = false;
  }

  void apply(Mutation mutation) {
    const auto it = model_.find(mutation.key);
    if (it != model_.end()) mutation.previous = it->second;
    Mutation::set(model_, mutation.key, mutation.tag);
    log_.push_back(mutation);
  }

  Task<void> read() {
    readers_++;
    const uint64_t kind = random_() % 41;
    if (kind < 16) {
      co_await read_get();
    } else if (kind < 24) {
      co_await read_seek(true);
    } else if (kind < 32) {
      co_await read_seek(false);
    } else if (kind < 40) {
      co_await read_scan();
    } else {
      co_await read_walk();
    }
    readers_--;
  }

  // Tries `matches` on every state that the tree had since `start`, latest first.
  template <class Matches>
  bool at_some_time(size_t start, Matches matches) {
    if (matches(model_)) return true;
    if (start == log_.size()) return false;
    Model model = model_;
    for (size_t version = log_.size(); version-- > start;) {
      Mutation::set(model, log_[version].key, log_[version].previous);
      if (matches(model)) return true;
    }
    return false;
  }

  Task<void> read_get() {
    const Key key = random_key();
    const size_t start = log_.size();
    auto result = co_await tree_->get(key);
    if (!result) {
      note_read_error(result.error());
      co_return;
    }
    const auto is_result = [&](const std::optional<uint64_t>& tag) {
      return tag ? result->has_value() && **result == value_of(*tag) : !result->has_value();
    };
    const auto it = model_.find(key);
    bool known = is_result(it == model_.end() ? std::nullopt : std::optional(it->second));
    for (size_t i = start; i < log_.size() && !known; i++) {
      known = log_[i].key == key && is_result(log_[i].previous);
    }
    EXPECT_TRUE(known);
  }

  Task<void> read_seek(bool forward) {
    Key from = random_key();
    Key to = random_key();
    if (to < from && random_() % 8 != 0) std::swap(from, to);
    const size_t start = log_.size();
    auto task = forward ? tree_->first_at_or_after(from, to) : tree_->last_at_or_before(from, to);
    auto result = co_await std::move(task);
    if (!result) {
      note_read_error(result.error());
      co_return;
    }
    EXPECT_TRUE(at_some_time(start, [&](const Model& model) {
      if (from > to) return !result->has_value();
      return forward ? is_first(*result, model, from, to) : is_last(*result, model, from, to);
    })) << (forward ? "first_at_or_after" : "last_at_or_before");
  }

  Task<void> read_scan() {
    Key from = random_key();
    Key to = random_key();
    if (to < from) std::swap(from, to);
    const size_t start = log_.size();
    Seen seen;
    std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes value) {
      seen.add(key, value);
      return true;
    };
    auto task = tree_->scan(from, to, UINT64_MAX, visit);
    auto result = co_await std::move(task);
    if (!result) {
      note_read_error(result.error());
      co_return;
    }
    check_seen(seen, start, from, to);
  }

  Task<void> read_walk() {
    const size_t start = log_.size();
    Seen seen;
    bool complete = true;
    std::function<void(const BTree::VisitedNode&)> on_node = [&](const BTree::VisitedNode& node) {
      if (node.result) return;
      note_read_error(node.result.error());
      complete = false;
    };
    std::function<void(const Key&, Bytes)> on_entry = [&](const Key& key, Bytes value) {
      seen.add(key, value);
    };
    auto task = tree_->walk(on_node, on_entry);
    auto result = co_await std::move(task);
    EXPECT_TRUE(result);
    if (complete) check_seen(seen, start, Key(), Key::label());
  }

  struct Seen {
    std::map<Key, Value> entries;
    bool ascending = true;
    void add(const Key& key, Bytes value) {
      ascending = ascending && (entries.empty() || entries.rbegin()->first < key);
      entries.emplace(key, Value(value.begin(), value.end()));
    }
  };

  // Each record seen was there at some time since `start`, and each that stayed was seen.
  void check_seen(const Seen& seen, size_t start, const Key& from, const Key& to) {
    EXPECT_TRUE(seen.ascending);
    std::map<Key, std::set<std::optional<uint64_t>>> states;
    for (auto it = model_.lower_bound(from); it != model_.end() && it->first < to; ++it) {
      states[it->first].insert(it->second);
    }
    for (size_t i = start; i < log_.size(); i++) {
      states[log_[i].key].insert(log_[i].tag);
      states[log_[i].key].insert(log_[i].previous);
    }
    for (const auto& [key, value] : seen.entries) {
      EXPECT_TRUE(key >= from && key < to);
      bool known = false;
      for (const auto& tag : states[key]) known = known || (tag && value_of(*tag) == value);
      EXPECT_TRUE(known);
    }
    for (const auto& [key, tags] : states) {
      const bool stayed = key >= from && key < to && !tags.empty() && !tags.contains(std::nullopt);
      EXPECT_TRUE(!stayed || seen.entries.contains(key));
    }
  }

  void note_read_error(const Error& error) {
    EXPECT_EQ(error.code, Code::kIo) << describe(error);
    EXPECT_GT(options_.fail_permille, 0u);
    failed_reads++;
  }

  // --- Checkpoints ---

  void assign_all() {
    tree_->for_each_unassigned([&](const DirtyNode& node) {
      const uint64_t address[2] = {next_address_++, 0};
      tree_->assign(node, address, birth_);
      live_.insert(address[0]);
      replaced_[address[0]] = node.old_pointer.address[0];
      if (node.old_pointer.address[0] != 0) drop(node.old_pointer.address[0]);
    });
  }

  void drop(uint64_t address) {
    EXPECT_EQ(live_.erase(address), 1u) << "dropped twice, or never assigned: " << address;
    to_free_.push_back(address);
  }

  void checkpoint_step() {
    if (!frozen_) {
      if (random_() % 2 == 0) {  // assigned before it is needed; the tree changes until the freeze
        assign_all();
        return;
      }
      assign_all();
      for (const NodePointer& pointer : tree_->take_dropped()) drop(pointer.address[0]);
      tree_->check_invariants();
      frozen_ = tree_->freeze();
      EXPECT_EQ(tree_->dirty_nodes(), 0u);
      birth_++;
      frozen_model_ = model_;
      frozen_live_ = live_;
      frozen_free_ = std::exchange(to_free_, {});
      written_ = 0;
      return;
    }
    for (uint64_t n = random_() % 40; n > 0 && written_ < frozen_->size(); n--) {
      std::vector<std::byte> image(options_.node_bytes);
      frozen_->serialize(written_, image);
      store_.images[frozen_->node(written_).pointer.address[0]] = std::move(image);
      written_++;
    }
    if (random_() % 8 == 0) assign_all();  // for the next one already
    if (random_() % 100 < options_.abandon_percent / 4) {
      abandon();
    } else if (written_ == frozen_->size()) {
      finish();
    }
  }

  void finish() {
    checkpoints++;
    const NodePointer root = frozen_->root();
    const uint8_t level = frozen_->root_level();
    tree_->finish(*frozen_);
    frozen_.reset();
    tree_->check_invariants();
    reopen(root, level);
    for (uint64_t address : frozen_free_) store_.images.erase(address);
  }

  // The frozen set was never there: its addresses are free, what they replaced is live again.
  void abandon() {
    abandoned++;
    std::set<uint64_t> restored;
    for (size_t i = 0; i < frozen_->size(); i++) {
      const uint64_t address = frozen_->node(i).pointer.address[0];
      live_.erase(address);
      const uint64_t old = replaced_[address];
      if (old == 0) continue;
      live_.insert(old);
      restored.insert(old);
    }
    tree_->abandon(*frozen_);
    frozen_.reset();
    tree_->check_invariants();
    for (uint64_t address : frozen_free_) {
      if (!restored.contains(address)) to_free_.push_back(address);
    }
  }

  // The checkpoint read afresh is the map as of the freeze, in exactly the images counted as live.
  void reopen(NodePointer root, uint8_t level) {
    const uint64_t fail_permille = std::exchange(store_.fail_permille, 0);
    const uint64_t wait_percent = std::exchange(store_.wait_percent, 0);
    BTree tree(store_, buffers_, tree_options(), root, level);
    compare(tree, frozen_model_);
    std::set<uint64_t> visited;
    std::function<void(const BTree::VisitedNode&)> on_node = [&](const BTree::VisitedNode& node) {
      EXPECT_TRUE(node.result) << describe(node.result.error());
      EXPECT_TRUE(visited.insert(node.pointer.address[0]).second) << "visited twice";
    };
    Model::const_iterator it = frozen_model_.begin();
    std::function<void(const Key&, Bytes)> on_entry = [&](const Key& key, Bytes) {
      EXPECT_TRUE(it != frozen_model_.end() && it->first == key);
      if (it != frozen_model_.end()) ++it;
    };
    EXPECT_TRUE(run(store_, tree.walk(on_node, on_entry)));
    EXPECT_TRUE(it == frozen_model_.end());
    EXPECT_EQ(visited, frozen_live_);
    store_.fail_permille = fail_permille;
    store_.wait_percent = wait_percent;
  }

  void compare(BTree& tree, const Model& model) {
    Model::const_iterator it = model.begin();
    std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes value) {
      const bool equal =
          it != model.end() && it->first == key && std::ranges::equal(value, value_of(it->second));
      EXPECT_TRUE(equal);
      if (equal) ++it;
      return equal;
    };
    const Key end(static_cast<ondisk::KeySpace>(255), 0, ondisk::KeyType::kInode);
    EXPECT_TRUE(run(store_, tree.scan(Key(), end, UINT64_MAX, visit)));
    EXPECT_TRUE(it == model.end());
    tree.check_invariants();
  }

  void settle() {
    while (!store_.idle()) store_.resume_one();
    store_.fail_permille = 0;
    EXPECT_FALSE(writing_);
    EXPECT_EQ(readers_, 0);
    if (frozen_) abandon();
    const uint64_t before = checkpoints;
    options_.abandon_percent = 0;
    while (checkpoints == before) checkpoint_step();
  }

  Options options_;
  std::mt19937_64 random_;
  BufferPool buffers_;
  NodeStore store_;
  std::unique_ptr<BTree> tree_;

  Model model_;
  std::vector<Mutation> log_;
  bool writing_ = false;
  bool phase_erase_ = false;
  int readers_ = 0;
  Key last_erased_;

  std::unique_ptr<FrozenTree> frozen_;
  size_t written_ = 0;
  uint64_t birth_ = 1;
  uint64_t next_address_ = 1000;
  std::set<uint64_t> live_;
  std::map<uint64_t, uint64_t> replaced_;  // by new address: the image it replaces
  std::vector<uint64_t> to_free_;
  Model frozen_model_;
  std::set<uint64_t> frozen_live_;
  std::vector<uint64_t> frozen_free_;
};

uint64_t seed_count(uint64_t usual) {
  const char* text = std::getenv("COFS_TEST_SEEDS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : usual;
}

TEST(BTreeTest, InterleavedWithCheckpoints) {
  uint64_t mutations = 0;
  uint64_t checkpoints = 0;
  uint64_t abandoned = 0;
  for (uint64_t seed = 1; seed <= seed_count(16); seed++) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Options options;
    options.seed = seed;
    options.node_bytes = seed % 4 == 3 ? 8192 : 4096;
    options.cache_nodes = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 5 : 40;
    options.keys = seed % 2 == 0 ? 1500 : 200;
    options.large_percent = seed % 5 * 25;
    options.checkpoint_percent = seed % 3 == 2 ? 2 : 8;
    if (seed % 8 == 0) {  // four levels, and then most of it erased
      options.node_bytes = 4096;
      options.keys = 12000;
      options.prefill = 12000;
      options.large_percent = 100;
      options.checkpoint_percent = 1;
      options.steps = 12000;
      options.write_percent = 75;
      options.cache_nodes = seed % 16 == 0 ? 8 : 100000;
    }
    World world(options);
    world.run_all();
    mutations += world.mutations();
    checkpoints += world.checkpoints;
    abandoned += world.abandoned;
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  std::printf("%llu mutations, %llu checkpoints, %llu abandoned\n",
              static_cast<unsigned long long>(mutations),
              static_cast<unsigned long long>(checkpoints),
              static_cast<unsigned long long>(abandoned));
}

TEST(BTreeTest, InterleavedWithFailingReads) {
  uint64_t failed_writes = 0;
  uint64_t failed_reads = 0;
  for (uint64_t seed = 101; seed <= 100 + seed_count(10); seed++) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Options options;
    options.seed = seed;
    options.cache_nodes = seed % 2 == 0 ? 2 : 8;
    options.fail_permille = 80;
    World world(options);
    world.run_all();
    failed_writes += world.failed_writes;
    failed_reads += world.failed_reads;
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(failed_writes, 0u);
  EXPECT_GT(failed_reads, 0u);
}

// --- A tree written once, for single cases ------------------------------------------------------

class WrittenTreeTest : public testing::Test {
 protected:
  static constexpr uint64_t kKeys = 3000;

  WrittenTreeTest() : buffers_(0), store_(buffers_, 7) {
    store_.wait_percent = 50;
    options_.node_bytes = 4096;
    options_.cache_bytes = 6 * 5000;
    options_.volume_key = kVolumeKey;
    BTree tree(store_, buffers_, options_);
    for (uint64_t i = 0; i < kKeys; i++) {
      const uint64_t id = i * 7919 % kKeys;
      const Value value = value_of(id);
      EXPECT_TRUE(run(store_, tree.put(Key::vmap(id * 2), value)));
      model_[Key::vmap(id * 2)] = id;
    }
    checkpoint(tree);
  }

  void checkpoint(BTree& tree) {
    tree.for_each_unassigned([&](const DirtyNode& node) {
      const uint64_t address[2] = {next_address_, next_address_ + 1};
      next_address_ += 2;
      tree.assign(node, address, birth_);
    });
    birth_++;
    const auto frozen = tree.freeze();
    for (size_t i = 0; i < frozen->size(); i++) {
      std::vector<std::byte> image(options_.node_bytes);
      frozen->serialize(i, image);
      store_.images[frozen->node(i).pointer.address[0]] = std::move(image);
      nodes_.push_back(frozen->node(i));
    }
    root_ = frozen->root();
    level_ = frozen->root_level();
    tree.finish(*frozen);
    tree.check_invariants();
  }

  std::unique_ptr<BTree> open() {
    return std::make_unique<BTree>(store_, buffers_, options_, root_, level_);
  }

  uint64_t count_records(BTree& tree) {
    uint64_t count = 0;
    std::function<bool(const Key&, Bytes)> visit = [&](const Key&, Bytes) {
      count++;
      return true;
    };
    EXPECT_TRUE(run(store_, tree.scan(Key(), Key::label(), UINT64_MAX, visit)));
    return count;
  }

  BufferPool buffers_;
  NodeStore store_;
  TreeOptions options_;
  Model model_;
  uint64_t next_address_ = 10;
  uint64_t birth_ = 1;
  NodePointer root_;
  uint8_t level_ = 0;
  std::vector<FrozenNode> nodes_;
};

TEST_F(WrittenTreeTest, EveryReadFailsOnce) {
  std::mt19937_64 random(3);
  uint64_t failures = 0;
  for (int round = 0; round < 60; round++) {
    for (uint64_t nth = 1; nth < 12; nth++) {
      SCOPED_TRACE(testing::Message() << "round " << round << " read " << nth);
      auto tree = open();
      store_.fail_at = store_.reads + nth;
      const uint64_t id = random() % kKeys;
      const Key key = Key::vmap(id * 2);
      bool failed = false;
      const Value value = value_of(id + 5);
      switch (round % 4) {
        case 0: failed = !run(store_, tree->put(key, value)); break;
        case 1: failed = !run(store_, tree->erase(key)); break;
        case 2: failed = !run(store_, tree->last_at_or_before(Key(), Key::vmap(id * 2 + 1))); break;
        default: {
          std::function<bool(const Key&, Bytes)> visit = [](const Key&, Bytes) { return true; };
          failed = !run(store_, tree->scan(key, Key::label(), 40, visit));
        }
      }
      store_.fail_at = 0;
      tree->check_invariants();
      if (!failed) break;
      failures++;
      EXPECT_EQ(tree->dirty_nodes(), 0u);
      EXPECT_EQ(count_records(*tree), kKeys);
    }
  }
  EXPECT_GT(failures, 60u);
}

TEST_F(WrittenTreeTest, DamagedNodesAreErrorsNotCrashes) {
  std::mt19937_64 random(9);
  for (int round = 0; round < 300; round++) {
    const FrozenNode& victim = nodes_[random() % nodes_.size()];
    auto& image = store_.images[victim.pointer.address[0]];
    const auto saved = image;
    image[random() % image.size()] ^= std::byte{0x41};
    auto tree = open();
    uint64_t unreadable = 0;
    uint64_t entries = 0;
    std::function<void(const BTree::VisitedNode&)> on_node = [&](const BTree::VisitedNode& node) {
      if (node.result) return;
      unreadable++;
      EXPECT_EQ(node.pointer.address[0], victim.pointer.address[0]);
      EXPECT_EQ(node.level, victim.level);
      EXPECT_EQ(node.first_key, victim.first_key);
    };
    std::function<void(const Key&, Bytes)> on_entry = [&](const Key&, Bytes) { entries++; };
    EXPECT_TRUE(run(store_, tree->walk(on_node, on_entry)));
    EXPECT_EQ(unreadable, 1u);
    EXPECT_LT(entries, kKeys);
    EXPECT_FALSE(victim.level == level_ && entries > 0);
    image = saved;
  }
}

// Images with right checksums that do not belong where their parent says.
TEST_F(WrittenTreeTest, MisplacedNodesAreCorrupt) {
  std::vector<const FrozenNode*> leaves;
  for (const FrozenNode& node : nodes_) {
    if (node.level == 0) leaves.push_back(&node);
  }
  ASSERT_GT(leaves.size(), 10u);
  // A one-level tree whose two children are swapped leaves: right images, wrong bounds.
  std::vector<std::byte> image(options_.node_bytes);
  const auto build = [&](const FrozenNode& first, const FrozenNode& second, uint8_t level) {
    std::memset(image.data(), 0, image.size());
    ondisk::NodeHeader header{};
    header.magic = ondisk::kNodeMagic;
    header.volume_key = kVolumeKey;
    header.birth = 50;
    header.level = level;
    header.count = 2;
    std::memcpy(image.data(), &header, sizeof(header));
    const FrozenNode* children[2] = {&first, &second};
    for (uint16_t i = 0; i < 2; i++) {
      const uint32_t offset = options_.node_bytes - 56u * (i + 1u);
      ondisk::NodeSlot slot;
      slot.offset = static_cast<uint16_t>(offset);
      slot.bytes = 32;
      std::memcpy(image.data() + sizeof(header) + i * sizeof(slot), &slot, sizeof(slot));
      const ondisk::Key key = (i == 0 ? Key() : leaves[5]->first_key).encode();
      const ondisk::NodePointer pointer = children[i]->pointer.encode();
      std::memcpy(image.data() + offset, &key, sizeof(key));
      std::memcpy(image.data() + offset + sizeof(key), &pointer, sizeof(pointer));
    }
    NodePointer root;
    root.address[0] = 5;
    root.checksum = checksum64(image, kVolumeKey);
    root.birth = 50;
    store_.images[5] = image;
    return root;
  };
  const Key low = leaves[4]->first_key;
  const Key high = leaves[5]->first_key;
  {
    BTree tree(store_, buffers_, options_, build(*leaves[4], *leaves[5], 1), 1);
    EXPECT_TRUE(run(store_, tree.get(low)));
    EXPECT_TRUE(run(store_, tree.get(high)));
  }
  {
    BTree tree(store_, buffers_, options_, build(*leaves[5], *leaves[4], 1), 1);
    auto result = run(store_, tree.get(low));
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Code::kCorrupt);
    EXPECT_FALSE(run(store_, tree.put(high, Value())));
    EXPECT_EQ(tree.dirty_nodes(), 0u);
  }
  {  // the same leaf twice: fits one place only
    BTree tree(store_, buffers_, options_, build(*leaves[4], *leaves[4], 1), 1);
    EXPECT_TRUE(run(store_, tree.get(low)));
    EXPECT_FALSE(run(store_, tree.get(high)));
  }
  {  // an empty leaf below the root
    FrozenNode empty;
    empty.pointer.address[0] = 6;
    empty.pointer.birth = 7;
    std::vector<std::byte> blank(options_.node_bytes);
    write_leaf_image(LeafImage::create(buffers_, options_.node_bytes, kVolumeKey), 7, blank);
    empty.pointer.checksum = checksum64(blank, kVolumeKey);
    store_.images[6] = blank;
    BTree tree(store_, buffers_, options_, build(*leaves[4], empty, 1), 1);
    EXPECT_TRUE(run(store_, tree.get(low)));
    auto result = run(store_, tree.get(high));
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Code::kCorrupt);
    TreeOptions larger = options_;
    larger.node_bytes = 8192;
    BTree short_image(store_, buffers_, larger, empty.pointer, 0);
    EXPECT_FALSE(run(store_, short_image.get(low)));
    BTree empty_root(store_, buffers_, options_, empty.pointer, 0);
    EXPECT_FALSE(run(store_, empty_root.get(low))->has_value());
  }
  {  // leaves where internal nodes should be
    BTree tree(store_, buffers_, options_, build(*leaves[4], *leaves[5], 2), 2);
    EXPECT_FALSE(run(store_, tree.get(low)));
  }
  {
    const NodePointer root = build(*leaves[4], *leaves[5], 1);
    BTree wrong_level(store_, buffers_, options_, root, 200);
    EXPECT_FALSE(run(store_, wrong_level.get(low)));
    NodePointer wrong_birth = root;
    wrong_birth.birth = 49;
    BTree other(store_, buffers_, options_, wrong_birth, 1);
    EXPECT_FALSE(run(store_, other.get(low)));
    BTree none(store_, buffers_, options_, NodePointer(), 1);
    EXPECT_FALSE(run(store_, none.get(low)));
    BTree never_written(store_, buffers_, options_, NodePointer(), 0);
    EXPECT_FALSE(run(store_, never_written.get(low))->has_value());
    EXPECT_EQ(never_written.dirty_nodes(), 1u);
  }
}

TEST_F(WrittenTreeTest, DirtyNodeAtFindsEveryNode) {
  auto tree = open();
  for (const FrozenNode& node : nodes_) {
    EXPECT_FALSE(*run(store_, tree->dirty_node_at(node.level, node.first_key, 3)));
  }
  EXPECT_EQ(tree->dirty_nodes(), 0u);
  std::mt19937_64 random(4);
  for (int i = 0; i < 20; i++) {
    const FrozenNode& node = nodes_[random() % nodes_.size()];
    EXPECT_TRUE(
        *run(store_, tree->dirty_node_at(node.level, node.first_key, node.pointer.address[i % 2])));
  }
  EXPECT_GT(tree->dirty_nodes(), 0u);
  EXPECT_FALSE(*run(store_, tree->dirty_node_at(9, Key(), nodes_[0].pointer.address[0])));
  const std::vector<FrozenNode> before = nodes_;
  for (const FrozenNode& node : before) {
    EXPECT_TRUE(
        *run(store_, tree->dirty_node_at(node.level, node.first_key, node.pointer.address[0])));
  }
  EXPECT_EQ(tree->dirty_nodes(), before.size());
  checkpoint(*tree);
  for (const FrozenNode& node : before) store_.images.erase(node.pointer.address[0]);
  auto again = open();
  EXPECT_EQ(count_records(*again), kKeys);
}

TEST_F(WrittenTreeTest, CacheStaysWithinItsBound) {
  auto tree = open();
  std::mt19937_64 random(8);
  for (int i = 0; i < 3000; i++) {
    EXPECT_TRUE(run(store_, tree->get(Key::vmap(random() % (2 * kKeys)))));
    // One path may exceed a bound that is smaller than a path.
    EXPECT_LE(tree->cached_bytes(), options_.cache_bytes + 2 * 6000);
  }
  EXPECT_EQ(tree->dirty_nodes(), 0u);
  EXPECT_LE(tree->resident_nodes(), 9u);
}

TEST_F(WrittenTreeTest, SharedReadsAndScanLimits) {
  auto tree = open();
  store_.wait_percent = 100;
  const uint64_t before = store_.reads;
  std::optional<Result<std::optional<Value>>> results[8];
  for (auto& result : results) {
    detach(store_result(tree->get(Key::vmap(100)), result)).resume();
  }
  while (!store_.idle()) store_.resume_one();
  for (auto& result : results) EXPECT_TRUE(result && *result && **result);
  EXPECT_EQ(store_.reads - before, uint64_t{level_} + 1);

  uint64_t seen = 0;
  std::function<bool(const Key&, Bytes)> count = [&](const Key&, Bytes) { return ++seen < 500; };
  EXPECT_TRUE(run(store_, tree->scan(Key(), Key::label(), 100, count)));
  EXPECT_EQ(seen, 100u);
  seen = 0;
  EXPECT_TRUE(run(store_, tree->scan(Key(), Key::label(), UINT64_MAX, count)));
  EXPECT_EQ(seen, 500u);
  seen = 0;
  EXPECT_TRUE(run(store_, tree->scan(Key::vmap(10), Key::vmap(10), 5, count)));
  EXPECT_TRUE(run(store_, tree->scan(Key(), Key::label(), 0, count)));
  EXPECT_EQ(seen, 0u);
}

// An internal node whose first leaf vanished covers keys below its first child's: seeks into that
// gap find the neighbours, and puts into it widen the next leaf.
TEST_F(WrittenTreeTest, GapsBeforeTheFirstChild) {
  ASSERT_GE(level_, 2);
  uint64_t gaps = 0;
  auto tree = open();
  for (size_t i = 0; i + 1 < nodes_.size(); i++) {
    const FrozenNode& node = nodes_[i];
    if (node.level != 1 || node.first_key == Key()) continue;
    gaps++;
    // All of its first leaf, and the first key of its second.
    size_t leaf = 0;
    while (nodes_[leaf].first_key < node.first_key) leaf++;
    const uint64_t begin = nodes_[leaf].first_key.id;
    const uint64_t end = nodes_[leaf + 1].first_key.id;
    for (uint64_t id = begin; id <= end; id += 2) {
      EXPECT_TRUE(*run(store_, tree->erase(Key::vmap(id))));
      model_.erase(Key::vmap(id));
    }
    tree->check_invariants();
    for (uint64_t id = begin - 4; id <= end + 4; id++) {
      const Key key = Key::vmap(id);
      const Found last = *run(store_, tree->last_at_or_before(Key(), key));
      EXPECT_TRUE(is_last(last, model_, Key(), key)) << id;
      const Found narrow = *run(store_, tree->last_at_or_before(Key::vmap(begin), key));
      EXPECT_TRUE(id < begin ? !narrow : is_last(narrow, model_, Key::vmap(begin), key)) << id;
      const Found first = *run(store_, tree->first_at_or_after(key, Key::label()));
      EXPECT_TRUE(is_first(first, model_, key, Key::label())) << id;
      EXPECT_FALSE(run(store_, tree->get(Key::vmap(begin)))->has_value());
    }
    for (uint64_t id : {end - 2, begin, begin - 1, end}) {
      EXPECT_TRUE(run(store_, tree->put(Key::vmap(id), value_of(id))));
      model_[Key::vmap(id)] = id;
      tree->check_invariants();
    }
  }
  EXPECT_GT(gaps, 1u);
  checkpoint(*tree);
  auto again = open();
  EXPECT_EQ(count_records(*again), model_.size());
}

// serialize() in another thread while the tree goes on changing (for the thread sanitiser).
TEST_F(WrittenTreeTest, SerializesBesideChanges) {
  auto tree = open();
  store_.wait_percent = 0;
  std::mt19937_64 random(12);
  for (int round = 0; round < 20; round++) {
    for (int i = 0; i < 100; i++) {
      EXPECT_TRUE(run(store_, tree->put(Key::vmap(random() % (2 * kKeys)), value_of(random()))));
    }
    tree->for_each_unassigned([&](const DirtyNode& node) {
      const uint64_t address[2] = {next_address_++, 0};
      tree->assign(node, address, birth_);
    });
    birth_++;
    const auto frozen = tree->freeze();
    std::vector<std::vector<std::byte>> images(frozen->size());
    std::thread writer([&] {
      for (size_t i = 0; i < images.size(); i++) {
        images[i].resize(options_.node_bytes);
        frozen->serialize(i, images[i]);
      }
    });
    for (int i = 0; i < 150; i++) {
      const Key key = Key::vmap(random() % (2 * kKeys));
      if (random() % 2 == 0) {
        EXPECT_TRUE(run(store_, tree->put(key, value_of(random()))));
      } else {
        EXPECT_TRUE(run(store_, tree->erase(key)));
      }
      tree->for_each_unassigned([](const DirtyNode&) {});
    }
    writer.join();
    for (size_t i = 0; i < images.size(); i++) {
      store_.images[frozen->node(i).pointer.address[0]] = std::move(images[i]);
    }
    tree->finish(*frozen);
    tree->check_invariants();
    root_ = frozen->root();
    level_ = frozen->root_level();
  }
  const uint64_t live = count_records(*tree);
  checkpoint(*tree);
  auto again = open();
  EXPECT_EQ(count_records(*again), live);
}

// Erasing everything in several orders leaves one empty leaf, and no image.
TEST_F(WrittenTreeTest, EraseToEmpty) {
  for (uint64_t order = 0; order < 3; order++) {
    auto tree = open();
    for (uint64_t i = 0; i < kKeys; i++) {
      const uint64_t id = order == 0 ? i : order == 1 ? kKeys - 1 - i : i * 7919 % kKeys;
      EXPECT_TRUE(*run(store_, tree->erase(Key::vmap(id * 2))));
      if (i % 100 == 0) tree->check_invariants();
    }
    EXPECT_EQ(tree->resident_nodes(), 1u);
    EXPECT_EQ(tree->dirty_nodes(), 1u);
    std::set<uint64_t> dropped;
    for (const NodePointer& pointer : tree->take_dropped()) {
      EXPECT_TRUE(dropped.insert(pointer.address[0]).second);
    }
    tree->for_each_unassigned([&](const DirtyNode& node) {
      if (node.old_pointer.address[0] != 0) dropped.insert(node.old_pointer.address[0]);
    });
    EXPECT_EQ(dropped.size(), nodes_.size());
    EXPECT_TRUE(run(store_, tree->put(Key(), value_of(1))));
    EXPECT_TRUE(run(store_, tree->get(Key()))->has_value());
  }
}

TEST(BTreeTest, EmptyTree) {
  BufferPool buffers(0);
  NodeStore store(buffers, 1);
  TreeOptions options;
  options.volume_key = kVolumeKey;
  BTree tree(store, buffers, options);
  EXPECT_EQ(tree.dirty_nodes(), 1u);
  EXPECT_FALSE(run(store, tree.get(Key::label()))->has_value());
  EXPECT_FALSE(*run(store, tree.erase(Key::label())));
  EXPECT_FALSE(run(store, tree.last_at_or_before(Key(), Key::label()))->has_value());
  EXPECT_FALSE(run(store, tree.first_at_or_after(Key(), Key::label()))->has_value());
  tree.for_each_unassigned([&](const DirtyNode& node) {
    const uint64_t address[2] = {10, 0};
    tree.assign(node, address, 1);
  });
  auto frozen = tree.freeze();
  ASSERT_EQ(frozen->size(), 1u);
  std::vector<std::byte> image(options.node_bytes);
  frozen->serialize(0, image);
  store.images[10] = image;
  tree.finish(*frozen);
  const NodePointer root = frozen->root();
  frozen = tree.freeze();  // nothing changed: no nodes, the same root
  EXPECT_EQ(frozen->size(), 0u);
  EXPECT_EQ(frozen->root(), root);
  tree.finish(*frozen);
  BTree again(store, buffers, options, root, 0);
  EXPECT_FALSE(run(store, again.get(Key::label()))->has_value());
  EXPECT_TRUE(run(store, again.put(Key::label(), Value(3))));
  EXPECT_TRUE(run(store, again.put(Key::label(), Value(3))));
  EXPECT_EQ(run(store, again.get(Key::label()))->value().size(), 3u);
}

// A root whose only child was not resident keeps it, until that one is emptied too.
TEST(BTreeTest, LastLeafUnderAnInternalRoot) {
  BufferPool buffers(0);
  NodeStore store(buffers, 1);
  TreeOptions options;
  options.node_bytes = 4096;
  options.volume_key = kVolumeKey;
  BTree tree(store, buffers, options);
  uint64_t records = 0;
  for (; tree.resident_nodes() < 3; records++) {
    EXPECT_TRUE(run(store, tree.put(Key::vmap(records), Value(100))));
  }
  uint64_t next = 10;
  tree.for_each_unassigned([&](const DirtyNode& node) {
    const uint64_t address[2] = {next++, 0};
    tree.assign(node, address, 1);
  });
  auto frozen = tree.freeze();
  for (size_t i = 0; i < frozen->size(); i++) {
    std::vector<std::byte> image(options.node_bytes);
    frozen->serialize(i, image);
    store.images[frozen->node(i).pointer.address[0]] = image;
  }
  tree.finish(*frozen);
  BTree again(store, buffers, options, frozen->root(), frozen->root_level());
  for (uint64_t i = 0; i + 1 < records; i++) EXPECT_TRUE(*run(store, again.erase(Key::vmap(i))));
  again.check_invariants();
  EXPECT_EQ(again.resident_nodes(), 1u);  // the internal root
  EXPECT_TRUE(*run(store, again.erase(Key::vmap(records - 1))));
  again.check_invariants();
  EXPECT_EQ(again.resident_nodes(), 1u);  // an empty leaf
  EXPECT_EQ(again.dirty_nodes(), 1u);
  EXPECT_EQ(again.take_dropped().size(), 3u);
  EXPECT_TRUE(run(store, again.put(Key::vmap(4), Value(1))));
  EXPECT_TRUE(run(store, again.get(Key::vmap(4)))->has_value());
}

// Ascending keys leave nodes full, also with keys of a higher space behind them.
TEST(BTreeTest, SequentialFill) {
  BufferPool buffers(0);
  NodeStore store(buffers, 1);
  TreeOptions options;
  options.volume_key = kVolumeKey;
  BTree tree(store, buffers, options);
  for (uint64_t i = 0; i < 5; i++) EXPECT_TRUE(run(store, tree.put(Key::orphan(i), Value())));
  constexpr uint64_t kRecords = 50000;
  const Value value(20);
  for (uint64_t i = 0; i < kRecords; i++) EXPECT_TRUE(run(store, tree.put(Key::vmap(i), value)));
  const uint64_t least = kRecords * 48 / options.node_bytes;
  EXPECT_LT(tree.resident_nodes(), least * 105 / 100);
  tree.check_invariants();
}

}  // namespace
}  // namespace cofs
