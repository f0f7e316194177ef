// BlockClient: PutBlocks, GetBlocks and DeleteBlocks over one connection, data by reference: what a
// connector in C++ would do.
#ifndef TERRACE_TESTS_BENCH_BLOCK_CLIENT_H_
#define TERRACE_TESTS_BENCH_BLOCK_CLIENT_H_

#include <memory>
#include <string>

#include "tests/bench/key_value_client.h"

namespace terrace::bench {

class BlockClient final : public KeyValueClient {
 public:
  // To 127.0.0.1; waits until the store serves.
  explicit BlockClient(int port);
  ~BlockClient() override;

  void Put(const std::string& key, absl::Span<const std::byte> value) override;
  void Get(const std::string& key, absl::Span<std::byte> out) override;
  void Delete(const std::string& key) override;

 private:
  struct Rep;
  class Stream;

  const std::unique_ptr<Rep> rep_;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_BLOCK_CLIENT_H_
