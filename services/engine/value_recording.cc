// How values of a ValueCache reach the disk, and come back after a restart.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/value_cache.h"
#include "services/engine/value_layout.h"
#include "services/engine/value_record.h"

namespace terrace::engine {
namespace {

// Manifests of one write.
constexpr size_t kRecordsMax = 256;
// How long the recorder waits for one value's blocks before it looks whether it is to stop.
constexpr absl::Duration kPatience = absl::Seconds(1);
// After a write that failed.
constexpr absl::Duration kBackoff = absl::Seconds(1);

}  // namespace

absl::Status ValueCache::Recover(const kvstore::Manifest& manifest) {
  const absl::StatusOr<ValueRecord> record = DecodeValueRecord(manifest.attributes);
  if (!record.ok()) return record.status();
  const kvstore::BlockLayout layout = ValueLayout(record->size);
  auto value = std::make_shared<StoredValue>();
  value->tenant = record->tenant;
  value->key = record->key;
  value->size = record->size;
  value->digest = record->digest;
  value->block_bytes = layout.row_bytes;
  value->last_used_us = NowUs();
  value->expires_us = record->expires_us;
  value->recorded = true;
  const bool is_whole =
      manifest.ranges.size() == 1 && store_->layout(*manifest.ranges[0].segment) == layout &&
      store_->Durable(*manifest.ranges[0].segment, 0).end_block >= value->blocks();
  if (!is_whole) return absl::DataLossError("value: its blocks are not all there");
  value->segment = manifest.ranges[0].segment;
  const kvstore::MutexLock lock(mu_);
  Tenant& tenant = tenants_[value->tenant];
  if (tenant.values.contains(value->key)) {
    return absl::DataLossError("value: another one has its key");
  }
  tenant.bytes += value->stored_bytes();
  ++count_;
  Insert(value);
  return absl::OkStatus();
}

void ValueCache::EnqueueToRecord(const std::shared_ptr<StoredValue>& value) {
  if (!options_.records) return;
  unrecorded_.push_back(value);
  changed_.NotifyAll();
}

kvstore::SegmentRef ValueCache::NextToRecord() {
  while (!unrecorded_.empty() && unrecorded_.front()->segment == nullptr) unrecorded_.pop_front();
  if (unrecorded_.empty()) changed_.NotifyAll();
  const auto next = std::find_if(unrecorded_.begin(), unrecorded_.end(), [](const auto& value) {
    return value->segment != nullptr && !value->busy;
  });
  return next == unrecorded_.end() ? nullptr : (*next)->segment;
}

void ValueCache::RunRecorder() {
  while (true) {
    kvstore::SegmentRef next;
    {
      const kvstore::MutexLock lock(mu_);
      while (!stopping_ && (next = NextToRecord()) == nullptr) changed_.Wait(mu_);
      if (stopping_) break;
    }
    absl::Status status = store_->AwaitDurable(*next, absl::Now() + kPatience);
    next.reset();
    if (status.ok()) status = RecordDurable();
    if (status.ok() || absl::IsDeadlineExceeded(status)) continue;
    const kvstore::MutexLock lock(mu_);
    const absl::Time again = absl::Now() + kBackoff;
    while (!stopping_ && changed_.WaitUntil(mu_, again)) continue;
  }
}

absl::Status ValueCache::RecordDurable() {
  std::vector<std::pair<std::shared_ptr<StoredValue>, kvstore::SegmentRef>> candidates;
  {
    const kvstore::MutexLock lock(mu_);
    for (const std::shared_ptr<StoredValue>& value : unrecorded_) {
      if (candidates.size() == kRecordsMax) break;
      const auto is_same = [&](const auto& other) { return other.first == value; };
      if (value->segment == nullptr || value->busy ||
          std::any_of(candidates.begin(), candidates.end(), is_same)) {
        continue;
      }
      candidates.emplace_back(value, value->segment);
    }
  }
  std::erase_if(candidates, [this](const auto& candidate) {
    return store_->Durable(*candidate.second, 0).end_block < candidate.first->blocks();
  });
  std::vector<kvstore::Manifest> manifests;
  std::vector<std::shared_ptr<StoredValue>> recording;
  {
    const kvstore::MutexLock lock(mu_);
    for (auto& [value, segment] : candidates) {
      if (value->segment == nullptr || value->busy) continue;
      value->busy = true;
      recording.push_back(value);
      manifests.push_back({.name = value->name,
                           .attributes = EncodeValueRecord({.tenant = value->tenant,
                                                            .key = value->key,
                                                            .size = value->size,
                                                            .digest = value->digest,
                                                            .expires_us = value->expires_us}),
                           .ranges = {{segment, 0, value->blocks()}}});
    }
  }
  if (manifests.empty()) return absl::OkStatus();
  absl::Status status = store_->CommitManifests(manifests, absl::Now() + kPatience);
  const kvstore::MutexLock lock(mu_);
  for (const std::shared_ptr<StoredValue>& value : recording) {
    value->busy = false;
    value->recorded = value->recorded || status.ok();
  }
  if (status.ok()) {
    for (const std::shared_ptr<StoredValue>& value : recording) {
      unrecorded_.erase(std::find(unrecorded_.begin(), unrecorded_.end(), value));
    }
  }
  changed_.NotifyAll();
  return status;
}

absl::Status ValueCache::AwaitRecorded(absl::Time deadline) {
  if (!options_.records) return absl::OkStatus();
  const kvstore::MutexLock lock(mu_);
  while (!unrecorded_.empty() && changed_.WaitUntil(mu_, deadline)) continue;
  return unrecorded_.empty() ? absl::OkStatus()
                             : absl::DeadlineExceededError("waiting for values to reach the disk");
}

}  // namespace terrace::engine
