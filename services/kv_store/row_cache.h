// Rows that a worker got for a sequence's last step: adjacent steps select mostly the same ones.
#ifndef TERRACE_SERVICES_KV_STORE_ROW_CACHE_H_
#define TERRACE_SERVICES_KV_STORE_ROW_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "kvstore/mutex.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"

namespace terrace::kv_store {

// Rows of one layer of one sequence. Immutable once made.
struct RowSet {
  // held.positions has one entry per query and KV head.
  engine::HeldRows held;
  // One run per entry of held.positions, rows in their order.
  std::vector<std::byte> rows;
  // Pointers into rows, in order.
  std::vector<const std::byte*> pointers;

  size_t bytes() const;
};

// Joins what `before` held with what `part` (kRows) brought. `before` may be null.
// Internal when the rows do not add up.
absl::StatusOr<std::shared_ptr<const RowSet>> JoinRows(const RowSet* before,
                                                       const engine::StepPart& part);

// Bounded in bytes; the least recently used set goes first. Thread-safe.
class RowCache {
 public:
  explicit RowCache(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Null when there is none.
  std::shared_ptr<const RowSet> Get(const std::string& handle, int layer);
  void Put(const std::string& handle, int layer, std::shared_ptr<const RowSet> rows);
  // Drops all layers of a sequence.
  void Forget(const std::string& handle);

 private:
  using Key = std::pair<std::string, int>;
  struct Entry {
    std::shared_ptr<const RowSet> rows;
    std::list<Key>::iterator age;
  };

  void EraseLocked(std::map<Key, Entry>::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t bytes_max_;
  kvstore::Mutex mu_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mu_);
  // Most recently used first.
  std::list<Key> ages_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_ROW_CACHE_H_
