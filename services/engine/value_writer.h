// ValueWriter: takes the bytes of one put, in order, into open blocks of the store.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_WRITER_H_
#define TERRACE_SERVICES_ENGINE_VALUE_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/kv_engine.h"
#include "services/engine/value.h"

struct XXH3_state_s;

namespace terrace::engine {

class ValueCache;

// Blocks that are full are sealed at once, so a large value goes to disk while it comes; nobody can
// name it before Finish. Leaves nothing when it is destroyed before.
//
// Thread-safe; one thread at a time writes.
class ValueWriter {
 public:
  // Of a value that is there already: only compares.
  ValueWriter(ValueCache& cache, const Caller& caller, const ValueSpec& spec,
              std::shared_ptr<StoredValue> existing);
  // Of a new one, into a segment of ValueLayout(spec.size). The cache has charged for it.
  ValueWriter(ValueCache& cache, std::shared_ptr<kvstore::BlockStore> store, const Caller& caller,
              const ValueSpec& spec, kvstore::SegmentRef segment);
  ~ValueWriter();
  ValueWriter(const ValueWriter&) = delete;
  ValueWriter& operator=(const ValueWriter&) = delete;

  // InvalidArgument beyond the size; ResourceExhausted, DeadlineExceeded, Unavailable from the
  // store; Aborted after Abandon. After an error all further calls return it.
  absl::Status Write(absl::Span<const std::byte> bytes);
  // InvalidArgument when bytes are missing; AlreadyExists when other bytes are under the key.
  absl::Status Finish();

  // Ends the put if nobody has gone on with it for a minute before `now`.
  void AbandonIdle(absl::Time now);

 private:
  struct FreeHash {
    void operator()(XXH3_state_s* state) const;
  };

  absl::Status Take(absl::Span<const std::byte> bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OpenBlock() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SealBlock() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Lets go of what was written.
  void Abandon(absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  ValueCache& cache_;
  const std::shared_ptr<kvstore::BlockStore> store_;
  const Caller caller_;
  const ValueSpec spec_;
  // Null for a new one.
  const std::shared_ptr<StoredValue> existing_;

  kvstore::Mutex mu_;
  // Null when it compares, and when it has ended.
  kvstore::SegmentRef segment_ ABSL_GUARDED_BY(mu_);
  const uint32_t block_bytes_;
  // What the tenant has to give back if nobody takes it over.
  uint64_t charged_bytes_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<XXH3_state_s, FreeHash> hash_ ABSL_GUARDED_BY(mu_);
  uint64_t received_ ABSL_GUARDED_BY(mu_) = 0;
  // The block that is being filled, and how far it is; null between two.
  std::byte* open_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint32_t block_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t filled_ ABSL_GUARDED_BY(mu_) = 0;
  std::atomic<int64_t> last_write_us_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_WRITER_H_
