#include "services/attention_worker/attention_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/runtime/bulk_append_reactor.h"
#include "services/runtime/call.h"
#include "services/runtime/convert.h"
#include "services/runtime/message_limit.h"
#include "services/runtime/sequence_verbs.h"
#include "services/runtime/step_stream.h"
#include "terrace/v1/attention.grpc.pb.h"

namespace terrace::attention_worker {
namespace {

using runtime::CallerOf;
using runtime::RunInline;
using runtime::RunUnary;

class AttentionServiceImpl final : public v1::AttentionService::CallbackService {
 public:
  AttentionServiceImpl(engine::KvEngine& engine, runtime::Executor& executor, runtime::Drain& drain,
                       const AttentionServiceOptions& options)
      : engine_(engine), executor_(executor), drain_(drain), options_(options) {}

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

  grpc::ServerReadReactor<v1::AppendKvRequest>* AppendKv(grpc::CallbackServerContext* context,
                                                         v1::AppendKvResponse* response) override {
    return new runtime::BulkAppendReactor(context, engine_, executor_, drain_, response);
  }

  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const v1::AttendRequest* request,
                                   v1::AttendResponse* response) override {
    const absl::Time arrival = absl::Now();
    return RunUnary(context, executor_, *request, [=, this] {
      response->set_request_id(request->request_id());
      return Step(CallerOf(*context), *request, arrival, response);
    });
  }

  grpc::ServerBidiReactor<v1::AttendRequest, v1::AttendResponse>* AttendStream(
      grpc::CallbackServerContext* context) override {
    const engine::Caller caller = CallerOf(*context);
    return new runtime::StepStream<v1::AttendRequest, v1::AttendResponse>(
        context, executor_, drain_,
        [this, caller](const v1::AttendRequest& request, absl::Time arrival,
                       v1::AttendResponse* response) {
          const absl::Status status = Step(caller, request, arrival, response);
          if (!status.ok()) *response->mutable_status() = runtime::ToRpcStatus(status);
        });
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
      runtime::GetLimits(engine_, options_.max_message_bytes, options_.shard, response);
      return absl::OkStatus();
    });
  }

 private:
  // The error of the whole call; items carry their own.
  absl::Status Step(const engine::Caller& caller, const v1::AttendRequest& request,
                    absl::Time arrival, v1::AttendResponse* response) {
    const int batch_max = engine_.limits().max_batch;
    if (request.items().empty() || request.items_size() > batch_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("items: got ", request.items_size(), ", expected 1 to ", batch_max));
    }
    absl::StatusOr<engine::StepOptions> options = runtime::OptionsOf(request, arrival);
    if (!options.ok()) return options.status();
    if (options->mode == engine::RemoteMode::kAuto) options->mode = options_.default_mode;
    // An item that cannot be read fails alone; the others run as one batch.
    std::vector<engine::StepRequest> steps;
    std::vector<int> item_of_step;
    std::vector<engine::StepResult> results(request.items_size());
    for (int i = 0; i < request.items_size(); ++i) {
      absl::StatusOr<engine::StepRequest> step = runtime::FromProto(request.items(i));
      if (step.ok()) {
        steps.push_back(*std::move(step));
        item_of_step.push_back(i);
      } else {
        results[i].status = step.status();
      }
    }
    const absl::Duration queued = absl::Now() - arrival;
    std::vector<engine::StepResult> done = engine_.Attend(
        caller, static_cast<int>(std::min<uint32_t>(request.layer(), INT32_MAX)), steps, *options);
    for (size_t s = 0; s < done.size(); ++s) {
      done[s].account.stages.queue = queued;
      results[item_of_step[s]] = std::move(done[s]);
    }
    for (const engine::StepResult& result : results) {
      runtime::ToProto(result, response->add_results());
    }
    runtime::FitResults(options_.max_message_bytes, response);
    return absl::OkStatus();
  }

  engine::KvEngine& engine_;
  runtime::Executor& executor_;
  runtime::Drain& drain_;
  const AttentionServiceOptions options_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAttentionService(engine::KvEngine& engine,
                                                    runtime::Executor& executor,
                                                    runtime::Drain& drain,
                                                    const AttentionServiceOptions& options) {
  return std::make_unique<AttentionServiceImpl>(engine, executor, drain, options);
}

}  // namespace terrace::attention_worker
