// What answers the requests of one GetBlocks: bytes from the store to gRPC by reference. Includes
// gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_OUTPUT_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_OUTPUT_H_

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "services/engine/embedded_engine.h"
#include "services/kv_store/block_stream.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

class BlockOutput final : public BlockHandler {
 public:
  // `data_bytes_max` of one message.
  BlockOutput(engine::EmbeddedEngine& engine, engine::Caller caller, uint64_t data_bytes_max)
      : engine_(engine), caller_(std::move(caller)), data_bytes_max_(data_bytes_max) {}

  absl::Status Take(const grpc::ByteBuffer& request) override;
  std::optional<grpc::ByteBuffer> Next() override;
  bool pending() const override { return key_ < request_.keys_size(); }

 private:
  // Slices of the part that is being sent, and of the next part when that is all.
  absl::StatusOr<std::vector<grpc::Slice>> NextData();

  engine::EmbeddedEngine& engine_;
  const engine::Caller caller_;
  const uint64_t data_bytes_max_;
  v1::GetBlocksRequest request_;
  int key_ = 0;
  // Keys of the stream so far.
  uint64_t index_ = 0;
  // Of the block of the key, once it has begun.
  std::optional<engine::ValueReader> reader_;
  std::shared_ptr<const engine::ValuePart> part_;
  // What has gone of the part.
  size_t span_ = 0;
  size_t offset_ = 0;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_OUTPUT_H_
