// One AttendStream call to the attention service.
#ifndef TERRACE_SERVICES_FRONTEND_ATTEND_STREAM_H_
#define TERRACE_SERVICES_FRONTEND_ATTEND_STREAM_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class Channel;
}
namespace terrace::v1 {
class AttendRequest;
class AttendResponse;
}  // namespace terrace::v1

namespace terrace::frontend {

// AttendStream exchanges one request for one response at a time, with a time limit for each,
// which a blocking reader-writer has not. After an error it is of no more use. Not thread-safe.
class AttendStream {
 public:
  // `tenant` may be empty.
  AttendStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& tenant);
  // Cancels the call.
  ~AttendStream();
  AttendStream(const AttendStream&) = delete;
  AttendStream& operator=(const AttendStream&) = delete;

  // Sends `request` and reads the response with its request_id. DeadlineExceeded after `timeout`,
  // Unavailable if the connection or the service ends the stream, Internal if another request is
  // answered; other errors are the call's.
  absl::Status Exchange(const v1::AttendRequest& request, v1::AttendResponse& response,
                        absl::Duration timeout);

 private:
  struct Call;

  std::unique_ptr<Call> call_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_ATTEND_STREAM_H_
