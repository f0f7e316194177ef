// ValueReader: the bytes of one value, part by part, where they lie.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_READER_H_
#define TERRACE_SERVICES_ENGINE_VALUE_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "services/engine/value.h"

namespace terrace::engine {

class ValueCache;

// Some of a value's bytes, pinned (I3) and verified (I1). Keeps the store alive.
struct ValuePart {
  std::shared_ptr<kvstore::BlockStore> store;
  kvstore::Pins pins;
  // In order.
  std::vector<absl::Span<const std::byte>> spans;
};

// While its parts are read, at most half a minute apart, the value is not given up for room.
// Move-only; not thread-safe.
class ValueReader {
 public:
  // The cache has counted it.
  ValueReader(ValueCache& cache, std::shared_ptr<kvstore::BlockStore> store,
              std::shared_ptr<StoredValue> value, kvstore::SegmentRef segment);
  ValueReader(ValueReader&&) = default;
  ~ValueReader();

  uint64_t size() const { return value_->size; }
  uint64_t position() const { return uint64_t{block_} * value_->block_bytes; }
  bool at_end() const { return block_ == value_->blocks(); }

  // The next `bytes`, in whole blocks and at least one. NotFound when the value is gone meanwhile;
  // DataLoss when it is corrupt: then it goes; DeadlineExceeded; ResourceExhausted: no memory to
  // read into; Unavailable: the disk fails.
  // Requires: not at_end().
  absl::StatusOr<std::shared_ptr<const ValuePart>> Next(uint64_t bytes, absl::Time deadline);

 private:
  ValueCache& cache_;
  std::shared_ptr<kvstore::BlockStore> store_;
  // Null when it was moved from. Counted among its readers.
  std::shared_ptr<StoredValue> value_;
  kvstore::SegmentRef segment_;
  uint32_t block_ = 0;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_READER_H_
