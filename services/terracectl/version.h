// What this program is built from.
#ifndef TERRACE_SERVICES_TERRACECTL_VERSION_H_
#define TERRACE_SERVICES_TERRACECTL_VERSION_H_

#include <string>

#include "services/terracectl/args.h"

namespace terrace::terracectl {

// Versions of terracectl and of the gRPC and protobuf libraries that it runs with; ends in a
// newline. JSON has them under "terracectl", "grpc" and "protobuf".
std::string VersionText(OutputFormat format);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_VERSION_H_
