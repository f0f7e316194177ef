// The stores that a worker knows, and which of them holds a sequence.
#ifndef TERRACE_SERVICES_KV_STORE_SHARD_SET_H_
#define TERRACE_SERVICES_KV_STORE_SHARD_SET_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/kv_store/shard.h"
#include "services/kv_store/shard_search.h"

namespace terrace::kv_store {

// OK if one of them is, else the first. Requires: there is one.
absl::Status AnyOk(const std::vector<absl::Status>& statuses);

// Thread-safe.
class ShardSet {
 public:
  // Of `threads` that call, at most an equal share waits for each store, if there are several.
  ShardSet(const std::vector<std::string>& endpoints, uint64_t max_message_bytes, int threads);

  // Asks every store who it is. FailedPrecondition when two are the same shard, Unavailable when
  // none answers; a store that does not is asked again when it is needed.
  absl::Status Connect(absl::Time deadline);

  // The shard that a handle names, as far as stores have said who they are. NotFound when the text
  // is no handle or no store is that shard; Unavailable while a store that is or was it does not
  // answer as such; FailedPrecondition when two stores say that they are it.
  absl::StatusOr<Shard*> Owner(absl::string_view handle);
  // Asks those that have not. Ends at the deadline, or in two seconds.
  ShardSearch Search(absl::Time deadline);
  // Owner, after a search if need be.
  absl::StatusOr<Shard*> ShardFor(absl::string_view handle, absl::Time deadline);
  // All, the best first for a new sequence.
  std::vector<Shard*> Preferred();
  // Those that have said who they are, by number.
  std::map<uint16_t, Shard*> Known();

  // Runs `ask` for every store that says who it is, all at once: one that hangs does not hold up
  // the others. `index` is the store's place in the list. What came of it, store by store; errors
  // are Unavailable and name their store.
  std::vector<absl::Status> AskAll(
      const std::function<absl::Status(Shard& shard, size_t index)>& ask, absl::Time deadline);
  // An error for each store that has not said who it is, or is lost.
  std::vector<absl::Status> Unreachable();

  void Cancel();
  size_t size() const { return shards_.size(); }

 private:
  absl::Status Duplicates();

  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_SHARD_SET_H_
