// RedisClient: SET, GET and DEL with as little as that takes, so that the server is what is
// measured: a value goes from the caller's memory to the socket and back without another copy.
// (hiredis copies values twice either way.)
#ifndef TERRACE_TESTS_BENCH_REDIS_CLIENT_H_
#define TERRACE_TESTS_BENCH_REDIS_CLIENT_H_

#include <string>
#include <vector>

#include "tests/bench/key_value_client.h"

namespace terrace::bench {

class RedisClient final : public KeyValueClient {
 public:
  // To 127.0.0.1.
  explicit RedisClient(int port);
  ~RedisClient() override;

  void Put(const std::string& key, absl::Span<const std::byte> value) override;
  void Get(const std::string& key, absl::Span<std::byte> out) override;
  void Delete(const std::string& key) override;

 private:
  // All of them, in order.
  void Send(std::vector<absl::Span<const std::byte>> pieces);
  // A line of the reply, without its end.
  std::string Line();
  void Receive(absl::Span<std::byte> out);

  int fd_ = -1;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_REDIS_CLIENT_H_
