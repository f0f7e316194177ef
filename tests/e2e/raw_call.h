// A call of which only the method's name and the bytes of messages are known: health and
// reflection, whose types this build does not have.
#ifndef TERRACE_TESTS_E2E_RAW_CALL_H_
#define TERRACE_TESTS_E2E_RAW_CALL_H_

#include <memory>
#include <string>

namespace terrace::testing {

class RawCall {
 public:
  // Sends one message.
  RawCall(const std::string& address, const std::string& method, const std::string& message);
  ~RawCall();

  // The next answer; false when the call has ended.
  bool Next(std::string* answer);

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

// A grpc.health.v1 request for a service name, and its answers.
std::string HealthRequest(const std::string& service);
inline constexpr char kServing[] = "\x08\x01";
inline constexpr char kNotServing[] = "\x08\x02";

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_RAW_CALL_H_
