// DiskIndex: what a disk holds, by name and by segment, as far as its records can be read.
#ifndef TERRACE_KVSTORE_DISK_INDEX_H_
#define TERRACE_KVSTORE_DISK_INDEX_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/block_key.h"
#include "kvstore/block_store.h"
#include "kvstore/disk_record.h"

namespace terrace::kvstore {

class DiskDatabase;

struct DiskIndex {
  std::vector<std::pair<std::string, ManifestRecord>> manifests;
  std::vector<std::pair<SegmentId, std::vector<DurableExtent>>> watermarks;
  // Records that are corrupt: whatever they stood for is not served, nor deleted.
  std::vector<absl::Status> damage;
  // Segments whose watermark is among them.
  std::vector<SegmentId> unreadable;
  // There may have been more records than those that were found.
  bool incomplete = false;
};

// Unavailable when reading fails; what is corrupt is part of the answer.
absl::StatusOr<DiskIndex> ReadDiskIndex(DiskDatabase& database);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_INDEX_H_
