// How an EmbeddedEngine shares prefixes: by forks, which need no rows copied at a block's end.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"

namespace terrace::engine {
namespace {

constexpr absl::Duration kLeaseMax = absl::Hours(1);
// Leases of one tenant: each is a manifest and some memory.
constexpr int kLeasesMax = 1024;

}  // namespace

absl::Status EmbeddedEngine::CheckQuery(const PrefixQuery& query) const {
  const int64_t tokens_max = options_.limits.max_sequence_tokens;
  if (static_cast<int64_t>(query.token_ids.size()) <= tokens_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("token_ids: got ", query.token_ids.size(), ", expected at most ", tokens_max));
}

PrefixMatch EmbeddedEngine::FindPrefix(const SequenceRecord& record,
                                       const PrefixQuery& query) const {
  const PrefixHasher hasher(record.tenant, record.spec,
                            static_cast<uint32_t>(options_.block_tokens), options_.prefix_digest);
  return prefixes_.Find(hasher, query.token_ids, query.accept_sparse);
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::OpenOnPrefix(const Caller& caller,
                                                          const PrefixQuery& query,
                                                          absl::string_view lease) {
  if (absl::Status status = CheckQuery(query); !status.ok()) return status;
  const absl::StatusOr<SequenceRecord> record = NewRecord(caller, query.spec);
  if (!record.ok()) return record.status();
  while (true) {
    const PrefixMatch match = FindPrefix(*record, query);
    absl::StatusOr<SequenceInfo> opened;
    if (match.blocks == 0) {
      opened = Create(caller, query.spec);
    } else {
      Sequence& holder = *match.holder;
      const SharedHold gate(holder.gate, caller.wait_end());
      if (!gate.held()) return NotBegun("open");
      // Whoever gives blocks up holds the gate until the index knows.
      if (!holder.Holds(match.blocks, match.last)) continue;
      holder.Touch(record->created);
      opened = ForkLocked(holder, int64_t{match.blocks} * holder.block_tokens(), *record,
                          caller.wait_end());
    }
    if (opened.ok() && !lease.empty()) EndLease(caller, lease);
    return opened;
  }
}

absl::StatusOr<PrefixFound> EmbeddedEngine::LookupPrefix(const Caller& caller,
                                                         const PrefixQuery& query,
                                                         absl::Duration lease) {
  if (absl::Status status = CheckQuery(query); !status.ok()) return status;
  const absl::StatusOr<SequenceRecord> record = NewRecord(caller, query.spec);
  if (!record.ok()) return record.status();
  if (lease < absl::ZeroDuration() || lease > kLeaseMax) {
    return absl::InvalidArgumentError(absl::StrCat("lease: got ", absl::FormatDuration(lease),
                                                   ", expected 0 to ",
                                                   absl::FormatDuration(kLeaseMax)));
  }
  while (true) {
    const PrefixMatch match = FindPrefix(*record, query);
    if (match.blocks == 0) return PrefixFound();
    Sequence& holder = *match.holder;
    const SharedHold gate(holder.gate, caller.wait_end());
    if (!gate.held()) return NotBegun("look-up");
    if (!holder.Holds(match.blocks, match.last)) continue;
    holder.Touch(record->created);
    PrefixFound found = {.tokens = int64_t{match.blocks} * holder.block_tokens(),
                         .lease = {},
                         .lease_expires = record->created + lease};
    if (lease > absl::ZeroDuration()) {
      absl::StatusOr<std::string> name =
          Lease(match, *record, found.lease_expires, caller.wait_end());
      if (!name.ok()) return name.status();
      found.lease = *std::move(name);
    }
    return found;
  }
}

// A lease is a retained fork without a segment of its own, so it needs nothing to be kept, found,
// brought back after a restart, or ended that a closed sequence does not need.
absl::StatusOr<std::string> EmbeddedEngine::Lease(const PrefixMatch& match,
                                                  const SequenceRecord& record, absl::Time until,
                                                  absl::Time deadline) {
  Sequence& holder = *match.holder;
  int leases = 0;
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) {
    leases += sequence->leased && sequence->tenant == record.tenant ? 1 : 0;
  }
  if (leases >= kLeasesMax) {
    return LimitExceeded(absl::StrCat("leases: got one more than the limit of ", kLeasesMax));
  }
  SequenceRecord retained = record;
  retained.retained_until = until;
  retained.leased = true;
  const std::shared_ptr<Sequence> lease = NewSequence(holder.layout, retained);
  const SharedHold gate(lease->gate, absl::InfiniteFuture());
  lease->ranges = holder.CutRanges(match.blocks);
  const int64_t length = int64_t{match.blocks} * holder.block_tokens();
  for (std::atomic<int64_t>& layer : lease->layer_length) layer = length;
  lease->InheritTokens(holder, length);
  if (absl::Status status = Publish(lease, deadline).status(); !status.ok()) return status;
  return lease->handle;
}

void EmbeddedEngine::EndLease(const Caller& caller, absl::string_view lease) {
  std::shared_ptr<Sequence> sequence;
  {
    const kvstore::MutexLock lock(mu_);
    const auto found = sequences_.find(lease);
    if (found == sequences_.end()) return;
    sequence = found->second;
  }
  if (!sequence->leased || sequence->tenant != caller.tenant) return;
  const SoleHold gate(sequence->gate, caller.wait_end());
  // What does not end now ends when its time comes.
  if (gate.held()) DropLocked(*sequence, caller.wait_end()).IgnoreError();
}

}  // namespace terrace::engine
