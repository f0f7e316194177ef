#include "services/kv_store/block_put.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/runtime/call.h"
#include "services/runtime/convert.h"

namespace terrace::kv_store {

absl::Status BlockIntake::Begin(const v1::PutBlocksRequest& header) {
  if (in_block_) {
    return absl::InvalidArgumentError("key: got one before the last block's end");
  }
  const int keys_max = engine_.limits().max_keys;
  if (++begun_ > keys_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("blocks: got more than ", keys_max, " of one call"));
  }
  in_block_ = true;
  absl::StatusOr<std::shared_ptr<engine::ValueWriter>> writer = engine_.values().Put(
      caller_,
      {.key = header.key(), .size = header.size_bytes(), .ttl = runtime::FromProto(header.ttl())});
  block_status_ = writer.status();
  writer_ = writer.ok() ? *std::move(writer) : nullptr;
  return absl::OkStatus();
}

absl::Status BlockIntake::Take(const grpc::ByteBuffer& message) {
  SplitMessage split;
  v1::PutBlocksRequest header;
  if (!SplitData(message, &split) || !header.ParseFromString(split.fields)) {
    return absl::InvalidArgumentError("got a message that is no PutBlocksRequest");
  }
  if (!header.key().empty()) {
    if (absl::Status status = Begin(header); !status.ok()) return status;
  }
  if (!in_block_) return absl::InvalidArgumentError("key: got none, expected one to begin a block");
  for (const absl::Span<const std::byte> bytes : split.data) {
    if (writer_ == nullptr) break;
    block_status_ = writer_->Write(bytes);
    if (!block_status_.ok()) writer_.reset();
  }
  if (!header.end()) return absl::OkStatus();
  if (writer_ != nullptr) block_status_ = writer_->Finish();
  writer_.reset();
  in_block_ = false;
  *results_.add_results() = runtime::ToRpcStatus(block_status_);
  return absl::OkStatus();
}

BlockPut::BlockPut(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
                   runtime::Executor& executor, grpc::ByteBuffer* response)
    : context_(context),
      executor_(executor),
      response_(response),
      intake_(engine, runtime::CallerOf(*context)) {
  Update([] {});
}

void BlockPut::OnReadDone(bool ok) {
  Update([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    reading_ = false;
    read_done_ = !ok;
    if (ok) read_.push_back(std::move(next_));
  });
}

void BlockPut::Work() {
  grpc::ByteBuffer message;
  // So that the next read runs meanwhile.
  Update([this, &message]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    message = std::move(read_.front());
    read_.pop_front();
  });
  const absl::Status status = context_->IsCancelled()
                                  ? absl::CancelledError("the call was cancelled")
                                  : intake_.Take(message);
  Update([this, &status]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    working_ = false;
    status_.Update(status);
  });
}

template <typename Change>
void BlockPut::Update(Change change) {
  bool read = false;
  bool work = false;
  {
    const kvstore::MutexLock lock(mu_);
    change();
    read = !reading_ && !read_done_ && status_.ok() && read_.size() < kReadMax;
    reading_ = reading_ || read;
    work = !working_ && status_.ok() && !read_.empty();
    working_ = working_ || work;
    ++starting_;
  }
  if (read) {
    next_.Clear();
    StartRead(&next_);
  }
  const bool refused = work && !executor_.Submit([this] { Work(); });
  bool finish = false;
  absl::Status status;
  {
    const kvstore::MutexLock lock(mu_);
    --starting_;
    if (refused) {
      working_ = false;
      status_.Update(runtime::QueueFull());
    }
    const bool idle = starting_ == 0 && !working_;
    finish = !finished_ && idle && (!status_.ok() || (read_done_ && read_.empty()));
    finished_ = finished_ || finish;
    status = status_;
  }
  if (!finish) return;
  if (status.ok()) *response_ = Serialize(intake_.results());
  Finish(runtime::ToGrpcStatus(status));
}

}  // namespace terrace::kv_store
