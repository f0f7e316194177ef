#include "services/engine/value_writer.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/engine/value_cache.h"

namespace terrace::engine {
namespace {

constexpr absl::Duration kIdleMax = absl::Minutes(1);
// How often a put without room in memory has others give way.
constexpr int kRoomAttempts = 8;

}  // namespace

void ValueWriter::FreeHash::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

ValueWriter::ValueWriter(ValueCache& cache, const Caller& caller, const ValueSpec& spec,
                         std::shared_ptr<StoredValue> existing)
    : cache_(cache),
      caller_(caller),
      spec_(spec),
      existing_(std::move(existing)),
      block_bytes_(existing_->block_bytes),
      charged_bytes_(0),
      hash_(XXH3_createState()),
      last_write_us_(cache.NowUs()) {
  XXH3_128bits_reset(hash_.get());
}

ValueWriter::ValueWriter(ValueCache& cache, std::shared_ptr<kvstore::BlockStore> store,
                         const Caller& caller, const ValueSpec& spec, kvstore::SegmentRef segment)
    : cache_(cache),
      store_(std::move(store)),
      caller_(caller),
      spec_(spec),
      segment_(std::move(segment)),
      block_bytes_(store_->layout(*segment_).row_bytes),
      charged_bytes_((spec.size + block_bytes_ - 1) / block_bytes_ * block_bytes_),
      hash_(XXH3_createState()),
      last_write_us_(cache.NowUs()) {
  XXH3_128bits_reset(hash_.get());
}

ValueWriter::~ValueWriter() {
  const kvstore::MutexLock lock(mu_);
  Abandon(absl::AbortedError("the put has ended"));
}

void ValueWriter::Abandon(absl::Status why) {
  status_ = std::move(why);
  open_ = nullptr;
  segment_.reset();
  if (charged_bytes_ != 0) cache_.Refund(caller_.tenant, std::exchange(charged_bytes_, 0));
}

void ValueWriter::AbandonIdle(absl::Time now) {
  const auto idle = [&] { return absl::FromUnixMicros(last_write_us_) + kIdleMax <= now; };
  // Without the lock first: a write that waits for room holds it, but has begun of late.
  if (!idle()) return;
  const kvstore::MutexLock lock(mu_);
  if (!status_.ok() || !idle()) return;
  Abandon(absl::AbortedError("put: its bytes did not come for a minute"));
}

absl::Status ValueWriter::Write(absl::Span<const std::byte> bytes) {
  const kvstore::MutexLock lock(mu_);
  if (!status_.ok()) return status_;
  last_write_us_ = cache_.NowUs();
  if (bytes.size() > spec_.size - received_) {
    Abandon(absl::InvalidArgumentError(
        absl::StrCat("data: got more than the ", spec_.size, " bytes of size_bytes")));
  } else if (absl::Status status = Take(bytes); !status.ok()) {
    Abandon(std::move(status));
  }
  return status_;
}

absl::Status ValueWriter::Take(absl::Span<const std::byte> bytes) {
  received_ += bytes.size();
  if (segment_ == nullptr) {
    XXH3_128bits_update(hash_.get(), bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  while (!bytes.empty()) {
    if (open_ == nullptr) {
      if (absl::Status status = OpenBlock(); !status.ok()) return status;
    }
    const size_t count = std::min<size_t>(bytes.size(), block_bytes_ - filled_);
    std::memcpy(open_ + filled_, bytes.data(), count);
    // From where they came: they are in a cache now.
    XXH3_128bits_update(hash_.get(), bytes.data(), count);
    filled_ += static_cast<uint32_t>(count);
    bytes.remove_prefix(count);
    if (filled_ == block_bytes_) SealBlock();
  }
  return absl::OkStatus();
}

absl::Status ValueWriter::OpenBlock() {
  const RoomWanted wanted = {
      .tenant = caller_.tenant, .memory_bytes = spec_.size, .deadline = caller_.wait_end()};
  absl::Status status = store_->Reserve(*segment_, 0, block_, block_ + 1, caller_.wait_end());
  for (int attempt = 0; absl::IsResourceExhausted(status) && attempt < kRoomAttempts; ++attempt) {
    if (!cache_.MakeRoom(wanted)) break;
    status = store_->Reserve(*segment_, 0, block_, block_ + 1, caller_.wait_end());
  }
  if (absl::IsResourceExhausted(status)) return NoRoom(status.message());
  if (!status.ok()) return status;
  open_ = store_->OpenRows(*segment_, 0, 0, block_);
  filled_ = 0;
  return absl::OkStatus();
}

void ValueWriter::SealBlock() {
  // What lies there is what the memory held before, perhaps another tenant's.
  std::memset(open_ + filled_, 0, block_bytes_ - filled_);
  store_->Seal(*segment_, 0, 0, block_, block_ + 1, {});
  ++block_;
  open_ = nullptr;
}

absl::Status ValueWriter::Finish() {
  const kvstore::MutexLock lock(mu_);
  if (!status_.ok()) return status_;
  absl::Status status = FinishLocked();
  Abandon(status.ok() ? absl::AbortedError("the put has ended") : status);
  return status;
}

absl::Status ValueWriter::FinishLocked() {
  if (received_ != spec_.size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data: got ", received_, " bytes until the end, size_bytes said ", spec_.size));
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(hash_.get());
  const ValueDigest digest = {.low = hash.low64, .high = hash.high64};
  if (existing_ != nullptr) return cache_.Compare(existing_, digest, spec_.ttl);
  if (open_ != nullptr) SealBlock();
  const auto value = std::make_shared<StoredValue>();
  value->tenant = caller_.tenant;
  value->key = spec_.key;
  value->size = spec_.size;
  value->digest = digest;
  value->block_bytes = block_bytes_;
  value->segment = segment_;
  charged_bytes_ = 0;
  return cache_.Publish(value, spec_.ttl, caller_.wait_end());
}

}  // namespace terrace::engine
