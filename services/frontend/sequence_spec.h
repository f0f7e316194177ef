// What a sequence of the attention service is made of, in the frontend's words.
#ifndef TERRACE_SERVICES_FRONTEND_SEQUENCE_SPEC_H_
#define TERRACE_SERVICES_FRONTEND_SEQUENCE_SPEC_H_

#include <cstdint>
#include <string>

#include "attention/dtype.h"
#include "services/frontend/llama_config.h"

namespace terrace::frontend {

enum class IndexFormat { kInt8, kExact };
enum class RemoteMode { kAuto, kRows, kPartial };

struct SequenceSpec {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  // Type in which the service stores K and V.
  attention::Dtype storage = attention::Dtype::kBFloat16;
  IndexFormat index = IndexFormat::kInt8;
  std::string fingerprint;

  // Bytes of K and V of one token in all layers, as stored.
  uint64_t token_bytes() const {
    return static_cast<uint64_t>(layers) * static_cast<uint64_t>(kv_heads) * 2 *
           static_cast<uint64_t>(head_dim) * attention::DtypeBytes(storage);
  }
};

// The spec of a model's sequences, without storage and index, which are the caller's choice.
inline SequenceSpec SpecOf(const LlamaConfig& config, const std::string& fingerprint) {
  SequenceSpec spec;
  spec.layers = config.layers;
  spec.query_heads = config.query_heads;
  spec.kv_heads = config.kv_heads;
  spec.head_dim = config.head_dim;
  spec.fingerprint = fingerprint;
  return spec;
}

// A sequence that this process writes on.
struct SequenceState {
  std::string handle;
  uint64_t epoch = 0;
  // Tokens that the service holds in every layer.
  int64_t length = 0;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_SEQUENCE_SPEC_H_
