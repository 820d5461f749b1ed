#include "offload/base/frame_pool.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace cofs {
namespace {

struct Frame {
  void* memory = nullptr;
  size_t bytes = 0;
  unsigned char mark = 0;
};

Frame make(size_t bytes, unsigned char mark) {
  Frame frame{allocate_frame(bytes), bytes, mark};
  std::memset(frame.memory, mark, bytes);
  return frame;
}

bool is_intact(const Frame& frame) {
  const auto* bytes = static_cast<const unsigned char*>(frame.memory);
  for (size_t i = 0; i < frame.bytes; i++) {
    if (bytes[i] != frame.mark) return false;
  }
  return true;
}

TEST(FramePoolTest, FramesDoNotOverlap) {
  std::vector<Frame> frames;
  for (size_t bytes = 1; bytes <= 5000; bytes += 7) {
    frames.push_back(make(bytes, static_cast<unsigned char>(bytes)));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(frames.back().memory) % alignof(std::max_align_t), 0u);
  }
  for (const Frame& frame : frames) EXPECT_TRUE(is_intact(frame)) << frame.bytes;
  for (const Frame& frame : frames) free_frame(frame.memory, frame.bytes);
}

// As with a server: one thread makes them, another one frees them.
TEST(FramePoolTest, ThreadsHandThemOn) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 20'000;
  std::array<std::mutex, kThreads> mutexes;
  std::array<std::vector<Frame>, kThreads> queues;
  std::vector<std::thread> threads;
  for (int self = 0; self < kThreads; self++) {
    threads.emplace_back([&, self] {
      std::mt19937 random(self);
      for (int i = 0; i < kRounds; i++) {
        const Frame frame = make(1 + random() % 2500, static_cast<unsigned char>(random()));
        const size_t other = random() % kThreads;
        {
          std::lock_guard lock(mutexes[other]);
          queues[other].push_back(frame);
        }
        std::vector<Frame> mine;
        if (i % 200 == 0 || i + 1 == kRounds) {
          std::lock_guard lock(mutexes[self]);
          mine.swap(queues[self]);
        }
        for (const Frame& got : mine) {
          EXPECT_TRUE(is_intact(got));
          free_frame(got.memory, got.bytes);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::vector<Frame>& queue : queues) {
    for (const Frame& frame : queue) {
      EXPECT_TRUE(is_intact(frame));
      free_frame(frame.memory, frame.bytes);
    }
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(FramePoolTest, AThreadThatEndsLeavesItsFramesToOthers) {
  constexpr size_t kBytes = 1900;  // of a size that no other test uses much
  std::set<void*> theirs;
  std::thread([&] {
    std::vector<void*> frames;
    for (int i = 0; i < 40; i++) frames.push_back(allocate_frame(kBytes));
    theirs.insert(frames.begin(), frames.end());
    for (void* frame : frames) free_frame(frame, kBytes);
  }).join();
  std::thread([&] {
    std::vector<void*> frames;
    int known = 0;
    for (int i = 0; i < 40; i++) {
      frames.push_back(allocate_frame(kBytes));
      known += static_cast<int>(theirs.count(frames.back()));
    }
    EXPECT_EQ(known, 40);
    for (void* frame : frames) free_frame(frame, kBytes);
  }).join();
}
#endif

}  // namespace
}  // namespace cofs
