#include "services/admin/admin_service.h"

#include <grpcpp/grpcpp.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/handle.h"
#include "services/runtime/call.h"
#include "services/runtime/convert.h"
#include "terrace/v1/admin.grpc.pb.h"

namespace terrace::admin {
namespace {

using runtime::RunUnary;

constexpr uint32_t kDefaultPageSize = 100;
constexpr uint32_t kPageSizeMax = 1000;

class AdminServiceImpl final : public v1::AdminService::CallbackService {
 public:
  AdminServiceImpl(engine::KvEngine& engine, runtime::Executor& executor)
      : engine_(engine), executor_(executor) {}

  grpc::ServerUnaryReactor* ListTiers(grpc::CallbackServerContext* context,
                                      const v1::ListTiersRequest* request,
                                      v1::ListTiersResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      std::vector<absl::Status> unreachable;
      const absl::StatusOr<std::vector<engine::TierReport>> tiers = engine_.ListTiers(
          {.deadline = runtime::DeadlineOf(*context), .unreachable = &unreachable});
      if (!tiers.ok()) return tiers.status();
      for (const engine::TierReport& tier : *tiers) runtime::ToProto(tier, response->add_tiers());
      for (const absl::Status& error : unreachable) {
        *response->add_unreachable() = runtime::ToRpcStatus(error);
      }
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* ListSequences(grpc::CallbackServerContext* context,
                                          const v1::ListSequencesRequest* request,
                                          v1::ListSequencesResponse* response) override {
    return RunUnary(context, executor_, *request,
                    [=, this] { return Page(runtime::DeadlineOf(*context), *request, response); });
  }

  grpc::ServerUnaryReactor* DescribeSequence(grpc::CallbackServerContext* context,
                                             const v1::DescribeSequenceRequest* request,
                                             v1::DescribeSequenceResponse* response) override {
    return RunUnary(context, executor_, *request, [=, this] {
      const absl::StatusOr<engine::SequenceDescription> description =
          engine_.Describe(request->handle(), runtime::DeadlineOf(*context));
      if (!description.ok()) return description.status();
      runtime::ToProto(*description, response);
      return absl::OkStatus();
    });
  }

 private:
  // A page token is the last handle of the page before.
  absl::Status Page(absl::Time deadline, const v1::ListSequencesRequest& request,
                    v1::ListSequencesResponse* response) {
    if (request.page_size() > kPageSizeMax) {
      return absl::InvalidArgumentError(absl::StrCat("page_size: got ", request.page_size(),
                                                     ", expected at most ", kPageSizeMax));
    }
    if (!request.page_token().empty() && !engine::ShardOf(request.page_token()).has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("page_token: got \"", request.page_token(),
                       "\", expected next_page_token of an earlier page"));
    }
    const uint32_t size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
    std::vector<absl::Status> unreachable;
    const absl::StatusOr<std::vector<engine::SequenceSummary>> page =
        engine_.ListSequences(request.tenant(), request.page_token(), static_cast<int>(size) + 1,
                              {.deadline = deadline, .unreachable = &unreachable});
    if (!page.ok()) return page.status();
    for (size_t i = 0; i < page->size() && i < size; ++i) {
      runtime::ToProto((*page)[i], response->add_sequences());
    }
    for (const absl::Status& error : unreachable) {
      *response->add_unreachable() = runtime::ToRpcStatus(error);
    }
    if (page->size() > size) response->set_next_page_token((*page)[size - 1].handle);
    return absl::OkStatus();
  }

  engine::KvEngine& engine_;
  runtime::Executor& executor_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(engine::KvEngine& engine,
                                                runtime::Executor& executor) {
  return std::make_unique<AdminServiceImpl>(engine, executor);
}

}  // namespace terrace::admin
