// PutBlocks, GetBlocks, LookupBlocks and DeleteBlocks as a client with plain protobuf sees them.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
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
  // Sends blocks in one call, each in messages of `portion` bytes.
  class Put {
   public:
    explicit Put(BlockServiceTest& test) : writer_(test.stub_->PutBlocks(&context_, &response_)) {}

    Put& Send(const v1::PutBlocksRequest& request) {
      writer_->Write(request);
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
    // One code for each block.
    std::vector<absl::StatusCode> Codes() {
      writer_->WritesDone();
      EXPECT_OK(runtime::FromGrpcStatus(writer_->Finish()));
      std::vector<absl::StatusCode> codes;
      for (const auto& result : response_.results()) {
        codes.push_back(runtime::FromRpcStatus(result).code());
      }
      return codes;
    }
    // Why the call failed, before its end.
    absl::Status Failure() { return runtime::FromGrpcStatus(writer_->Finish()); }
    void Cancel() { context_.TryCancel(); }
    const v1::PutBlocksResponse& response() const { return response_; }

   private:
    grpc::ClientContext context_;
    v1::PutBlocksResponse response_;
    std::unique_ptr<grpc::ClientWriter<v1::PutBlocksRequest>> writer_;
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
    const auto reader = stub_->GetBlocks(&context, request);
    std::vector<Got> blocks(keys.size());
    v1::GetBlocksResponse message;
    while (reader->Read(&message)) {
      Got& block = blocks.at(message.index());
      EXPECT_FALSE(block.ended);
      EXPECT_LE(message.data().size(), kMiB);
      if (message.size_bytes() != 0) block.size = message.size_bytes();
      block.bytes += message.data();
      block.ended = message.end();
      block.status = runtime::FromRpcStatus(message.status());
    }
    EXPECT_OK(runtime::FromGrpcStatus(reader->Finish()));
    for (const Got& block : blocks) EXPECT_TRUE(block.ended);
    return blocks;
  }
  uint64_t ResidentBlocks() { return (*engine_->ListTiers())[0].stats.resident_blocks; }

  static engine::EmbeddedOptions Options() {
    engine::EmbeddedOptions options = MemoryOptions();
    options.store.host_bytes = 64 * kMiB;
    return options;
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(Options());
  RpcServer server_{[this](runtime::Executor& executor, runtime::Drain& drain) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(
        kv_store::MakeKvStoreService(*engine_, executor, drain, RpcServer::kMessageBytesMax));
    return services;
  }};
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
  EXPECT_THAT(put.response().results(3).message(), HasSubstr("300000"));
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

TEST_F(BlockServiceTest, AClientThatDiesMidPutLeavesNothing) {
  const std::string bytes = ValueBytes(1, 3 * kMiB);
  v1::PutBlocksRequest request;
  request.set_key("k");
  request.set_size_bytes(2 * bytes.size());
  request.set_data(bytes);
  // By its own hand, and with its connection.
  for (const bool cancels : {true, false}) {
    auto channel = server_.Channel();
    auto stub = v1::KvStoreService::NewStub(channel);
    grpc::ClientContext context;
    v1::PutBlocksResponse response;
    auto writer = stub->PutBlocks(&context, &response);
    ASSERT_TRUE(writer->Write(request));
    ASSERT_TRUE(Await([&] { return ResidentBlocks() == 12; }));
    if (cancels) {
      context.TryCancel();
      EXPECT_FALSE(writer->Finish().ok());
    } else {
      writer->WritesDone();
      EXPECT_TRUE(writer->Finish().ok());
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
    EXPECT_EQ(deleted.results_size(), good ? static_cast<int>(keys) : 0);
    const auto reader = stub_->GetBlocks(&contexts[2], get);
    v1::GetBlocksResponse message;
    uint32_t messages = 0;
    while (reader->Read(&message)) ++messages;
    EXPECT_EQ(messages, good ? keys : 0u);
    EXPECT_EQ(reader->Finish().ok(), good);
  }
  Put put(*this);
  for (uint32_t i = 0; i <= limits.max_keys(); ++i) put.Block(std::to_string(i), "1");
  EXPECT_THAT(put.Failure(), StatusIs(kInvalid));
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
    ASSERT_EQ(deleted.results_size(), 2);
    EXPECT_EQ(deleted.results(0).code(), 0);
    EXPECT_EQ(deleted.results(1).code(), 0);
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
    auto channel = server_.Channel();
    auto stub = v1::KvStoreService::NewStub(channel);
    grpc::ClientContext context;
    v1::GetBlocksRequest request;
    for (int i = 0; i < 10; ++i) request.add_keys("k");
    const auto reader = stub->GetBlocks(&context, request);
    v1::GetBlocksResponse message;
    ASSERT_TRUE(reader->Read(&message));
    context.TryCancel();
    EXPECT_FALSE(reader->Finish().ok());
  }
  ASSERT_OK(engine_->values().Delete({}, "k"));
  EXPECT_TRUE(Await([&] { return ResidentBlocks() == 0; }));
}

}  // namespace
}  // namespace terrace::testing
