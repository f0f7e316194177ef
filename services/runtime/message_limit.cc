#include "services/runtime/message_limit.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"

namespace terrace::runtime {

absl::Status MessageTooLarge(absl::string_view what, uint64_t bytes, uint64_t bytes_max) {
  return engine::WithDetail(absl::InvalidArgumentError(absl::StrCat(
                                what, ": got a message of ", bytes, " bytes, expected at most ",
                                bytes_max, "; take fewer items, queries or rows at once")),
                            {.reason = "LIMIT_EXCEEDED",
                             .metadata = {{"max_message_bytes", absl::StrCat(bytes_max)}},
                             .retry_delay = std::nullopt});
}

}  // namespace terrace::runtime
