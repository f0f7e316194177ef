// A thin client of the services: one method per call, errors as they arrive.
#ifndef TERRACE_TESTS_E2E_CLIENT_H_
#define TERRACE_TESTS_E2E_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "terrace/v1/attention.pb.h"
#include "tests/e2e/reply.h"
#include "tests/e2e/rows.h"

namespace terrace::testing {

// A step of one layer for one sequence, unpacked.
struct StepReply {
  Reply reply;
  v1::StepResult result;

  bool ok() const { return reply.ok(); }
  // Bytes of the output: equal bytes are equal bits.
  const std::string& output() const { return result.output().data(); }
};

v1::Policy Dense();
v1::Policy Sparq(uint32_t r, uint32_t k, uint32_t window = 0);

// Not thread-safe. Calls end after kPatience.
class Client {
 public:
  explicit Client(const std::string& address, std::string tenant = "");
  ~Client();

  // A new sequence; the test fails when there is none.
  v1::SequenceInfo Open(const Shape& shape);
  Reply Open(const v1::OpenSequenceRequest& request, v1::SequenceInfo* info);
  Reply Fork(const v1::SequenceInfo& parent, uint64_t position, v1::SequenceInfo* info);
  Reply Resume(v1::SequenceInfo* info);
  Reply Get(const std::string& handle, v1::SequenceInfo* info);
  Reply Truncate(const v1::SequenceInfo& sequence, uint64_t length);
  Reply Flush(v1::SequenceInfo* sequence);
  Reply Close(const std::string& handle);
  v1::GetLimitsResponse Limits();

  // Tokens [first, end) of all layers in chunks, in one bulk append.
  Reply Append(const v1::SequenceInfo& sequence, const Rows& rows, uint64_t first, uint64_t end,
               v1::AppendKvResponse* response = nullptr);
  // The messages that `next` makes until it says no, in one bulk append.
  Reply AppendStream(const std::function<bool(v1::AppendKvRequest&)>& next,
                     v1::AppendKvResponse* response = nullptr);

  // Over one long-lived stream, which opens by itself and again after it broke.
  v1::AttendRequest StepRequest(const v1::SequenceInfo& sequence, const Rows& rows, uint32_t layer,
                                uint64_t position, const v1::Policy& policy, uint32_t n = 1) const;
  StepReply Step(v1::AttendRequest request);
  // Appends and attends.
  StepReply Step(const v1::SequenceInfo& sequence, const Rows& rows, uint32_t layer,
                 uint64_t position, const v1::Policy& policy);
  // Attends to what is there.
  StepReply Look(const v1::SequenceInfo& sequence, const Rows& rows, uint32_t layer,
                 uint64_t position, const v1::Policy& policy);
  // The whole answer; the status of the call, not of its items.
  Reply Attend(v1::AttendRequest request, v1::AttendResponse* response);
  // The same with the request_id that is there.
  Reply AttendAsIs(const v1::AttendRequest& request, v1::AttendResponse* response);
  // The next message that the stream brings by itself: false when it has ended, with its status.
  bool ReadFarewell(v1::AttendResponse* message);
  Reply EndOfStream();

  // The same step as a unary call.
  Reply AttendOnce(const v1::AttendRequest& request, v1::AttendResponse* response,
                   absl::Duration timeout);

  // Rows of one layer and KV head from a store.
  Reply ReadRows(const std::string& handle, uint32_t layer, uint32_t kv_head,
                 const std::vector<uint32_t>& positions, std::string* rows);

 private:
  struct Calls;
  std::unique_ptr<Calls> calls_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_CLIENT_H_
