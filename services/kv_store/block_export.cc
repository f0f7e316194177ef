#include "services/kv_store/block_export.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/runtime/call.h"
#include "services/runtime/convert.h"

namespace terrace::kv_store {
namespace {

// Of a message, all but its rows.
constexpr uint64_t kFieldsBytes = 256;

}  // namespace

void SetRows(const engine::Geometry& geometry, const std::vector<std::byte>& rows,
             v1::Tensor* tensor) {
  tensor->set_dtype(runtime::ToProto(geometry.storage));
  tensor->clear_shape();
  tensor->add_shape(static_cast<uint32_t>(rows.size() / geometry.row_bytes()));
  tensor->add_shape(2);
  tensor->add_shape(static_cast<uint32_t>(geometry.head_dim));
  tensor->set_data(rows.data(), rows.size());
}

BlockExport::BlockExport(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
                         runtime::Executor& executor, uint64_t max_message_bytes,
                         const v1::ReadBlocksRequest& request)
    : context_(context),
      engine_(engine),
      executor_(executor),
      max_message_bytes_(max_message_bytes),
      request_(request),
      caller_(runtime::CallerOf(*context)) {
  absl::Status refused = executor_.refusal();
  if (refused.ok() && !executor_.Submit([this] { Begin(); })) refused = runtime::QueueFull();
  if (!refused.ok()) Finish(runtime::ToGrpcStatus(refused));
}

void BlockExport::OnWriteDone(bool ok) {
  if (!ok) {
    Finish(grpc::Status::CANCELLED);
    return;
  }
  Advance();
  executor_.Continue([this] { Next(); });
}

void BlockExport::Begin() {
  absl::StatusOr<engine::SequenceInfo> info = engine_.Get(caller_, request_.handle());
  if (!info.ok()) {
    Finish(runtime::ToGrpcStatus(info.status()));
    return;
  }
  info_ = *std::move(info);
  const auto length = static_cast<uint64_t>(info_.length);
  const uint64_t end = request_.end_position() == 0 ? length : request_.end_position();
  if (end > length || request_.first_position() > end) {
    Finish(runtime::ToGrpcStatus(absl::OutOfRangeError(
        absl::StrCat("positions: got [", request_.first_position(), ", ", request_.end_position(),
                     "), expected a range within [0, ", length, ")"))));
    return;
  }
  end_ = static_cast<int64_t>(end);
  position_ = static_cast<int64_t>(request_.first_position());
  Next();
}

void BlockExport::Next() {
  if (layer_ == info_.spec.geometry.layers || position_ >= end_) {
    Finish(grpc::Status::OK);
    return;
  }
  if (context_->IsCancelled()) {
    Finish(grpc::Status::CANCELLED);
    return;
  }
  if (const absl::Status refused = executor_.refusal(); !refused.ok()) {
    Finish(runtime::ToGrpcStatus(refused));
    return;
  }
  const auto row_bytes = static_cast<int64_t>(info_.spec.geometry.row_bytes());
  const auto bytes_max = static_cast<int64_t>(max_message_bytes_ - kFieldsBytes);
  count_ = std::min({end_ - position_, info_.block_tokens - position_ % info_.block_tokens,
                     std::max<int64_t>(1, bytes_max / row_bytes)});
  std::vector<uint32_t> positions(count_);
  std::iota(positions.begin(), positions.end(), static_cast<uint32_t>(position_));
  const absl::StatusOr<std::vector<std::byte>> rows =
      engine_.ReadRows(caller_, info_.handle, layer_, head_, positions);
  if (!rows.ok()) {
    Finish(runtime::ToGrpcStatus(rows.status()));
    return;
  }
  response_.set_layer(static_cast<uint32_t>(layer_));
  response_.set_kv_head(static_cast<uint32_t>(head_));
  response_.set_position(static_cast<uint64_t>(position_));
  SetRows(info_.spec.geometry, *rows, response_.mutable_rows());
  StartWrite(&response_);
}

void BlockExport::Advance() {
  position_ += count_;
  if (position_ < end_) return;
  position_ = static_cast<int64_t>(request_.first_position());
  if (++head_ < info_.spec.geometry.kv_heads) return;
  head_ = 0;
  ++layer_;
}

}  // namespace terrace::kv_store
