#include "tests/e2e/raw_call.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <vector>

#include "absl/time/clock.h"
#include "tests/e2e/await.h"

namespace terrace::testing {
namespace {

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

std::string FromBuffer(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

struct RawCall::Rep {
  explicit Rep(const std::string& address)
      : stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  }
  // Whether the operation in progress went well.
  bool Done() {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
};

RawCall::RawCall(const std::string& address, const std::string& method, const std::string& message)
    : rep_(std::make_unique<Rep>(address)) {
  rep_->call = rep_->stub.PrepareCall(&rep_->context, method, &rep_->queue);
  rep_->call->StartCall(nullptr);
  if (!rep_->Done()) return;
  rep_->call->Write(ToBuffer(message), nullptr);
  if (!rep_->Done()) return;
  rep_->call->WritesDone(nullptr);
  rep_->Done();
}

RawCall::~RawCall() {
  rep_->context.TryCancel();
  grpc::Status status;
  rep_->call->Finish(&status, nullptr);
  rep_->Done();
  rep_->queue.Shutdown();
  while (rep_->Done()) {
  }
}

bool RawCall::Next(std::string* answer) {
  grpc::ByteBuffer buffer;
  rep_->call->Read(&buffer, nullptr);
  if (!rep_->Done()) return false;
  *answer = FromBuffer(buffer);
  return true;
}

std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  return std::string("\x0a") + static_cast<char>(service.size()) + service;
}

}  // namespace terrace::testing
