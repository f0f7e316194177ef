// What fits one message. gRPC ends a stream over a message that does not, and with it every step in
// flight on it: so sizes are checked where messages are made, and only what is too large fails.
#ifndef TERRACE_SERVICES_RUNTIME_MESSAGE_LIMIT_H_
#define TERRACE_SERVICES_RUNTIME_MESSAGE_LIMIT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/runtime/status_convert.h"

namespace terrace::runtime {

// What a message from worker to store may have beyond a client's: it holds that one, and says for
// whom and what the worker has already.
inline constexpr uint64_t kHopBytes = uint64_t{1} << 20;

// InvalidArgument, LIMIT_EXCEEDED: no retry makes it smaller.
absl::Status MessageTooLarge(absl::string_view what, uint64_t bytes, uint64_t bytes_max);

// Replaces results of `response` that do not fit by an error. What a step appended stands.
template <typename Response>
void FitResults(uint64_t bytes_max, Response* response) {
  // Of the message around the results, and of each result's field.
  constexpr uint64_t kFrameBytes = 64;
  constexpr uint64_t kFieldBytes = 8;
  uint64_t total = kFrameBytes;
  for (auto& result : *response->mutable_results()) {
    const uint64_t bytes = result.ByteSizeLong() + kFieldBytes;
    if (total + bytes <= bytes_max) {
      total += bytes;
      continue;
    }
    const bool appended = result.appended();
    const uint64_t layer_length = result.layer_length();
    result.Clear();
    *result.mutable_status() = ToRpcStatus(MessageTooLarge("answer", total + bytes, bytes_max));
    result.set_appended(appended);
    result.set_layer_length(layer_length);
  }
}

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_MESSAGE_LIMIT_H_
