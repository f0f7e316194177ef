// What a tier holds and what went through it. Conservation (I8), for blocks of rows and their
// bytes: admitted = resident + evicted + deleted.
#ifndef TERRACE_KVSTORE_TIER_STATS_H_
#define TERRACE_KVSTORE_TIER_STATS_H_

#include <cstdint>
#include <string>

namespace terrace::kvstore {

struct TierStats {
  uint64_t capacity_bytes = 0;
  // Bytes taken from the budget, never more than it: memory extents handed out, or physical bytes
  // on disk.
  uint64_t used_bytes = 0;
  // Bytes that pins or unwritten blocks keep in place.
  uint64_t pinned_bytes = 0;

  uint64_t resident_blocks = 0;
  uint64_t admitted_blocks = 0;
  uint64_t evicted_blocks = 0;
  uint64_t deleted_blocks = 0;
  uint64_t resident_bytes = 0;
  uint64_t admitted_bytes = 0;
  uint64_t evicted_bytes = 0;
  uint64_t deleted_bytes = 0;

  // Memory. Of those evicted: in the background, before somebody had to wait for it.
  uint64_t demoted_blocks = 0;
  // Reads that were served and found no place worth theirs.
  uint64_t bypassed_blocks = 0;
  // Blocks of which cells were read ahead of a request. Then one came when some of them were there,
  // or still loading, or none: it wanted others, or they were evicted first.
  // ahead = useful + late + wasted + those that nobody has asked for yet.
  uint64_t ahead_blocks = 0;
  uint64_t ahead_useful_blocks = 0;
  uint64_t ahead_late_blocks = 0;
  uint64_t ahead_wasted_blocks = 0;

  // Bytes of stripes (memory) or pieces (disk).
  uint64_t index_bytes = 0;

  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t error_count = 0;
  std::string last_error;
  uint64_t corrupt_granules = 0;
  // Disk: cells (granules of rows, or pieces) of blocks that are there, found corrupt since start
  // and not read again.
  uint64_t quarantined_cells = 0;

  // Disk: reads bypass the page cache, as asked for and where the file system can.
  bool direct_reads = false;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_TIER_STATS_H_
