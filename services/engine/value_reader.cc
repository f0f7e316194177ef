#include "services/engine/value_reader.h"

#include <algorithm>
#include <utility>

#include "services/engine/error.h"
#include "services/engine/value_cache.h"

namespace terrace::engine {
namespace {

// The gravest of what the extents tell.
absl::Status WhyMissing(const kvstore::Pins& pins) {
  absl::Status why = absl::OkStatus();
  for (const kvstore::PinnedExtent& extent : pins.extents()) {
    if (why.ok() || absl::IsDataLoss(extent.status)) why = extent.status;
  }
  // Its blocks are freed.
  if (absl::IsNotFound(why)) return ValueNotFound();
  if (absl::IsResourceExhausted(why)) return NoRoom(why.message());
  if (absl::IsUnavailable(why)) return TierUnavailable(why.message());
  return why;
}

}  // namespace

ValueReader::ValueReader(ValueCache& cache, std::shared_ptr<kvstore::BlockStore> store,
                         std::shared_ptr<StoredValue> value, kvstore::SegmentRef segment)
    : cache_(cache),
      store_(std::move(store)),
      value_(std::move(value)),
      segment_(std::move(segment)) {}

ValueReader::~ValueReader() {
  if (value_ != nullptr) cache_.EndRead(*value_);
}

absl::StatusOr<std::shared_ptr<const ValuePart>> ValueReader::Next(uint64_t bytes,
                                                                   absl::Time deadline) {
  cache_.NoteRead(*value_);
  const uint64_t blocks_wanted = std::max<uint64_t>(bytes / value_->block_bytes, 1);
  const auto end =
      static_cast<uint32_t>(std::min<uint64_t>(block_ + blocks_wanted, value_->blocks()));
  std::vector<kvstore::ReadRequest> requests;
  for (uint32_t block = block_; block < end; ++block) {
    requests.push_back(
        {.segment = segment_.get(), .layer = 0, .head = 0, .index = block, .cells = 1});
  }
  auto part = std::make_shared<ValuePart>();
  part->store = store_;
  part->pins = store_->PinRows(requests, deadline);
  if (absl::Status status = WhyMissing(part->pins); !status.ok()) {
    if (absl::IsDataLoss(status)) cache_.Discard(value_, deadline);
    return status;
  }
  uint64_t left = value_->size - position();
  for (const kvstore::PinnedExtent& extent : part->pins.extents()) {
    const auto size = static_cast<size_t>(std::min<uint64_t>(left, value_->block_bytes));
    part->spans.emplace_back(extent.data, size);
    left -= size;
  }
  block_ = end;
  return part;
}

}  // namespace terrace::engine
