#include "services/kv_store/block_get.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/runtime/call.h"
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

absl::Status BlockOutput::Begin(const grpc::ByteBuffer& request) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!request.Dump(&slices).ok()) return absl::InternalError("a request that is not readable");
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  if (!request_.ParseFromString(bytes)) {
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
        reader_->Next(data_bytes_max_, caller_.deadline);
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
  if (index_ == request_.keys_size()) return std::nullopt;
  v1::GetBlocksResponse header;
  header.set_index(static_cast<uint32_t>(index_));
  absl::StatusOr<std::vector<grpc::Slice>> data;
  absl::Status found = absl::OkStatus();
  if (!reader_.has_value()) {
    absl::StatusOr<engine::ValueReader> reader =
        engine_.values().Get(caller_, request_.keys(index_));
    found = reader.status();
    if (reader.ok()) reader_.emplace(*std::move(reader));
    if (reader_.has_value()) header.set_size_bytes(reader_->size());
  }
  data = found.ok() ? NextData() : found;
  if (!data.ok()) *header.mutable_status() = runtime::ToRpcStatus(data.status());
  if (!data.ok() || (part_ == nullptr && reader_->at_end())) {
    header.set_end(true);
    reader_.reset();
    part_.reset();
    ++index_;
  }
  return JoinData(header, data.ok() ? *std::move(data) : std::vector<grpc::Slice>());
}

BlockGet::BlockGet(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
                   runtime::Executor& executor, uint64_t data_bytes_max,
                   const grpc::ByteBuffer& request)
    : context_(context),
      executor_(executor),
      output_(engine, runtime::CallerOf(*context), data_bytes_max) {
  const absl::Status begun = output_.Begin(request);
  Update([this, &begun]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { status_ = begun; });
}

void BlockGet::OnWriteDone(bool ok) {
  Update([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    writing_ = false;
    if (!ok) status_.Update(absl::CancelledError("the client is gone"));
  });
}

void BlockGet::Prepare() {
  const bool cancelled = context_->IsCancelled();
  std::optional<grpc::ByteBuffer> message;
  if (!cancelled) message = output_.Next();
  Update([this, cancelled, &message]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    preparing_ = false;
    exhausted_ = !message.has_value();
    prepared_ = std::move(message);
    if (cancelled) status_.Update(absl::CancelledError("the call was cancelled"));
  });
}

template <typename Change>
void BlockGet::Update(Change change) {
  bool write = false;
  bool prepare = false;
  {
    const kvstore::MutexLock lock(mu_);
    change();
    if (!status_.ok()) prepared_.reset();
    write = !writing_ && prepared_.has_value();
    if (write) {
      current_ = *std::move(prepared_);
      prepared_.reset();
      writing_ = true;
    }
    prepare = !preparing_ && !prepared_.has_value() && !exhausted_ && status_.ok();
    preparing_ = preparing_ || prepare;
    ++starting_;
  }
  if (write) StartWrite(&current_);
  const bool refused = prepare && !executor_.Submit([this] { Prepare(); });
  bool finish = false;
  absl::Status status;
  {
    const kvstore::MutexLock lock(mu_);
    --starting_;
    if (refused) {
      preparing_ = false;
      status_.Update(runtime::QueueFull());
    }
    const bool idle = starting_ == 0 && !preparing_ && !writing_ && !prepared_.has_value();
    finish = !finished_ && idle && (exhausted_ || !status_.ok());
    finished_ = finished_ || finish;
    status = status_;
  }
  if (finish) Finish(runtime::ToGrpcStatus(status));
}

}  // namespace terrace::kv_store
