// KvEngine: sequences of K and V, and attention over them. The seam between a service and where
// the data lives: embedded (tiers in this process) or remote (kv-store shards). A service cannot
// tell them apart, and on one host both give the same bits (I10).
#ifndef TERRACE_SERVICES_ENGINE_KV_ENGINE_H_
#define TERRACE_SERVICES_ENGINE_KV_ENGINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/engine/geometry.h"
#include "services/engine/report.h"
#include "services/engine/sequence_info.h"
#include "services/engine/step.h"

namespace terrace::engine {

// How long each wait lasts at most of a call that came without a deadline: long beside what a busy
// disk takes for one call's bytes, short beside the patience of who watches one that hangs.
inline constexpr absl::Duration kCallPatience = absl::Seconds(30);
// The same of a step: a dense one may read a whole long sequence from disk.
inline constexpr absl::Duration kStepPatience = absl::Minutes(2);

// The deadline, or the end of the patience of who set none.
inline absl::Time WaitEnd(absl::Time deadline, absl::Duration patience,
                          absl::Time now = absl::Now()) {
  return deadline == absl::InfiniteFuture() ? now + patience : deadline;
}

// On whose behalf, and until when.
struct Caller {
  std::string tenant = "default";
  absl::Time deadline = absl::InfiniteFuture();

  // When a wait that begins now ends. A stream that has no deadline may go on for longer.
  absl::Time wait_end() const { return WaitEnd(deadline, kCallPatience); }
};

// K and V of consecutive positions of one layer, [n, kv_heads, head_dim] each.
struct AppendRequest {
  absl::string_view handle;
  uint64_t writer_epoch = 0;
  int layer = 0;
  int64_t position = 0;
  TensorView k;
  TensorView v;
  // Ids of the tokens at [token_position, token_position + token_ids.size()), rows of this layer or
  // not; those of rows that do not stand afterwards are not taken.
  int64_t token_position = 0;
  absl::Span<const uint32_t> token_ids = {};
};

// Tokens whose rows may be there already, and for what kind of sequence.
struct PrefixQuery {
  SequenceSpec spec;
  absl::Span<const uint32_t> token_ids;
  // Take rows, too, that came about under sparse attention.
  bool accept_sparse = false;
};

struct PrefixFound {
  // Of the query: whole blocks.
  int64_t tokens = 0;
  // Names the promise that they stay; empty without one.
  std::string lease;
  absl::Time lease_expires;
};

struct ParkReport {
  SequenceInfo info;
  // Memory that was given back: of rows, and of score index and value sums. Bytes.
  uint64_t freed_row_bytes = 0;
  uint64_t freed_index_bytes = 0;
  // Memory that the sequence still has, because others share it or read it. Bytes.
  uint64_t kept_bytes = 0;
};

struct Limits {
  int max_batch = 256;
  int64_t max_step_tokens = 4096;
  int64_t max_sequence_tokens = int64_t{4} << 20;
  int64_t max_sequences = 65536;
  // Of one tenant, without those that are closed and leases.
  int64_t max_tenant_sequences = 65536;
  // Rows and selections of one answer.
  int64_t max_answer_bytes = int64_t{1} << 30;
  // One value; a quarter of the lowest tier where that is less.
  uint64_t max_value_bytes = uint64_t{1} << 30;
  int64_t max_values = int64_t{1} << 18;
  // Keys of one call.
  int max_keys = 4096;
};

// How a list for people is made.
struct Listing {
  absl::Time deadline = absl::InfiniteFuture();
  // Unless null, gets an error for each store whose part the list lacks, naming it: none when the
  // tiers are in this process.
  std::vector<absl::Status>* unreachable = nullptr;
};

// Thread-safe. A sequence has one writer at a time: a second one is fenced by the epoch. Readers
// see a consistent length.
class KvEngine {
 public:
  virtual ~KvEngine() = default;

  // The returned epoch is what the caller writes with.
  virtual absl::StatusOr<SequenceInfo> Create(const Caller& caller, const SequenceSpec& spec) = 0;
  // A new sequence that begins with the longest prefix of the query that the caller's tenant has in
  // full blocks: length 0 when there is none. Shares them, and goes on where they end. A `lease`
  // ends with it; one that is unknown or has expired is ignored.
  virtual absl::StatusOr<SequenceInfo> OpenOnPrefix(const Caller& caller, const PrefixQuery& query,
                                                    absl::string_view lease) = 0;
  // How much of the query OpenOnPrefix would find. With a `lease` above zero that stays so until it
  // is over. ResourceExhausted when the tenant has too many leases.
  virtual absl::StatusOr<PrefixFound> LookupPrefix(const Caller& caller, const PrefixQuery& query,
                                                   absl::Duration lease) = 0;
  // OutOfRange beyond the length. An empty fingerprint is not compared.
  virtual absl::StatusOr<SequenceInfo> Fork(const Caller& caller, absl::string_view handle,
                                            int64_t position, absl::string_view fingerprint) = 0;
  // Takes over writing.
  virtual absl::StatusOr<SequenceInfo> Resume(const Caller& caller, absl::string_view handle,
                                              absl::string_view fingerprint) = 0;
  virtual absl::StatusOr<SequenceInfo> Get(const Caller& caller, absl::string_view handle) = 0;

  // Idempotent (I7). The layer's length afterwards.
  virtual absl::StatusOr<int64_t> Append(const Caller& caller, const AppendRequest& request) = 0;
  // OutOfRange beyond the length.
  virtual absl::StatusOr<SequenceInfo> Truncate(const Caller& caller, absl::string_view handle,
                                                uint64_t writer_epoch, int64_t length) = 0;
  virtual absl::StatusOr<SequenceInfo> Flush(const Caller& caller, absl::string_view handle) = 0;
  // Makes everything durable, then takes the sequence out of memory, once its steps have ended. It
  // stays open: whoever reads or writes it next brings back what he needs.
  // FailedPrecondition without a disk, and the errors of Flush; then all is where it was.
  virtual absl::StatusOr<ParkReport> Park(const Caller& caller, absl::string_view handle) = 0;
  // Nobody can name it afterwards. Its full blocks stay for its retention, if it has one.
  virtual absl::Status Delete(const Caller& caller, absl::string_view handle) = 0;

  // One step of one layer for a batch; one result per request, each with its own status (I9).
  virtual std::vector<StepResult> Attend(const Caller& caller, int layer,
                                         absl::Span<const StepRequest> requests,
                                         const StepOptions& options) = 0;

  // For people; all tenants. Unavailable when no store answers.
  virtual absl::StatusOr<std::vector<TierReport>> ListTiers(const Listing& listing = {}) = 0;
  // At most `limit` summaries with a handle after `after`, in order of handle.
  virtual absl::StatusOr<std::vector<SequenceSummary>> ListSequences(
      absl::string_view tenant, absl::string_view after, int limit,
      const Listing& listing = {}) = 0;
  virtual absl::StatusOr<SequenceDescription> Describe(
      absl::string_view handle, absl::Time deadline = absl::InfiniteFuture()) = 0;

  virtual Limits limits() const = 0;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_KV_ENGINE_H_
