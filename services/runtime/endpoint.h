// Addresses of daemons, as people write them.
#ifndef TERRACE_SERVICES_RUNTIME_ENDPOINT_H_
#define TERRACE_SERVICES_RUNTIME_ENDPOINT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace terrace::runtime {

// HOST:PORT, [IPV6]:PORT or unix:PATH. InvalidArgument says what is wrong.
absl::Status ValidateEndpoint(absl::string_view endpoint);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_ENDPOINT_H_
