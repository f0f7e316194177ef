// One long-lived stream of messages that carry much data: requests are taken in order, and what
// answers them is sent in order. Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_STREAM_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvstore/mutex.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"

namespace terrace::kv_store {

// What the requests of one stream mean. Used by one thread at a time.
class BlockHandler {
 public:
  virtual ~BlockHandler() = default;

  // May wait. An error ends the stream.
  virtual absl::Status Take(const grpc::ByteBuffer& request) = 0;
  // The next message that answers what was taken; nothing when there is none. May wait.
  virtual std::optional<grpc::ByteBuffer> Next() = 0;
  // Whether Next() has more to say.
  virtual bool pending() const = 0;
};

// Refused while too many calls wait or too many bytes are in flight. Once its first request is let
// in, it reads the next request and makes the next answer while the last ones are on their way, and
// no further: gRPC's flow control holds the client back. Before the process stops, what was read is
// answered and the stream ends with UNAVAILABLE. Deletes itself when the call is over.
class BlockStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  BlockStream(grpc::CallbackServerContext* context, runtime::Executor& executor,
              runtime::Drain& drain, std::unique_ptr<BlockHandler> handler);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

 private:
  static constexpr size_t kReadMax = 2;

  // Charges a request that was read to the bytes in flight.
  absl::Status ChargeLocked(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes one request, or makes one answer.
  void Work();
  // False when the queue is full, which happens to the first request only.
  bool StartWork(bool admitted);
  // While the process holds too many bytes, a stream has one request at a time.
  bool MayReadLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Changes the state, then starts what it allows; see runtime::StepStream. Nothing of this object
  // may be touched after it by who did not keep it working.
  template <typename Change>
  void Update(Change change) ABSL_LOCKS_EXCLUDED(mu_);

  grpc::CallbackServerContext* const context_;
  runtime::Executor& executor_;
  runtime::Drain& drain_;
  // Belongs to whoever works.
  const std::unique_ptr<BlockHandler> handler_;
  uint64_t drain_id_ = 0;

  kvstore::Mutex mu_;
  // Belong to the operation in flight.
  grpc::ByteBuffer next_;
  grpc::ByteBuffer current_;
  // Charged until they are handled.
  std::deque<grpc::ByteBuffer> read_ ABSL_GUARDED_BY(mu_);
  std::optional<grpc::ByteBuffer> answer_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool read_done_ ABSL_GUARDED_BY(mu_) = false;
  // A first request was charged; it runs or has run.
  bool charged_ ABSL_GUARDED_BY(mu_) = false;
  bool admitted_ ABSL_GUARDED_BY(mu_) = false;
  bool working_ ABSL_GUARDED_BY(mu_) = false;
  // The handler has more to say.
  bool pending_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_STREAM_H_
