#include "services/kv_store/block_output.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/kv_store/block_wire.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {
namespace {

// A slice that keeps its part pinned.
grpc::Slice PinnedSlice(const std::shared_ptr<const engine::ValuePart>& part,
                        absl::Span<const std::byte> bytes) {
  using Holder = std::shared_ptr<const engine::ValuePart>;
  // gRPC only reads it.
  return {const_cast<std::byte*>(bytes.data()), bytes.size(),
          [](void* holder) { delete static_cast<Holder*>(holder); }, new Holder(part)};
}

}  // namespace

absl::Status BlockOutput::Take(const grpc::ByteBuffer& request) {
  key_ = 0;
  SplitMessage split;
  if (!SplitData(request, &split) || !request_.ParseFromString(split.fields)) {
    request_.Clear();
    return absl::InvalidArgumentError("got a message that is no GetBlocksRequest");
  }
  const int keys_max = engine_.limits().max_keys;
  if (request_.keys_size() > keys_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: got ", request_.keys_size(), ", expected at most ", keys_max));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<grpc::Slice>> BlockOutput::NextData() {
  if (part_ == nullptr) {
    absl::StatusOr<std::shared_ptr<const engine::ValuePart>> part =
        reader_->Next(data_bytes_max_, caller_.wait_end());
    if (!part.ok()) return part.status();
    part_ = *std::move(part);
    span_ = 0;
    offset_ = 0;
  }
  std::vector<grpc::Slice> data;
  for (uint64_t left = data_bytes_max_; left > 0 && span_ < part_->spans.size();) {
    const absl::Span<const std::byte> rest = part_->spans[span_].subspan(offset_);
    const auto bytes = rest.first(static_cast<size_t>(std::min<uint64_t>(left, rest.size())));
    data.push_back(PinnedSlice(part_, bytes));
    left -= bytes.size();
    offset_ += bytes.size();
    if (bytes.size() < rest.size()) continue;
    ++span_;
    offset_ = 0;
  }
  if (span_ == part_->spans.size()) part_.reset();
  return data;
}

std::optional<grpc::ByteBuffer> BlockOutput::Next() {
  if (!pending()) return std::nullopt;
  v1::GetBlocksResponse header;
  header.set_index(index_);
  absl::Status found = absl::OkStatus();
  if (!reader_.has_value()) {
    absl::StatusOr<engine::ValueReader> reader = engine_.values().Get(caller_, request_.keys(key_));
    found = reader.status();
    if (reader.ok()) header.set_size_bytes(reader_.emplace(*std::move(reader)).size());
  }
  const absl::StatusOr<std::vector<grpc::Slice>> data = found.ok() ? NextData() : found;
  if (!data.ok()) *header.mutable_status() = runtime::ToRpcStatus(data.status());
  if (!data.ok() || (part_ == nullptr && reader_->at_end())) {
    header.set_end(true);
    reader_.reset();
    part_.reset();
    ++key_;
    ++index_;
  }
  return JoinData(header, data.ok() ? *data : std::vector<grpc::Slice>());
}

}  // namespace terrace::kv_store
