// Answers as JSON for scripts.
#ifndef TERRACE_SERVICES_TERRACECTL_JSON_H_
#define TERRACE_SERVICES_TERRACECTL_JSON_H_

#include <string>

#include "absl/status/statusor.h"

namespace google::protobuf {
class Message;
}

namespace terrace::terracectl {

// Protobuf JSON, indented, with the proto's field names and with fields that are zero; ends in a
// newline. Internal if the message has no JSON form (a timestamp out of range).
absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_JSON_H_
