#include "tests/e2e/store_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/e2e/await.h"
#include "tests/e2e/channel.h"

namespace terrace::testing {
namespace {

// Tokens of one message of a bulk append.
constexpr uint64_t kChunkTokens = 50;
// Whoever connects to a store that was just killed waits in vain.
constexpr absl::Duration kConnectPatience = absl::Seconds(10);

using Stream = grpc::ClientReaderWriter<v1::StoreStepRequest, v1::StoreStepResponse>;

std::unique_ptr<grpc::ClientContext> NewContext() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  return context;
}

// Consecutive rows, which need not be of one text.
void AddRows(const RowsAt& rows, uint32_t layer, uint64_t position, uint64_t n,
             v1::LayerChunk& chunk) {
  chunk.set_layer(layer);
  chunk.set_position(position);
  *chunk.mutable_k() = rows(position).K(layer, position, 1);
  *chunk.mutable_v() = rows(position).V(layer, position, 1);
  for (uint64_t next = position + 1; next < position + n; ++next) {
    chunk.mutable_k()->mutable_data()->append(rows(next).K(layer, next, 1).data());
    chunk.mutable_v()->mutable_data()->append(rows(next).V(layer, next, 1).data());
  }
  chunk.mutable_k()->set_shape(0, static_cast<uint32_t>(n));
  chunk.mutable_v()->set_shape(0, static_cast<uint32_t>(n));
}

}  // namespace

struct StoreClient::Calls {
  std::unique_ptr<v1::KvStoreService::Stub> stub;
  std::unique_ptr<grpc::ClientContext> stream_context;
  std::unique_ptr<Stream> stream;
  uint64_t last_request_id = 0;

  Reply Open(const v1::OpenSequenceRequest& request, v1::SequenceInfo* info) const {
    v1::OpenSequenceResponse response;
    const auto context = NewContext();
    const grpc::Status status = stub->OpenSequence(context.get(), request, &response);
    if (status.ok()) *info = response.sequence();
    return ReplyOf(status);
  }
};

StoreClient::StoreClient(const std::string& address) : calls_(new Calls) {
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(address);
  // A busy machine may break a connection that begins: calls come when there is one.
  channel->WaitForConnected(absl::ToChronoTime(absl::Now() + kConnectPatience));
  calls_->stub = v1::KvStoreService::NewStub(channel);
}

StoreClient::~StoreClient() {
  if (calls_->stream_context != nullptr) calls_->stream_context->TryCancel();
}

Reply StoreClient::Create(const Shape& shape, v1::SequenceInfo* info) {
  v1::OpenSequenceRequest request;
  FillSpec(shape, *request.mutable_new_sequence());
  return calls_->Open(request, info);
}

Reply StoreClient::Fork(const v1::SequenceInfo& parent, uint64_t position, v1::SequenceInfo* info) {
  v1::OpenSequenceRequest request;
  request.mutable_fork()->set_handle(parent.handle());
  request.mutable_fork()->set_position(position);
  return calls_->Open(request, info);
}

Reply StoreClient::Resume(v1::SequenceInfo* info) {
  v1::OpenSequenceRequest request;
  request.set_resume(info->handle());
  return calls_->Open(request, info);
}

Reply StoreClient::Get(v1::SequenceInfo* info) {
  v1::GetSequenceRequest request;
  request.set_handle(info->handle());
  v1::GetSequenceResponse response;
  const auto context = NewContext();
  const grpc::Status status = calls_->stub->GetSequence(context.get(), request, &response);
  if (status.ok()) *info = response.sequence();
  return ReplyOf(status);
}

Reply StoreClient::Truncate(v1::SequenceInfo* info, uint64_t length) {
  v1::TruncateRequest request;
  request.set_handle(info->handle());
  request.set_writer_epoch(info->writer_epoch());
  request.set_length(length);
  v1::TruncateResponse response;
  const auto context = NewContext();
  const grpc::Status status = calls_->stub->Truncate(context.get(), request, &response);
  if (status.ok()) *info = response.sequence();
  return ReplyOf(status);
}

Reply StoreClient::Flush(v1::SequenceInfo* info) {
  v1::FlushRequest request;
  request.set_handle(info->handle());
  v1::FlushResponse response;
  const auto context = NewContext();
  const grpc::Status status = calls_->stub->Flush(context.get(), request, &response);
  if (status.ok()) *info = response.sequence();
  return ReplyOf(status);
}

Reply StoreClient::Close(const std::string& handle) {
  v1::CloseRequest request;
  request.set_handle(handle);
  v1::CloseResponse response;
  const auto context = NewContext();
  return ReplyOf(calls_->stub->Close(context.get(), request, &response));
}

Reply StoreClient::Append(const v1::SequenceInfo& info, const RowsAt& rows, uint64_t first,
                          uint64_t end, v1::AppendKvResponse* response) {
  const auto context = NewContext();
  const auto writer = calls_->stub->Append(context.get(), response);
  bool open = true;
  for (uint64_t position = first; open && position < end; position += kChunkTokens) {
    v1::AppendKvRequest request;
    request.set_handle(info.handle());
    request.set_writer_epoch(info.writer_epoch());
    for (uint32_t layer = 0; layer < rows(position).shape().layers; ++layer) {
      AddRows(rows, layer, position, std::min(kChunkTokens, end - position), *request.add_chunks());
    }
    open = writer->Write(request);
  }
  writer->WritesDone();
  return ReplyOf(writer->Finish());
}

Reply StoreClient::Step(const v1::SequenceInfo& info, const Rows& rows, uint32_t layer,
                        uint64_t position, bool appends, const v1::Policy& policy,
                        v1::StoreStepResult* result) {
  if (calls_->stream == nullptr) {
    calls_->stream_context = NewContext();
    calls_->stream_context->set_deadline(std::chrono::system_clock::time_point::max());
    calls_->stream = calls_->stub->AttendSteps(calls_->stream_context.get());
  }
  v1::StoreStepRequest request;
  request.set_request_id(++calls_->last_request_id);
  request.set_layer(layer);
  request.set_step_deadline_us(static_cast<uint64_t>(absl::ToInt64Microseconds(kPatience)));
  request.set_mode(v1::REMOTE_MODE_PARTIAL);
  v1::StepItem& item = *request.add_items()->mutable_step();
  item.set_handle(info.handle());
  item.set_writer_epoch(info.writer_epoch());
  item.set_position(position);
  *item.mutable_q() = rows.Q(layer, position, 1);
  if (appends) {
    *item.mutable_k() = rows.K(layer, position, 1);
    *item.mutable_v() = rows.V(layer, position, 1);
  }
  *item.mutable_policy() = policy;
  v1::StoreStepResponse response;
  if (!calls_->stream->Write(request) || !calls_->stream->Read(&response)) {
    calls_->stream->WritesDone();
    const Reply reply = ReplyOf(calls_->stream->Finish());
    calls_->stream.reset();
    return reply;
  }
  if (Reply reply = ReplyOf(response.status()); !reply.ok()) return reply;
  *result = std::move(*response.mutable_results(0));
  return ReplyOf(result->status());
}

Reply StoreClient::ReadBlocks(const std::string& handle, uint64_t length, const Block& block) {
  v1::ReadBlocksRequest request;
  request.set_handle(handle);
  request.set_end_position(length);
  const auto context = NewContext();
  const auto reader = calls_->stub->ReadBlocks(context.get(), request);
  v1::ReadBlocksResponse response;
  while (reader->Read(&response)) block(response);
  return ReplyOf(reader->Finish());
}

}  // namespace terrace::testing
