#include "services/runtime/endpoint.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace terrace::runtime {

absl::Status ValidateEndpoint(absl::string_view endpoint) {
  constexpr char kExpected[] = "expected HOST:PORT, [IPV6]:PORT or unix:PATH";
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("got \"", endpoint, "\" (", why, "), ", kExpected));
  };
  if (absl::StartsWith(endpoint, "unix:")) {
    const absl::string_view path = endpoint.substr(5);
    return path.empty() || path == "//" ? refuse("no path") : absl::OkStatus();
  }
  if (absl::StrContains(endpoint, "/")) return refuse("no scheme or path belongs here");
  const size_t colon = endpoint.rfind(':');
  if (colon == absl::string_view::npos) return refuse("no port");
  const absl::string_view host = endpoint.substr(0, colon);
  if (host.empty()) return refuse("no host");
  const bool bracketed = host.front() == '[' && host.back() == ']' && host.size() > 2;
  if (!bracketed && host.find_first_of(":[]") != absl::string_view::npos) {
    return refuse("an IPv6 address goes in brackets");
  }
  const absl::string_view port_text = endpoint.substr(colon + 1);
  uint32_t port = 0;
  const bool digits = port_text.find_first_not_of("0123456789") == absl::string_view::npos;
  if (!digits || !absl::SimpleAtoi(port_text, &port) || port < 1 || port > 65535) {
    return refuse("a port is 1 to 65535");
  }
  return absl::OkStatus();
}

}  // namespace terrace::runtime
