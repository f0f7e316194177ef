#include "tests/bench/block_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/kv_store/block_wire.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/bench/require.h"

namespace terrace::bench {
namespace {

constexpr size_t kMessageBytes = size_t{1} << 20;
// Of HTTP/2: with 16 KiB, the default, every frame's bytes are cut out of a message.
constexpr int kFrameBytes = 4 << 20;
// What may be on its way to this side before it has said that it wants more.
constexpr int kWindowBytes = 4 << 20;

std::shared_ptr<grpc::Channel> Connect(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                   grpc::InsecureChannelCredentials(), arguments);
}

// A store listens, and refuses, before it has read its disk.
std::shared_ptr<grpc::Channel> AwaitServing(std::shared_ptr<grpc::Channel> channel) {
  const auto stub = v1::KvStoreService::NewStub(channel);
  const absl::Time end = absl::Now() + absl::Seconds(60);
  for (;;) {
    grpc::ClientContext context;
    v1::LookupBlocksRequest request;
    request.add_keys("none");
    v1::LookupBlocksResponse response;
    const grpc::Status status = stub->LookupBlocks(&context, request, &response);
    if (status.ok()) return channel;
    Require(status.error_code() == grpc::StatusCode::UNAVAILABLE && absl::Now() < end,
            "LookupBlocks: " + status.error_message());
    absl::SleepFor(absl::Milliseconds(5));
  }
}

grpc::Slice Borrowed(absl::Span<const std::byte> bytes) {
  return {bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE};
}

}  // namespace

// One long-lived stream, one operation after the other.
class BlockClient::Stream {
 public:
  Stream(grpc::GenericStub& stub, const std::string& method)
      : stream_(stub.PrepareCall(&context_, absl::StrCat("/terrace.v1.KvStoreService/", method),
                                 &queue_)) {
    stream_->StartCall(nullptr);
    Require(Done(), method);
  }
  ~Stream() {
    stream_->WritesDone(nullptr);
    Done();
    grpc::ByteBuffer none;
    Require(!Read(&none), "an answer to nothing");
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    Done();
    Require(status.ok(), "a stream: " + status.error_message());
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) continue;
  }

  void Write(const grpc::ByteBuffer& message) {
    stream_->Write(message, nullptr);
    Require(Done(), "writing to a stream");
  }
  bool Read(grpc::ByteBuffer* message) {
    stream_->Read(message, nullptr);
    return Done();
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
  const std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

struct BlockClient::Rep {
  explicit Rep(int port)
      : channel(AwaitServing(Connect(port))),
        generic(channel),
        stub(v1::KvStoreService::NewStub(channel)),
        puts(generic, "PutBlocks"),
        gets(generic, "GetBlocks") {}

  const std::shared_ptr<grpc::Channel> channel;
  grpc::GenericStub generic;
  const std::unique_ptr<v1::KvStoreService::Stub> stub;
  Stream puts;
  Stream gets;
};

BlockClient::BlockClient(int port) : rep_(std::make_unique<Rep>(port)) {}
BlockClient::~BlockClient() = default;

void BlockClient::Put(const std::string& key, absl::Span<const std::byte> value) {
  v1::PutBlocksRequest header;
  header.set_key(key);
  header.set_size_bytes(value.size());
  while (!value.empty()) {
    const absl::Span<const std::byte> data = value.first(std::min(kMessageBytes, value.size()));
    value.remove_prefix(data.size());
    header.set_end(value.empty());
    rep_->puts.Write(kv_store::JoinData(header, {Borrowed(data)}));
    header.Clear();
  }
  grpc::ByteBuffer message;
  kv_store::SplitMessage split;
  v1::PutBlocksResponse response;
  Require(rep_->puts.Read(&message) && kv_store::SplitData(message, &split) &&
              response.ParseFromString(split.fields),
          "an answer to PutBlocks");
  Require(response.status().code() == 0, "PutBlocks: " + response.ShortDebugString());
}

void BlockClient::Get(const std::string& key, absl::Span<std::byte> out) {
  v1::GetBlocksRequest request;
  request.add_keys(key);
  rep_->gets.Write(kv_store::Serialize(request));
  v1::GetBlocksResponse header;
  while (!header.end()) {
    grpc::ByteBuffer message;
    kv_store::SplitMessage split;
    Require(rep_->gets.Read(&message) && kv_store::SplitData(message, &split) &&
                header.ParseFromString(split.fields) && header.status().code() == 0,
            "GetBlocks: " + header.ShortDebugString());
    for (const absl::Span<const std::byte> bytes : split.data) {
      Require(bytes.size() <= out.size(), "GetBlocks: more than the value");
      std::memcpy(out.data(), bytes.data(), bytes.size());
      out.remove_prefix(bytes.size());
    }
  }
  Require(out.empty(), "GetBlocks: less than the value");
}

void BlockClient::Delete(const std::string& key) {
  grpc::ClientContext context;
  v1::DeleteBlocksRequest request;
  request.add_keys(key);
  v1::DeleteBlocksResponse response;
  const grpc::Status status = rep_->stub->DeleteBlocks(&context, request, &response);
  Require(status.ok(), "DeleteBlocks: " + status.error_message());
}

}  // namespace terrace::bench
