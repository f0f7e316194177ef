#include "services/engine/value_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/engine/value_layout.h"
#include "services/engine/value_record.h"

namespace terrace::engine {
namespace {

constexpr absl::Duration kLeaseMax = absl::Hours(1);
// How long a reader keeps its value between two parts.
constexpr absl::Duration kReadPatience = absl::Seconds(30);
// Keeps the sum of now and a time to live within the clock.
constexpr absl::Duration kTtlMax = absl::Hours(24 * 365 * 10);

absl::Status Refuse(absl::string_view field, absl::string_view got, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": got ", got, ", expected ", expected));
}

}  // namespace

ValueCache::ValueCache(std::shared_ptr<kvstore::BlockStore> store, ValueCacheOptions options)
    : store_(std::move(store)), options_(std::move(options)) {
  if (options_.records) recorder_ = std::thread([this] { RunRecorder(); });
}

ValueCache::~ValueCache() {
  {
    const kvstore::MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (recorder_.joinable()) recorder_.join();
}

absl::Status ValueCache::Check(const ValueSpec& spec) const {
  if (spec.key.empty() || spec.key.size() > kValueKeyBytesMax) {
    return Refuse("key", absl::StrCat(spec.key.size(), " bytes"),
                  absl::StrCat("1 to ", kValueKeyBytesMax));
  }
  if (spec.size == 0 || spec.size > options_.value_bytes_max) {
    return Refuse("size_bytes", absl::StrCat(spec.size),
                  absl::StrCat("1 to ", options_.value_bytes_max));
  }
  if (spec.ttl < absl::ZeroDuration() || spec.ttl > kTtlMax) {
    return Refuse("ttl", absl::FormatDuration(spec.ttl),
                  absl::StrCat("0 to ", absl::FormatDuration(kTtlMax)));
  }
  return absl::OkStatus();
}

std::shared_ptr<StoredValue> ValueCache::Find(const std::string& tenant,
                                              absl::string_view key) const {
  const auto owner = tenants_.find(tenant);
  if (owner == tenants_.end()) return nullptr;
  const auto found = owner->second.values.find(key);
  if (found == owner->second.values.end()) return nullptr;
  return found->second->expires_us > NowUs() ? found->second : nullptr;
}

bool ValueCache::Charge(const std::string& tenant, uint64_t bytes) {
  const kvstore::MutexLock lock(mu_);
  const auto owner = tenants_.find(tenant);
  const uint64_t has = owner == tenants_.end() ? 0 : owner->second.bytes;
  if (has + bytes > options_.tenant_bytes_max || count_ >= options_.values_max) return false;
  tenants_[tenant].bytes += bytes;
  ++count_;
  return true;
}

void ValueCache::Refund(const std::string& tenant, uint64_t bytes) {
  const kvstore::MutexLock lock(mu_);
  const auto owner = tenants_.find(tenant);
  owner->second.bytes -= bytes;
  --count_;
  if (owner->second.bytes == 0) tenants_.erase(owner);
}

absl::Status ValueCache::ChargeOrMakeRoom(const Caller& caller, uint64_t bytes) {
  if (bytes > options_.tenant_bytes_max) {
    return LimitExceeded(absl::StrCat("a value that takes ", bytes, " bytes, a tenant may have ",
                                      options_.tenant_bytes_max));
  }
  bool check = false;
  {
    const kvstore::MutexLock lock(mu_);
    unchecked_bytes_ += bytes;
    check = unchecked_bytes_ >= options_.check_bytes;
    if (check) unchecked_bytes_ = 0;
  }
  if (check) options_.make_room({.tenant = caller.tenant, .deadline = caller.wait_end()});
  if (Charge(caller.tenant, bytes)) return absl::OkStatus();
  options_.make_room(
      {.tenant = caller.tenant, .quota_bytes = bytes, .deadline = caller.wait_end()});
  if (Charge(caller.tenant, bytes)) return absl::OkStatus();
  return NoRoom(absl::StrCat("values: ", bytes, " bytes more than a tenant may have (",
                             options_.tenant_bytes_max, "), or one more than ", options_.values_max,
                             " values, and nothing can be given up"));
}

absl::StatusOr<std::shared_ptr<ValueWriter>> ValueCache::Put(const Caller& caller,
                                                             const ValueSpec& spec) {
  if (absl::Status status = Check(spec); !status.ok()) return status;
  std::shared_ptr<ValueWriter> writer;
  {
    const kvstore::MutexLock lock(mu_);
    if (std::shared_ptr<StoredValue> value = Find(caller.tenant, spec.key)) {
      if (value->size != spec.size) return ValueConflict();
      value->last_used_us = NowUs();
      return std::make_shared<ValueWriter>(*this, caller, spec, std::move(value));
    }
  }
  const kvstore::BlockLayout layout = ValueLayout(spec.size);
  const uint64_t blocks = (spec.size + layout.row_bytes - 1) / layout.row_bytes;
  const uint64_t bytes = blocks * layout.row_bytes;
  if (absl::Status status = ChargeOrMakeRoom(caller, bytes); !status.ok()) return status;
  absl::StatusOr<kvstore::SegmentRef> segment = store_->CreateSegment(layout, 0);
  if (!segment.ok()) {
    Refund(caller.tenant, bytes);
    return absl::IsUnavailable(segment.status()) ? TierUnavailable(segment.status().message())
                                                 : segment.status();
  }
  writer = std::make_shared<ValueWriter>(*this, store_, caller, spec, *std::move(segment));
  const kvstore::MutexLock lock(mu_);
  std::erase_if(writers_, [](const auto& weak) { return weak.expired(); });
  writers_.push_back(writer);
  return writer;
}

void ValueCache::Prolong(StoredValue& value, absl::Duration ttl) {
  const int64_t expires_us =
      ttl == absl::ZeroDuration() ? StoredValue::kNever : NowUs() + absl::ToInt64Microseconds(ttl);
  value.last_used_us = NowUs();
  value.expires_us = std::max(value.expires_us, expires_us);
}

void ValueCache::Insert(const std::shared_ptr<StoredValue>& value) {
  value->name = ValueManifestName(store_->id(*value->segment));
  tenants_[value->tenant].values.emplace(value->key, value);
}

absl::Status ValueCache::Publish(const std::shared_ptr<StoredValue>& value, absl::Duration ttl,
                                 absl::Time deadline) {
  // Of one under this key that has outlived its time.
  absl::Status dropped = absl::OkStatus();
  while (dropped.ok()) {
    std::shared_ptr<StoredValue> old;
    bool lives = false;
    {
      const kvstore::MutexLock lock(mu_);
      auto& values = tenants_[value->tenant].values;
      const auto found = values.find(value->key);
      if (found == values.end()) {
        value->expires_us = 0;
        Prolong(*value, ttl);
        Insert(value);
        EnqueueToRecord(value);
        return absl::OkStatus();
      }
      old = found->second;
      lives = old->expires_us > NowUs();
    }
    if (lives) {
      Refund(value->tenant, value->stored_bytes());
      return old->size == value->size ? Compare(old, value->digest, ttl) : ValueConflict();
    }
    dropped = Drop({&old, 1}, deadline);
  }
  Refund(value->tenant, value->stored_bytes());
  return dropped;
}

absl::Status ValueCache::Compare(const std::shared_ptr<StoredValue>& value,
                                 const ValueDigest& digest, absl::Duration ttl) {
  if (value->digest != digest) return ValueConflict();
  const kvstore::MutexLock lock(mu_);
  const int64_t before = value->expires_us;
  Prolong(*value, ttl);
  // Its manifest says how long it lasts.
  if (value->expires_us != before) EnqueueToRecord(value);
  return absl::OkStatus();
}

absl::StatusOr<ValueReader> ValueCache::Get(const Caller& caller, absl::string_view key) {
  const kvstore::MutexLock lock(mu_);
  std::shared_ptr<StoredValue> value = Find(caller.tenant, key);
  if (value == nullptr) return ValueNotFound();
  value->last_used_us = NowUs();
  ++value->readers;
  value->read_until_us = NowUs() + absl::ToInt64Microseconds(kReadPatience);
  kvstore::SegmentRef segment = value->segment;
  return ValueReader(*this, store_, std::move(value), std::move(segment));
}

void ValueCache::NoteRead(StoredValue& value) {
  const kvstore::MutexLock lock(mu_);
  value.read_until_us = NowUs() + absl::ToInt64Microseconds(kReadPatience);
}

void ValueCache::EndRead(StoredValue& value) {
  const kvstore::MutexLock lock(mu_);
  --value.readers;
}

absl::StatusOr<ValuesFound> ValueCache::Lookup(const Caller& caller,
                                               absl::Span<const std::string> keys,
                                               absl::Duration lease) {
  if (lease < absl::ZeroDuration() || lease > kLeaseMax) {
    return Refuse("lease", absl::FormatDuration(lease),
                  absl::StrCat("0 to ", absl::FormatDuration(kLeaseMax)));
  }
  ValuesFound found;
  const kvstore::MutexLock lock(mu_);
  const int64_t now_us = NowUs();
  const int64_t leased_until_us = now_us + absl::ToInt64Microseconds(lease);
  for (const std::string& key : keys) {
    const std::shared_ptr<StoredValue> value = Find(caller.tenant, key);
    found.sizes.push_back(value == nullptr ? 0 : value->size);
    if (value == nullptr) continue;
    if (found.leading + 1 == found.sizes.size()) ++found.leading;
    value->last_used_us = now_us;
    if (lease == absl::ZeroDuration()) continue;
    value->leased_until_us = std::max(value->leased_until_us, leased_until_us);
    found.lease_expires = absl::FromUnixMicros(leased_until_us);
  }
  return found;
}

absl::Status ValueCache::Delete(const Caller& caller, absl::Span<const std::string> keys) {
  std::vector<std::shared_ptr<StoredValue>> values;
  {
    const kvstore::MutexLock lock(mu_);
    for (const std::string& key : keys) {
      std::shared_ptr<StoredValue> value = Find(caller.tenant, key);
      if (value != nullptr) values.push_back(std::move(value));
    }
  }
  return Drop(values, caller.wait_end());
}

void ValueCache::Discard(const std::shared_ptr<StoredValue>& value, absl::Time deadline) {
  // While it stays, whoever asks for it is told of the damage.
  Drop({&value, 1}, deadline).IgnoreError();
}

absl::Status ValueCache::Drop(absl::Span<const std::shared_ptr<StoredValue>> values,
                              absl::Time deadline) {
  std::vector<std::shared_ptr<StoredValue>> leaving;
  std::vector<std::string> names;
  absl::Status status = absl::OkStatus();
  {
    const kvstore::MutexLock lock(mu_);
    const auto any_busy = [&values]() {
      return std::any_of(values.begin(), values.end(),
                         [](const auto& value) { return value->busy; });
    };
    // For all of them before any is claimed, so that nobody waits for who waits for him.
    while (any_busy() && changed_.WaitUntil(mu_, deadline)) continue;
    if (any_busy()) status = absl::DeadlineExceededError("waiting for the disk");
    for (const std::shared_ptr<StoredValue>& value : values) {
      if (value->busy || value->segment == nullptr) continue;
      value->busy = true;
      leaving.push_back(value);
      if (value->recorded) names.push_back(value->name);
    }
  }
  absl::Status deleted = absl::OkStatus();
  if (!names.empty()) deleted = store_->DeleteManifests(names, deadline);
  // They may be the last references, and take the store's lock.
  std::vector<kvstore::SegmentRef> segments;
  const kvstore::MutexLock lock(mu_);
  for (const std::shared_ptr<StoredValue>& value : leaving) {
    value->busy = false;
    if (!deleted.ok()) continue;
    segments.push_back(std::exchange(value->segment, nullptr));
    const auto owner = tenants_.find(value->tenant);
    owner->second.values.erase(value->key);
    owner->second.bytes -= value->stored_bytes();
    if (owner->second.bytes == 0) tenants_.erase(owner);
    --count_;
  }
  changed_.NotifyAll();
  if (absl::IsUnavailable(deleted)) return TierUnavailable(deleted.message());
  return deleted.ok() ? status : deleted;
}

void ValueCache::GiveUp(absl::Span<const std::shared_ptr<StoredValue>> values,
                        absl::Time deadline) {
  std::vector<std::shared_ptr<StoredValue>> loose;
  {
    const kvstore::MutexLock lock(mu_);
    for (const std::shared_ptr<StoredValue>& value : values) {
      if (!value->kept(NowUs())) loose.push_back(value);
    }
  }
  // What cannot go now goes with another sweep.
  Drop(loose, deadline).IgnoreError();
}

void ValueCache::AddTo(RetainedSet& set) {
  const kvstore::MutexLock lock(mu_);
  const int64_t now_us = NowUs();
  for (const auto& [name, tenant] : tenants_) {
    uint64_t kept = tenant.bytes;
    for (const auto& [key, value] : tenant.values) {
      if (value->kept(now_us)) continue;
      const uint64_t bytes = value->stored_bytes();
      kept -= bytes;
      set.Add(name, {.last_used_us = value->last_used_us, .bytes = bytes, .what = value});
    }
    set.Count(name, kept);
  }
}

void ValueCache::Expire() {
  const absl::Time now = options_.clock();
  std::vector<std::shared_ptr<StoredValue>> expired;
  std::vector<std::shared_ptr<ValueWriter>> writers;
  {
    const kvstore::MutexLock lock(mu_);
    for (const auto& [name, tenant] : tenants_) {
      for (const auto& [key, value] : tenant.values) {
        if (value->expires_us <= absl::ToUnixMicros(now)) expired.push_back(value);
      }
    }
    for (const std::weak_ptr<ValueWriter>& weak : writers_) {
      if (std::shared_ptr<ValueWriter> writer = weak.lock()) writers.push_back(std::move(writer));
    }
  }
  for (const std::shared_ptr<ValueWriter>& writer : writers) writer->AbandonIdle(now);
  // What cannot go now goes with the next sweep.
  if (!expired.empty()) Drop(expired, absl::Now() + absl::Seconds(1)).IgnoreError();
}

size_t ValueCache::size() const {
  const kvstore::MutexLock lock(mu_);
  size_t size = 0;
  for (const auto& [name, tenant] : tenants_) size += tenant.values.size();
  return size;
}

}  // namespace terrace::engine
