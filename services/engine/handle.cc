#include "services/engine/handle.h"

#include <algorithm>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"

namespace terrace::engine {
namespace {

constexpr size_t kShardDigits = 4;
constexpr size_t kHandleSize = 1 + kShardDigits + 1 + 32;

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
  });
}

}  // namespace

std::string NewHandle(uint16_t shard) {
  std::random_device random;
  return absl::StrFormat("s%04x-%08x%08x%08x%08x", shard, random(), random(), random(), random());
}

std::optional<uint16_t> ShardOf(absl::string_view handle) {
  if (handle.size() != kHandleSize || handle[0] != 's' || handle[1 + kShardDigits] != '-') {
    return std::nullopt;
  }
  const absl::string_view shard = handle.substr(1, kShardDigits);
  if (!IsHex(shard) || !IsHex(handle.substr(2 + kShardDigits))) return std::nullopt;
  uint32_t number = 0;
  if (!absl::SimpleHexAtoi(shard, &number)) return std::nullopt;
  return static_cast<uint16_t>(number);
}

}  // namespace terrace::engine
