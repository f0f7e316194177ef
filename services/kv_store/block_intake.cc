#include "services/kv_store/block_intake.h"

#include "services/kv_store/block_wire.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {

void BlockIntake::Begin(const v1::PutBlocksRequest& header) {
  in_block_ = true;
  absl::StatusOr<std::shared_ptr<engine::ValueWriter>> writer = engine_.values().Put(
      caller_,
      {.key = header.key(), .size = header.size_bytes(), .ttl = runtime::FromProto(header.ttl())});
  block_status_ = writer.status();
  writer_ = writer.ok() ? *std::move(writer) : nullptr;
}

absl::Status BlockIntake::Take(const grpc::ByteBuffer& request) {
  SplitMessage split;
  v1::PutBlocksRequest header;
  if (!SplitData(request, &split) || !header.ParseFromString(split.fields)) {
    return absl::InvalidArgumentError("got a message that is no PutBlocksRequest");
  }
  if (header.key().empty() != in_block_) {
    return absl::InvalidArgumentError(in_block_ ? "key: got one before the last block's end"
                                                : "key: got none, expected one to begin a block");
  }
  if (!in_block_) Begin(header);
  for (const absl::Span<const std::byte> bytes : split.data) {
    if (writer_ == nullptr) break;
    block_status_ = writer_->Write(bytes);
    if (!block_status_.ok()) writer_.reset();
  }
  if (!header.end()) return absl::OkStatus();
  if (writer_ != nullptr) block_status_ = writer_->Finish();
  writer_.reset();
  in_block_ = false;
  *answer_.emplace().mutable_status() = runtime::ToRpcStatus(block_status_);
  return absl::OkStatus();
}

std::optional<grpc::ByteBuffer> BlockIntake::Next() {
  if (!answer_.has_value()) return std::nullopt;
  return Serialize(*std::exchange(answer_, std::nullopt));
}

}  // namespace terrace::kv_store
