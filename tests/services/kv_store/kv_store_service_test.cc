// KvStoreService as a client sees it: rows and blocks out, and what it refuses.
#include "services/kv_store/kv_store_service.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;
constexpr int64_t kLength = 200;

class KvStoreServiceTest : public ::testing::Test {
 protected:
  KvStoreServiceTest() {
    EXPECT_OK(AppendSeed(*engine_, info_, kSeed, 0, kLength));
    for (int layer = 0; layer < 2; ++layer) {
      plain_.Append(layer, MakeRows(SmallGeometry(), kSeed, layer, 0, kLength));
    }
  }

  void SetUp() override { Serve(RpcServer::kMessageBytesMax, {}); }
  void Serve(uint64_t max_message_bytes, const RpcServer::Room& room) {
    server_ = std::make_unique<RpcServer>(
        [&](runtime::Executor& executor, runtime::Drain& drain) {
          std::vector<std::unique_ptr<grpc::Service>> services;
          services.push_back(
              kv_store::MakeKvStoreService(*engine_, executor, drain, max_message_bytes));
          return services;
        },
        0, room);
    stub_ = v1::KvStoreService::NewStub(server_->Channel());
  }

  std::string Stored(int layer, int head, int64_t first, int64_t end) const {
    std::string bytes;
    for (int64_t position = first; position < end; ++position) {
      const std::vector<std::byte> row = plain_.StoredRow(layer, head, position);
      bytes.append(reinterpret_cast<const char*>(row.data()), row.size());
    }
    return bytes;
  }

  absl::Status ReadRows(uint32_t layer, uint32_t head, const std::vector<uint32_t>& positions,
                        v1::ReadRowsResponse* response) {
    grpc::ClientContext context;
    v1::ReadRowsRequest request;
    request.set_handle(info_.handle);
    request.set_layer(layer);
    request.set_kv_head(head);
    request.mutable_positions()->Add(positions.begin(), positions.end());
    return runtime::FromGrpcStatus(stub_->ReadRows(&context, request, response));
  }

  absl::Status ReadBlocks(const std::string& handle, uint64_t first, uint64_t end,
                          std::vector<v1::ReadBlocksResponse>* blocks) {
    grpc::ClientContext context;
    v1::ReadBlocksRequest request;
    request.set_handle(handle);
    request.set_first_position(first);
    request.set_end_position(end);
    const auto reader = stub_->ReadBlocks(&context, request);
    v1::ReadBlocksResponse block;
    while (reader->Read(&block)) blocks->push_back(block);
    return runtime::FromGrpcStatus(reader->Finish());
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
  SequenceInfo info_ = *engine_->Create({}, Spec(SmallGeometry()));
  PlainCache plain_{SmallGeometry()};
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::KvStoreService::Stub> stub_;
};

TEST_F(KvStoreServiceTest, ReadRowsGivesWhatWasAppended) {
  v1::ReadRowsResponse response;
  ASSERT_OK(ReadRows(1, 1, {0, 63, 64, 199}, &response));
  EXPECT_EQ(response.rows().data(),
            Stored(1, 1, 0, 1) + Stored(1, 1, 63, 65) + Stored(1, 1, 199, 200));
  EXPECT_EQ(response.rows().dtype(), v1::DTYPE_FLOAT32);
  ASSERT_EQ(response.rows().shape_size(), 3);
  EXPECT_EQ(response.rows().shape(0), 4u);
  EXPECT_EQ(response.rows().shape(1), 2u);
  EXPECT_EQ(response.rows().shape(2), 16u);
  ASSERT_OK(ReadRows(0, 0, {}, &response));
  EXPECT_EQ(response.rows().shape(0), 0u);
}

TEST_F(KvStoreServiceTest, ReadRowsRefusesWhatIsNotThere) {
  constexpr uint32_t kFar = std::numeric_limits<uint32_t>::max();
  v1::ReadRowsResponse response;
  for (const auto& [layer, head, position] : std::vector<std::tuple<uint32_t, uint32_t, uint32_t>>{
           {2, 0, 0}, {kFar, 0, 0}, {0, 2, 0}, {0, kFar, 0}, {0, 0, 200}, {0, 0, kFar}}) {
    EXPECT_THAT(ReadRows(layer, head, {position}, &response),
                StatusIs(absl::StatusCode::kOutOfRange));
  }
  // 128 bytes a row: one more than a message holds.
  EXPECT_THAT(
      ReadRows(0, 0, std::vector<uint32_t>(RpcServer::kMessageBytesMax / 128 + 1, 0), &response),
      StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("at most")));
  info_.handle = "nonsense";
  EXPECT_THAT(ReadRows(0, 0, {0}, &response), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(KvStoreServiceTest, ReadBlocksExportsEveryRowOnce) {
  for (const auto& [first, end] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 0}, {0, 200}, {10, 64}, {64, 128}, {63, 65}, {199, 200}, {130, 0}}) {
    SCOPED_TRACE(::testing::Message() << first << " to " << end);
    std::vector<v1::ReadBlocksResponse> blocks;
    ASSERT_OK(ReadBlocks(info_.handle, first, end, &blocks));
    size_t next = 0;
    for (uint32_t layer = 0; layer < 2; ++layer) {
      for (uint32_t head = 0; head < 2; ++head) {
        const int64_t last = end == 0 ? kLength : end;
        for (int64_t position = first; position < last;) {
          const int64_t block_end = std::min(last, position / 64 * 64 + 64);
          ASSERT_LT(next, blocks.size());
          const v1::ReadBlocksResponse& block = blocks[next++];
          EXPECT_EQ(block.layer(), layer);
          EXPECT_EQ(block.kv_head(), head);
          EXPECT_EQ(block.position(), static_cast<uint64_t>(position));
          EXPECT_EQ(block.rows().data(),
                    Stored(static_cast<int>(layer), static_cast<int>(head), position, block_end));
          position = block_end;
        }
      }
    }
    EXPECT_EQ(next, blocks.size());
  }
}

// 128 bytes a row, and some for what else a message says.
TEST_F(KvStoreServiceTest, ReadBlocksKeepsToTheMessageLimit) {
  for (const auto& [limit, rows_of_message] :
       std::vector<std::pair<uint64_t, std::vector<size_t>>>{{128 + 255, {1}},
                                                             {128 + 256, {1}},
                                                             {48 * 128 + 256, {48, 16}},
                                                             {64 * 128 + 255, {63, 1}},
                                                             {64 * 128 + 256, {64}}}) {
    SCOPED_TRACE(limit);
    Serve(limit, {});
    std::vector<v1::ReadBlocksResponse> blocks;
    ASSERT_OK(ReadBlocks(info_.handle, 0, 128, &blocks));
    std::string layer_one;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (rows_of_message[0] > 1) EXPECT_LE(blocks[i].ByteSizeLong(), limit);
      EXPECT_EQ(blocks[i].rows().shape(0), rows_of_message[i % rows_of_message.size()]);
      if (blocks[i].layer() == 1 && blocks[i].kv_head() == 1) layer_one += blocks[i].rows().data();
    }
    EXPECT_EQ(layer_one, Stored(1, 1, 0, 128));
  }
}

TEST_F(KvStoreServiceTest, AFullQueueRefusesAnExportAtFirstAndNeverAfterwards) {
  Serve(RpcServer::kMessageBytesMax, {.threads = 1, .queue_max = 1});
  // Of messages that flow control lets out one by one.
  engine::Geometry geometry = SmallGeometry();
  geometry.head_dim = 256;
  info_ = *engine_->Create({}, Spec(geometry));
  ASSERT_OK(AppendSeed(*engine_, info_, kSeed, 0, kLength));
  grpc::ClientContext context;
  v1::ReadBlocksRequest request;
  request.set_handle(info_.handle);
  const auto reader = stub_->ReadBlocks(&context, request);
  v1::ReadBlocksResponse block;
  ASSERT_TRUE(reader->Read(&block));
  absl::Notification running;
  absl::Notification release;
  // The export itself may have the only place for a moment.
  while (!server_->executor().Submit([&] {
    running.Notify();
    release.WaitForNotification();
  })) {
    std::this_thread::yield();
  }
  running.WaitForNotification();
  static_cast<void>(server_->executor().Submit([] {}));
  std::vector<v1::ReadBlocksResponse> refused;
  EXPECT_THAT(ReadBlocks(info_.handle, 0, 0, &refused),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue")));
  release.Notify();
  int count = 1;
  while (reader->Read(&block)) ++count;
  EXPECT_OK(runtime::FromGrpcStatus(reader->Finish()));
  EXPECT_EQ(count, 2 * 2 * 4);
}

TEST_F(KvStoreServiceTest, ReadBlocksRefusesRangesBeyondTheLength) {
  std::vector<v1::ReadBlocksResponse> blocks;
  for (const auto& [first, end] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 201}, {201, 0}, {5, 4}, {UINT64_MAX, 0}, {0, UINT64_MAX}}) {
    EXPECT_THAT(ReadBlocks(info_.handle, first, end, &blocks),
                StatusIs(absl::StatusCode::kOutOfRange));
  }
  EXPECT_THAT(ReadBlocks("nonsense", 0, 0, &blocks), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE(blocks.empty());
  EXPECT_OK(ReadBlocks(info_.handle, 200, 200, &blocks));
  EXPECT_TRUE(blocks.empty());
  const SequenceInfo empty = *engine_->Create({}, Spec(SmallGeometry()));
  EXPECT_OK(ReadBlocks(empty.handle, 0, 0, &blocks));
  EXPECT_TRUE(blocks.empty());
}

TEST_F(KvStoreServiceTest, AnExportThatIsCancelledLeavesTheServerWell) {
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    v1::ReadBlocksRequest request;
    request.set_handle(info_.handle);
    const auto reader = stub_->ReadBlocks(&context, request);
    v1::ReadBlocksResponse block;
    ASSERT_TRUE(reader->Read(&block));
    context.TryCancel();
    reader->Finish();
  }
  std::vector<v1::ReadBlocksResponse> blocks;
  EXPECT_OK(ReadBlocks(info_.handle, 0, 0, &blocks));
}

TEST_F(KvStoreServiceTest, StepsOfBadShapeAreRefusedAndTheStreamGoesOn) {
  grpc::ClientContext context;
  const auto stream = stub_->AttendSteps(&context);
  v1::StoreStepResponse response;
  v1::StoreStepRequest request;
  request.set_request_id(1);
  request.set_mode(v1::REMOTE_MODE_ROWS);
  ASSERT_TRUE(stream->Write(request));  // no items
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 1u);
  EXPECT_THAT(runtime::FromRpcStatus(response.status()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("items")));
  request.set_request_id(0);
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 0u);
  EXPECT_THAT(runtime::FromRpcStatus(response.status()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("request_id: got 0")));
  request.set_request_id(1);
  request.add_items();
  for (const v1::RemoteMode mode :
       {v1::REMOTE_MODE_UNSPECIFIED, v1::REMOTE_MODE_AUTO, static_cast<v1::RemoteMode>(9)}) {
    request.set_mode(mode);
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_THAT(runtime::FromRpcStatus(response.status()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mode")));
  }
  request.set_mode(v1::REMOTE_MODE_PARTIAL);
  ASSERT_TRUE(stream->Write(request));  // an empty item
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0);
  EXPECT_THAT(runtime::FromRpcStatus(response.results(0).status()),
              StatusIs(absl::StatusCode::kNotFound));
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(KvStoreServiceTest, LimitsNameTheShard) {
  grpc::ClientContext context;
  v1::GetLimitsResponse limits;
  ASSERT_TRUE(stub_->GetLimits(&context, {}, &limits).ok());
  EXPECT_EQ(limits.shard(), 0u);
  EXPECT_EQ(limits.max_message_bytes(), RpcServer::kMessageBytesMax);
  EXPECT_EQ(limits.max_batch(), 256u);
  EXPECT_NE(limits.default_value_mean(), v1::VALUE_MEAN_UNSPECIFIED);
  EXPECT_FALSE(limits.version().empty());
}

}  // namespace
}  // namespace terrace::testing
