// One PutBlocks: bytes from gRPC's buffers straight into the store. Includes gRPC: for service .cc
// files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_PUT_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_PUT_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvstore/mutex.h"
#include "services/engine/embedded_engine.h"
#include "services/kv_store/block_wire.h"
#include "services/runtime/executor.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

// What the messages of one stream say, in order.
class BlockIntake {
 public:
  BlockIntake(engine::EmbeddedEngine& engine, engine::Caller caller)
      : engine_(engine), caller_(std::move(caller)) {}

  // May wait for room. An error is the call's; those of blocks are in results().
  absl::Status Take(const grpc::ByteBuffer& message);

  const v1::PutBlocksResponse& results() const { return results_; }

 private:
  absl::Status Begin(const v1::PutBlocksRequest& header);

  engine::EmbeddedEngine& engine_;
  const engine::Caller caller_;
  int begun_ = 0;
  bool in_block_ = false;
  // Null when the block has failed.
  std::shared_ptr<engine::ValueWriter> writer_;
  absl::Status block_status_;
  v1::PutBlocksResponse results_;
};

// Reads the next message while the last one is stored, and no further: gRPC's flow control holds
// the client back. Deletes itself when the call is over.
class BlockPut final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  BlockPut(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
           runtime::Executor& executor, grpc::ByteBuffer* response);

  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  static constexpr size_t kReadMax = 2;

  // Stores one message.
  void Work();
  // Changes the state, then starts what it allows; see runtime::StepStream. Nothing of this object
  // may be touched after it by who did not keep it working.
  template <typename Change>
  void Update(Change change) ABSL_LOCKS_EXCLUDED(mu_);

  grpc::CallbackServerContext* const context_;
  runtime::Executor& executor_;
  grpc::ByteBuffer* const response_;
  // Belongs to whoever works.
  BlockIntake intake_;

  kvstore::Mutex mu_;
  // Belongs to the read in flight.
  grpc::ByteBuffer next_;
  std::deque<grpc::ByteBuffer> read_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool read_done_ ABSL_GUARDED_BY(mu_) = false;
  bool working_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_PUT_H_
