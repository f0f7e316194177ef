// ReferenceTrace: the references to blocks that a recorded trace amounts to, in order.
//
// Two kinds of file are understood. A step trace (services/engine/step_trace.h): each head of each
// step refers once to each block that it selected rows of, with the mass of those rows. A request
// trace: one JSON object per line,
//
//   {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
//
// where hash_ids names the prefix blocks of the prompt; each is one reference, of mass 1. The
// numbers are integers from 0 to 2^64 - 1; other members are ignored, and so are blank lines.
#ifndef TERRACE_SERVICES_REPLAY_REFERENCE_TRACE_H_
#define TERRACE_SERVICES_REPLAY_REFERENCE_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace terrace::replay {

struct ReferenceTrace {
  // Blocks, numbered in the order of their first reference.
  std::vector<uint32_t> blocks;
  // By reference; empty when all are 1.
  std::vector<float> masses;
  uint32_t distinct_blocks = 0;
  // Requests, or steps.
  uint64_t steps = 0;
  // Bytes at the end of a step trace that a recorder which died left unfinished.
  uint64_t torn_bytes = 0;
};

// Bytes of one line of a request trace.
inline constexpr size_t kMaxLineBytes = size_t{16} << 20;
// References of a trace: numbers of blocks have 32 bits.
inline constexpr size_t kMaxReferences = UINT32_MAX;

// Told the references read so far, now and then.
using ReadProgress = absl::FunctionRef<void(size_t references)>;

// NotFound when the file cannot be read; InvalidArgument or DataLoss when it is malformed, naming
// the file, the line or byte, what was got and what was expected.
absl::StatusOr<ReferenceTrace> ReadTrace(const std::string& path, ReadProgress progress);

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_REFERENCE_TRACE_H_
