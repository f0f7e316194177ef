// AppendKv: chunks one after another, until the first that fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

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

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(Roomy());
  RpcServer server_{[this](runtime::Executor& executor, runtime::Drain& drain) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(attention_worker::MakeAttentionService(
        *engine_, executor, drain, {.max_message_bytes = RpcServer::kMessageBytesMax}));
    return services;
  }};
  std::unique_ptr<v1::AttentionService::Stub> stub_ =
      v1::AttentionService::NewStub(server_.Channel());
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
  EXPECT_FALSE(Send({far}, &response).ok());
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

}  // namespace
}  // namespace terrace::testing
