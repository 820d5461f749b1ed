// Prefix consistency with several clients at once: each works in a directory of its own, all run
// interleaved, and the power goes at any moment.
//
// What may be found: in each directory the tree as it was after some operation of its client, such that
// - operations that ended before a sync that was reported done had begun are there, and
// - if an operation is there, all that had ended (anywhere) before it began are there, too.
// COFS_CRASH_STATES / 8 images (default 2500), COFS_SEED: the first seed.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "offload/base/checksum.h"
#include "offload/base/sync.h"
#include "tests/testing/crash_sweep.h"
#include "tests/testing/test_volume.h"
#include "tests/testing/tree_walk.h"
#include "tests/testing/workload.h"

namespace cofs {
namespace {

constexpr size_t kClients = 3;
constexpr size_t kOperations = 25;  // of each client

// A state of one directory. Begin and end count the operations' begins and ends over all clients.
struct Step {
  ModelState state;
  uint64_t hash = 0;
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string what;
  Step(ModelState s, uint64_t b, uint64_t e, std::string w)
      : state(std::move(s)), hash(state.tree_hash()), begin(b), end(e), what(std::move(w)) {}
};
using StepsRef = std::shared_ptr<const std::vector<Step>>;

struct Client {
  std::string directory;
  ModelState state;
  OpenFiles files;
  std::optional<WorkloadGenerator> generator;
  std::vector<Operation> done;
  std::vector<Step> history;
  StepsRef during;  // where the operation under way may lead
  size_t floor = 0;
};

struct Moment {
  SimImage image;
  std::array<size_t, kClients> floor{};
  std::array<size_t, kClients> count{};
  std::array<StepsRef, kClients> during;
  std::string label;
};

class ConcurrentRun {
 public:
  ConcurrentRun(uint64_t seed, const VolumeOptions& options)
      : seed_(seed),
        options_(options),
        random_(mix64(seed, 6)),
        volume_(seed, TestVolume::formatted(seed, options), options),
        group_(volume_.world.executor) {
    for (size_t i = 0; i < kClients; ++i) {
      clients_[i].directory = fmt::format("/c{}", i);
      clients_[i].generator.emplace(mix64(seed, 20 + i), WorkloadShape::random(mix64(seed, i)));
    }
  }

  // "" or what is wrong; counts the images tried.
  std::string run(uint64_t states_max, uint64_t* states) {
    wrong_ = prepare();
    if (!wrong_.empty()) return wrong_;
    volume_.observer = [this] { observe(); };
    for (Client& client : clients_) {
      group_.add();
      spawn(volume_.world.executor, work(&client));
    }
    volume_.run(wait_for_all());
    volume_.observer = nullptr;
    if (wrong_.empty()) check_end();
    for (const Moment& moment : moments_) {
      if (!wrong_.empty() || *states >= states_max) break;
      (*states)++;
      check(moment);
    }
    return wrong_.empty() ? "" : wrong_ + "\n" + story();
  }

 private:
  std::string prepare() {
    const Result<> opened = volume_.open();
    if (!opened) return describe(opened.error());
    for (Client& client : clients_) {
      Operation make(OperationKind::kMakeDirectory, client.directory);
      make.mode = 0755;
      if (!volume_.perform(make).ok()) return "mkdir " + client.directory;
      client.history.emplace_back(client.state, 0, 0, "the start");
    }
    if (!volume_.perform(Operation(OperationKind::kSync)).ok()) return "sync";
    return "";
  }

  Task<> wait_for_all() { co_await group_.wait(); }

  Task<> work(Client* client) {
    for (size_t i = 0; i < kOperations && wrong_.empty(); ++i) co_await one(client);
    group_.done();
  }

  Task<> one(Client* client) {
    const Operation operation = client->generator->next(client->state);
    client->done.push_back(operation);
    const uint64_t begin = ++clock_;
    predict(client, operation, begin);
    Operation real = operation;
    place(*client, real.path);
    place(*client, real.path2);
    auto result = co_await perform(volume_.fs(), client->files, real);
    const uint64_t end = ++clock_;
    client->during.reset();
    ModelState before = client->state;
    const std::string wrong = client->state.check(operation, result);
    if (!wrong.empty() && wrong_.empty()) wrong_ = client->directory + ": " + wrong;
    if (!result.ok()) co_return;
    if (is_copy(operation.kind)) {
      for (ModelState& partial : before.partial_copies(operation, result.value)) {
        client->history.emplace_back(std::move(partial), begin, end, "within the copy");
      }
    }
    if (changes_tree(operation.kind)) {
      client->history.emplace_back(client->state, begin, end, describe(operation));
    }
    if (operation.kind != OperationKind::kSync && operation.kind != OperationKind::kCheckpoint) {
      co_return;
    }
    for (Client& other : clients_) other.floor = std::max(other.floor, last_before(other, begin));
  }

  // The last state of the client that was complete before `moment`.
  static size_t last_before(const Client& client, uint64_t moment) {
    size_t last = 0;
    for (size_t i = 0; i < client.history.size(); ++i) {
      if (client.history[i].end < moment) last = i;
    }
    return last;
  }

  static void place(const Client& client, std::string& path) {
    if (!path.empty()) path = path == "/" ? client.directory : client.directory + path;
  }

  void predict(Client* client, const Operation& operation, uint64_t begin) {
    if (!changes_tree(operation.kind)) return;
    ModelState after = client->state;
    const ModelAnswer answer = after.perform(operation);
    if (!answer.errors.empty()) return;
    auto steps = std::make_shared<std::vector<Step>>();
    if (is_copy(operation.kind)) {
      for (ModelState& partial : client->state.partial_copies(operation, answer.expected.value)) {
        steps->emplace_back(std::move(partial), begin, UINT64_MAX, "within the copy");
      }
    }
    steps->emplace_back(std::move(after), begin, UINT64_MAX, describe(operation));
    client->during = std::move(steps);
  }

  void observe() {
    const size_t unsettled = volume_.device.unsettled_count();
    const bool flushed = std::exchange(last_unsettled_, unsettled) > unsettled;
    if (random_.below(3) != 0) return;
    if (flushed) take(CrashMode::kDropAll);
    if (unsettled == 0) return;
    if (random_.below(4) == 0) take(CrashMode::kKeepAll);
    for (int i = 0; i < 2; ++i) take(CrashMode::kRandom);
  }

  void take(CrashMode mode) {
    const uint64_t image_seed = random_.next();
    Moment moment{volume_.device.crash_image(image_seed, mode), {}, {}, {},
                  fmt::format("device operation {}, mode {}, image seed {:#x}",
                              volume_.device.operation_count(), static_cast<int>(mode),
                              image_seed)};
    for (size_t i = 0; i < kClients; ++i) {
      moment.floor[i] = clients_[i].floor;
      moment.count[i] = clients_[i].history.size();
      moment.during[i] = clients_[i].during;
    }
    moments_.push_back(std::move(moment));
  }

  void check_end() {
    volume_.settle();
    wrong_ = volume_.verify(true);
    for (const Client& client : clients_) {
      auto tree = volume_.tree();
      if (wrong_.empty() && !tree) wrong_ = describe(tree.error());
      if (!wrong_.empty()) return;
      const auto number = tree->find(client.directory);
      wrong_ = number ? difference(client.state, tree->subtree(*number)) : "a directory is gone";
    }
  }

  // The steps that are what was found in one client's directory: the first and the last of them.
  struct Found {
    const Step* first = nullptr;
    const Step* last = nullptr;
  };

  Found match(const Moment& moment, size_t i, const ModelState& tree) const {
    Found found;
    const uint64_t hash = tree.tree_hash();
    auto consider = [&](const Step& step) {
      if (step.hash != hash || !difference(step.state, tree).empty()) return;
      if (found.first == nullptr) found.first = &step;
      found.last = &step;
    };
    for (size_t n = moment.floor[i]; n < moment.count[i]; ++n) consider(clients_[i].history[n]);
    if (moment.during[i] != nullptr) {
      for (const Step& step : *moment.during[i]) consider(step);
    }
    return found;
  }

  void check(const Moment& moment) {
    set_current_case(fmt::format("concurrent, seed {}, {}", seed_, moment.label));
    TestVolume volume(mix64(seed_, 9), moment.image, options_);
    const Result<> opened = volume.open();
    if (!opened) {
      wrong_ = moment.label + ": " + describe(opened.error());
      return;
    }
    auto tree = volume.tree();
    if (!tree) {
      wrong_ = moment.label + ": " + describe(tree.error());
      return;
    }
    std::array<Found, kClients> found;
    for (size_t i = 0; i < kClients; ++i) {
      const auto number = tree->find(clients_[i].directory);
      const ModelState below = number ? tree->subtree(*number) : ModelState();
      found[i] = match(moment, i, below);
      if (found[i].first != nullptr) continue;
      const Step& oldest = clients_[i].history[moment.floor[i]];
      wrong_ = fmt::format("{}: {} is no state allowed ({} to {}); not that after {}: {}",
                           moment.label, clients_[i].directory, moment.floor[i],
                           moment.count[i] - 1, oldest.what, difference(oldest.state, below));
      return;
    }
    for (size_t i = 0; i < kClients; ++i) {
      for (size_t k = 0; k < kClients; ++k) {
        const Client& other = clients_[k];
        const size_t needed = last_before(other, found[i].first->begin);
        const bool has = found[k].last->end >= other.history[needed].end;
        if (has) continue;
        wrong_ = fmt::format("{}: {} of {} is there, but {} of {}, which ended before it, is not",
                             moment.label, found[i].first->what, clients_[i].directory,
                             other.history[needed].what, other.directory);
        return;
      }
    }
    volume.settle();
    const std::string problems = volume.verify(random_.below(4) == 0);
    if (!problems.empty()) wrong_ = moment.label + ": " + problems;
  }

  std::string story() const {
    std::string text = options_.describe() + "\n";
    for (const Client& client : clients_) text += client.directory + "\n" + describe(client.done);
    return text;
  }

  const uint64_t seed_;
  const VolumeOptions options_;
  SimRandom random_;
  TestVolume volume_;
  WaitGroup group_;
  std::array<Client, kClients> clients_;
  std::vector<Moment> moments_;
  uint64_t clock_ = 0;
  size_t last_unsettled_ = 0;
  std::string wrong_;
};

TEST(ConcurrentCrash, EveryClientFindsAPrefixAndTogetherTheyAgree) {
  const uint64_t states_max = number_from_environment("COFS_CRASH_STATES", 20'000) / 8;
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  uint64_t states = 0;
  uint64_t seed = first;
  for (; states < states_max; ++seed) {
    set_current_case(fmt::format("concurrent, seed {}", seed));
    VolumeOptions options = VolumeOptions::tiny(seed);
    ConcurrentRun run(seed, options);
    const std::string wrong = run.run(states_max, &states);
    ASSERT_EQ(wrong, "") << "seed " << seed;
  }
  std::printf("crash states tried: %llu, violations: 0, seed: %llu (%llu runs of %zu clients)\n",
              static_cast<unsigned long long>(states), static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(seed - first), kClients);
}

}  // namespace
}  // namespace cofs
