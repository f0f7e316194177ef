// AppendKv: chunks one after another, until the first that fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "services/attention_worker/attention_service.h"
#include "services/engine/error.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/attention.grpc.pb.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;

class BulkAppendTest : public ::testing::Test {
 protected:
  static engine::EmbeddedOptions Roomy() {
    engine::EmbeddedOptions options = MemoryOptions();
    options.store.host_bytes = uint64_t{64} << 20;
    return options;
  }

  void AddChunk(const engine::Geometry& geometry, int layer, int64_t position, int64_t n,
                v1::AppendKvRequest* request, uint64_t seed = kSeed) {
    const KvRows rows = MakeRows(geometry, seed, layer, position, n);
    v1::LayerChunk* chunk = request->add_chunks();
    chunk->set_layer(static_cast<uint32_t>(layer));
    chunk->set_position(static_cast<uint64_t>(position));
    const HostTensor k = MakeTensor(rows.k, n, geometry.kv_heads, geometry.head_dim);
    const HostTensor v = MakeTensor(rows.v, n, geometry.kv_heads, geometry.head_dim);
    runtime::ToProto(k.view(), chunk->mutable_k());
    runtime::ToProto(v.view(), chunk->mutable_v());
  }

  // Sends what can be sent; the status that the call ends with.
  absl::Status Send(const std::vector<v1::AppendKvRequest>& requests,
                    v1::AppendKvResponse* response) {
    grpc::ClientContext context;
    const auto writer = stub_->AppendKv(&context, response);
    for (const v1::AppendKvRequest& request : requests) {
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    return runtime::FromGrpcStatus(writer->Finish());
  }

  // [position, position + n) of both layers.
  v1::AppendKvRequest Tokens(const SequenceInfo& info, int64_t position, int64_t n) {
    v1::AppendKvRequest request;
    request.set_handle(info.handle);
    request.set_writer_epoch(info.writer_epoch);
    for (int layer = 0; layer < 2; ++layer) {
      AddChunk(SmallGeometry(), layer, position, n, &request);
    }
    return request;
  }
  void AwaitLength(const SequenceInfo& info, int64_t length) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (engine_->Get({}, info.handle)->length < length && absl::Now() < end) {
      std::this_thread::yield();
    }
    ASSERT_EQ(engine_->Get({}, info.handle)->length, length);
  }

  void SetUp() override { Serve({}); }
  void Serve(const RpcServer::Room& room) {
    server_ = std::make_unique<RpcServer>(
        [this](runtime::Executor& executor, runtime::Drain& drain) {
          std::vector<std::unique_ptr<grpc::Service>> services;
          services.push_back(attention_worker::MakeAttentionService(
              *engine_, executor, drain, {.max_message_bytes = RpcServer::kMessageBytesMax}));
          return services;
        },
        0, room);
    stub_ = v1::AttentionService::NewStub(server_->Channel());
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(Roomy());
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(BulkAppendTest, TenMegabytesInChunksArriveWhole) {
  engine::Geometry geometry = SmallGeometry();
  geometry.head_dim = 64;
  const SequenceInfo info = *engine_->Create({}, Spec(geometry));
  // 5,000 tokens, two layers, two heads, 512 bytes a row.
  std::vector<v1::AppendKvRequest> requests;
  for (int64_t position = 0; position < 5000; position += 250) {
    v1::AppendKvRequest& request = requests.emplace_back();
    if (position == 0) {
      request.set_handle(info.handle);
      request.set_writer_epoch(info.writer_epoch);
    }
    for (int layer = 0; layer < 2; ++layer) AddChunk(geometry, layer, position, 250, &request);
  }
  v1::AppendKvResponse response;
  ASSERT_OK(Send(requests, &response));
  EXPECT_EQ(response.length(), 5000u);
  EXPECT_EQ(response.durable_length(), 0u);
  const auto other = OpenEngine(Roomy());
  const SequenceInfo same = *other->Create({}, Spec(geometry));
  ASSERT_OK(AppendSeed(*other, same, kSeed, 0, 5000));
  ExpectSameBits(*other, same, *engine_, info);
  // All of it again is all there already.
  ASSERT_OK(Send(requests, &response));
  EXPECT_EQ(response.length(), 5000u);
}

TEST_F(BulkAppendTest, AGapSaysWhereToGoOnAndWhatCameBeforeStands) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  std::vector<v1::AppendKvRequest> requests(3);
  requests[0].set_handle(info.handle);
  requests[0].set_writer_epoch(info.writer_epoch);
  for (int layer = 0; layer < 2; ++layer) {
    AddChunk(SmallGeometry(), layer, 0, 100, &requests[0]);
    AddChunk(SmallGeometry(), layer, 150, 10, &requests[1]);
    AddChunk(SmallGeometry(), layer, 100, 10, &requests[2]);
  }
  v1::AppendKvResponse response;
  const absl::Status status = Send(requests, &response);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_TRUE(engine::DetailOf(status).has_value());
  EXPECT_EQ(engine::DetailOf(status)->reason, "POSITION_GAP");
  EXPECT_EQ(engine::DetailOf(status)->metadata.at("expected_position"), "100");
  EXPECT_EQ(engine_->Get({}, info.handle)->length, 100);
}

TEST_F(BulkAppendTest, WhatIsWrongIsSaid) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  v1::AppendKvRequest good;
  good.set_handle(info.handle);
  good.set_writer_epoch(info.writer_epoch);
  AddChunk(SmallGeometry(), 0, 0, 10, &good);
  v1::AppendKvResponse response;
  EXPECT_THAT(Send({}, &response), StatusIs(absl::StatusCode::kInvalidArgument));
  v1::AppendKvRequest nameless = good;
  nameless.clear_handle();
  EXPECT_THAT(Send({nameless}, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("handle")));
  v1::AppendKvRequest other = good;
  other.set_handle("another");
  EXPECT_THAT(Send({other}, &response), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Send({good, other}, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("handle")));
  v1::AppendKvRequest epoch = good;
  epoch.set_writer_epoch(99);
  EXPECT_THAT(Send({epoch}, &response), StatusIs(absl::StatusCode::kFailedPrecondition));
  v1::AppendKvRequest far = good;
  far.mutable_chunks(0)->set_position(UINT64_MAX);
  const absl::Status gap = Send({far}, &response);
  EXPECT_THAT(gap, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gap")));
  EXPECT_EQ(engine::DetailOf(gap)->metadata.at("expected_position"), "10");
  v1::AppendKvRequest layer = good;
  layer.mutable_chunks(0)->set_layer(UINT32_MAX);
  EXPECT_THAT(Send({layer}, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
  v1::AppendKvRequest dtype = good;
  dtype.mutable_chunks(0)->mutable_v()->clear_dtype();
  EXPECT_THAT(Send({dtype}, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("v.dtype")));
  v1::AppendKvRequest conflict;
  conflict.set_handle(info.handle);
  conflict.set_writer_epoch(info.writer_epoch);
  AddChunk(SmallGeometry(), 0, 0, 10, &conflict, kSeed + 1);
  EXPECT_THAT(Send({conflict}, &response), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(engine_->Get({}, info.handle)->layer_lengths, (std::vector<int64_t>{10, 0}));
}

TEST_F(BulkAppendTest, AClientThatGivesUpLeavesWholeChunks) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  for (int round = 0; round < 10; ++round) {
    grpc::ClientContext context;
    v1::AppendKvResponse response;
    const auto writer = stub_->AppendKv(&context, &response);
    for (int64_t position = 0; position < 300; position += 30) {
      v1::AppendKvRequest request;
      request.set_handle(info.handle);
      request.set_writer_epoch(info.writer_epoch);
      AddChunk(SmallGeometry(), 0, position, 30, &request);
      writer->Write(request);
    }
    context.TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  v1::AppendKvRequest all;
  all.set_handle(info.handle);
  all.set_writer_epoch(info.writer_epoch);
  for (int layer = 0; layer < 2; ++layer) AddChunk(SmallGeometry(), layer, 0, 300, &all);
  v1::AppendKvResponse response;
  ASSERT_OK(Send({all}, &response));
  EXPECT_EQ(response.length(), 300u);
}

// What was stored stands, and says where to go on.
TEST_F(BulkAppendTest, ADrainEndsItBeforeTheNextMessage) {
  for (const bool sends : {true, false}) {
    SCOPED_TRACE(sends ? "with a message on its way" : "idle");
    Serve({});
    const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
    grpc::ClientContext context;
    v1::AppendKvResponse response;
    const auto writer = stub_->AppendKv(&context, &response);
    ASSERT_TRUE(writer->Write(Tokens(info, 0, 30)));
    AwaitLength(info, 30);
    server_->StartDrain();
    if (sends) writer->Write(Tokens(info, 30, 30));
    // Without an end of its messages: a client that waits is told, too.
    const absl::Status end = runtime::FromGrpcStatus(writer->Finish());
    EXPECT_THAT(end, StatusIs(absl::StatusCode::kUnavailable));
    ASSERT_TRUE(engine::DetailOf(end).has_value());
    EXPECT_EQ(engine::DetailOf(end)->reason, "DRAINING");
    EXPECT_EQ(engine_->Get({}, info.handle)->length, 30);
  }
}

TEST_F(BulkAppendTest, AFullQueueRefusesItAtFirstAndNeverAfterwards) {
  Serve({.threads = 1, .queue_max = 1, .bytes_max = 1});
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  grpc::ClientContext context;
  v1::AppendKvResponse response;
  const auto writer = stub_->AppendKv(&context, &response);
  ASSERT_TRUE(writer->Write(Tokens(info, 0, 30)));
  AwaitLength(info, 30);
  absl::Notification running;
  absl::Notification release;
  ASSERT_TRUE(server_->executor().Submit([&] {
    running.Notify();
    release.WaitForNotification();
  }));
  running.WaitForNotification();
  ASSERT_TRUE(server_->executor().Submit([] {}));
  v1::AppendKvResponse refused;
  EXPECT_THAT(Send({Tokens(info, 0, 30)}, &refused),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue")));
  ASSERT_TRUE(writer->Write(Tokens(info, 30, 30)));
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (server_->executor().bytes().HasRoom() && absl::Now() < end) std::this_thread::yield();
  release.Notify();
  writer->WritesDone();
  EXPECT_OK(runtime::FromGrpcStatus(writer->Finish()));
  EXPECT_EQ(response.length(), 60u);
}

TEST_F(BulkAppendTest, IsRefusedWhileTooManyBytesAreInFlight) {
  Serve({.bytes_max = 1000});
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  v1::AppendKvResponse response;
  server_->executor().bytes().Take(1000);
  EXPECT_THAT(Send({Tokens(info, 0, 30)}, &response),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
  // Its first message counts, too.
  server_->executor().bytes().Give(1);
  EXPECT_THAT(Send({Tokens(info, 0, 30)}, &response),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
  EXPECT_EQ(engine_->Get({}, info.handle)->length, 0);
  server_->executor().bytes().Give(999);
  EXPECT_OK(Send({Tokens(info, 0, 30), Tokens(info, 30, 30)}, &response));
  // What was taken is given back.
  EXPECT_TRUE(server_->executor().bytes().TryTake(5000));
}

}  // namespace
}  // namespace terrace::testing
