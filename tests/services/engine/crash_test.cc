// Kills a process that appends, flushes and cuts, at a random moment, again and again on the same
// folder. What is served afterwards is what was sent, and holds all that was acknowledged as
// durable and not cut since (I1, I6).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

extern char** environ;

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr int kRounds = 20;
constexpr int kBlock = 16;
constexpr int64_t kLengthMax = 200;
constexpr std::string_view kChildFlag = "--write-until-killed=";

engine::EmbeddedOptions Options(const std::string& path, bool write_behind) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.disk_path = path;
  options.store.disk_bytes = uint64_t{64} << 20;
  options.store.reader_threads = 1;
  options.store.durability =
      write_behind ? kvstore::Durability::kAsync : kvstore::Durability::kNone;
  options.block_tokens = kBlock;
  options.index_tokens = 2 * kBlock;
  return options;
}

// What the writer says, before it does something and after it.
enum class Event : int64_t { kAppend = 1, kTruncate = 2, kDone = 3 };
struct Message {
  Event event = Event::kDone;
  // Of an append: the rows' seed, and where they end. Of a truncate: the length.
  uint64_t seed = 0;
  int64_t end = 0;
  // Once it is done.
  int64_t durable = 0;
};

void Say(const Message& message) {
  if (write(STDOUT_FILENO, &message, sizeof(message)) != sizeof(message)) _exit(3);
}

int GiveUp(const absl::Status& status) {
  std::cerr << "the writer: " << status << std::endl;
  return 2;
}

// Goes on with a sequence.
int WriteUntilKilled(const std::string& path, bool write_behind, const std::string& handle,
                     uint64_t seed) {
  const auto engine = OpenEngine(Options(path, write_behind));
  if (engine == nullptr) return 5;
  std::mt19937_64 random(seed);
  absl::StatusOr<SequenceInfo> info = engine->Get({}, handle);
  if (!info.ok()) return GiveUp(info.status());
  for (int64_t length = info->length; true; length = info->length) {
    const uint64_t choice = random() % 8;
    if (choice < 4 && length < kLengthMax) {
      const uint64_t rows = random();
      const int64_t end = length + 1 + static_cast<int64_t>(random() % 12);
      Say({Event::kAppend, rows, end});
      const absl::Status status = AppendSeed(*engine, *info, rows, length, end);
      if (!status.ok()) return GiveUp(status);
      info = engine->Get({}, handle);
    } else if (choice < 6) {
      const int64_t cut = std::max<int64_t>(0, length - static_cast<int64_t>(random() % 40));
      Say({Event::kTruncate, 0, cut});
      info = engine->Truncate({}, handle, info->writer_epoch, cut);
    } else {
      info = engine->Flush({}, handle);
    }
    if (!info.ok()) return GiveUp(info.status());
    Say({Event::kDone, 0, info->length, info->durable_length});
  }
}

// Runs the writer until it is killed after `patience_ms`; what it said.
std::vector<Message> RunWriter(const std::string& arguments_flag, int patience_ms) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string self = "/proc/self/exe";
  std::string flag = arguments_flag;
  char* arguments[] = {self.data(), flag.data(), nullptr};
  pid_t child = 0;
  EXPECT_EQ(posix_spawn(&child, self.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::vector<Message> said;
  Message message;
  const absl::Time deadline = absl::Now() + absl::Milliseconds(patience_ms);
  while (true) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd waiting{.fd = ends[0], .events = POLLIN, .revents = 0};
    if (left_ms <= 0 || poll(&waiting, 1, static_cast<int>(left_ms)) <= 0) break;
    if (read(ends[0], &message, sizeof(message)) != sizeof(message)) break;
    said.push_back(message);
  }
  kill(child, SIGKILL);
  int exit_status = 0;
  waitpid(child, &exit_status, 0);
  EXPECT_TRUE(WIFSIGNALED(exit_status)) << "the writer ended with " << WEXITSTATUS(exit_status);
  // What it said before it died.
  while (read(ends[0], &message, sizeof(message)) == sizeof(message)) said.push_back(message);
  close(ends[0]);
  return said;
}

// What was sent: by position, the seed of its rows.
struct Sent {
  std::vector<uint64_t> seeds;
  int64_t durable = 0;

  void Hear(const Message& message) {
    if (message.event == Event::kAppend) seeds.resize(message.end, message.seed);
    if (message.event == Event::kTruncate) {
      // Perhaps done when it died: rows from there on are no longer promised, nor yet gone.
      durable = std::min(durable, message.end);
      uncut = std::move(seeds);
      seeds.assign(uncut.begin(), uncut.begin() + message.end);
    }
    if (message.event == Event::kDone) {
      durable = std::max(durable, message.durable);
      uncut.clear();
    }
  }
  // What may be served.
  const std::vector<uint64_t>& longest() const { return uncut.empty() ? seeds : uncut; }

  // Before the truncate that was under way.
  std::vector<uint64_t> uncut;
};

void Check(engine::EmbeddedEngine& engine, const SequenceInfo& info, Sent& sent) {
  ASSERT_GE(info.length, sent.durable);
  ASSERT_LE(info.length, static_cast<int64_t>(sent.longest().size()));
  EXPECT_EQ(info.durable_length, info.length);
  sent.seeds.assign(sent.longest().begin(), sent.longest().begin() + info.length);
  sent.uncut.clear();
  sent.durable = info.length;
  const engine::Geometry& geometry = info.spec.geometry;
  for (uint32_t position = 0; position < info.length; ++position) {
    for (int layer = 0; layer < geometry.layers; ++layer) {
      PlainCache plain(geometry);
      plain.Append(layer, MakeRows(geometry, sent.seeds[position], layer, position, 1));
      for (int head = 0; head < geometry.kv_heads; ++head) {
        const auto row = engine.ReadRows({}, info.handle, layer, head, {&position, 1});
        ASSERT_OK(row);
        ASSERT_EQ(*row, plain.StoredRow(layer, head, 0)) << position << ", layer " << layer;
      }
    }
  }
}

class CrashTest : public ::testing::TestWithParam<bool> {};

TEST_P(CrashTest, ServesWhatWasSentAndAllThatWasAcknowledged) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const TempFolder folder;
  const std::string path = folder.path() + "/disk";
  auto engine = OpenEngine(Options(path, GetParam()));
  const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
  Sent sent;
  int64_t done = 0;
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    engine.reset();
    const std::string flag =
        absl::StrCat(std::string(kChildFlag), path, ",", static_cast<int>(GetParam()), ",",
                     info.handle, ",", random());
    for (const Message& message : RunWriter(flag, static_cast<int>(40 + random() % 150))) {
      sent.Hear(message);
      done += message.event == Event::kDone ? 1 : 0;
    }
    engine = OpenEngine(Options(path, GetParam()));
    const absl::StatusOr<SequenceInfo> back = engine->Get({}, info.handle);
    ASSERT_OK(back);
    Check(*engine, *back, sent);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(done, 0) << "no round got anywhere";
}

INSTANTIATE_TEST_SUITE_P(Durability, CrashTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& each) {
                           return std::string(each.param ? "async" : "none");
                         });

int RunChild(std::string_view flag) {
  const std::vector<std::string> fields =
      absl::StrSplit(std::string(flag.substr(kChildFlag.size())), ',');
  uint64_t seed = 0;
  if (fields.size() != 4 || !absl::SimpleAtoi(fields[3], &seed)) return 6;
  return WriteUntilKilled(fields[0], fields[1] == "1", fields[2], seed);
}

}  // namespace
}  // namespace terrace::testing

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]).starts_with(terrace::testing::kChildFlag)) {
    return terrace::testing::RunChild(argv[1]);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
