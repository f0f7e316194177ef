// Messages that carry much data, between bytes on the wire and bytes in the store: `data` goes by
// reference, everything else through protobuf. What is on the wire is ordinary protobuf.
// Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_BLOCK_WIRE_H_
#define TERRACE_SERVICES_KV_STORE_BLOCK_WIRE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace terrace::kv_store {

// The field `data` of PutBlocksRequest and GetBlocksResponse.
inline constexpr uint32_t kDataField = 5;

struct SplitMessage {
  // All fields but `data`, serialized.
  std::string fields;
  // In order; they lie in `slices`.
  std::vector<absl::Span<const std::byte>> data;
  std::vector<grpc::Slice> slices;
};

// False when the bytes are no message.
bool SplitData(const grpc::ByteBuffer& message, SplitMessage* split);

// A message of these fields, `data` left out, and of these slices as its `data`.
grpc::ByteBuffer JoinData(const google::protobuf::MessageLite& fields,
                          std::vector<grpc::Slice> data);

// A message without data.
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_BLOCK_WIRE_H_
