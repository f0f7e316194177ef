// Values for tests: bytes that follow from a seed, in and out of an engine's cache.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_VALUE_CLIENT_H_
#define TERRACE_TESTS_SERVICES_ENGINE_VALUE_CLIENT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/engine/embedded_engine.h"

namespace terrace::testing {

inline std::string ValueBytes(uint64_t seed, uint64_t size) {
  std::mt19937_64 random(seed * 0x9E3779B97F4A7C15u + size);
  std::string bytes(size, '\0');
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(&bytes[at], &word, std::min(sizeof(word), bytes.size() - at));
  }
  return bytes;
}

inline absl::Span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Says `size`, which may be wrong, then gives the bytes, `portion` at a time.
inline absl::Status PutSized(engine::EmbeddedEngine& engine, const engine::Caller& caller,
                             const engine::ValueSpec& spec, absl::string_view bytes,
                             size_t portion = 100'000) {
  auto writer = engine.values().Put(caller, spec);
  if (!writer.ok()) return writer.status();
  for (; !bytes.empty(); bytes.remove_prefix(std::min(portion, bytes.size()))) {
    const absl::Status status = (*writer)->Write(AsBytes(bytes.substr(0, portion)));
    if (!status.ok()) return status;
  }
  return (*writer)->Finish();
}

inline absl::Status PutValue(engine::EmbeddedEngine& engine, const std::string& key,
                             const std::string& bytes, absl::Duration ttl = {},
                             const engine::Caller& caller = {}, size_t portion = 100'000) {
  return PutSized(engine, caller, {.key = key, .size = bytes.size(), .ttl = ttl}, bytes, portion);
}

// All that `reader` has left.
inline absl::StatusOr<std::string> ReadAll(engine::ValueReader& reader,
                                           absl::Time deadline = absl::InfiniteFuture()) {
  std::string bytes;
  while (!reader.at_end()) {
    const auto part = reader.Next(uint64_t{1} << 20, deadline);
    if (!part.ok()) return part.status();
    for (const absl::Span<const std::byte> span : (*part)->spans) {
      bytes.append(reinterpret_cast<const char*>(span.data()), span.size());
    }
  }
  return bytes;
}

inline absl::StatusOr<std::string> GetValue(engine::EmbeddedEngine& engine, absl::string_view key,
                                            const engine::Caller& caller = {}) {
  auto reader = engine.values().Get(caller, key);
  if (!reader.ok()) return reader.status();
  return ReadAll(*reader);
}

inline bool HasValue(engine::EmbeddedEngine& engine, const std::string& key,
                     const engine::Caller& caller = {}) {
  return engine.values().Get(caller, key).ok();
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_VALUE_CLIENT_H_
