#include "services/runtime/endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using runtime::ValidateEndpoint;
using ::testing::HasSubstr;

TEST(ValidateEndpoint, AcceptsAddressesAndRefusesTheRestByName) {
  for (const char* good :
       {"localhost:1", "127.0.0.1:7400", "terrace-0.terrace.svc.cluster.local:65535", "[::1]:7400",
        "unix:/run/t.sock", "unix:t.sock", "unix:///run/t.sock"}) {
    EXPECT_THAT(ValidateEndpoint(good), IsOk()) << good;
  }
  struct Case {
    const char* endpoint;
    const char* text;
  };
  const Case cases[] = {
      {"", "no port"},
      {"localhost", "no port"},
      {":7400", "no host"},
      {"localhost:", "a port is 1 to 65535"},
      {"localhost:0", "a port is 1 to 65535"},
      {"localhost:65536", "a port is 1 to 65535"},
      {"localhost:+80", "a port is 1 to 65535"},
      {"localhost:http", "a port is 1 to 65535"},
      {"::1:7400", "in brackets"},
      {"[::1:7400", "in brackets"},
      {"[]:7400", "in brackets"},
      {"http://localhost:7400", "no scheme or path"},
      {"dns:///localhost:7400", "no scheme or path"},
      {"unix:", "no path"},
      {"unix://", "no path"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(ValidateEndpoint(c.endpoint),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.text)))
        << c.endpoint;
  }
}

}  // namespace
}  // namespace terrace::testing
