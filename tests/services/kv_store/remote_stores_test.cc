// A worker whose stores go, come back as somebody else, or hang.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/engine/error.h"
#include "services/engine/handle.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/admin.grpc.pb.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/services/kv_store/mute_store.h"
#include "tests/services/kv_store/slow_door.h"
#include "tests/services/kv_store/store_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::RemoteMode;
using engine::SequenceInfo;
using engine::StepResult;
using kv_store::RemoteEngine;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;

// Asks until the answer is another than that the store does not answer: a channel takes a moment to
// find a store that is back.
template <typename Ask>
auto UntilReached(const Ask& ask) {
  const absl::Time end = Soon();
  auto answer = ask();
  while (absl::IsUnavailable(answer.status()) &&
         answer.status().message().find("now, not") == absl::string_view::npos &&
         absl::Now() < end) {
    answer = ask();
  }
  return answer;
}

SequenceInfo CreateOn(RemoteEngine& remote, uint16_t shard) {
  for (int i = 0; i < 64; ++i) {
    SequenceInfo info = *remote.Create({}, Spec(SmallGeometry()));
    if (engine::ShardOf(info.handle) == shard) return info;
  }
  ADD_FAILURE() << "no sequence on shard " << shard;
  return {};
}

TEST(ReplacedStoreTest, ItsSequencesAreUnavailableByNameAndItTakesNewOnesOfItsNumber) {
  auto store = std::make_unique<Store>(OnShard(1));
  const int port = store->server->port();
  const std::string endpoint = store->server->endpoint();
  RemoteEngine remote(OptionsFor({endpoint}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo old = *remote.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote, old, kSeed, 0, 20));
  const Step step = ReadStep(old, kSeed, 0, 19, 1, Sparq(4, 10));
  ASSERT_OK(RunOne(remote, 0, step).status);
  store = nullptr;
  store = std::make_unique<Store>(OnShard(2), port);

  const auto got = UntilReached([&] { return remote.Get({}, old.handle); });
  EXPECT_THAT(got, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shard 2 now, not 1")));
  EXPECT_THAT(got.status().message(), HasSubstr(endpoint));
  EXPECT_THAT(RunOne(remote, 0, step).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shard 2 now, not 1")));
  const SequenceInfo fresh = *remote.Create({}, Spec(SmallGeometry()));
  EXPECT_EQ(engine::ShardOf(fresh.handle), 2);
  EXPECT_OK(AppendSeed(remote, fresh, kSeed, 0, 20));
  EXPECT_OK(RunOne(remote, 0, ReadStep(fresh, kSeed, 0, 19, 1, Sparq(4, 10))).status);
}

// The stream of steps is idle when its store goes: nobody hears of it until the next step.
TEST(ReplacedStoreTest, StoresThatChangePlacesKeepTheirSequences) {
  Store one(OnShard(1));
  Store two(OnShard(2));
  RemoteEngine remote(OptionsFor({one.server->endpoint(), two.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  std::vector<Step> steps;
  std::vector<StepResult> before;
  for (const uint16_t shard : {1, 2}) {
    const SequenceInfo info = CreateOn(remote, shard);
    ASSERT_OK(AppendSeed(remote, info, kSeed + shard, 0, 20));
    steps.push_back(ReadStep(info, kSeed, 0, 19, 1, Sparq(4, 10)));
    before.push_back(RunOne(remote, 0, steps.back()));
    ASSERT_OK(before.back().status);
  }
  const int port_one = one.server->port();
  const int port_two = two.server->port();
  one.server->Stop();
  two.server->Stop();
  one.Start(port_two);
  two.Start(port_one);
  for (size_t i = 0; i < steps.size(); ++i) {
    StepResult after;
    const absl::Time end = Soon();
    do {
      after = RunOne(remote, 0, steps[i]);
    } while (absl::IsUnavailable(after.status) && absl::Now() < end);
    ExpectSameAnswer(before[i], after);
  }
}

TEST(ReplacedStoreTest, TwoThatBecomeTheSameShardAreBothRefused) {
  auto one = std::make_unique<Store>(OnShard(1));
  Store two(OnShard(2));
  const int port = one->server->port();
  RemoteEngine remote(OptionsFor({one->server->endpoint(), two.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo second = CreateOn(remote, 2);
  const SequenceInfo first = CreateOn(remote, 1);
  one = nullptr;
  one = std::make_unique<Store>(OnShard(2), port);
  EXPECT_THAT(UntilReached([&] { return remote.Get({}, first.handle); }), ::testing::Not(IsOk()));
  EXPECT_THAT(remote.Get({}, second.handle),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("both shard 2")));
}

TEST(GoneStoreTest, ListsHaveWhatTheOthersHoldAndNameIt) {
  Store one(OnShard(1));
  Store two(OnShard(2));
  RemoteEngine remote(OptionsFor({one.server->endpoint(), two.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo lost = CreateOn(remote, 1);
  const SequenceInfo held = CreateOn(remote, 2);
  EXPECT_TRUE(remote.Unreachable().empty());
  const size_t all = remote.ListSequences("", "", 100)->size();
  const int port = one.server->port();
  const std::string endpoint = one.server->endpoint();
  one.server->Stop();
  std::vector<absl::Status> unreachable;
  const auto tiers = remote.ListTiers({.unreachable = &unreachable});
  ASSERT_OK(tiers);
  ASSERT_EQ(tiers->size(), 1u);
  EXPECT_EQ((*tiers)[0].shard, 2u);
  const auto named = StatusIs(absl::StatusCode::kUnavailable, HasSubstr(endpoint));
  EXPECT_THAT(unreachable, ::testing::ElementsAre(named));
  // After the lost shard's handle, too: its place in the order stays.
  for (const std::string& after : {std::string(), lost.handle}) {
    unreachable.clear();
    const auto sequences = remote.ListSequences("", after, 100, {.unreachable = &unreachable});
    ASSERT_OK(sequences);
    EXPECT_EQ(sequences->size(), two.engine->sequence_count());
    EXPECT_THAT(unreachable, ::testing::ElementsAre(named));
  }
  one.Start(port);
  EXPECT_OK(UntilReached([&] { return remote.Get({}, lost.handle); }));
  EXPECT_EQ(remote.ListTiers()->size(), 2u);
  EXPECT_EQ(remote.ListSequences("", "", 100)->size(), all);
  EXPECT_TRUE(remote.Unreachable().empty());
}

TEST(HangingStoreTest, ACancelEndsStepsAndCallsInFlight) {
  MuteStore store(0, MuteStore::Names::kItself);
  RemoteEngine remote(OptionsFor({store.endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  SequenceInfo info;
  info.handle = engine::NewHandle(0);
  info.spec = Spec(SmallGeometry());
  std::thread step([&] {
    EXPECT_THAT(RunOne(remote, 0, ReadStep(info, kSeed, 0, 5, 1, Sparq(4, 4))).status,
                StatusIs(absl::StatusCode::kUnavailable));
  });
  std::thread call(
      [&] { EXPECT_THAT(remote.Get({}, info.handle), StatusIs(absl::StatusCode::kUnavailable)); });
  EXPECT_TRUE(store.AwaitSteps(1));
  EXPECT_TRUE(store.AwaitCalls(1));
  remote.Cancel();
  step.join();
  call.join();
  EXPECT_THAT(remote.Get({}, info.handle), StatusIs(absl::StatusCode::kUnavailable));
}

// It answers, but its disk does not.
class FailingDiskTest : public ::testing::Test {
 protected:
  struct FailingStore : v1::KvStoreService::Service {
    grpc::Status GetLimits(grpc::ServerContext* /*context*/,
                           const v1::GetLimitsRequest* /*request*/,
                           v1::GetLimitsResponse* response) override {
      ++times_asked;
      response->set_max_message_bytes(RpcServer::kMessageBytesMax);
      return grpc::Status::OK;
    }
    grpc::Status GetSequence(grpc::ServerContext* /*context*/,
                             const v1::GetSequenceRequest* /*request*/,
                             v1::GetSequenceResponse* /*response*/) override {
      return runtime::ToGrpcStatus(absl::UnavailableError("disk tier: its folder is gone"));
    }
    grpc::Status AttendSteps(
        grpc::ServerContext* /*context*/,
        grpc::ServerReaderWriter<v1::StoreStepResponse, v1::StoreStepRequest>* stream) override {
      v1::StoreStepRequest request;
      while (stream->Read(&request)) {
      }
      return grpc::Status::OK;
    }
    std::atomic<int> times_asked = 0;
  };
  struct FailingAdmin : v1::AdminService::Service {
    grpc::Status ListTiers(grpc::ServerContext* /*context*/,
                           const v1::ListTiersRequest* /*request*/,
                           v1::ListTiersResponse* response) override {
      response->add_tiers()->set_shard(0);
      if (!fails) return grpc::Status::OK;
      return runtime::ToGrpcStatus(absl::ResourceExhaustedError("the admission queue is full"));
    }
    std::atomic<bool> fails = true;
  };

  FailingStore* store_ = nullptr;
  FailingAdmin* admin_ = nullptr;
  RpcServer server_{[this](runtime::Executor&, runtime::Drain&) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(std::make_unique<FailingStore>());
    services.push_back(std::make_unique<FailingAdmin>());
    store_ = static_cast<FailingStore*>(services[0].get());
    admin_ = static_cast<FailingAdmin*>(services[1].get());
    return services;
  }};
};

TEST_F(FailingDiskTest, AnErrorThatTheStoreAnswersIsItsOwnAndItStaysKnown) {
  RemoteEngine remote(OptionsFor({server_.endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = remote.Get({}, engine::NewHandle(0)).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, "disk tier: its folder is gone"));
    EXPECT_NE(engine::DetailOf(status).value_or(engine::ErrorDetail()).reason, "SHARD_UNAVAILABLE");
  }
  EXPECT_TRUE(remote.Unreachable().empty());
  EXPECT_EQ(store_->times_asked, 1);
}

// The list says what it lacks, and nothing else changes.
TEST_F(FailingDiskTest, AListThatItRefusesLacksItThisTimeAndItStaysKnown) {
  Store other(OnShard(1));
  RemoteEngine remote(OptionsFor({server_.endpoint(), other.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  std::vector<absl::Status> unreachable;
  const auto tiers = remote.ListTiers({.unreachable = &unreachable});
  ASSERT_OK(tiers);
  EXPECT_EQ(tiers->size(), 1u);
  ASSERT_EQ(unreachable.size(), 1u);
  EXPECT_THAT(unreachable[0], StatusIs(absl::StatusCode::kUnavailable, HasSubstr("queue is full")));
  EXPECT_THAT(unreachable[0].message(), HasSubstr(server_.endpoint()));
  unreachable.clear();
  // It has no list of sequences at all.
  ASSERT_OK(remote.ListSequences("", "", 10, {.unreachable = &unreachable}));
  EXPECT_EQ(unreachable.size(), 1u);
  admin_->fails = false;
  unreachable.clear();
  EXPECT_EQ(remote.ListTiers({.unreachable = &unreachable})->size(), 2u);
  EXPECT_TRUE(unreachable.empty());
  EXPECT_TRUE(remote.Unreachable().empty());
  EXPECT_EQ(store_->times_asked, 1);
}

// It takes messages of 64 KiB; the worker is told 4 MiB by its own settings.
TEST(MessageLimitTest, AVerbThatDoesNotFitTheStoresMessagesIsRefusedWithBothSizes) {
  constexpr uint64_t kLimit = uint64_t{64} << 10;
  const auto engine = OpenEngine(MemoryOptions());
  RpcServer server([&](runtime::Executor& executor, runtime::Drain& drain) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(kv_store::MakeKvStoreService(*engine, executor, drain, kLimit));
    return services;
  });
  RemoteEngine remote(OptionsFor({server.endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo info = *remote.Create({}, Spec(SmallGeometry()));
  const std::vector<uint32_t> ids(400'000, 1 << 30);
  const engine::PrefixQuery query = {.spec = info.spec, .token_ids = ids};
  const KvRows rows = MakeRows(info.spec.geometry, kSeed, 0, 0, 6000);
  const HostTensor k = MakeTensor(rows.k, 6000, 2, 16);
  const HostTensor v = MakeTensor(rows.v, 6000, 2, 16);
  for (const absl::Status& status :
       {remote.OpenOnPrefix({}, query, "").status(), remote.LookupPrefix({}, query, {}).status(),
        remote
            .Append({}, {.handle = info.handle,
                        .writer_epoch = info.writer_epoch,
                        .layer = 0,
                        .position = 0,
                        .k = k.view(),
                        .v = v.view()})
            .status()}) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("expected at most " + std::to_string(kLimit))));
    const engine::ErrorDetail detail = engine::DetailOf(status).value_or(engine::ErrorDetail());
    EXPECT_EQ(detail.reason, "LIMIT_EXCEEDED");
    EXPECT_FALSE(detail.retry_delay.has_value());
  }
  EXPECT_EQ(engine->Get({}, info.handle)->layer_lengths[0], 0);
}

// Giving up after a tenth of a second and trying again takes at least five connections.
TEST(SlowConnectionTest, IsWaitedFor) {
  Store store;
  SlowDoor door(store.server->port(), absl::Milliseconds(600));
  RemoteEngine remote(OptionsFor({door.endpoint()}));
  const absl::Time end = Soon();
  absl::Status status = remote.Connect(Soon());
  while (!status.ok() && absl::Now() < end) status = remote.Connect(Soon());
  EXPECT_OK(status);
  EXPECT_LT(door.connections(), 4);
}

// Steps of one query each hold many rows; together they are more to name than a message takes.
TEST(HeldRowsTest, ThatDoNotFitTheMessageAreNotNamed) {
  Store store;
  RemoteEngine remote(OptionsFor({store.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  engine::Geometry geometry = SmallGeometry();
  geometry.layers = 1;
  geometry.head_dim = 8;
  geometry.storage = attention::Dtype::kBFloat16;
  constexpr int64_t kLength = 13'000;
  constexpr int kSequences = 120;
  const SequenceInfo parent = *remote.Create({}, Spec(geometry));
  ASSERT_OK(AppendSeed(remote, parent, kSeed, 0, kLength));
  std::vector<Step> steps;
  for (int i = 0; i < kSequences; ++i) {
    const SequenceInfo fork = *remote.Fork({}, parent.handle, kLength, "");
    ASSERT_OK(RunOne(remote, 0, ReadStep(fork, kSeed, 0, kLength - 1, 1, Sparq(4, kLength)),
                     {.mode = RemoteMode::kRows})
                  .status);
    steps.push_back(ReadStep(fork, kSeed, 0, kLength - 1, 1, Sparq(4, 4)));
  }
  std::vector<engine::StepRequest> requests;
  for (const Step& step : steps) requests.push_back(step.request());
  const StepResult expected = RunOne(*store.engine, 0, steps[0]);
  for (const StepResult& result : remote.Attend({}, 0, requests, {.mode = RemoteMode::kRows})) {
    ASSERT_OK(result.status);
    EXPECT_EQ(result.account.mode, RemoteMode::kRows);
    EXPECT_EQ(result.output, expected.output);
  }
}

TEST(AutoModeTest, LearnsNothingFromStepsWhoseModeWasGiven) {
  Store store;
  RemoteEngine remote(OptionsFor({store.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo info = *remote.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote, info, kSeed, 0, 100));
  const Step sparse = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, 10));
  for (const RemoteMode mode : {RemoteMode::kRows, RemoteMode::kPartial}) {
    ASSERT_OK(RunOne(remote, 0, sparse, {.mode = mode}).status);
  }
  // Rows of these do not fit a message: they can only run in one mode.
  const Step huge = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, INT32_MAX));
  const std::vector<engine::StepRequest> requests(100, huge.request());
  ASSERT_OK(remote.Attend({}, 0, requests, {})[0].status);
  // It tries both in turn, because it knows neither.
  EXPECT_EQ(RunOne(remote, 0, sparse).account.mode, RemoteMode::kPartial);
  EXPECT_EQ(RunOne(remote, 0, sparse).account.mode, RemoteMode::kRows);
}

TEST(AutoModeTest, LearnsFromTheItemsOfABatchThatSucceed) {
  Store store;
  RemoteEngine remote(OptionsFor({store.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo info = *remote.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote, info, kSeed, 0, 100));
  const Step good = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, 10));
  Step bad = good;
  bad.handle = engine::NewHandle(0);
  const std::vector<engine::StepRequest> requests = {bad.request(), good.request()};
  // PARTIAL is known after the first, so the second tries ROWS, and the third need not.
  for (const RemoteMode mode : {RemoteMode::kPartial, RemoteMode::kRows}) {
    const std::vector<StepResult> results = remote.Attend({}, 0, requests, {});
    EXPECT_THAT(results[0].status, StatusIs(absl::StatusCode::kNotFound));
    ASSERT_OK(results[1].status);
    EXPECT_EQ(results[1].account.mode, mode);
  }
}

}  // namespace
}  // namespace terrace::testing
