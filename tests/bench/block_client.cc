#include "tests/bench/block_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/kv_store/block_wire.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/bench/require.h"

namespace terrace::bench {
namespace {

constexpr size_t kMessageBytes = size_t{1} << 20;
// Of HTTP/2: with 16 KiB, the default, every frame's bytes are cut out of a message.
constexpr int kFrameBytes = 1 << 20;

std::shared_ptr<grpc::Channel> Connect(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                   grpc::InsecureChannelCredentials(), arguments);
}

grpc::Slice Borrowed(absl::Span<const std::byte> bytes) {
  return {bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE};
}

}  // namespace

struct BlockClient::Rep {
  explicit Rep(int port)
      : channel(Connect(port)), generic(channel), stub(v1::KvStoreService::NewStub(channel)) {}

  const std::shared_ptr<grpc::Channel> channel;
  grpc::GenericStub generic;
  const std::unique_ptr<v1::KvStoreService::Stub> stub;
};

// One streaming call, one operation after the other.
class BlockClient::Call {
 public:
  Call(Rep& rep, const std::string& method) {
    // Goes out with the first message.
    context_.set_initial_metadata_corked(true);
    stream_ = rep.generic.PrepareCall(&context_,
                                      absl::StrCat("/terrace.v1.KvStoreService/", method), &queue_);
    stream_->StartCall(nullptr);
  }
  ~Call() {
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) continue;
  }

  bool Write(const grpc::ByteBuffer& message, bool last) {
    if (last) {
      stream_->WriteLast(message, {}, nullptr);
    } else {
      stream_->Write(message, nullptr);
    }
    return Done();
  }
  bool Read(grpc::ByteBuffer* message) {
    stream_->Read(message, nullptr);
    return Done();
  }
  void Finish() {
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    Done();
    Require(status.ok(), "a call: " + status.error_message());
  }

 private:
  bool Done() {
    void* tag = nullptr;
    bool ok = false;
    Require(queue_.Next(&tag, &ok), "the end of an operation");
    return ok;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

BlockClient::BlockClient(int port) : rep_(std::make_unique<Rep>(port)) {}
BlockClient::~BlockClient() = default;

void BlockClient::Put(const std::string& key, absl::Span<const std::byte> value) {
  Call call(*rep_, "PutBlocks");
  v1::PutBlocksRequest header;
  header.set_key(key);
  header.set_size_bytes(value.size());
  while (true) {
    const absl::Span<const std::byte> data = value.first(std::min(kMessageBytes, value.size()));
    value.remove_prefix(data.size());
    header.set_end(value.empty());
    // When it fails, the answer says why.
    if (!call.Write(kv_store::JoinData(header, {Borrowed(data)}), value.empty())) break;
    if (value.empty()) break;
    header.Clear();
  }
  grpc::ByteBuffer message;
  const bool answered = call.Read(&message);
  call.Finish();
  kv_store::SplitMessage split;
  v1::PutBlocksResponse response;
  Require(
      answered && kv_store::SplitData(message, &split) && response.ParseFromString(split.fields),
      "an answer to PutBlocks");
  Require(response.results_size() == 1 && response.results(0).code() == 0,
          "PutBlocks: " + response.ShortDebugString());
}

void BlockClient::Get(const std::string& key, absl::Span<std::byte> out) {
  Call call(*rep_, "GetBlocks");
  v1::GetBlocksRequest request;
  request.add_keys(key);
  call.Write(kv_store::Serialize(request), true);
  grpc::ByteBuffer message;
  bool ended = false;
  while (call.Read(&message)) {
    kv_store::SplitMessage split;
    v1::GetBlocksResponse header;
    Require(kv_store::SplitData(message, &split) && header.ParseFromString(split.fields) &&
                header.status().code() == 0,
            "GetBlocks: " + header.ShortDebugString());
    for (const absl::Span<const std::byte> bytes : split.data) {
      Require(bytes.size() <= out.size(), "GetBlocks: more than the value");
      std::memcpy(out.data(), bytes.data(), bytes.size());
      out.remove_prefix(bytes.size());
    }
    ended = header.end();
  }
  call.Finish();
  Require(ended && out.empty(), "GetBlocks: less than the value");
}

void BlockClient::Delete(const std::string& key) {
  grpc::ClientContext context;
  v1::DeleteBlocksRequest request;
  request.add_keys(key);
  v1::DeleteBlocksResponse response;
  const grpc::Status status = rep_->stub->DeleteBlocks(&context, request, &response);
  Require(status.ok() && response.results(0).code() == 0,
          "DeleteBlocks: " + status.error_message() + response.ShortDebugString());
}

}  // namespace terrace::bench
