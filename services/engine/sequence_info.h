// What a sequence is and how far it goes.
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_INFO_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_INFO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/score_index.h"
#include "services/engine/geometry.h"

namespace terrace::engine {

// Fixed when the sequence is opened.
struct SequenceSpec {
  Geometry geometry;
  std::string model_fingerprint;
  std::string adapter_id;
  attention::IndexFormat index_format = attention::IndexFormat::kInt8;
  // Blocks are shared among sequences of one tenant that have the same salt.
  std::string sharing_salt = {};
  // A sequence that nobody has used for so long is deleted. Zero: never.
  absl::Duration idle_ttl = absl::ZeroDuration();
  // For so long after it was closed, its full blocks go on to serve prefixes. Zero: not at all.
  absl::Duration retention = absl::ZeroDuration();
};

struct SequenceInfo {
  std::string handle;
  // Tokens held in every layer.
  int64_t length = 0;
  // Tokens that a crash would leave.
  int64_t durable_length = 0;
  uint64_t writer_epoch = 0;
  SequenceSpec spec;
  int block_tokens = 0;
  std::vector<int64_t> layer_lengths;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_INFO_H_
