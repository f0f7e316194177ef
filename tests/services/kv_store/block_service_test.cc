// PutBlocks, GetBlocks, LookupBlocks and DeleteBlocks as a client with plain protobuf sees them.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/engine/error.h"
#include "services/kv_store/kv_store_service.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/e2e/await.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class BlockServiceTest : public ::testing::Test {
 protected:
  // Sends blocks over one stream, each in messages of `portion` bytes.
  class Put {
   public:
    explicit Put(BlockServiceTest& test) : stream_(test.stub_->PutBlocks(&context_)) {}

    Put& Send(const v1::PutBlocksRequest& request) {
      stream_->Write(request);
      return *this;
    }
    Put& Block(const std::string& key, const std::string& bytes, size_t portion = kMiB,
               int64_t excess = 0) {
      v1::PutBlocksRequest request;
      request.set_key(key);
      request.set_size_bytes(bytes.size() - static_cast<uint64_t>(excess));
      for (size_t at = 0; at == 0 || at < bytes.size(); at += portion) {
        request.set_data(bytes.substr(at, portion));
        request.set_end(at + portion >= bytes.size());
        Send(request);
        request.Clear();
      }
      return *this;
    }
    // The next block's.
    absl::Status Answer() {
      v1::PutBlocksResponse response;
      EXPECT_TRUE(stream_->Read(&response));
      return runtime::FromRpcStatus(response.status());
    }
    // One code for each block.
    std::vector<absl::StatusCode> Codes() {
      stream_->WritesDone();
      std::vector<absl::StatusCode> codes;
      v1::PutBlocksResponse response;
      while (stream_->Read(&response)) {
        codes.push_back(runtime::FromRpcStatus(response.status()).code());
      }
      EXPECT_OK(runtime::FromGrpcStatus(stream_->Finish()));
      return codes;
    }
    // Why the stream failed, before its end.
    absl::Status Failure() {
      v1::PutBlocksResponse response;
      while (stream_->Read(&response)) continue;
      return runtime::FromGrpcStatus(stream_->Finish());
    }
    void Cancel() { context_.TryCancel(); }

   private:
    grpc::ClientContext context_;
    std::unique_ptr<grpc::ClientReaderWriter<v1::PutBlocksRequest, v1::PutBlocksResponse>> stream_;
  };

  struct Got {
    absl::Status status;
    std::string bytes;
    uint64_t size = 0;
    bool ended = false;
  };
  std::vector<Got> Get(const std::vector<std::string>& keys, const std::string& tenant = "") {
    grpc::ClientContext context;
    if (!tenant.empty()) context.AddMetadata("terrace-tenant", tenant);
    v1::GetBlocksRequest request;
    for (const std::string& key : keys) request.add_keys(key);
    const auto stream = stub_->GetBlocks(&context);
    stream->Write(request);
    stream->WritesDone();
    std::vector<Got> blocks(keys.size());
    v1::GetBlocksResponse message;
    while (stream->Read(&message)) {
      Got& block = blocks.at(message.index());
      EXPECT_FALSE(block.ended);
      EXPECT_LE(message.data().size(), kMiB);
      if (message.size_bytes() != 0) block.size = message.size_bytes();
      block.bytes += message.data();
      block.ended = message.end();
      block.status = runtime::FromRpcStatus(message.status());
    }
    EXPECT_OK(runtime::FromGrpcStatus(stream->Finish()));
    for (const Got& block : blocks) EXPECT_TRUE(block.ended);
    return blocks;
  }
  // Another server over the same engine, which is used from now on.
  void Serve(const RpcServer::Room& room) {
    small_ = std::make_unique<RpcServer>(make_, 0, room);
    stub_ = v1::KvStoreService::NewStub(small_->Channel());
  }
  // Keeps a thread of that server, and lets it go at its end.
  class Hold {
   public:
    explicit Hold(runtime::Executor& executor) {
      EXPECT_TRUE(executor.Submit([this] {
        running_.Notify();
        release_.WaitForNotification();
        done_.Notify();
      }));
      running_.WaitForNotification();
    }
    ~Hold() {
      release_.Notify();
      done_.WaitForNotification();
    }

   private:
    absl::Notification running_;
    absl::Notification release_;
    absl::Notification done_;
  };
  // Of that server: whether nothing is charged to the bytes in flight.
  bool AwaitNothingInFlight() {
    runtime::ByteBudget& bytes = small_->executor().bytes();
    constexpr uint64_t kMoreThanFits = uint64_t{1} << 40;
    const bool empty = Await([&] { return bytes.TryTake(kMoreThanFits); });
    if (empty) bytes.Give(kMoreThanFits);
    return empty;
  }
  uint64_t ResidentBlocks() { return (*engine_->ListTiers())[0].stats.resident_blocks; }

  static engine::EmbeddedOptions Options() {
    engine::EmbeddedOptions options = MemoryOptions();
    options.store.host_bytes = 64 * kMiB;
    return options;
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(Options());
  const RpcServer::MakeServices make_ = [this](runtime::Executor& executor, runtime::Drain& drain) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(
        kv_store::MakeKvStoreService(*engine_, executor, drain, RpcServer::kMessageBytesMax));
    return services;
  };
  RpcServer server_{make_};
  std::unique_ptr<RpcServer> small_;
  std::unique_ptr<v1::KvStoreService::Stub> stub_ = v1::KvStoreService::NewStub(server_.Channel());
};

constexpr absl::StatusCode kOk = absl::StatusCode::kOk;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kExists = absl::StatusCode::kAlreadyExists;

TEST_F(BlockServiceTest, WhatIsPutComesBackInTheOrderAskedFor) {
  const std::vector<uint64_t> sizes = {1, 4095, 262'144, kMiB - 1, kMiB, kMiB + 1, 10 * kMiB};
  Put put(*this);
  std::vector<std::string> keys;
  for (const uint64_t size : sizes) {
    keys.insert(keys.begin(), "key" + std::to_string(size));
    put.Block(keys.front(), ValueBytes(1, size), 700'000);
  }
  EXPECT_EQ(put.Codes(), std::vector<absl::StatusCode>(sizes.size(), kOk));
  const std::vector<Got> blocks = Get(keys);
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Got& block = blocks[sizes.size() - 1 - i];
    EXPECT_OK(block.status);
    EXPECT_EQ(block.size, sizes[i]);
    EXPECT_TRUE(block.bytes == ValueBytes(1, sizes[i])) << sizes[i];
  }
}

TEST_F(BlockServiceTest, BlocksOfOneCallFailAlone) {
  const std::string bytes = ValueBytes(1, 300'000);
  ASSERT_EQ(Put(*this).Block("a", bytes).Codes(), std::vector{kOk});
  Put put(*this);
  put.Block("a", bytes)
      .Block("a", ValueBytes(2, 300'000), 100'000)
      .Block("a", ValueBytes(2, 300'001), 100'000)
      .Block("short", bytes, 100'000, -1)
      .Block("long", bytes, 100'000, 1)
      .Block("empty", "")
      .Block(std::string(129, 'k'), bytes, 100'000)
      .Block("large", std::string(64 * kMiB, 'x'))
      .Block("b", bytes, 100'000);
  EXPECT_EQ(put.Codes(), (std::vector{kOk, kExists, kExists, kInvalid, kInvalid, kInvalid, kInvalid,
                                      kInvalid, kOk}));
  EXPECT_EQ(engine_->values().size(), 2u);
  EXPECT_EQ(ResidentBlocks(), 4u);
  EXPECT_TRUE(Get({"b"})[0].bytes == bytes);
}

TEST_F(BlockServiceTest, UnknownKeysOfABatchAreToldFromTheOthers) {
  ASSERT_EQ(Put(*this).Block("a", "1").Block("b", "22").Codes(), (std::vector{kOk, kOk}));
  const std::vector<Got> blocks = Get({"x", "a", "", "b", "a"});
  const std::vector<absl::StatusCode> expected = {absl::StatusCode::kNotFound, kOk,
                                                  absl::StatusCode::kNotFound, kOk, kOk};
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(blocks[i].status.code(), expected[i]) << i;
  EXPECT_EQ(blocks[3].bytes, "22");
  EXPECT_EQ(blocks[4].bytes, "1");
  EXPECT_TRUE(Get({}).empty());
}

// What a connector does: one stream for long, an answer before the next block.
TEST_F(BlockServiceTest, AStreamGoesOnAsLongAsItsClientLikes) {
  Put put(*this);
  grpc::ClientContext context;
  const auto gets = stub_->GetBlocks(&context);
  for (uint64_t i = 0; i < 20; ++i) {
    const std::string key = "key" + std::to_string(i);
    const std::string bytes = ValueBytes(i, 1 + i * 70'000);
    put.Block(key, bytes);
    ASSERT_OK(put.Answer());
    v1::GetBlocksRequest request;
    request.add_keys(key);
    ASSERT_TRUE(gets->Write(request));
    std::string got;
    v1::GetBlocksResponse message;
    while (!message.end()) {
      ASSERT_TRUE(gets->Read(&message));
      ASSERT_EQ(message.index(), i);
      got += message.data();
    }
    EXPECT_TRUE(got == bytes) << i;
  }
  EXPECT_TRUE(put.Codes().empty());
  gets->WritesDone();
  EXPECT_TRUE(gets->Finish().ok());
}

TEST_F(BlockServiceTest, BeforeTheProcessStopsStreamsEnd) {
  Put put(*this);
  put.Block("k", "bytes");
  ASSERT_OK(put.Answer());
  grpc::ClientContext context;
  const auto gets = stub_->GetBlocks(&context);
  v1::GetBlocksRequest request;
  request.add_keys("k");
  gets->Write(request);
  v1::GetBlocksResponse message;
  ASSERT_TRUE(gets->Read(&message));
  server_.StartDrain();
  EXPECT_THAT(put.Failure(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(gets->Read(&message));
  EXPECT_THAT(runtime::FromGrpcStatus(gets->Finish()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(BlockServiceTest, AFullQueueRefusesAStreamAtFirstAndNeverAfterwards) {
  Serve({.threads = 1, .queue_max = 1, .bytes_max = 1});
  Put put(*this);
  put.Block("a", "1");
  ASSERT_OK(put.Answer());
  grpc::ClientContext context;
  const auto gets = stub_->GetBlocks(&context);
  v1::GetBlocksRequest request;
  request.add_keys("a");
  ASSERT_TRUE(gets->Write(request));
  v1::GetBlocksResponse message;
  ASSERT_TRUE(gets->Read(&message));
  {
    const Hold hold(small_->executor());
    ASSERT_TRUE(small_->executor().Submit([] {}));
    EXPECT_THAT(Put(*this).Block("b", "2").Failure(),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue")));
    ASSERT_TRUE(AwaitNothingInFlight());
    put.Block("c", "3");
    ASSERT_TRUE(gets->Write(request));
    // At least one of them has been read.
    EXPECT_TRUE(Await([&] { return !small_->executor().bytes().HasRoom(); }));
  }
  EXPECT_EQ(put.Codes(), std::vector{kOk});
  gets->WritesDone();
  ASSERT_TRUE(gets->Read(&message));
  EXPECT_EQ(message.data(), "1");
  EXPECT_TRUE(gets->Finish().ok());
  EXPECT_TRUE(AwaitNothingInFlight());
}

TEST_F(BlockServiceTest, StreamsAreRefusedWhileTooManyBytesAreInFlight) {
  Serve({.bytes_max = 1000});
  runtime::ByteBudget& bytes = small_->executor().bytes();
  // What a first message has does not fit, be it that nothing does or not so much.
  for (const uint64_t taken : {1000, 900}) {
    bytes.Take(taken);
    const absl::Status refused = Put(*this).Block("k", std::string(101, 'x')).Failure();
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
    EXPECT_EQ(engine::DetailOf(refused).value_or(engine::ErrorDetail()).reason, "LIMIT_EXCEEDED");
    grpc::ClientContext context;
    v1::GetBlocksRequest request;
    request.add_keys(std::string(101, 'k'));
    const auto gets = stub_->GetBlocks(&context);
    gets->Write(request);
    v1::GetBlocksResponse message;
    EXPECT_FALSE(gets->Read(&message));
    EXPECT_THAT(runtime::FromGrpcStatus(gets->Finish()),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
    bytes.Give(taken);
    EXPECT_TRUE(AwaitNothingInFlight());
  }
  EXPECT_EQ(Put(*this).Block("k", ValueBytes(1, 5000), 700).Codes(), std::vector{kOk});
  EXPECT_TRUE(AwaitNothingInFlight());
}

TEST_F(BlockServiceTest, AStreamThatFailsGivesBackWhatItHasRead) {
  Serve({.threads = 1, .bytes_max = 150});
  v1::PutBlocksRequest senseless;
  senseless.set_data(std::string(100, 'x'));
  Put put(*this);
  {
    const Hold hold(small_->executor());
    put.Send(senseless).Send(senseless).Send(senseless);
    // Two are read.
    EXPECT_TRUE(Await([&] { return !small_->executor().bytes().HasRoom(); }));
  }
  EXPECT_THAT(put.Failure(), StatusIs(kInvalid, HasSubstr("key")));
  EXPECT_TRUE(AwaitNothingInFlight());
}

TEST_F(BlockServiceTest, AClientThatDiesMidPutLeavesNothing) {
  const std::string bytes = ValueBytes(1, 3 * kMiB);
  v1::PutBlocksRequest request;
  request.set_key("k");
  request.set_size_bytes(2 * bytes.size());
  request.set_data(bytes);
  // Some give up, others end too early.
  for (const bool cancels : {true, false}) {
    Put put(*this);
    put.Send(request);
    ASSERT_TRUE(Await([&] { return ResidentBlocks() == 12; }));
    if (cancels) {
      put.Cancel();
      EXPECT_THAT(put.Failure(), StatusIs(absl::StatusCode::kCancelled));
    } else {
      EXPECT_TRUE(put.Codes().empty());
    }
    EXPECT_TRUE(Await([&] { return ResidentBlocks() == 0; }));
  }
  EXPECT_THAT(Get({"k"})[0].status, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Put(*this).Block("k", "other").Codes(), std::vector{kOk});
}

TEST_F(BlockServiceTest, MessagesThatMakeNoSenseEndTheCall) {
  v1::PutBlocksRequest begin;
  begin.set_key("k");
  begin.set_size_bytes(10);
  begin.set_data("12345");
  v1::PutBlocksRequest data;
  data.set_data("12345");
  EXPECT_THAT(Put(*this).Send(data).Failure(), StatusIs(kInvalid, HasSubstr("key")));
  EXPECT_THAT(Put(*this).Send(begin).Send(begin).Failure(), StatusIs(kInvalid, HasSubstr("key")));
  EXPECT_TRUE(Await([&] { return ResidentBlocks() == 0; }));
  // Blocks that had ended stand.
  EXPECT_THAT(Put(*this).Block("whole", "bytes").Send(data).Failure(), StatusIs(kInvalid));
  EXPECT_EQ(Get({"whole"})[0].bytes, "bytes");
}

TEST_F(BlockServiceTest, CallsHaveAsManyKeysAsTheLimitsSay) {
  grpc::ClientContext limits_context;
  v1::GetLimitsResponse limits;
  ASSERT_TRUE(stub_->GetLimits(&limits_context, {}, &limits).ok());
  EXPECT_EQ(limits.max_block_bytes(), 16 * kMiB);
  ASSERT_GT(limits.max_keys(), 0u);
  for (const uint32_t keys : {limits.max_keys(), limits.max_keys() + 1}) {
    const bool good = keys == limits.max_keys();
    v1::LookupBlocksRequest lookup;
    v1::DeleteBlocksRequest deletion;
    v1::GetBlocksRequest get;
    for (uint32_t i = 0; i < keys; ++i) {
      for (std::string* key : {lookup.add_keys(), deletion.add_keys(), get.add_keys()}) *key = "k";
    }
    grpc::ClientContext contexts[3];
    v1::LookupBlocksResponse looked_up;
    v1::DeleteBlocksResponse deleted;
    EXPECT_EQ(stub_->LookupBlocks(&contexts[0], lookup, &looked_up).ok(), good);
    EXPECT_EQ(stub_->DeleteBlocks(&contexts[1], deletion, &deleted).ok(), good);
    const auto stream = stub_->GetBlocks(&contexts[2]);
    stream->Write(get);
    stream->WritesDone();
    v1::GetBlocksResponse message;
    uint32_t messages = 0;
    while (stream->Read(&message)) ++messages;
    EXPECT_EQ(messages, good ? keys : 0u);
    EXPECT_EQ(stream->Finish().ok(), good);
  }
}

TEST_F(BlockServiceTest, LookupLeasesAndDeleteForgets) {
  ASSERT_EQ(Put(*this).Block("a", "1").Block("b", "22").Codes(), (std::vector{kOk, kOk}));
  v1::LookupBlocksRequest request;
  for (const char* key : {"a", "b", "c"}) request.add_keys(key);
  request.mutable_lease()->set_seconds(60);
  v1::LookupBlocksResponse found;
  grpc::ClientContext context;
  const absl::Time before = absl::Now();
  ASSERT_TRUE(stub_->LookupBlocks(&context, request, &found).ok());
  EXPECT_THAT(found.size_bytes(), ::testing::ElementsAre(1, 2, 0));
  EXPECT_EQ(found.leading_count(), 2u);
  EXPECT_GE(absl::FromUnixSeconds(found.lease_expires().seconds()) + absl::Seconds(1),
            before + absl::Minutes(1));
  v1::DeleteBlocksRequest deletion;
  for (const char* key : {"a", "c"}) deletion.add_keys(key);
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext delete_context;
    v1::DeleteBlocksResponse deleted;
    ASSERT_TRUE(stub_->DeleteBlocks(&delete_context, deletion, &deleted).ok());
  }
  EXPECT_THAT(Get({"a"})[0].status, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Get({"b"})[0].bytes, "22");
  // I11.
  EXPECT_THAT(Get({"b"}, "other")[0].status, StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(BlockServiceTest, BlocksOfATimeGoWithIt) {
  v1::PutBlocksRequest request;
  request.set_key("k");
  request.set_size_bytes(1);
  request.set_data("1");
  request.set_end(true);
  request.mutable_ttl()->set_nanos(1000);
  EXPECT_EQ(Put(*this).Send(request).Codes(), std::vector{kOk});
  EXPECT_TRUE(Await([&] { return !Get({"k"})[0].status.ok(); }));
}

// A client that does not read holds only what is on its way to it.
TEST_F(BlockServiceTest, AClientThatGoesAwayMidGetLetsGoOfTheBlock) {
  ASSERT_EQ(Put(*this).Block("k", ValueBytes(1, 16 * kMiB)).Codes(), std::vector{kOk});
  {
    const auto stub = v1::KvStoreService::NewStub(server_.Channel());
    grpc::ClientContext context;
    v1::GetBlocksRequest request;
    for (int i = 0; i < 10; ++i) request.add_keys("k");
    const auto stream = stub->GetBlocks(&context);
    stream->Write(request);
    v1::GetBlocksResponse message;
    ASSERT_TRUE(stream->Read(&message));
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }
  ASSERT_OK(engine_->values().Delete({}, {"k"}));
  EXPECT_TRUE(Await([&] { return ResidentBlocks() == 0; }));
}

}  // namespace
}  // namespace terrace::testing
