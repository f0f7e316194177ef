// One GetBlocks: bytes from the store to gRPC by reference. Includes gRPC: for service .cc files
// only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_GET_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_GET_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvstore/mutex.h"
#include "services/engine/embedded_engine.h"
#include "services/kv_store/block_wire.h"
#include "services/runtime/executor.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

// The messages that answer one call, one after the other.
class BlockOutput {
 public:
  // `data_bytes_max` of one message.
  BlockOutput(engine::EmbeddedEngine& engine, engine::Caller caller, uint64_t data_bytes_max)
      : engine_(engine), caller_(std::move(caller)), data_bytes_max_(data_bytes_max) {}

  // InvalidArgument when it is no request for blocks.
  absl::Status Begin(const grpc::ByteBuffer& request);
  // The next message; nothing at the end. May wait for the disk.
  std::optional<grpc::ByteBuffer> Next();

 private:
  // Slices of the part that is being sent, and the next part when that is all.
  absl::StatusOr<std::vector<grpc::Slice>> NextData();

  engine::EmbeddedEngine& engine_;
  const engine::Caller caller_;
  const uint64_t data_bytes_max_;
  v1::GetBlocksRequest request_;
  int index_ = 0;
  // Of the block at index_, once it has begun.
  std::optional<engine::ValueReader> reader_;
  std::shared_ptr<const engine::ValuePart> part_;
  // What has gone of the part.
  size_t span_ = 0;
  size_t offset_ = 0;
};

// Makes the next message while the last one is written, and no further. Deletes itself when the
// call is over.
class BlockGet final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  BlockGet(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
           runtime::Executor& executor, uint64_t data_bytes_max, const grpc::ByteBuffer& request);

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void Prepare();
  // As BlockPut's.
  template <typename Change>
  void Update(Change change) ABSL_LOCKS_EXCLUDED(mu_);

  grpc::CallbackServerContext* const context_;
  runtime::Executor& executor_;
  // Belongs to whoever prepares.
  BlockOutput output_;

  kvstore::Mutex mu_;
  // Belongs to the write in flight.
  grpc::ByteBuffer current_;
  std::optional<grpc::ByteBuffer> prepared_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool preparing_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool exhausted_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_GET_H_
