#include "tests/services/terracectl/fake_admin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace terrace::testing {

FakeAdmin::FakeAdmin(AdminScript script, const std::string& address) : script_(std::move(script)) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.empty() ? "127.0.0.1:0" : address,
                           grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  EXPECT_NE(server_, nullptr) << address;
  endpoint_ = address.empty() ? absl::StrCat("127.0.0.1:", port) : address;
}

FakeAdmin::~FakeAdmin() {
  if (script_.hold && !released_.HasBeenNotified()) released_.Notify();
  server_->Shutdown();
}

std::vector<v1::ListSequencesRequest> FakeAdmin::list_requests() const {
  absl::MutexLock lock(&mu_);
  return list_requests_;
}

std::string FakeAdmin::described_handle() const {
  absl::MutexLock lock(&mu_);
  return described_handle_;
}

grpc::Status FakeAdmin::Begin() {
  if (script_.hold) released_.WaitForNotification();
  return script_.refuse_from_page > 0 ? grpc::Status::OK : script_.refusal;
}

grpc::Status FakeAdmin::ListTiers(grpc::ServerContext*, const v1::ListTiersRequest*,
                                  v1::ListTiersResponse* response) {
  *response = script_.tiers;
  return Begin();
}

grpc::Status FakeAdmin::ListSequences(grpc::ServerContext*, const v1::ListSequencesRequest* request,
                                      v1::ListSequencesResponse* response) {
  absl::MutexLock lock(&mu_);
  const int page = static_cast<int>(list_requests_.size());
  list_requests_.push_back(*request);
  if (const grpc::Status status = Begin(); !status.ok()) return status;
  if (script_.refuse_from_page > 0 && page >= script_.refuse_from_page) return script_.refusal;
  size_t first = 0;
  if (!request->page_token().empty() && !absl::SimpleAtoi(request->page_token(), &first)) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "page_token"};
  }
  const size_t ask = request->page_size() == 0 ? 100 : request->page_size();
  const size_t end = std::min(script_.sequences.size(), first + ask + (script_.overfill ? 1 : 0));
  for (size_t i = first; i < end; ++i) *response->add_sequences() = script_.sequences[i];
  if (end < script_.sequences.size()) response->set_next_page_token(absl::StrCat(end));
  if (static_cast<size_t>(page) < script_.page_lacks.size()) {
    for (const std::string& why : script_.page_lacks[page]) {
      response->add_unreachable()->set_message(why);
    }
  }
  if (script_.repeat_token) response->set_next_page_token("1");
  return grpc::Status::OK;
}

grpc::Status FakeAdmin::DescribeSequence(grpc::ServerContext*,
                                         const v1::DescribeSequenceRequest* request,
                                         v1::DescribeSequenceResponse* response) {
  *response = script_.description;
  {
    absl::MutexLock lock(&mu_);
    described_handle_ = request->handle();
  }
  return Begin();
}

}  // namespace terrace::testing
