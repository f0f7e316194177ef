#include "tests/e2e/channel.h"

#include <grpcpp/grpcpp.h>

namespace terrace::testing {
namespace {

constexpr char kFingerprint[] = "e2e-model";

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // gRPC 1.51 gives up on a connection that is not made within it: a busy machine takes long.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void FillSpec(const Shape& shape, v1::SequenceSpec& spec) {
  spec.set_model_fingerprint(kFingerprint);
  spec.mutable_geometry()->set_layers(shape.layers);
  spec.mutable_geometry()->set_query_heads(shape.query_heads);
  spec.mutable_geometry()->set_kv_heads(shape.kv_heads);
  spec.mutable_geometry()->set_head_dim(shape.head_dim);
  spec.mutable_geometry()->set_storage_dtype(v1::DTYPE_BFLOAT16);
}

}  // namespace terrace::testing
