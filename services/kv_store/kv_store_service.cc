#include "services/kv_store/kv_store_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/kv_store/block_export.h"
#include "services/kv_store/block_intake.h"
#include "services/kv_store/block_output.h"
#include "services/kv_store/block_stream.h"
#include "services/kv_store/part_convert.h"
#include "services/runtime/bulk_append_reactor.h"
#include "services/runtime/call.h"
#include "services/runtime/convert.h"
#include "services/runtime/message_limit.h"
#include "services/runtime/sequence_verbs.h"
#include "services/runtime/step_stream.h"
#include "terrace/v1/kv_store.grpc.pb.h"

namespace terrace::kv_store {
namespace {

using runtime::CallerOf;
using runtime::RunInline;
using runtime::RunUnary;

engine::StepOptions OptionsOf(const v1::StoreStepRequest& request, absl::Time arrival) {
  engine::StepOptions options;
  if (request.step_deadline_us() != 0) {
    options.deadline = arrival + absl::Microseconds(request.step_deadline_us());
  }
  if (request.row_deadline_us() != 0) {
    options.row_deadline = arrival + absl::Microseconds(request.row_deadline_us());
  }
  options.strict = request.strict();
  options.return_selection = request.return_selection();
  return options;
}

// Data of one message of GetBlocks; of the largest message allowed, its other fields take less.
constexpr uint64_t kBlockDataBytes = uint64_t{1} << 20;
constexpr uint64_t kFieldsBytes = uint64_t{4} << 10;

absl::Status CheckKeys(int keys, int keys_max) {
  if (keys <= keys_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("keys: got ", keys, ", expected at most ", keys_max));
}

// Rpc::CallbackService, but that messages with much data come and go as bytes.
using Rpc = v1::KvStoreService;
using Service = Rpc::WithRawCallbackMethod_PutBlocks<
    Rpc::WithRawCallbackMethod_GetBlocks<Rpc::WithCallbackMethod_OpenSequence<
        Rpc::WithCallbackMethod_LookupPrefix<Rpc::WithCallbackMethod_Append<
            Rpc::WithCallbackMethod_AttendSteps<Rpc::WithCallbackMethod_ReadRows<
                Rpc::WithCallbackMethod_ReadBlocks<Rpc::WithCallbackMethod_Truncate<
                    Rpc::WithCallbackMethod_Flush<Rpc::WithCallbackMethod_Park<
                        Rpc::WithCallbackMethod_Close<Rpc::WithCallbackMethod_GetSequence<
                            Rpc::WithCallbackMethod_GetLimits<Rpc::WithCallbackMethod_LookupBlocks<
                                Rpc::WithCallbackMethod_DeleteBlocks<Rpc::Service>>>>>>>>>>>>>>>>;

class KvStoreServiceImpl final : public Service {
 public:
  KvStoreServiceImpl(engine::EmbeddedEngine& engine, runtime::Executor& executor,
                     runtime::Drain& drain, uint64_t max_message_bytes)
      : engine_(engine),
        executor_(executor),
        drain_(drain),
        max_message_bytes_(max_message_bytes) {}

  grpc::ServerUnaryReactor* OpenSequence(grpc::CallbackServerContext* context,
                                         const v1::OpenSequenceRequest* request,
                                         v1::OpenSequenceResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::OpenSequence(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerUnaryReactor* LookupPrefix(grpc::CallbackServerContext* context,
                                         const v1::LookupPrefixRequest* request,
                                         v1::LookupPrefixResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::LookupPrefix(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerReadReactor<v1::AppendKvRequest>* Append(grpc::CallbackServerContext* context,
                                                       v1::AppendKvResponse* response) override {
    return new runtime::BulkAppendReactor(context, engine_, executor_, drain_, response);
  }

  grpc::ServerBidiReactor<v1::StoreStepRequest, v1::StoreStepResponse>* AttendSteps(
      grpc::CallbackServerContext* context) override {
    const engine::Caller caller = CallerOf(*context);
    return new runtime::StepStream<v1::StoreStepRequest, v1::StoreStepResponse>(
        context, executor_, drain_,
        [this, caller](const v1::StoreStepRequest& request, absl::Time arrival,
                       v1::StoreStepResponse* response) {
          const absl::Status status = Step(caller, request, arrival, response);
          if (!status.ok()) *response->mutable_status() = runtime::ToRpcStatus(status);
        });
  }

  grpc::ServerUnaryReactor* ReadRows(grpc::CallbackServerContext* context,
                                     const v1::ReadRowsRequest* request,
                                     v1::ReadRowsResponse* response) override {
    return RunUnary(context, executor_, *request,
                    [=, this] { return ReadRowsOf(CallerOf(*context), *request, response); });
  }

  grpc::ServerWriteReactor<v1::ReadBlocksResponse>* ReadBlocks(
      grpc::CallbackServerContext* context, const v1::ReadBlocksRequest* request) override {
    return new BlockExport(context, engine_, executor_, max_message_bytes_, *request);
  }

  grpc::ServerUnaryReactor* Truncate(grpc::CallbackServerContext* context,
                                     const v1::TruncateRequest* request,
                                     v1::TruncateResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::Truncate(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerUnaryReactor* Flush(grpc::CallbackServerContext* context,
                                  const v1::FlushRequest* request,
                                  v1::FlushResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::Flush(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerUnaryReactor* Park(grpc::CallbackServerContext* context,
                                 const v1::ParkRequest* request,
                                 v1::ParkResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::Park(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerUnaryReactor* Close(grpc::CallbackServerContext* context,
                                  const v1::CloseRequest* request,
                                  v1::CloseResponse* /*response*/) override {
    return RunUnary(context, executor_, *request,
                    [=, this] { return runtime::Close(engine_, CallerOf(*context), *request); });
  }

  grpc::ServerUnaryReactor* GetSequence(grpc::CallbackServerContext* context,
                                        const v1::GetSequenceRequest* request,
                                        v1::GetSequenceResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      return runtime::GetSequence(engine_, CallerOf(*context), *request, response);
    });
  }

  grpc::ServerUnaryReactor* GetLimits(grpc::CallbackServerContext* context,
                                      const v1::GetLimitsRequest* /*request*/,
                                      v1::GetLimitsResponse* response) override {
    return RunInline(context, executor_, [=, this] {
      runtime::GetLimits(engine_, max_message_bytes_, engine_.shard(), response);
      response->set_max_block_bytes(engine_.values().value_bytes_max());
      response->set_max_keys(static_cast<uint32_t>(engine_.limits().max_keys));
      return absl::OkStatus();
    });
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* PutBlocks(
      grpc::CallbackServerContext* context) override {
    return new BlockStream(context, executor_, drain_,
                           std::make_unique<BlockIntake>(engine_, CallerOf(*context)));
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* GetBlocks(
      grpc::CallbackServerContext* context) override {
    const uint64_t data_bytes_max = std::min(kBlockDataBytes, max_message_bytes_ - kFieldsBytes);
    return new BlockStream(
        context, executor_, drain_,
        std::make_unique<BlockOutput>(engine_, CallerOf(*context), data_bytes_max));
  }

  grpc::ServerUnaryReactor* LookupBlocks(grpc::CallbackServerContext* context,
                                         const v1::LookupBlocksRequest* request,
                                         v1::LookupBlocksResponse* response) override {
    return RunUnary(context, executor_, *request,
                    [=, this] { return LookupBlocksOf(CallerOf(*context), *request, response); });
  }

  grpc::ServerUnaryReactor* DeleteBlocks(grpc::CallbackServerContext* context,
                                         const v1::DeleteBlocksRequest* request,
                                         v1::DeleteBlocksResponse* /*response*/) override {
    return RunUnary(context, executor_, *request,
                    [=, this] { return DeleteBlocksOf(CallerOf(*context), *request); });
  }

 private:
  absl::Status Step(engine::Caller caller, const v1::StoreStepRequest& request, absl::Time arrival,
                    v1::StoreStepResponse* response) {
    const int batch_max = engine_.limits().max_batch;
    if (request.items().empty() || request.items_size() > batch_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("items: got ", request.items_size(), ", expected 1 to ", batch_max));
    }
    if (request.mode() != v1::REMOTE_MODE_ROWS && request.mode() != v1::REMOTE_MODE_PARTIAL) {
      return absl::InvalidArgumentError(
          absl::StrCat("mode: got ", static_cast<int>(request.mode()),
                       ", expected REMOTE_MODE_ROWS or REMOTE_MODE_PARTIAL"));
    }
    if (!request.tenant().empty()) caller.tenant = request.tenant();
    const engine::StepOptions options = OptionsOf(request, arrival);
    const engine::PartForm form = request.mode() == v1::REMOTE_MODE_ROWS
                                      ? engine::PartForm::kRows
                                      : engine::PartForm::kPartial;
    std::vector<engine::StepPart> parts(request.items_size());
    const absl::Duration queued = absl::Now() - arrival;
    engine_.ForEach(request.items_size(), [&](int i) {
      const v1::StoreStepItem& item = request.items(i);
      const absl::StatusOr<engine::StepRequest> step = runtime::FromProto(item.step());
      if (!step.ok()) {
        parts[i].status = step.status();
        return;
      }
      const auto layer = static_cast<int>(std::min<uint32_t>(request.layer(), INT32_MAX));
      parts[i] = engine_.RunStep(caller, layer, *step, options, form, HeldOf(item));
      parts[i].account.stages.queue = queued;
    });
    for (const engine::StepPart& part : parts) {
      ToProto(part, options.return_selection, response->add_results());
    }
    runtime::FitResults(max_message_bytes_, response);
    return absl::OkStatus();
  }

  absl::Status ReadRowsOf(const engine::Caller& caller, const v1::ReadRowsRequest& request,
                          v1::ReadRowsResponse* response) {
    const absl::StatusOr<engine::SequenceInfo> info = engine_.Get(caller, request.handle());
    if (!info.ok()) return info.status();
    const engine::Geometry& geometry = info->spec.geometry;
    if (request.positions_size() * geometry.row_bytes() > max_message_bytes_) {
      return absl::OutOfRangeError(absl::StrCat(
          "positions: got ", request.positions_size(), " rows of ", geometry.row_bytes(),
          " bytes, expected at most ", max_message_bytes_, " bytes"));
    }
    const absl::StatusOr<std::vector<std::byte>> rows = engine_.ReadRows(
        caller, request.handle(), static_cast<int>(std::min<uint32_t>(request.layer(), INT32_MAX)),
        static_cast<int>(std::min<uint32_t>(request.kv_head(), INT32_MAX)),
        {request.positions().data(), static_cast<size_t>(request.positions_size())});
    if (!rows.ok()) return rows.status();
    SetRows(geometry, *rows, response->mutable_rows());
    return absl::OkStatus();
  }

  absl::Status LookupBlocksOf(const engine::Caller& caller, const v1::LookupBlocksRequest& request,
                              v1::LookupBlocksResponse* response) {
    absl::Status status = CheckKeys(request.keys_size(), engine_.limits().max_keys);
    if (!status.ok()) return status;
    const std::vector<std::string> keys(request.keys().begin(), request.keys().end());
    const absl::StatusOr<engine::ValuesFound> found =
        engine_.values().Lookup(caller, keys, runtime::FromProto(request.lease()));
    if (!found.ok()) return found.status();
    ToProto(*found, response);
    return absl::OkStatus();
  }

  absl::Status DeleteBlocksOf(const engine::Caller& caller,
                              const v1::DeleteBlocksRequest& request) {
    absl::Status status = CheckKeys(request.keys_size(), engine_.limits().max_keys);
    if (!status.ok()) return status;
    const std::vector<std::string> keys(request.keys().begin(), request.keys().end());
    return engine_.values().Delete(caller, keys);
  }

  engine::EmbeddedEngine& engine_;
  runtime::Executor& executor_;
  runtime::Drain& drain_;
  const uint64_t max_message_bytes_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeKvStoreService(engine::EmbeddedEngine& engine,
                                                  runtime::Executor& executor,
                                                  runtime::Drain& drain,
                                                  uint64_t max_message_bytes) {
  return std::make_unique<KvStoreServiceImpl>(engine, executor, drain, max_message_bytes);
}

}  // namespace terrace::kv_store
