// Processes that must not start, stores that are gone or full, and connections that speak something
// else.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const Shape kShape = {.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 128};

TEST(StoreFolderTest, HasOneOwnerOfOneShard) {
  const Folder folder;
  const std::vector<std::string> flags = {"--host-bytes",      "16MiB",        "--disk-path",
                                          folder.File("disk"), "--disk-bytes", "64MiB"};
  Daemon owner(kStoreProgram, flags);
  ASSERT_TRUE(owner.serving());
  std::vector<std::string> second = flags;
  second.insert(second.end(), {"--listen", "127.0.0.1:0"});
  const Outcome locked = RunProgram(kStoreProgram, second);
  EXPECT_EQ(locked.exit_code, 1);
  EXPECT_THAT(locked.out + locked.err, HasSubstr(folder.File("disk")));
  EXPECT_THAT(locked.out + locked.err, HasSubstr("lock"));
  v1::SequenceInfo info;
  EXPECT_EQ(Client(owner.address()).Get("nobody", &info).code, absl::StatusCode::kUnimplemented);

  owner.process().Signal(SIGTERM);
  EXPECT_EQ(owner.process().Wait(), 0);
  second.insert(second.end(), {"--shard", "3"});
  const Outcome foreign = RunProgram(kStoreProgram, second);
  EXPECT_EQ(foreign.exit_code, 1);
  EXPECT_THAT(foreign.out + foreign.err, HasSubstr("belongs to shard 0, not 3"));
  owner.Restart();
  EXPECT_TRUE(owner.serving());
}

TEST(StoreFolderTest, IsNotMadeOfSomebodyElsesFiles) {
  const Folder folder;
  const std::string file = folder.Write("disk", "a file, not a folder");
  const Outcome outcome = RunProgram(
      kStoreProgram, {"--listen", "127.0.0.1:0", "--disk-path", file, "--disk-bytes", "64MiB"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.out + outcome.err, HasSubstr(file));
  EXPECT_EQ(ReadFile(file), "a file, not a folder");
}

TEST(CommandLineTest, IsRefusedWithTheFlagAndWhatItTakes) {
  const struct {
    const char* program;
    std::vector<std::string> arguments;
    int exit_code;
    std::vector<const char*> words;
  } cases[] = {
      {kStoreProgram, {"--no-such-flag"}, 2, {"--no-such-flag"}},
      {kStoreProgram, {"--host-bytes", "lots"}, 2, {"host-bytes", "\"lots\"", "20MiB"}},
      {kStoreProgram, {"--host-bytes", "-1"}, 2, {"host-bytes"}},
      {kStoreProgram, {"--host-bytes", "4KiB"}, 1, {"host", "4096"}},
      {kStoreProgram, {"--disk-path", "x", "--disk-bytes", "1MiB"}, 1, {"disk", "67108864"}},
      {kStoreProgram, {"--shard", "65536"}, 2, {"shard"}},
      {kStoreProgram, {"--durability", "maybe"}, 2, {"durability", "maybe"}},
      {kStoreProgram, {"--block-tokens", "48"}, 1, {"block-tokens", "48", "power of two"}},
      {kStoreProgram, {"--listen", "0.0.0.0:0"}, 1, {"0.0.0.0:0", "--allow-plaintext"}},
      {kStoreProgram, {"--listen", "nowhere"}, 1, {"nowhere"}},
      {kStoreProgram, {"--threads", "0"}, 1, {"threads", "got 0", "1 to 1024"}},
      {kStoreProgram, {"--config", "/nonexistent.toml"}, 2, {"/nonexistent.toml"}},
      {kWorkerProgram, {"--no-such-flag"}, 2, {"--no-such-flag"}},
      {kWorkerProgram, {"--listen", "[::]:0"}, 1, {"[::]:0", "--allow-plaintext"}},
      {kWorkerProgram, {"--engine", "remote"}, 1, {"stores", "HOST:PORT"}},
      {kWorkerProgram, {"--stores", "127.0.0.1:1"}, 1, {"stores", "embedded"}},
      {kWorkerProgram, {"--engine", "remote", "--stores", "nonsense"}, 1, {"stores", "nonsense"}},
      {kWorkerProgram,
       {"--engine", "remote", "--stores", "127.0.0.1:1,127.0.0.1"},
       1,
       {"stores", "\"127.0.0.1\"", "no port"}},
      {kWorkerProgram,
       {"--engine", "remote", "--stores", "http://x:1"},
       1,
       {"stores", "http://x:1", "no scheme"}},
      {kWorkerProgram,
       {"--engine", "remote", "--stores", "127.0.0.1:1", "--host-bytes", "1GiB"},
       1,
       {"host-bytes", "--engine=remote"}},
      {kWorkerProgram, {"--inflight-bytes", "1MiB"}, 1, {"inflight-bytes", "max-message-bytes"}},
      {kWorkerProgram, {"--engine", "elsewhere"}, 2, {"engine", "elsewhere"}},
      {kWorkerProgram, {"--remote-mode", "both"}, 2, {"remote-mode", "both"}},
      {kWorkerProgram, {"--drain-timeout", "soon"}, 2, {"drain-timeout", "\"soon\"", "10s"}},
      {kWorkerProgram, {"--max-message-bytes", "1KiB"}, 1, {"max-message-bytes", "64KiB"}},
      {kWorkerProgram, {"--queue-max", "0"}, 1, {"queue-max", "got 0"}},
      {kStoreProgram, {"--max-streams", "0"}, 1, {"max-streams", "got 0", "1 to 65536"}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(::testing::PrintToString(c.arguments));
    const Outcome outcome = RunProgram(c.program, c.arguments);
    EXPECT_EQ(outcome.exit_code, c.exit_code);
    for (const char* word : c.words) EXPECT_THAT(outcome.out + outcome.err, HasSubstr(word));
    EXPECT_THAT(outcome.out + outcome.err, ::testing::Not(HasSubstr("event=serving")));
  }
}

TEST(CommandLineTest, HelpOfEveryProgramTellsItsExitCodes) {
  for (const char* program : {kStoreProgram, kWorkerProgram, kGenerateProgram, kCtlProgram}) {
    SCOPED_TRACE(program);
    const Outcome outcome = RunProgram(program, {"--help"});
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out,
                ::testing::AnyOf(HasSubstr("Exit codes: 0 "), HasSubstr("Exit status:\n  0  ")));
    const Outcome wrong = RunProgram(program, {"--no-such-flag"});
    EXPECT_EQ(wrong.exit_code, 2);
    EXPECT_THAT(wrong.err, ::testing::Not(IsEmpty()));
    EXPECT_THAT(wrong.out, IsEmpty());
  }
}

// Threads that wait for stores are cheap; those that compute are not.
TEST(CommandLineTest, ARemoteWorkerHasMoreThreadsUnlessToldOtherwise) {
  struct {
    std::vector<std::string> arguments;
    const char* printed;
  } cases[] = {
      {{}, "\nthreads=8\n"},
      {{"--engine", "remote", "--stores", "127.0.0.1:1"}, "\nthreads=64\n"},
      {{"--engine", "remote", "--stores", "127.0.0.1:1", "--threads", "8"}, "\nthreads=8\n"},
      {{"--engine", "remote", "--stores", "127.0.0.1:1", "--threads", "0"}, "got 0"},
  };
  for (auto& c : cases) {
    SCOPED_TRACE(::testing::PrintToString(c.arguments));
    c.arguments.emplace_back("--check-config");
    const Outcome outcome = RunProgram(kWorkerProgram, c.arguments);
    EXPECT_THAT(outcome.out + outcome.err, HasSubstr(c.printed));
  }
}

TEST(CommandLineTest, AnAddressInUseIsNamed) {
  Daemon first(kStoreProgram, {"--host-bytes", "16MiB"});
  ASSERT_TRUE(first.serving());
  const Outcome second = RunProgram(kStoreProgram, {"--listen", first.address()});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.out + second.err, HasSubstr(first.address()));
}

// Whoever opens more makes itself wait, and nobody else.
TEST(MaxStreamsTest, BoundsTheCallsOfOneConnection) {
  const Rows rows(kShape, TestSeed());
  for (const int max : {1, 2}) {
    SCOPED_TRACE(max);
    Daemon worker(kWorkerProgram, {"--host-bytes", "16MiB", "--max-streams", std::to_string(max)});
    ASSERT_TRUE(worker.serving());
    Client crowded(worker.address());
    const v1::SequenceInfo sequence = crowded.Open(kShape);
    ASSERT_REPLY_OK(crowded.Append(sequence, rows, 0, 10));
    // Its stream stays open.
    ASSERT_REPLY_OK(crowded.Look(sequence, rows, 0, 9, Dense()).reply);
    const v1::AttendRequest request = crowded.StepRequest(sequence, rows, 0, 9, Dense());
    v1::AttendResponse response;
    const auto call = [&](Client& client) {
      return client.AttendOnce(request, &response, max > 1 ? kPatience : absl::Seconds(1)).code;
    };
    EXPECT_EQ(call(crowded), max > 1 ? absl::StatusCode::kOk : absl::StatusCode::kDeadlineExceeded);
    Client other(worker.address());
    EXPECT_EQ(call(other), absl::StatusCode::kOk);
    EXPECT_REPLY_OK(crowded.EndOfStream());
    EXPECT_EQ(call(crowded), absl::StatusCode::kOk);
  }
}

TEST(DeadStoreTest, IsNamedByEveryCallAndHeldAgainstNobody) {
  Cluster cluster;
  const Rows rows(kShape, TestSeed());
  Client client = cluster.NewClient();
  v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows, 0, 100));
  ASSERT_REPLY_OK(client.Flush(&sequence));
  const std::string before = client.Look(sequence, rows, 1, 99, Sparq(8, 20)).output();
  cluster.store().Kill();
  const std::string address = cluster.store().address();
  const auto expect_named = [&](const Reply& reply) {
    EXPECT_THAT(reply, Refused(absl::StatusCode::kUnavailable, Words{address}));
    EXPECT_EQ(reply.reason, "SHARD_UNAVAILABLE");
    EXPECT_TRUE(reply.retry_delay.has_value());
  };
  v1::SequenceInfo other;
  expect_named(client.Look(sequence, rows, 0, 50, Sparq(8, 20)).reply);
  expect_named(client.Get(sequence.handle(), &other));
  expect_named(client.Fork(sequence, 5, &other));
  expect_named(client.Truncate(sequence, 5));
  expect_named(client.Append(sequence, rows, 100, 101));
  expect_named(client.Close(sequence.handle()));
  const Outcome ctl = RunProgram(kCtlProgram, {"--endpoint", cluster.worker().address(), "tiers"});
  EXPECT_EQ(ctl.exit_code, 3);
  EXPECT_THAT(ctl.err, HasSubstr(address));
  // The stream that heard of it is still good.
  cluster.store().Restart();
  StepReply step;
  EXPECT_TRUE(Await([&] {
    step = client.Look(sequence, rows, 1, 99, Sparq(8, 20));
    return step.reply.code != absl::StatusCode::kUnavailable;
  }));
  ASSERT_REPLY_OK(step.reply);
  EXPECT_EQ(step.output(), before);
}

TEST(DeadStoreTest, AWorkerStartsBeforeItsStore) {
  Daemon store(kStoreProgram, {"--host-bytes", "16MiB"});
  ASSERT_TRUE(store.serving());
  store.Kill();
  Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", store.address()});
  ASSERT_TRUE(worker.serving());
  Client client(worker.address());
  v1::SequenceInfo info;
  v1::OpenSequenceRequest request;
  request.mutable_new_sequence()->set_model_fingerprint("m");
  v1::Geometry& geometry = *request.mutable_new_sequence()->mutable_geometry();
  geometry.set_layers(1);
  geometry.set_query_heads(1);
  geometry.set_kv_heads(1);
  geometry.set_head_dim(8);
  geometry.set_storage_dtype(v1::DTYPE_BFLOAT16);
  EXPECT_THAT(client.Open(request, &info),
              Refused(absl::StatusCode::kUnavailable, Words{store.address()}));
  store.Restart();
  Reply reply;
  EXPECT_TRUE(Await([&] {
    reply = client.Open(request, &info);
    return reply.code != absl::StatusCode::kUnavailable;
  }));
  EXPECT_REPLY_OK(reply);
}

TEST(FullDiskTest, RefusesWithARetryDelayServesWhatItHasAndGoesOnWhenThereIsRoom) {
  Cluster cluster({"--host-bytes", "8MiB", "--disk-bytes", "64MiB"});
  const Rows rows(kShape, TestSeed());
  Client client = cluster.NewClient();
  const v1::SequenceInfo other = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(other, rows, 0, 12'000));  // 24 MiB of rows.
  const v1::SequenceInfo sequence = client.Open(kShape);
  Reply full;
  uint64_t sent = 0;
  // More than twice what the disk takes.
  for (; full.ok() && sent < 64'000; sent += 1000) {
    full = client.Append(sequence, rows, sent, sent + 1000);
  }
  ASSERT_EQ(full.code, absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(full.reason, "NO_ROOM");
  EXPECT_TRUE(full.retry_delay.has_value());

  v1::SequenceInfo held;
  ASSERT_REPLY_OK(client.Get(sequence.handle(), &held));
  ASSERT_GT(held.length(), 5'000u);
  ASSERT_LT(held.length(), sent);
  Client store(cluster.store().address());
  for (uint32_t position = 0; position < held.length(); position += 997) {
    std::string row;
    ASSERT_REPLY_OK(store.ReadRows(sequence.handle(), 1, 1, {position}, &row));
    EXPECT_TRUE(row == rows.Row(1, 1, position)) << "position " << position;
  }
  EXPECT_TRUE(client.Look(sequence, rows, 0, held.length() - 1, Sparq(32, 64)).ok());
  const nlohmann::json disk = TierOf(cluster.store(), "TIER_DISK");
  EXPECT_LE(Number(disk["used_bytes"]), Number(disk["capacity_bytes"]));

  ASSERT_REPLY_OK(client.Close(other.handle()));
  const uint64_t more = held.length() + 3'000;
  Reply appended;
  // Room comes back once the deleted rows are compacted away.
  EXPECT_TRUE(Await([&] {
    v1::SequenceInfo now;
    if (!client.Get(sequence.handle(), &now).ok()) return true;
    appended = client.Append(sequence, rows, now.length(), more);
    return appended.code != absl::StatusCode::kResourceExhausted;
  }));
  EXPECT_REPLY_OK(appended);
  EXPECT_TRUE(client.Look(sequence, rows, 1, more - 1, Sparq(32, 64)).ok());
}

// What a stranger gets who sends `bytes`, until the server hangs up or is silent for a while.
void SendBytes(int port, const std::string& bytes) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t part = ::send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (part <= 0) break;  // It has hung up already.
    sent += static_cast<size_t>(part);
  }
  ::shutdown(fd, SHUT_WR);
  timeval patience = {.tv_sec = 5, .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  char buffer[4096];
  while (::recv(fd, buffer, sizeof(buffer), 0) > 0) {
  }
  ::close(fd);
}

TEST(GarbageTest, OnThePortHurtsNobody) {
  Cluster cluster;
  const Rows rows(kShape, TestSeed());
  Client client = cluster.NewClient();
  const v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows, 0, 70));
  const std::string before = client.Look(sequence, rows, 1, 69, Sparq(8, 20)).output();
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  const std::string noise = rows.K(0, 0, 64).data();
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(1000, '\0'), noise,
        preface + noise, preface + std::string("\xff\xff\xff\x01\x05\0\0\0\x01", 9) + noise,
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9)}) {
    for (const int port : {cluster.store().port(), cluster.worker().port()}) {
      SendBytes(port, bytes);
    }
  }
  EXPECT_TRUE(cluster.store().process().Running());
  EXPECT_TRUE(cluster.worker().process().Running());
  const StepReply step = client.Look(sequence, rows, 1, 69, Sparq(8, 20));
  ASSERT_REPLY_OK(step.reply);
  EXPECT_EQ(step.output(), before);
}

}  // namespace
}  // namespace terrace::testing
