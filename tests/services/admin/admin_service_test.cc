// AdminService: pages, descriptions, tiers.
#include "services/admin/admin_service.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "services/runtime/status_convert.h"
#include "terrace/v1/admin.grpc.pb.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using ::testing::HasSubstr;

class AdminServiceTest : public ::testing::Test {
 protected:
  absl::Status List(uint32_t page_size, const std::string& token, const std::string& tenant,
                    v1::ListSequencesResponse* response) {
    grpc::ClientContext context;
    v1::ListSequencesRequest request;
    request.set_page_size(page_size);
    request.set_page_token(token);
    request.set_tenant(tenant);
    return runtime::FromGrpcStatus(stub_->ListSequences(&context, request, response));
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
  RpcServer server_{[this](runtime::Executor& executor, runtime::Drain&) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(admin::MakeAdminService(*engine_, executor));
    return services;
  }};
  std::unique_ptr<v1::AdminService::Stub> stub_ = v1::AdminService::NewStub(server_.Channel());
};

TEST_F(AdminServiceTest, PagesOfAnySizeCoverAllSequencesOnce) {
  v1::ListSequencesResponse none;
  ASSERT_OK(List(0, "", "", &none));
  EXPECT_EQ(none.sequences_size(), 0);
  EXPECT_TRUE(none.next_page_token().empty());
  std::set<std::string> handles;
  for (int i = 0; i < 5; ++i) handles.insert(engine_->Create({}, Spec(SmallGeometry()))->handle);
  for (const uint32_t size : {1u, 2u, 4u, 5u, 6u, 1000u, 0u}) {
    std::vector<std::string> listed;
    std::string token;
    size_t pages = 0;
    do {
      v1::ListSequencesResponse page;
      ASSERT_OK(List(size, token, "", &page));
      for (const v1::SequenceSummary& summary : page.sequences()) {
        listed.push_back(summary.handle());
      }
      token = page.next_page_token();
      ++pages;
    } while (!token.empty() && pages < 10);
    EXPECT_EQ(listed, std::vector<std::string>(handles.begin(), handles.end())) << size;
    EXPECT_EQ(pages, size == 0 ? 1 : (5 + size - 1) / size);
  }
}

TEST_F(AdminServiceTest, APageIsOfOneTenantWhenAskedFor) {
  for (const char* tenant : {"a", "b", "a", "b", "b"}) {
    engine::Caller caller;
    caller.tenant = tenant;
    ASSERT_OK(engine_->Create(caller, Spec(SmallGeometry())));
  }
  int seen = 0;
  std::string token;
  do {
    v1::ListSequencesResponse page;
    ASSERT_OK(List(1, token, "b", &page));
    for (const v1::SequenceSummary& summary : page.sequences()) {
      EXPECT_EQ(summary.tenant(), "b");
      ++seen;
    }
    token = page.next_page_token();
  } while (!token.empty() && seen < 10);
  EXPECT_EQ(seen, 3);
}

TEST_F(AdminServiceTest, BadPagesAreRefusedByName) {
  v1::ListSequencesResponse page;
  EXPECT_OK(List(1000, "", "", &page));
  for (const uint32_t size : {1001u, UINT32_MAX}) {
    EXPECT_THAT(List(size, "", "", &page),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_size")));
  }
  for (const char* token : {"x", "s0000", "s0000-0123456789ABCDEF0123456789abcdef"}) {
    EXPECT_THAT(List(1, token, "", &page),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")));
  }
  // A handle that has gone is as good a place to go on from as another.
  EXPECT_OK(List(1, "s0000-0123456789abcdef0123456789abcdef", "", &page));
}

TEST_F(AdminServiceTest, ADescriptionCoversEveryLayer) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, 1, 0, 128));
  grpc::ClientContext context;
  v1::DescribeSequenceRequest request;
  request.set_handle(info.handle);
  v1::DescribeSequenceResponse response;
  ASSERT_TRUE(stub_->DescribeSequence(&context, request, &response).ok());
  EXPECT_EQ(response.summary().handle(), info.handle);
  EXPECT_EQ(response.summary().length(), 128u);
  EXPECT_EQ(response.sequence().writer_epoch(), 1u);
  ASSERT_EQ(response.layers_size(), 2);
  EXPECT_EQ(response.layers(1).layer(), 1u);
  EXPECT_EQ(response.layers(1).blocks(), 4u);
  ASSERT_EQ(response.segments_size(), 1);
  EXPECT_EQ(response.segments(0).end_block(), 0u);
  for (const char* unknown : {"", "x", "s0000-0123456789abcdef0123456789abcdef"}) {
    grpc::ClientContext again;
    request.set_handle(unknown);
    EXPECT_EQ(stub_->DescribeSequence(&again, request, &response).error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
}

TEST_F(AdminServiceTest, TiersAreConserved) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, 1, 0, 128));
  grpc::ClientContext context;
  v1::ListTiersResponse response;
  ASSERT_TRUE(stub_->ListTiers(&context, {}, &response).ok());
  ASSERT_EQ(response.tiers_size(), 1);
  const v1::TierInfo& tier = response.tiers(0);
  EXPECT_EQ(tier.tier(), v1::TIER_HOST);
  EXPECT_EQ(tier.capacity_bytes(), MemoryOptions().store.host_bytes);
  EXPECT_GT(tier.resident_blocks(), 0u);
  EXPECT_EQ(tier.admitted_blocks(),
            tier.resident_blocks() + tier.evicted_blocks() + tier.deleted_blocks());
  EXPECT_EQ(tier.admitted_bytes(),
            tier.resident_bytes() + tier.evicted_bytes() + tier.deleted_bytes());
}

}  // namespace
}  // namespace terrace::testing
