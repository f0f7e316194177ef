// What people ask about tiers and sequences.
#ifndef TERRACE_SERVICES_ENGINE_REPORT_H_
#define TERRACE_SERVICES_ENGINE_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/tier_stats.h"
#include "services/engine/sequence_info.h"
#include "services/engine/step.h"

namespace terrace::engine {

// One tier of one shard.
struct TierReport {
  uint32_t shard = 0;
  Tier tier = Tier::kHost;
  kvstore::TierStats stats;
};

struct SequenceSummary {
  std::string handle;
  std::string tenant;
  std::string model_fingerprint;
  int64_t length = 0;
  int64_t durable_length = 0;
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  // On disk only, by a park or a restart, and nobody has read or written rows since. What it shares
  // with others may be in memory.
  bool parked = false;
  absl::Time created;
  absl::Time last_used;
  // Why it is not served, or not described in full; empty for all others.
  std::string problem = {};
};

// Blocks of one layer, all KV heads; a block may be in several tiers.
struct LayerResidency {
  int layer = 0;
  int64_t length = 0;
  // Sealed ones.
  uint64_t blocks = 0;
  // In memory, at least some of their rows; open blocks too.
  uint64_t host_blocks = 0;
  // Sealed ones.
  uint64_t disk_blocks = 0;
  uint64_t host_row_bytes = 0;
  uint64_t host_index_bytes = 0;
  uint64_t disk_bytes = 0;
};

struct SegmentSpan {
  uint64_t segment = 0;
  uint32_t first_block = 0;
  // 0 marks the segment being written.
  uint32_t end_block = 0;
};

struct SequenceDescription {
  SequenceSummary summary;
  SequenceInfo info;
  std::vector<LayerResidency> layers;
  std::vector<SegmentSpan> segments;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_REPORT_H_
