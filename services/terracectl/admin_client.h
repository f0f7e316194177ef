// Calls of AdminService as terracectl makes them.
#ifndef TERRACE_SERVICES_TERRACECTL_ADMIN_CLIENT_H_
#define TERRACE_SERVICES_TERRACECTL_ADMIN_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "terrace/v1/admin.pb.h"

namespace terrace::terracectl {

struct ListOptions {
  // Only this tenant's sequences; empty for all.
  std::string tenant;
  // Per call, [1, 1000].
  uint32_t page_size = 1000;
  // 0 for no limit.
  uint64_t limit = 0;
};

// AdminClient asks one endpoint, in plain text, without a proxy. It connects with the first call.
// Errors keep the server's code and message; reason, metadata and retry delay of the error details
// are added to the message. Not thread-safe.
class AdminClient {
 public:
  // `timeout` is for each call. Requires: runtime::ValidateEndpoint(endpoint) is OK, timeout > 0.
  AdminClient(const std::string& endpoint, absl::Duration timeout);
  ~AdminClient();
  AdminClient(const AdminClient&) = delete;
  AdminClient& operator=(const AdminClient&) = delete;

  absl::StatusOr<v1::ListTiersResponse> ListTiers();

  // All pages as one answer, up to the limit; next_page_token is empty unless the limit cut it, and
  // `unreachable` has what any page lacks, once.
  // Internal if the server repeats a page token or sends more than was asked for.
  absl::StatusOr<v1::ListSequencesResponse> ListSequences(const ListOptions& options);

  absl::StatusOr<v1::DescribeSequenceResponse> DescribeSequence(const std::string& handle);

  // Whether a connection stands: it tells a server that refuses from one that is not there.
  bool Connected() const;

 private:
  struct Wire;
  std::unique_ptr<Wire> wire_;
};

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_ADMIN_CLIENT_H_
