// A value: opaque bytes under an opaque key of one tenant, which never change. What connectors put
// in and get back.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_H_
#define TERRACE_SERVICES_ENGINE_VALUE_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/time/time.h"
#include "kvstore/block_store.h"

namespace terrace::engine {

// XXH3-128 of a value's bytes.
struct ValueDigest {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const ValueDigest&, const ValueDigest&) = default;
};

// What a put says before the bytes.
struct ValueSpec {
  // 1 to kValueKeyBytesMax bytes.
  std::string key;
  // At least 1.
  uint64_t size = 0;
  // From the end of the put on, it is there for so long. Zero: until it is given up for room.
  absl::Duration ttl = absl::ZeroDuration();
};

inline constexpr size_t kValueKeyBytesMax = 128;

// A value that is complete, in the segment that holds it and nothing else.
struct StoredValue {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  std::string tenant;
  std::string key;
  uint64_t size = 0;
  ValueDigest digest;
  uint32_t block_bytes = 0;
  // Of its manifest.
  std::string name;
  std::atomic<int64_t> last_used_us = 0;

  // What follows is guarded by the mutex of the cache.
  int64_t expires_us = kNever;
  int64_t leased_until_us = 0;
  // While somebody reads it, and until when they are waited for.
  int readers = 0;
  int64_t read_until_us = 0;
  // Null when it is gone.
  kvstore::SegmentRef segment;
  // Its manifest is on disk.
  bool recorded = false;
  // Somebody writes or deletes its manifest.
  bool busy = false;

  // It is not to be given up.
  bool kept(int64_t now_us) const {
    return leased_until_us > now_us || (readers > 0 && read_until_us > now_us);
  }
  uint32_t blocks() const { return static_cast<uint32_t>((size + block_bytes - 1) / block_bytes); }
  // What it takes of a tier.
  uint64_t stored_bytes() const { return uint64_t{blocks()} * block_bytes; }
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_H_
