// ValueCache: values by tenant and key, over segments of a block store. So they share budgets,
// placement, writing behind, verification and recovery with sequences.
//
// A value is visible when it is complete, and never changes (I2). It stays until it is deleted, has
// outlived its time, or is given up for room; a lease keeps it from the last. With a disk, its
// manifest is written after its blocks, behind the put: a crash leaves values as a whole or not at
// all, and costs those of the last moments. Reads are verified as the store's are (I1); a value
// that turns out corrupt is given up, so that it can be put again.
//
// Thread-safe. Readers and writers must not outlive it; parts that were read may.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_CACHE_H_
#define TERRACE_SERVICES_ENGINE_VALUE_CACHE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/kv_engine.h"
#include "services/engine/retained_set.h"
#include "services/engine/value.h"
#include "services/engine/value_reader.h"
#include "services/engine/value_writer.h"

namespace terrace::engine {

// Room that a put found none of.
struct RoomWanted {
  std::string tenant;
  // Beyond what the tenant has.
  uint64_t quota_bytes = 0;
  // Of host memory.
  uint64_t memory_bytes = 0;
  // Who wants it waits no longer.
  absl::Time deadline = absl::InfiniteFuture();
};

struct ValueCacheOptions {
  // Manifests are written behind.
  bool records = false;
  // What one tenant may have, values that are being put included. Bytes as stored.
  uint64_t tenant_bytes_max = 0;
  uint64_t value_bytes_max = 0;
  int64_t values_max = 0;
  // After so many bytes put, somebody looks whether the tiers are too full.
  uint64_t check_bytes = 0;
  // What ages are taken from.
  std::function<absl::Time()> clock = absl::Now;
  // Gives up what is retained, as far as there is need; whether it gave up anything. Called without
  // a lock.
  std::function<bool(const RoomWanted&)> make_room;
};

struct ValuesFound {
  // By key; 0 for those that are not there.
  std::vector<uint64_t> sizes;
  // How many of the first keys are there.
  size_t leading = 0;
  // InfinitePast without a lease.
  absl::Time lease_expires = absl::InfinitePast();
};

class ValueCache {
 public:
  ValueCache(std::shared_ptr<kvstore::BlockStore> store, ValueCacheOptions options);
  ~ValueCache();

  // Takes over what a manifest of an earlier run names. DataLoss when it is no value, not whole, or
  // not the only one of its key; FailedPrecondition when it is of a newer version.
  absl::Status Recover(const kvstore::Manifest& manifest);

  // What to give the bytes to. Idempotent: the same bytes again are OK and may prolong its time.
  // InvalidArgument for a key, size or time that is none; AlreadyExists at once when the size under
  // this key is another, else at the end; ResourceExhausted when quota or limit is reached and
  // nothing can go; Unavailable when the disk fails.
  absl::StatusOr<std::shared_ptr<ValueWriter>> Put(const Caller& caller, const ValueSpec& spec);
  // NotFound.
  absl::StatusOr<ValueReader> Get(const Caller& caller, absl::string_view key);
  // Which keys are there; all of them count as used. With a `lease` above zero they are not given
  // up for room until it is over; a restart ends it. InvalidArgument when it is out of range.
  absl::StatusOr<ValuesFound> Lookup(const Caller& caller, absl::Span<const std::string> keys,
                                     absl::Duration lease);
  // OK also for keys that there are none of. What was read of them before stays valid.
  // DeadlineExceeded, Unavailable: some may be still there.
  absl::Status Delete(const Caller& caller, absl::Span<const std::string> keys);

  // Waits until every value so far is on disk with its manifest. DeadlineExceeded.
  absl::Status AwaitRecorded(absl::Time deadline);

  // For sweeps. Drops values that have outlived their time, and puts that nobody goes on with.
  void Expire();
  // Adds all values, and counts what leases, readers and puts keep.
  void AddTo(RetainedSet& set);
  // Drops those that are still there and not kept by a lease or reader.
  void GiveUp(absl::Span<const std::shared_ptr<StoredValue>> values, absl::Time deadline);
  size_t size() const;
  uint64_t value_bytes_max() const { return options_.value_bytes_max; }

  // For writers. Makes a complete value visible, or, when its key has one, compares: AlreadyExists.
  // Takes over what was charged for it, either way.
  absl::Status Publish(const std::shared_ptr<StoredValue>& value, absl::Duration ttl,
                       absl::Time deadline);
  // The end of a put that compared itself with a value that was there.
  absl::Status Compare(const std::shared_ptr<StoredValue>& value, const ValueDigest& digest,
                       absl::Duration ttl);
  // Gives back what Put charged.
  void Refund(const std::string& tenant, uint64_t bytes);
  bool MakeRoom(const RoomWanted& wanted) { return options_.make_room(wanted); }
  // For readers. Between the two, a value is kept while its reader goes on.
  void NoteRead(StoredValue& value);
  void EndRead(StoredValue& value);
  // Gives a corrupt value up.
  void Discard(const std::shared_ptr<StoredValue>& value, absl::Time deadline);
  int64_t NowUs() const { return absl::ToUnixMicros(options_.clock()); }

 private:
  struct Tenant {
    // Values, and puts on their way.
    uint64_t bytes = 0;
    absl::flat_hash_map<std::string, std::shared_ptr<StoredValue>> values;
  };

  absl::Status Check(const ValueSpec& spec) const;
  // Null when there is none, or it has outlived its time.
  std::shared_ptr<StoredValue> Find(const std::string& tenant, absl::string_view key) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Charge(const std::string& tenant, uint64_t bytes);
  absl::Status ChargeOrMakeRoom(const Caller& caller, uint64_t bytes);
  void Insert(const std::shared_ptr<StoredValue>& value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Prolongs to `ttl` from now, if that is later.
  void Prolong(StoredValue& value, absl::Duration ttl) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EnqueueToRecord(const std::shared_ptr<StoredValue>& value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Deletes the manifests of values and then forgets them; those that are gone are passed over.
  absl::Status Drop(absl::Span<const std::shared_ptr<StoredValue>> values, absl::Time deadline);

  void RunRecorder();
  // The next whose manifest may be written; null when there is none.
  kvstore::SegmentRef NextToRecord() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Writes manifests of values whose blocks are on disk, many at once. OK when there was none.
  absl::Status RecordDurable();

  const std::shared_ptr<kvstore::BlockStore> store_;
  const ValueCacheOptions options_;

  mutable kvstore::Mutex mu_;
  // A value is not busy any more, or something or nothing is to be recorded, or it stops.
  kvstore::CondVar changed_;
  absl::flat_hash_map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mu_);
  // Values, and puts on their way.
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t unchecked_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::weak_ptr<ValueWriter>> writers_ ABSL_GUARDED_BY(mu_);
  // In the order of their puts; some may be gone.
  std::deque<std::shared_ptr<StoredValue>> unrecorded_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread recorder_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_CACHE_H_
