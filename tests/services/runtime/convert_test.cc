// Messages to what the engine speaks and back: nothing lost, nothing invented, refusals by name.
#include "services/runtime/convert.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/status_matchers.h"

namespace terrace::runtime {
namespace {

using attention::SparqPolicy;
using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

constexpr uint32_t kFar = std::numeric_limits<uint32_t>::max();

v1::Geometry GoodGeometry() {
  v1::Geometry proto;
  proto.set_layers(3);
  proto.set_query_heads(8);
  proto.set_kv_heads(2);
  proto.set_head_dim(64);
  proto.set_storage_dtype(v1::DTYPE_BFLOAT16);
  proto.set_softmax_scale(0.5F);
  return proto;
}

TEST(ConvertGeometryTest, GoesBothWays) {
  const absl::StatusOr<engine::Geometry> geometry = FromProto(GoodGeometry());
  ASSERT_OK(geometry);
  EXPECT_EQ(*geometry, (engine::Geometry{.layers = 3,
                                         .query_heads = 8,
                                         .kv_heads = 2,
                                         .head_dim = 64,
                                         .storage = attention::Dtype::kBFloat16,
                                         .scale = 0.5F}));
  v1::Geometry back;
  ToProto(*geometry, &back);
  EXPECT_EQ(back.SerializeAsString(), GoodGeometry().SerializeAsString());
}

TEST(ConvertGeometryTest, ValuesThatMeanTheDefaultAreTaken) {
  v1::Geometry proto = GoodGeometry();
  proto.set_value_head_dim(64);
  proto.set_kv_head_count(2);
  proto.add_sliding_window(0);
  proto.add_sliding_window(0);
  EXPECT_OK(FromProto(proto));
}

TEST(ConvertGeometryTest, WhatIsNotSupportedIsNamed) {
  struct Case {
    const char* field;
    std::function<void(v1::Geometry&)> set;
  };
  for (const Case& c :
       std::vector<Case>{{"value_head_dim", [](v1::Geometry& g) { g.set_value_head_dim(32); }},
                         {"logit_softcap", [](v1::Geometry& g) { g.set_logit_softcap(30.0F); }},
                         {"sliding_window",
                          [](v1::Geometry& g) {
                            g.add_sliding_window(0);
                            g.add_sliding_window(4096);
                          }},
                         {"kv_head_first", [](v1::Geometry& g) { g.set_kv_head_first(1); }},
                         {"kv_head_count", [](v1::Geometry& g) { g.set_kv_head_count(1); }}}) {
    v1::Geometry proto = GoodGeometry();
    c.set(proto);
    EXPECT_THAT(FromProto(proto), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(c.field)));
  }
  for (const Case& c :
       std::vector<Case>{{"storage_dtype", [](v1::Geometry& g) { g.clear_storage_dtype(); }},
                         {"storage_dtype",
                          [](v1::Geometry& g) { g.set_storage_dtype(static_cast<v1::Dtype>(7)); }},
                         {"layers", [](v1::Geometry& g) { g.clear_layers(); }},
                         {"layers", [](v1::Geometry& g) { g.set_layers(kFar); }},
                         {"query_heads", [](v1::Geometry& g) { g.set_query_heads(9); }},
                         {"kv_heads", [](v1::Geometry& g) { g.set_kv_heads(0); }},
                         {"head_dim", [](v1::Geometry& g) { g.set_head_dim(63); }}}) {
    v1::Geometry proto = GoodGeometry();
    c.set(proto);
    EXPECT_THAT(FromProto(proto), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.field)));
  }
}

TEST(ConvertSpecTest, GoesBothWaysAndNeedsAFingerprint) {
  v1::SequenceSpec proto;
  *proto.mutable_geometry() = GoodGeometry();
  EXPECT_THAT(FromProto(proto),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model_fingerprint")));
  proto.set_model_fingerprint("model");
  proto.set_adapter_id("lora");
  EXPECT_EQ(FromProto(proto)->index_format, attention::IndexFormat::kInt8);
  for (const v1::IndexFormat format : {v1::INDEX_FORMAT_EXACT, v1::INDEX_FORMAT_INT8}) {
    proto.set_index_format(format);
    const absl::StatusOr<engine::SequenceSpec> spec = FromProto(proto);
    ASSERT_OK(spec);
    v1::SequenceSpec back;
    ToProto(*spec, &back);
    EXPECT_EQ(back.SerializeAsString(), proto.SerializeAsString());
  }
  proto.set_index_format(static_cast<v1::IndexFormat>(9));
  EXPECT_THAT(FromProto(proto),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("index_format")));
}

TEST(ConvertInfoTest, GoesBothWays) {
  engine::SequenceInfo info;
  info.handle = "h";
  info.length = 100;
  info.durable_length = 64;
  info.writer_epoch = UINT64_MAX;
  info.spec.geometry = *FromProto(GoodGeometry());
  info.spec.model_fingerprint = "model";
  info.block_tokens = 64;
  info.layer_lengths = {100, 101, 102};
  v1::SequenceInfo proto;
  ToProto(info, &proto);
  const absl::StatusOr<engine::SequenceInfo> back = FromProto(proto);
  ASSERT_OK(back);
  EXPECT_EQ(back->handle, info.handle);
  EXPECT_EQ(back->length, 100);
  EXPECT_EQ(back->durable_length, 64);
  EXPECT_EQ(back->writer_epoch, UINT64_MAX);
  EXPECT_EQ(back->spec.geometry, info.spec.geometry);
  EXPECT_EQ(back->block_tokens, 64);
  EXPECT_EQ(back->layer_lengths, info.layer_lengths);
  EXPECT_FALSE(FromProto(v1::SequenceInfo()).ok());
}

TEST(ConvertTensorTest, AnUnsetOneIsAbsentAndAHalfSetOneIsNamed) {
  EXPECT_TRUE(FromProto("q", v1::Tensor())->absent());
  v1::Tensor tensor;
  tensor.add_shape(1);
  EXPECT_THAT(FromProto("q", tensor),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q.dtype")));
  tensor.set_dtype(v1::DTYPE_FLOAT16);
  tensor.set_data("ab");
  const absl::StatusOr<engine::TensorView> view = FromProto("q", tensor);
  ASSERT_OK(view);
  EXPECT_EQ(view->dtype, attention::Dtype::kFloat16);
  EXPECT_EQ(view->data.size(), 2u);
  v1::Tensor back;
  ToProto(*view, &back);
  EXPECT_EQ(back.SerializeAsString(), tensor.SerializeAsString());
  v1::Tensor untouched;
  ToProto(engine::TensorView(), &untouched);
  EXPECT_EQ(untouched.ByteSizeLong(), 0u);
}

TEST(ConvertPolicyTest, GoesBothWays) {
  for (const attention::GroupScore group :
       {attention::GroupScore::kSumProb, attention::GroupScore::kSumLogit,
        attention::GroupScore::kMaxProb}) {
    for (const attention::ValueMean mean : {attention::ValueMean::kOff, attention::ValueMean::kMean,
                                            attention::ValueMean::kResidual}) {
      const SparqPolicy policy = {
          .r = 16, .k = 128, .window = 32, .sinks = 4, .group_score = group, .value_mean = mean};
      v1::Policy proto;
      ToProto(attention::Policy(policy), &proto);
      const absl::StatusOr<attention::Policy> back = FromProto(proto);
      ASSERT_OK(back);
      EXPECT_EQ(attention::PolicyName(*back), attention::PolicyName(policy));
    }
  }
  v1::Policy dense;
  ToProto(attention::Policy(attention::DensePolicy()), &dense);
  EXPECT_TRUE(dense.has_dense());
  EXPECT_EQ(attention::PolicyName(*FromProto(dense)), "dense");
}

// Dense would be another answer than was asked for.
TEST(ConvertPolicyTest, AKindOfALaterVersionIsRefused) {
  // Field 15, a message of no bytes.
  const std::string later = {0x7a, 0x00};
  v1::Policy proto;
  ASSERT_TRUE(proto.ParseFromString(later));
  EXPECT_THAT(FromProto(proto),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("dense and sparq")));
  // A kind that is known may have more to it.
  proto.mutable_dense();
  EXPECT_EQ(attention::PolicyName(*FromProto(proto)), "dense");
}

TEST(ConvertPolicyTest, UnsetMeansTheDefaults) {
  EXPECT_EQ(attention::PolicyName(*FromProto(v1::Policy())), "dense");
  v1::Policy proto;
  proto.mutable_sparq()->set_r(8);
  proto.mutable_sparq()->set_k(64);
  const auto policy = std::get<SparqPolicy>(*FromProto(proto));
  EXPECT_EQ(policy.window, 1);
  EXPECT_EQ(policy.sinks, 0);
  EXPECT_EQ(policy.group_score, attention::GroupScore::kSumProb);
  EXPECT_EQ(policy.value_mean, kDefaultValueMean);
  proto.mutable_sparq()->set_k(kFar);  // no wrapping to a negative count
  EXPECT_EQ(std::get<SparqPolicy>(*FromProto(proto)).k, std::numeric_limits<int>::max());
  proto.mutable_sparq()->set_group_score(static_cast<v1::GroupScore>(9));
  EXPECT_THAT(FromProto(proto),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("policy.sparq.group_score")));
  proto.mutable_sparq()->clear_group_score();
  proto.mutable_sparq()->set_value_mean(static_cast<v1::ValueMean>(9));
  EXPECT_THAT(FromProto(proto),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("policy.sparq.value_mean")));
}

v1::StepItem GoodItem() {
  v1::StepItem item;
  item.set_handle("h");
  item.set_writer_epoch(7);
  item.set_position(99);
  item.add_token_ids(5);
  item.mutable_q()->set_dtype(v1::DTYPE_FLOAT32);
  item.mutable_q()->add_shape(1);
  item.mutable_q()->set_data("abcd");
  *item.mutable_k() = item.q();
  *item.mutable_v() = item.q();
  item.mutable_policy()->mutable_sparq()->set_r(8);
  item.mutable_policy()->mutable_sparq()->set_k(64);
  item.mutable_policy()->mutable_sparq()->set_window(1);
  item.mutable_policy()->mutable_sparq()->set_group_score(v1::GROUP_SCORE_SUM_PROB);
  item.mutable_policy()->mutable_sparq()->set_value_mean(v1::VALUE_MEAN_MEAN);
  item.set_model_fingerprint("model");
  return item;
}

TEST(ConvertStepTest, RequestsGoBothWays) {
  const v1::StepItem item = GoodItem();
  const absl::StatusOr<engine::StepRequest> request = FromProto(item);
  ASSERT_OK(request);
  EXPECT_EQ(request->handle, "h");
  EXPECT_EQ(request->writer_epoch, 7u);
  EXPECT_EQ(request->position, 99);
  EXPECT_EQ(request->fingerprint, "model");
  v1::StepItem back;
  ToProto(*request, &back);
  EXPECT_EQ(back.SerializeAsString(), item.SerializeAsString());
}

TEST(ConvertStepTest, BadRequestsAreNamed) {
  v1::StepItem item = GoodItem();
  item.set_position(uint64_t{1} << 63);
  EXPECT_THAT(FromProto(item), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("position")));
  item = GoodItem();
  item.mutable_k()->set_dtype(v1::DTYPE_UNSPECIFIED);
  EXPECT_THAT(FromProto(item), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k.dtype")));
}

TEST(ConvertStepTest, OptionsCountFromArrival) {
  const absl::Time arrival = absl::FromUnixSeconds(1'000);
  const engine::StepOptions plain = *OptionsOf(v1::AttendRequest(), arrival);
  EXPECT_EQ(plain.deadline, absl::InfiniteFuture());
  EXPECT_EQ(plain.row_deadline, absl::InfiniteFuture());
  EXPECT_FALSE(plain.strict);
  EXPECT_FALSE(plain.return_selection);
  EXPECT_EQ(plain.mode, engine::RemoteMode::kAuto);
  v1::AttendRequest request;
  request.mutable_step_deadline()->set_seconds(2);
  request.mutable_row_deadline()->set_nanos(5'000'000);
  request.set_strict(true);
  request.set_return_selection(true);
  request.set_mode(v1::REMOTE_MODE_ROWS);
  const engine::StepOptions options = *OptionsOf(request, arrival);
  EXPECT_EQ(options.deadline, arrival + absl::Seconds(2));
  EXPECT_EQ(options.row_deadline, arrival + absl::Milliseconds(5));
  EXPECT_TRUE(options.strict);
  EXPECT_TRUE(options.return_selection);
  EXPECT_EQ(options.mode, engine::RemoteMode::kRows);
}

TEST(ConvertStepTest, AModeOfALaterVersionIsRefused) {
  v1::AttendRequest request;
  for (int mode = 0; mode < 6; ++mode) {
    request.set_mode(static_cast<v1::RemoteMode>(mode));
    if (v1::RemoteMode_IsValid(mode)) {
      EXPECT_OK(OptionsOf(request, absl::Now()));
    } else {
      EXPECT_THAT(OptionsOf(request, absl::Now()),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           HasSubstr("mode: got " + std::to_string(mode))));
    }
  }
}

TEST(ConvertStepTest, ResultsCarryAllTheyHave) {
  engine::StepResult result;
  result.appended = true;
  result.layer_length = 12;
  result.queries = 2;
  result.output = {1, 2, 3, 4, 5, 6, 7, 8};
  result.account.alpha = {0.5F, 1.0F};
  result.selections = {{.positions = {1, 2}, .channels = {3}}, {.positions = {4}, .channels = {}}};
  v1::StepResult proto;
  ToProto(result, &proto);
  EXPECT_EQ(proto.status().code(), 0);
  EXPECT_TRUE(proto.appended());
  EXPECT_EQ(proto.layer_length(), 12u);
  ASSERT_EQ(proto.output().shape_size(), 3);
  EXPECT_EQ(proto.output().shape(0), 2u);
  EXPECT_EQ(proto.output().shape(1), 1u);
  EXPECT_EQ(proto.output().shape(2), 4u);
  EXPECT_EQ(proto.output().data().size(), 32u);
  EXPECT_EQ(FromProto(proto.selections(0)).positions, result.selections[0].positions);
  EXPECT_EQ(FromProto(proto.selections(0)).channels, result.selections[0].channels);

  engine::StepResult failed;
  failed.status = absl::DataLossError("rotten");
  failed.appended = true;
  v1::StepResult failure;
  ToProto(failed, &failure);
  EXPECT_EQ(failure.status().code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(failure.appended());
  EXPECT_FALSE(failure.has_output());
}

TEST(ConvertAccountTest, GoesBothWays) {
  engine::StepAccount account;
  account.host = {.rows = 1, .row_bytes = 2, .index_bytes = 3, .sum_bytes = 4, .physical_bytes = 5};
  account.disk = {
      .rows = 6, .row_bytes = 7, .index_bytes = 8, .sum_bytes = 9, .physical_bytes = 10};
  account.alpha = {0.25F};
  account.missed_mass = 0.125F;
  account.missed_rows = 11;
  account.stages = {.queue = absl::Microseconds(1),
                    .append = absl::Microseconds(2),
                    .select = absl::Microseconds(3),
                    .gather = absl::Microseconds(4),
                    .attend = absl::Microseconds(5),
                    .network = absl::Microseconds(6),
                    .total = absl::Microseconds(7)};
  account.mode = engine::RemoteMode::kPartial;
  account.wire_bytes = 12;
  v1::StepAccount proto;
  ToProto(account, &proto);
  v1::StepAccount again;
  ToProto(FromProto(proto), &again);
  EXPECT_EQ(again.SerializeAsString(), proto.SerializeAsString());
  EXPECT_EQ(proto.reads_size(), 2);
  EXPECT_EQ(proto.reads(1).physical_bytes(), 10u);
  EXPECT_EQ(proto.stages().network_us(), 6u);
  EXPECT_EQ(proto.mode(), v1::REMOTE_MODE_PARTIAL);
  // An embedded engine ran no mode.
  account.wire_bytes = 0;
  v1::StepAccount embedded;
  ToProto(account, &embedded);
  EXPECT_EQ(embedded.mode(), v1::REMOTE_MODE_UNSPECIFIED);
}

TEST(ConvertReportTest, TiersAndDescriptionsGoBothWays) {
  engine::TierReport report = {.shard = 3, .tier = engine::Tier::kDisk, .stats = {}};
  uint64_t next = 1;
  kvstore::TierStats& s = report.stats;
  for (uint64_t* field :
       {&s.capacity_bytes,   &s.used_bytes,          &s.pinned_bytes,      &s.resident_blocks,
        &s.admitted_blocks,  &s.evicted_blocks,      &s.deleted_blocks,    &s.resident_bytes,
        &s.admitted_bytes,   &s.evicted_bytes,       &s.deleted_bytes,     &s.index_bytes,
        &s.read_bytes,       &s.written_bytes,       &s.error_count,       &s.corrupt_granules,
        &s.ahead_blocks,     &s.ahead_useful_blocks, &s.ahead_late_blocks, &s.ahead_wasted_blocks,
        &s.quarantined_cells}) {
    *field = next++;
  }
  s.last_error = "x";
  v1::TierInfo tier;
  ToProto(report, &tier);
  EXPECT_EQ(tier.capacity_bytes(), 1u);
  EXPECT_EQ(tier.corrupt_granules(), 16u);
  EXPECT_EQ(tier.read_ahead_blocks(), 17u);
  EXPECT_EQ(tier.quarantined_cells(), 21u);
  v1::TierInfo tier_again;
  ToProto(FromProto(tier), &tier_again);
  EXPECT_EQ(tier_again.SerializeAsString(), tier.SerializeAsString());

  engine::SequenceDescription description;
  description.summary = {.handle = "h",
                         .tenant = "t",
                         .model_fingerprint = "m",
                         .length = 1,
                         .durable_length = 2,
                         .host_bytes = 3,
                         .disk_bytes = 4,
                         .parked = true,
                         .created = absl::FromUnixMicros(1'234'567),
                         .last_used = absl::FromUnixMicros(7'654'321),
                         .problem = "why"};
  description.info.spec.geometry = *FromProto(GoodGeometry());
  description.info.spec.model_fingerprint = "m";
  description.layers = {{.layer = 1,
                         .length = 2,
                         .blocks = 3,
                         .host_blocks = 4,
                         .disk_blocks = 5,
                         .host_row_bytes = 6,
                         .host_index_bytes = 7,
                         .disk_bytes = 8}};
  description.segments = {{.segment = 9, .first_block = 10, .end_block = 11}};
  v1::DescribeSequenceResponse proto;
  ToProto(description, &proto);
  EXPECT_TRUE(proto.summary().parked());
  EXPECT_EQ(proto.summary().problem(), "why");
  const absl::StatusOr<engine::SequenceDescription> back = FromProto(proto);
  ASSERT_OK(back);
  EXPECT_EQ(back->summary.created, description.summary.created);
  v1::DescribeSequenceResponse again;
  ToProto(*back, &again);
  EXPECT_EQ(again.SerializeAsString(), proto.SerializeAsString());
}

}  // namespace
}  // namespace terrace::runtime
