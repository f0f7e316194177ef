// KeyValueClient: one connection to a server that keeps values under keys. Whatever fails ends the
// process.
#ifndef TERRACE_TESTS_BENCH_KEY_VALUE_CLIENT_H_
#define TERRACE_TESTS_BENCH_KEY_VALUE_CLIENT_H_

#include <cstddef>
#include <string>

#include "absl/types/span.h"

namespace terrace::bench {

// Not thread-safe: a thread has its own.
class KeyValueClient {
 public:
  virtual ~KeyValueClient() = default;

  // Returns when the server has the whole value.
  virtual void Put(const std::string& key, absl::Span<const std::byte> value) = 0;
  // Requires: the value has the size of `out`.
  virtual void Get(const std::string& key, absl::Span<std::byte> out) = 0;
  virtual void Delete(const std::string& key) = 0;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_KEY_VALUE_CLIENT_H_
