// An AdminService that answers what a test tells it to, on a server of its own.
#ifndef TERRACE_TESTS_SERVICES_TERRACECTL_FAKE_ADMIN_H_
#define TERRACE_TESTS_SERVICES_TERRACECTL_FAKE_ADMIN_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "terrace/v1/admin.grpc.pb.h"

namespace terrace::testing {

// What the fake says. Faults of a server that a client must survive are in here too.
struct AdminScript {
  v1::ListTiersResponse tiers;
  std::vector<v1::SequenceSummary> sequences;
  // Messages of what each page of sequences lacks; pages beyond them lack nothing.
  std::vector<std::vector<std::string>> page_lacks;
  v1::DescribeSequenceResponse description;
  // When not OK, the answer to every call.
  grpc::Status refusal;
  // From the page of this index on (0 for never), calls are answered with `refusal`.
  int refuse_from_page = 0;
  // Calls wait until the fake is released.
  bool hold = false;
  // Every page ends with the same token.
  bool repeat_token = false;
  // Pages have one sequence more than was asked for.
  bool overfill = false;
};

// Listens while it lives. Thread-safe.
class FakeAdmin final : public v1::AdminService::Service {
 public:
  // `address` as grpc::ServerBuilder takes it; a port of its own choice when empty.
  explicit FakeAdmin(AdminScript script, const std::string& address = "");
  ~FakeAdmin() override;

  // What to give to --endpoint.
  const std::string& endpoint() const { return endpoint_; }

  // Lets held calls go on. Call at most once.
  void Release() { released_.Notify(); }

  std::vector<v1::ListSequencesRequest> list_requests() const;
  std::string described_handle() const;

 private:
  grpc::Status ListTiers(grpc::ServerContext* context, const v1::ListTiersRequest* request,
                         v1::ListTiersResponse* response) override;
  grpc::Status ListSequences(grpc::ServerContext* context, const v1::ListSequencesRequest* request,
                             v1::ListSequencesResponse* response) override;
  grpc::Status DescribeSequence(grpc::ServerContext* context,
                                const v1::DescribeSequenceRequest* request,
                                v1::DescribeSequenceResponse* response) override;

  // Waits and refuses as the script says; OK when the call is to be answered.
  grpc::Status Begin();

  const AdminScript script_;
  absl::Notification released_;
  std::string endpoint_;
  std::unique_ptr<grpc::Server> server_;

  mutable absl::Mutex mu_;
  std::vector<v1::ListSequencesRequest> list_requests_ ABSL_GUARDED_BY(mu_);
  std::string described_handle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_TERRACECTL_FAKE_ADMIN_H_
