// What a client holds for a sequence: opaque, unguessable, and it names the shard.
// Text form: 's', the shard in 4 hex digits, '-', 32 hex digits of randomness.
#ifndef TERRACE_SERVICES_ENGINE_HANDLE_H_
#define TERRACE_SERVICES_ENGINE_HANDLE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace terrace::engine {

// 128 bits from the operating system's random source.
std::string NewHandle(uint16_t shard);

// The shard that a handle names; nothing when the text is not a handle.
std::optional<uint16_t> ShardOf(absl::string_view handle);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_HANDLE_H_
