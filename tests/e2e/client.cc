#include "tests/e2e/client.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "terrace/v1/attention.grpc.pb.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/e2e/await.h"
#include "tests/e2e/channel.h"

namespace terrace::testing {
namespace {

// Tokens of one message of a bulk append.
constexpr uint64_t kChunkTokens = 500;

using Stream = grpc::ClientReaderWriter<v1::AttendRequest, v1::AttendResponse>;

}  // namespace

struct Client::Calls {
  // One call's context: deadline and tenant.
  std::unique_ptr<grpc::ClientContext> Context(absl::Duration timeout = kPatience) const {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    if (!tenant.empty()) context->AddMetadata("terrace-tenant", tenant);
    return context;
  }
  Stream& OpenStream() {
    if (stream == nullptr) {
      stream_context = Context();
      stream = attention->AttendStream(stream_context.get());
    }
    return *stream;
  }

  std::string tenant;
  std::unique_ptr<v1::AttentionService::Stub> attention;
  std::unique_ptr<v1::KvStoreService::Stub> store;
  std::unique_ptr<grpc::ClientContext> stream_context;
  std::unique_ptr<Stream> stream;
  uint64_t last_request_id = 0;
};

v1::Policy Dense() {
  v1::Policy policy;
  policy.mutable_dense();
  return policy;
}

v1::Policy Sparq(uint32_t r, uint32_t k, uint32_t window) {
  v1::Policy policy;
  policy.mutable_sparq()->set_r(r);
  policy.mutable_sparq()->set_k(k);
  policy.mutable_sparq()->set_window(window);
  return policy;
}

Client::Client(const std::string& address, std::string tenant) : calls_(new Calls) {
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(address);
  calls_->tenant = std::move(tenant);
  calls_->attention = v1::AttentionService::NewStub(channel);
  calls_->store = v1::KvStoreService::NewStub(channel);
}

Client::~Client() {
  if (calls_->stream_context != nullptr) calls_->stream_context->TryCancel();
}

v1::SequenceInfo Client::Open(const Shape& shape) {
  v1::OpenSequenceRequest request;
  FillSpec(shape, *request.mutable_new_sequence());
  v1::SequenceInfo info;
  const Reply reply = Open(request, &info);
  EXPECT_REPLY_OK(reply);
  return info;
}

Reply Client::Open(const v1::OpenSequenceRequest& request, v1::SequenceInfo* info) {
  v1::OpenSequenceResponse response;
  const auto context = calls_->Context();
  const grpc::Status status = calls_->attention->OpenSequence(context.get(), request, &response);
  *info = response.sequence();
  return ReplyOf(status);
}

Reply Client::Fork(const v1::SequenceInfo& parent, uint64_t position, v1::SequenceInfo* info) {
  v1::OpenSequenceRequest request;
  request.mutable_fork()->set_handle(parent.handle());
  request.mutable_fork()->set_position(position);
  return Open(request, info);
}

Reply Client::Resume(v1::SequenceInfo* info) {
  v1::OpenSequenceRequest request;
  request.set_resume(info->handle());
  v1::SequenceInfo resumed;
  const Reply reply = Open(request, &resumed);
  if (reply.ok()) *info = resumed;
  return reply;
}

Reply Client::Get(const std::string& handle, v1::SequenceInfo* info) {
  v1::GetSequenceRequest request;
  request.set_handle(handle);
  v1::GetSequenceResponse response;
  const auto context = calls_->Context();
  const grpc::Status status = calls_->attention->GetSequence(context.get(), request, &response);
  *info = response.sequence();
  return ReplyOf(status);
}

Reply Client::Truncate(const v1::SequenceInfo& sequence, uint64_t length) {
  v1::TruncateRequest request;
  request.set_handle(sequence.handle());
  request.set_writer_epoch(sequence.writer_epoch());
  request.set_length(length);
  v1::TruncateResponse response;
  const auto context = calls_->Context();
  return ReplyOf(calls_->attention->Truncate(context.get(), request, &response));
}

Reply Client::Flush(v1::SequenceInfo* sequence) {
  v1::FlushRequest request;
  request.set_handle(sequence->handle());
  v1::FlushResponse response;
  const auto context = calls_->Context();
  const grpc::Status status = calls_->attention->Flush(context.get(), request, &response);
  if (status.ok()) *sequence = response.sequence();
  return ReplyOf(status);
}

Reply Client::Close(const std::string& handle) {
  v1::CloseRequest request;
  request.set_handle(handle);
  v1::CloseResponse response;
  const auto context = calls_->Context();
  return ReplyOf(calls_->attention->Close(context.get(), request, &response));
}

v1::GetLimitsResponse Client::Limits() {
  v1::GetLimitsResponse response;
  const auto context = calls_->Context();
  const Reply reply = ReplyOf(calls_->attention->GetLimits(context.get(), {}, &response));
  EXPECT_REPLY_OK(reply);
  return response;
}

Reply Client::Append(const v1::SequenceInfo& sequence, const Rows& rows, uint64_t first,
                     uint64_t end, v1::AppendKvResponse* response) {
  uint64_t position = first;
  const auto next = [&](v1::AppendKvRequest& request) {
    if (position == end) return false;
    request.set_handle(sequence.handle());
    request.set_writer_epoch(sequence.writer_epoch());
    const auto n = static_cast<uint32_t>(std::min(kChunkTokens, end - position));
    for (uint32_t layer = 0; layer < rows.shape().layers; ++layer) {
      v1::LayerChunk& chunk = *request.add_chunks();
      chunk.set_layer(layer);
      chunk.set_position(position);
      *chunk.mutable_k() = rows.K(layer, position, n);
      *chunk.mutable_v() = rows.V(layer, position, n);
    }
    position += n;
    return true;
  };
  return AppendStream(next, response);
}

Reply Client::AppendStream(const std::function<bool(v1::AppendKvRequest&)>& next,
                           v1::AppendKvResponse* response) {
  v1::AppendKvResponse ignored;
  const auto context = calls_->Context();
  const auto writer =
      calls_->attention->AppendKv(context.get(), response != nullptr ? response : &ignored);
  v1::AppendKvRequest request;
  bool open = true;
  while (open && next(request)) {
    open = writer->Write(request);
    request.Clear();
  }
  writer->WritesDone();
  return ReplyOf(writer->Finish());
}

v1::AttendRequest Client::StepRequest(const v1::SequenceInfo& sequence, const Rows& rows,
                                      uint32_t layer, uint64_t position, const v1::Policy& policy,
                                      uint32_t n) const {
  v1::AttendRequest request;
  request.set_layer(layer);
  v1::StepItem& item = *request.add_items();
  item.set_handle(sequence.handle());
  item.set_writer_epoch(sequence.writer_epoch());
  item.set_position(position);
  *item.mutable_q() = rows.Q(layer, position, n);
  *item.mutable_k() = rows.K(layer, position, n);
  *item.mutable_v() = rows.V(layer, position, n);
  *item.mutable_policy() = policy;
  return request;
}

Reply Client::Attend(v1::AttendRequest request, v1::AttendResponse* response) {
  request.set_request_id(++calls_->last_request_id);
  return AttendAsIs(request, response);
}

Reply Client::AttendAsIs(const v1::AttendRequest& request, v1::AttendResponse* response) {
  Stream& stream = calls_->OpenStream();
  if (!stream.Write(request) || !stream.Read(response)) return EndOfStream();
  EXPECT_EQ(response->request_id(), request.request_id());
  return ReplyOf(response->status());
}

StepReply Client::Step(v1::AttendRequest request) {
  v1::AttendResponse response;
  StepReply step;
  step.reply = Attend(std::move(request), &response);
  if (!step.reply.ok()) return step;
  EXPECT_EQ(response.results_size(), 1);
  if (response.results_size() != 1) {
    step.reply.code = absl::StatusCode::kUnknown;
    return step;
  }
  step.result = std::move(*response.mutable_results(0));
  step.reply = ReplyOf(step.result.status());
  return step;
}

StepReply Client::Step(const v1::SequenceInfo& sequence, const Rows& rows, uint32_t layer,
                       uint64_t position, const v1::Policy& policy) {
  return Step(StepRequest(sequence, rows, layer, position, policy));
}

StepReply Client::Look(const v1::SequenceInfo& sequence, const Rows& rows, uint32_t layer,
                       uint64_t position, const v1::Policy& policy) {
  v1::AttendRequest request = StepRequest(sequence, rows, layer, position, policy);
  request.mutable_items(0)->clear_k();
  request.mutable_items(0)->clear_v();
  return Step(std::move(request));
}

bool Client::ReadFarewell(v1::AttendResponse* message) {
  return calls_->OpenStream().Read(message);
}

Reply Client::EndOfStream() {
  calls_->OpenStream().WritesDone();
  v1::AttendResponse rest;
  while (calls_->stream->Read(&rest)) {
  }
  const Reply reply = ReplyOf(calls_->stream->Finish());
  calls_->stream.reset();
  return reply;
}

Reply Client::AttendOnce(const v1::AttendRequest& request, v1::AttendResponse* response,
                         absl::Duration timeout) {
  const auto context = calls_->Context(timeout);
  return ReplyOf(calls_->attention->Attend(context.get(), request, response));
}

Reply Client::ReadRows(const std::string& handle, uint32_t layer, uint32_t kv_head,
                       const std::vector<uint32_t>& positions, std::string* rows) {
  v1::ReadRowsRequest request;
  request.set_handle(handle);
  request.set_layer(layer);
  request.set_kv_head(kv_head);
  request.mutable_positions()->Add(positions.begin(), positions.end());
  v1::ReadRowsResponse response;
  const auto context = calls_->Context();
  const grpc::Status status = calls_->store->ReadRows(context.get(), request, &response);
  *rows = response.rows().data();
  return ReplyOf(status);
}

}  // namespace terrace::testing
