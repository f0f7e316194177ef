// An attention service in the test's process: keeps fp32, bf16 or fp16 rows in memory, checks
// every request, and fails on demand.
#ifndef TERRACE_TESTS_SERVICES_FRONTEND_FAKE_ATTENTION_SERVICE_H_
#define TERRACE_TESTS_SERVICES_FRONTEND_FAKE_ATTENTION_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "terrace/v1/attention.grpc.pb.h"
#include "tests/services/frontend/row_store_attention.h"

namespace terrace::frontend::testing {

// What happens to one step. Faults allowed: everything that a real service may do when it is
// killed, drains, runs out of room, hangs or is broken.
enum class Fault {
  // The stream ends with UNAVAILABLE in the middle of a token, as when the process dies.
  kLost,
  // A message with request id 0 announces the drain, then the stream ends well.
  kDrain,
  // The step's item fails with RESOURCE_EXHAUSTED.
  kItemError,
  // The step as a whole fails with RESOURCE_EXHAUSTED.
  kCallError,
  // The same two, nothing appended, with a retry delay of a millisecond.
  kBusyItem,
  kBusyCall,
  // The answer carries the id of another request.
  kWrongId,
  // The answer has one output too few.
  kShortOutput,
  // No answer until the client gives up.
  kHang,
};

// Steps are counted from 0 over the life of the service.
struct FaultPlan {
  int64_t step = -1;
  Fault fault = Fault::kLost;
  // After kLost or kDrain: tokens that every sequence keeps at most, ...
  int64_t tokens_kept = 1 << 30;
  // ... whether all sequences are forgotten instead, ...
  bool forget = false;
  // ... and the number of unary calls that find nobody.
  int unanswered_calls = 0;
  // Steps from there on that kBusyItem and kBusyCall meet.
  int64_t busy_steps = 1;
  // The next unary calls fail with RESOURCE_EXHAUSTED and a retry delay of a millisecond, those
  // after them are cancelled.
  int busy_calls = 0;
  int cancelled_calls = 0;
};

// Attends densely; under SparQ only to the last k rows, so that policies differ in their answers.
// Thread-safe.
class FakeAttentionService final : public v1::AttentionService::Service {
 public:
  void Plan(const FaultPlan& plan);
  void SetLimits(const v1::GetLimitsResponse& limits);

  // What was wrong with requests; empty for a good client.
  std::vector<std::string> complaints() const;
  // Tokens per step of layer 0, in order.
  std::vector<int64_t> step_tokens() const;
  // Steps seen, of any layer.
  int64_t steps() const;
  std::vector<std::string> open_handles() const;
  v1::AttendRequest last_request() const;
  v1::SequenceSpec last_spec() const;
  std::string last_tenant() const;

  grpc::Status OpenSequence(grpc::ServerContext* context, const v1::OpenSequenceRequest* request,
                            v1::OpenSequenceResponse* response) override;
  grpc::Status Truncate(grpc::ServerContext* context, const v1::TruncateRequest* request,
                        v1::TruncateResponse* response) override;
  grpc::Status Close(grpc::ServerContext* context, const v1::CloseRequest* request,
                     v1::CloseResponse* response) override;
  grpc::Status GetLimits(grpc::ServerContext* context, const v1::GetLimitsRequest* request,
                         v1::GetLimitsResponse* response) override;
  grpc::Status AttendStream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttendResponse, v1::AttendRequest>* stream) override;

 private:
  struct Sequence {
    v1::SequenceSpec spec;
    uint64_t epoch = 0;
    std::vector<LayerRows> layers;

    int64_t kv_width() const;
    int64_t layer_length(size_t layer) const;
    int64_t length() const;
    void Cut(int64_t length);
  };

  grpc::Status Arrive(grpc::ServerContext* context);
  Sequence* Find(const std::string& handle);
  void Describe(const std::string& handle, const Sequence& sequence, v1::SequenceInfo* info) const;
  void Check(bool good, const std::string& complaint);
  void CheckItem(const v1::AttendRequest& request, const v1::StepItem& item,
                 const Sequence& sequence);
  void Answer(const v1::AttendRequest& request, v1::AttendResponse& response);
  void AttendItem(const v1::AttendRequest& request, Sequence& sequence, v1::StepResult& result);
  void Crash();

  mutable std::mutex mu_;
  FaultPlan plan_;
  v1::GetLimitsResponse limits_;
  std::map<std::string, Sequence> sequences_;
  uint64_t last_epoch_ = 0;
  int64_t steps_ = 0;
  std::vector<int64_t> step_tokens_;
  std::vector<std::string> complaints_;
  v1::AttendRequest last_request_;
  v1::SequenceSpec last_spec_;
  std::string last_tenant_;
};

// The fake behind a Unix socket, started and stopped with the object and on demand. Sequences
// survive a stop.
class FakeServer {
 public:
  explicit FakeServer(const std::string& socket_path);
  ~FakeServer();

  void Start();
  void Stop();

  FakeAttentionService& service() { return service_; }
  const std::string& address() const { return address_; }

 private:
  FakeAttentionService service_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace terrace::frontend::testing

#endif  // TERRACE_TESTS_SERVICES_FRONTEND_FAKE_ATTENTION_SERVICE_H_
