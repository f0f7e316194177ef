// SIGTERM: streams hear of it, what was read is answered, the process ends with 0, and what was
// acknowledged as durable is there afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/cluster.h"
#include "tests/e2e/raw_call.h"
#include "tests/e2e/store_client.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

const Shape kShape = {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32};
constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kHealthWatch[] = "/grpc.health.v1.Health/Watch";

// A bulk append that goes on until it is told to stop or the stream breaks.
class LongAppend {
 public:
  LongAppend(const std::string& address, const v1::SequenceInfo& sequence, const Rows& rows)
      : thread_([this, address, sequence, rows] {
          Client client(address);
          reply_ = client.AppendStream(
              [&](v1::AppendKvRequest& request) { return Next(sequence, rows, request); },
              &response_);
        }) {}
  ~LongAppend() { Finish(); }

  uint64_t sent() const { return sent_; }
  // Ends the stream in order.
  const Reply& Finish() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return reply_;
  }
  // Waits until the other side has ended it. Its length is not bounded.
  const Reply& Broken() {
    if (thread_.joinable()) thread_.join();
    return reply_;
  }
  const v1::AppendKvResponse& response() const { return response_; }

 private:
  bool Next(const v1::SequenceInfo& sequence, const Rows& rows, v1::AppendKvRequest& request) {
    // Once the first tokens are there, one token now and then, repeated at the same position: the
    // stream stays open, the sequence small, and no backlog grows.
    constexpr uint64_t kFirst = 300;
    if (sent_ > kFirst) Await([this] { return stop_.load(); }, absl::Milliseconds(20));
    if (stop_) return false;
    const uint64_t position = std::min<uint64_t>(sent_, kFirst);
    request.set_handle(sequence.handle());
    request.set_writer_epoch(sequence.writer_epoch());
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      v1::LayerChunk& chunk = *request.add_chunks();
      chunk.set_layer(layer);
      chunk.set_position(position);
      *chunk.mutable_k() = rows.K(layer, position, 1);
      *chunk.mutable_v() = rows.V(layer, position, 1);
    }
    sent_ = position + 1;
    return true;
  }

  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> sent_ = 0;
  Reply reply_;
  v1::AppendKvResponse response_;
  std::thread thread_;
};

TEST(HealthTest, IsServedByNameAndTurnsNotServingFirst) {
  Cluster cluster;
  for (Daemon* daemon : {&cluster.store(), &cluster.worker()}) {
    for (const char* name : {"", "readiness", "liveness"}) {
      std::string answer;
      ASSERT_TRUE(RawCall(daemon->address(), kHealthCheck, HealthRequest(name)).Next(&answer));
      EXPECT_EQ(answer, kServing) << name;
    }
    std::string answer;
    EXPECT_FALSE(RawCall(daemon->address(), kHealthCheck, HealthRequest("nobody")).Next(&answer));
  }
  {
    RawCall watch(cluster.worker().address(), kHealthWatch, HealthRequest("readiness"));
    std::string answer;
    ASSERT_TRUE(watch.Next(&answer));
    EXPECT_EQ(answer, kServing);
    cluster.worker().process().Signal(SIGTERM);
    ASSERT_TRUE(watch.Next(&answer));
    EXPECT_EQ(answer, kNotServing);
  }
  EXPECT_EQ(cluster.worker().process().Wait(), 0);
}

TEST(ReflectionTest, ListsTheServices) {
  Cluster cluster;
  const std::string list_services = {0x3a, 0x01, '*'};
  const auto services_of = [&](const Daemon& daemon) {
    RawCall call(daemon.address(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                 list_services);
    std::string answer;
    EXPECT_TRUE(call.Next(&answer));
    return answer;
  };
  EXPECT_THAT(services_of(cluster.worker()), HasSubstr("terrace.v1.AttentionService"));
  EXPECT_THAT(services_of(cluster.worker()), HasSubstr("terrace.v1.AdminService"));
  EXPECT_THAT(services_of(cluster.store()), HasSubstr("terrace.v1.KvStoreService"));
  EXPECT_THAT(services_of(cluster.store()), HasSubstr("grpc.health.v1.Health"));
}

class DrainTest : public ::testing::Test {
 protected:
  // The stream says goodbye with request id 0, then ends; both say that the service drains.
  void ExpectGoodbye(Client& client) {
    v1::AttendResponse farewell;
    ASSERT_TRUE(client.ReadFarewell(&farewell));
    EXPECT_EQ(farewell.request_id(), 0u);
    const Reply goodbye = ReplyOf(farewell.status());
    EXPECT_THAT(goodbye, Refused(absl::StatusCode::kUnavailable, Words{"draining"}));
    EXPECT_EQ(goodbye.reason, "DRAINING");
    EXPECT_TRUE(goodbye.retry_delay.has_value());
    const Reply end = client.EndOfStream();
    EXPECT_THAT(end, Refused(absl::StatusCode::kUnavailable, Words{"draining"}));
    EXPECT_EQ(end.reason, "DRAINING");
  }

  // The service is amid the append: what the client has sent may still lie in buffers.
  static bool AwaitTokens(Client& client, const v1::SequenceInfo& sequence) {
    v1::SequenceInfo now;
    return Await([&] { return client.Get(sequence.handle(), &now).ok() && now.length() > 200; });
  }

  const Rows rows_{kShape, TestSeed()};
};

TEST_F(DrainTest, AWorkerSaysGoodbyeAndEndsABulkAppendBetweenMessages) {
  Cluster cluster;
  Client client = cluster.NewClient();
  const v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_TRUE(client.Step(sequence, rows_, 0, 0, Dense()).ok());
  const v1::SequenceInfo bulk = client.Open(kShape);
  LongAppend append(cluster.worker().address(), bulk, rows_);
  ASSERT_TRUE(AwaitTokens(client, bulk));
  cluster.worker().process().Signal(SIGTERM);
  ExpectGoodbye(client);
  const Reply& end = append.Broken();
  EXPECT_THAT(end, Refused(absl::StatusCode::kUnavailable, Words{"draining"}));
  EXPECT_EQ(end.reason, "DRAINING");
  EXPECT_TRUE(end.retry_delay.has_value());
  EXPECT_EQ(cluster.worker().process().Wait(), 0);
  cluster.worker().Restart();
  // What came before stands whole, and the length says where to go on.
  v1::SequenceInfo back;
  ASSERT_REPLY_OK(client.Get(bulk.handle(), &back));
  EXPECT_GT(back.length(), 200u);
  EXPECT_LE(back.length(), append.sent());
  EXPECT_REPLY_OK(client.Append(bulk, rows_, back.length(), back.length() + 10));
}

// Its client sends nothing more and ends nothing: without being told it would wait for the timeout.
TEST_F(DrainTest, ABulkAppendThatIsIdleIsToldToo) {
  Cluster cluster({}, {"--drain-timeout", "1h"});
  Client client = cluster.NewClient();
  const v1::SequenceInfo bulk = client.Open(kShape);
  std::atomic<bool> stop = false;
  Reply reply;
  std::thread append([&] {
    Client sender = cluster.NewClient();
    bool first = true;
    reply = sender.AppendStream([&](v1::AppendKvRequest& request) {
      if (!first) return Await([&] { return stop.load(); }) && false;
      first = false;
      request.set_handle(bulk.handle());
      request.set_writer_epoch(bulk.writer_epoch());
      for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
        v1::LayerChunk& chunk = *request.add_chunks();
        chunk.set_layer(layer);
        *chunk.mutable_k() = rows_.K(layer, 0, 250);
        *chunk.mutable_v() = rows_.V(layer, 0, 250);
      }
      return true;
    });
  });
  EXPECT_TRUE(AwaitTokens(client, bulk));
  cluster.worker().process().Signal(SIGTERM);
  EXPECT_EQ(cluster.worker().process().Wait(), 0);
  stop = true;
  append.join();
  EXPECT_THAT(reply, Refused(absl::StatusCode::kUnavailable, Words{"draining"}));
  EXPECT_EQ(reply.reason, "DRAINING");
}

TEST_F(DrainTest, AStoreKeepsWhatWasAcknowledgedAndTheWorkerSaysWhoIsGone) {
  Cluster cluster;
  Client client = cluster.NewClient();
  v1::SequenceInfo flushed = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(flushed, rows_, 0, 150));
  ASSERT_REPLY_OK(client.Flush(&flushed));
  const std::string before = client.Look(flushed, rows_, 1, 149, Sparq(8, 20)).output();
  const v1::SequenceInfo bulk = client.Open(kShape);
  LongAppend append(cluster.worker().address(), bulk, rows_);
  ASSERT_TRUE(AwaitTokens(client, bulk));

  cluster.store().process().Signal(SIGTERM);
  EXPECT_EQ(cluster.store().process().Wait(), 0);
  const Reply broken = append.Broken();
  EXPECT_THAT(broken, Refused(absl::StatusCode::kUnavailable, Words{}));
  EXPECT_THAT(broken.reason, ::testing::AnyOf("SHARD_UNAVAILABLE", "DRAINING"));
  EXPECT_THAT(client.Look(flushed, rows_, 1, 149, Sparq(8, 20)).reply,
              Refused(absl::StatusCode::kUnavailable, Words{cluster.store().address()}));

  cluster.store().Restart();
  StepReply step;
  EXPECT_TRUE(Await([&] {
    step = client.Look(flushed, rows_, 1, 149, Sparq(8, 20));
    return step.reply.code != absl::StatusCode::kUnavailable;
  }));
  ASSERT_REPLY_OK(step.reply);
  EXPECT_EQ(step.output(), before);
  v1::SequenceInfo back;
  ASSERT_REPLY_OK(client.Get(flushed.handle(), &back));
  EXPECT_EQ(back.length(), 150u);
  ASSERT_REPLY_OK(client.Get(bulk.handle(), &back));
  EXPECT_LE(back.length(), append.sent());
  EXPECT_EQ(back.length(), back.durable_length());
}

// Nobody else than the signal would end this start: it waits for a file that nobody writes.
TEST_F(DrainTest, ASignalDuringTheStartEndsItAtOnceAndLosesNothing) {
  const Folder folder;
  const std::vector<std::string> flags = {"--disk-path", folder.File("disk"), "--disk-bytes",
                                          "64MiB"};
  Daemon store(kStoreProgram, flags);
  v1::SequenceInfo sequence;
  v1::AppendKvResponse appended;
  {
    StoreClient client(store.address());
    ASSERT_REPLY_OK(client.Create(kShape, &sequence));
    ASSERT_REPLY_OK(client.Append(
        sequence, [&](uint64_t) { return rows_; }, 0, 150, &appended));
    ASSERT_REPLY_OK(client.Flush(&sequence));
  }
  store.Kill();
  const std::filesystem::path current = folder.File("disk/CURRENT");
  const std::filesystem::path aside = folder.File("current");
  std::vector<std::string> arguments = flags;
  arguments.insert(arguments.end(), {"--listen", store.address()});
  for (const int signal : {SIGTERM, SIGINT}) {
    std::filesystem::rename(current, aside);
    ASSERT_EQ(::mkfifo(current.c_str(), 0600), 0);
    Process starting(kStoreProgram, arguments);
    StoreClient client(store.address());
    v1::SequenceInfo unknown = sequence;
    EXPECT_TRUE(Await([&] { return client.Get(&unknown).reason == "RECOVERING"; }));
    starting.Signal(signal);
    EXPECT_EQ(starting.Wait(), 0);
    EXPECT_THAT(starting.Out(), HasSubstr("while=starting"));
    EXPECT_THAT(starting.Out(), ::testing::Not(HasSubstr("event=serving")));
    std::filesystem::rename(aside, current);
  }
  store.Restart();
  StoreClient client(store.address());
  ASSERT_REPLY_OK(client.Get(&sequence));
  EXPECT_EQ(sequence.length(), 150u);
  EXPECT_EQ(sequence.durable_length(), 150u);
}

// An orderly end is no crash: every token that was acknowledged is there afterwards.
TEST_F(DrainTest, AnOrderlyEndLosesNoToken) {
  const Folder folder;
  for (const std::string program : {kStoreProgram, kWorkerProgram}) {
    SCOPED_TRACE(program);
    Daemon store(kStoreProgram, {"--disk-path", folder.File("store"), "--disk-bytes", "64MiB"});
    Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", store.address()});
    Daemon embedded(kWorkerProgram,
                    {"--disk-path", folder.File("worker"), "--disk-bytes", "64MiB"});
    Daemon& holder = program == kStoreProgram ? store : embedded;
    const std::string address = (program == kStoreProgram ? worker : embedded).address();
    // An idle gRPC client answers to the end of its connection seconds later: this one leaves.
    auto client = std::make_unique<Client>(address);
    const v1::SequenceInfo sequence = client->Open(kShape);
    ASSERT_REPLY_OK(client->Append(sequence, rows_, 0, 150));
    client.reset();
    holder.process().Signal(SIGTERM);
    EXPECT_EQ(holder.process().Wait(), 0);
    EXPECT_THAT(holder.process().Out(), HasSubstr("event=flushed sequences=1"));
    holder.Restart();
    client = std::make_unique<Client>(address);
    v1::SequenceInfo back;
    Reply reply;
    EXPECT_TRUE(Await([&] {
      reply = client->Get(sequence.handle(), &back);
      return reply.code != absl::StatusCode::kUnavailable;
    }));
    ASSERT_REPLY_OK(reply);
    EXPECT_EQ(back.length(), 150u);
  }
}

}  // namespace
}  // namespace terrace::testing
