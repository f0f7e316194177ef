// What the requests of one PutBlocks say: bytes from gRPC's buffers straight into the store.
// Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_INTAKE_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_INTAKE_H_

#include <memory>
#include <optional>
#include <utility>

#include "services/engine/embedded_engine.h"
#include "services/kv_store/block_stream.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

class BlockIntake final : public BlockHandler {
 public:
  BlockIntake(engine::EmbeddedEngine& engine, engine::Caller caller)
      : engine_(engine), caller_(std::move(caller)) {}

  absl::Status Take(const grpc::ByteBuffer& request) override;
  std::optional<grpc::ByteBuffer> Next() override;
  bool pending() const override { return answer_.has_value(); }

 private:
  void Begin(const v1::PutBlocksRequest& header);

  engine::EmbeddedEngine& engine_;
  const engine::Caller caller_;
  bool in_block_ = false;
  // Null when the block has failed.
  std::shared_ptr<engine::ValueWriter> writer_;
  absl::Status block_status_;
  // Of a block that has ended.
  std::optional<v1::PutBlocksResponse> answer_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_INTAKE_H_
