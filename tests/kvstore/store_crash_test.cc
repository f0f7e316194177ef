// Kills a writing process at a random moment, again and again on the same folder, in each mode of
// durability. What is served afterwards is a prefix of what was sent, holds all that was
// acknowledged, and every byte of it is right (I1, I6).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

extern char** environ;

namespace terrace::kvstore {
namespace {

constexpr int kRounds = 20;
// Between two flushes.
constexpr uint32_t kFlushedBlocks = 13;
// Then the mode, a colon, the round, a colon, and the folder.
constexpr const char* kChildFlag = "--write-until-killed=";

struct Mode {
  const char* name;
  Durability durability;
};
constexpr Mode kModes[] = {
    {"None", Durability::kNone}, {"Async", Durability::kAsync}, {"Sync", Durability::kSync}};

StoreOptions Options(const std::string& path, Durability durability) {
  StoreOptions options;
  options.host_bytes = uint64_t{2} << 20;
  options.disk_path = path;
  options.disk_bytes = uint64_t{256} << 20;
  options.durability = durability;
  return options;
}

// What the writer says, a line each: a block is about to be sealed, or blocks are durable.
enum class Event : uint32_t { kSent = 1, kFlushed = 2 };
struct Message {
  Event event;
  uint32_t end_block;
};

void Say(Event event, uint32_t end_block) {
  const Message message{event, end_block};
  if (write(STDOUT_FILENO, &message, sizeof(message)) != sizeof(message)) _exit(3);
}

int GiveUp(const absl::Status& status) {
  std::cerr << "the writer: " << status << std::endl;
  return 2;
}

// Goes on with the sequence in the folder, or begins it. Bytes of blocks are those of the round.
int WriteUntilKilled(const std::string& argument, Durability durability) {
  const auto round = static_cast<uint32_t>(std::stoul(argument));
  const std::string path = argument.substr(argument.find(':') + 1);
  auto store = BlockStore::Open(Options(path, durability));
  if (!store.ok()) return GiveUp(store.status());
  const std::vector<Manifest> recovered = (*store)->TakeRecovered();
  SegmentRef segment;
  uint32_t end = 0;
  if (recovered.empty()) {
    auto created = (*store)->CreateSegment(SmallLayout(), 0);
    if (!created.ok()) return GiveUp(created.status());
    segment = *created;
    const Manifest manifest{"sequence", "", {{segment, 0, kOpenEnd}}};
    if (absl::Status status = (*store)->CommitManifest(manifest, absl::InfiniteFuture());
        !status.ok()) {
      return GiveUp(status);
    }
  } else {
    segment = recovered[0].ranges[0].segment;
    end = (*store)->SealedEnd(*segment, 0, 0);
    for (uint16_t layer = 0; layer < 2; ++layer) {
      for (uint16_t head = 0; head < 2; ++head) {
        end = std::min(end, (*store)->SealedEnd(*segment, layer, head));
      }
    }
  }
  for (; end < 100'000; ++end) {
    Say(Event::kSent, end + 1);
    for (uint16_t layer = 0; layer < 2; ++layer) {
      for (uint16_t head = 0; head < 2; ++head) {
        const absl::Status status = AppendBlock(**store, *segment, layer, head, end, round);
        if (!status.ok()) return GiveUp(status);
      }
    }
    if (end % kFlushedBlocks != kFlushedBlocks - 1) continue;
    const absl::Status status = (*store)->Flush(*segment, {}, Soon());
    if (!status.ok()) return GiveUp(status);
    Say(Event::kFlushed, end + 1);
  }
  return 4;
}

// Runs the writer until it is killed after `patience_ms`; returns the last of each event.
std::map<Event, uint32_t> RunWriter(const Mode& mode, int round, const std::string& path,
                                    int patience_ms) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string self = "/proc/self/exe";
  std::string flag = kChildFlag + std::string(mode.name) + ":" + std::to_string(round) + ":" + path;
  char* arguments[] = {self.data(), flag.data(), nullptr};
  pid_t child = 0;
  EXPECT_EQ(posix_spawn(&child, self.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::map<Event, uint32_t> last;
  Message message{};
  const absl::Time deadline = absl::Now() + absl::Milliseconds(patience_ms);
  while (true) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd waiting{.fd = ends[0], .events = POLLIN, .revents = 0};
    if (left_ms <= 0 || poll(&waiting, 1, static_cast<int>(left_ms)) <= 0) break;
    if (read(ends[0], &message, sizeof(message)) != sizeof(message)) break;
    last[message.event] = message.end_block;
  }
  kill(child, SIGKILL);
  int exit_status = 0;
  waitpid(child, &exit_status, 0);
  EXPECT_TRUE(WIFSIGNALED(exit_status)) << "the writer ended with " << WEXITSTATUS(exit_status);
  // What it said before it died.
  while (read(ends[0], &message, sizeof(message)) == sizeof(message)) {
    last[message.event] = message.end_block;
  }
  close(ends[0]);
  return last;
}

class StoreCrash : public ::testing::TestWithParam<Mode> {};

// I4 too: rows and piece of each block.
TEST_P(StoreCrash, ServesExactlyADurablePrefix) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TempFolder folder;
  const std::string path = folder.path() + "/disk";
  uint32_t sent = 0;
  // What a flush, or the last restart, said to be on disk.
  uint32_t acknowledged = 0;
  // By layer and block, the round that wrote what is on disk.
  std::array<std::vector<uint32_t>, 2> rounds;
  bool any_unasked = false;
  for (int round = 0; round < kRounds; ++round) {
    const auto said = RunWriter(GetParam(), round, path, static_cast<int>(20 + random() % 150));
    if (said.contains(Event::kSent)) sent = std::max(sent, said.at(Event::kSent));
    if (said.contains(Event::kFlushed)) acknowledged = said.at(Event::kFlushed);
    auto store = BlockStore::Open(Options(path, GetParam().durability));
    ASSERT_OK(store);
    const std::vector<Manifest> recovered = (*store)->TakeRecovered();
    if (recovered.empty()) {
      ASSERT_EQ(acknowledged, 0u);
      continue;
    }
    Segment& segment = *recovered[0].ranges[0].segment;
    uint32_t kept = sent;
    for (uint16_t layer = 0; layer < 2; ++layer) {
      const uint32_t served = (*store)->Durable(segment, layer).end_block;
      kept = std::min(kept, served);
      ASSERT_GE(served, acknowledged);
      // What was served once stays, with the bytes that it had.
      ASSERT_GE(served, rounds[layer].size());
      rounds[layer].resize(served, static_cast<uint32_t>(round));
      EXPECT_LE(served, sent);
      // Without write-behind, blocks of a flush that was begun at most.
      if (GetParam().durability == Durability::kNone) {
        EXPECT_LE(served, acknowledged + kFlushedBlocks);
      }
      any_unasked = any_unasked || served > acknowledged;
      // The newest blocks, and of the older ones, which earlier rounds read, a few.
      for (uint32_t block = 0; block < served; ++block) {
        if (block + 100 < served && random() % 64 != 0) continue;
        for (uint16_t head = 0; head < 2; ++head) {
          ASSERT_EQ((*store)->SealedEnd(segment, layer, head), served);
          ASSERT_OK(CheckBlock(**store, segment, layer, head, block, rounds[layer][block]))
              << block;
        }
      }
    }
    acknowledged = kept;
  }
  EXPECT_FALSE(rounds[0].empty()) << "no round got anywhere";
  if (GetParam().durability != Durability::kNone) {
    EXPECT_TRUE(any_unasked) << "nothing was written behind";
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, StoreCrash, ::testing::ValuesIn(kModes),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace terrace::kvstore

int main(int argc, char** argv) {
  const std::string flag = terrace::kvstore::kChildFlag;
  for (const terrace::kvstore::Mode& mode : terrace::kvstore::kModes) {
    const std::string start = flag + mode.name + ":";
    if (argc != 2 || !std::string(argv[1]).starts_with(start)) continue;
    return terrace::kvstore::WriteUntilKilled(std::string(argv[1]).substr(start.size()),
                                              mode.durability);
  }
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
