// All rows of a sequence as a stream of blocks. Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_EXPORT_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_EXPORT_H_

#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "services/engine/embedded_engine.h"
#include "services/runtime/executor.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

// Rows [n, 2, head_dim] as a tensor.
void SetRows(const engine::Geometry& geometry, const std::vector<std::byte>& rows,
             v1::Tensor* tensor);

// Answers one ReadBlocks: block after block, each read when the one before it is written, and in
// parts where a message holds no whole one. Deletes itself when the call is over; a drain ends it
// before the next message.
class BlockExport final : public grpc::ServerWriteReactor<v1::ReadBlocksResponse> {
 public:
  BlockExport(grpc::CallbackServerContext* context, engine::EmbeddedEngine& engine,
              runtime::Executor& executor, uint64_t max_message_bytes,
              const v1::ReadBlocksRequest& request);

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  // Reads the sequence's shape; then, each time, what one message takes of a block.
  void Begin();
  void Next();
  // Moves on: positions run fastest, then heads, then layers.
  void Advance();

  grpc::CallbackServerContext* const context_;
  engine::EmbeddedEngine& engine_;
  runtime::Executor& executor_;
  const uint64_t max_message_bytes_;
  const v1::ReadBlocksRequest request_;
  const engine::Caller caller_;

  engine::SequenceInfo info_;
  int64_t end_ = 0;
  int layer_ = 0;
  int head_ = 0;
  int64_t position_ = 0;
  int64_t count_ = 0;
  v1::ReadBlocksResponse response_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_EXPORT_H_
