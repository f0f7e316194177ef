// An engine whose tiers are behind gRPC, against one in this process: same verbs, same bits.
#include "services/kv_store/remote_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "services/engine/error.h"
#include "services/engine/handle.h"
#include "tests/services/engine/engine_client.h"
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

class RemoteEngineTest : public ::testing::Test {
 protected:
  Store store_;
  RemoteEngine remote_{OptionsFor({store_.server->endpoint()})};
};

TEST_F(RemoteEngineTest, VerbsActAsThoseOfAnEmbeddedEngine) {
  ASSERT_OK(remote_.Connect(Soon()));
  const auto embedded = OpenEngine(MemoryOptions());
  for (engine::KvEngine* engine :
       {static_cast<engine::KvEngine*>(embedded.get()), static_cast<engine::KvEngine*>(&remote_)}) {
    const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
    EXPECT_EQ(info.writer_epoch, 1u);
    EXPECT_EQ(info.spec.geometry.scale, 0.25F);
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 150));
    EXPECT_EQ(engine->Get({}, info.handle)->length, 150);
    // A repeat of old rows moves no length.
    for (const int64_t position : {0, 139, 140}) {
      const KvRows rows = MakeRows(SmallGeometry(), kSeed, 1, position, 10);
      EXPECT_EQ(AppendRowsOf(*engine, info, 1, position, rows).value_or(-1), 150);
    }
    const KvRows more = MakeRows(SmallGeometry(), kSeed, 1, 145, 10);
    EXPECT_EQ(AppendRowsOf(*engine, info, 1, 145, more).value_or(-1), 155);
    EXPECT_EQ(engine->Fork({}, info.handle, 100, "model")->length, 100);
    EXPECT_THAT(engine->Fork({}, info.handle, 151, ""), StatusIs(absl::StatusCode::kOutOfRange));
    const absl::Status mismatch = engine->Resume({}, info.handle, "other").status();
    ASSERT_TRUE(engine::DetailOf(mismatch).has_value());
    EXPECT_EQ(engine::DetailOf(mismatch)->reason, "FINGERPRINT_MISMATCH");
    EXPECT_EQ(engine->Resume({}, info.handle, "model")->writer_epoch, 2u);
    const absl::Status fenced = AppendSeed(*engine, info, kSeed, 150, 151);
    ASSERT_TRUE(engine::DetailOf(fenced).has_value());
    EXPECT_EQ(engine::DetailOf(fenced)->reason, "EPOCH_STALE");
    EXPECT_EQ(engine::DetailOf(fenced)->metadata.at("expected_epoch"), "2");
    EXPECT_EQ(engine->Truncate({}, info.handle, 2, 70)->length, 70);
    EXPECT_THAT(engine->Flush({}, info.handle), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_THAT(engine->Park({}, info.handle), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_EQ(engine->Describe(info.handle)->info.length, 70);
    EXPECT_EQ(engine->ListSequences("", "", 10)->size(), 2u);
    EXPECT_EQ(engine->ListTiers()->size(), 1u);
    EXPECT_OK(engine->Delete({}, info.handle));
    EXPECT_THAT(engine->Get({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
    EXPECT_THAT(engine->Delete({}, "nonsense"), StatusIs(absl::StatusCode::kNotFound));
  }
}

TEST_F(RemoteEngineTest, AParkedSequenceLeavesTheStoreAndTheWorkerAndComesBack) {
  const TempFolder folder;
  Store store(DiskOptions(folder));
  RemoteEngine remote(OptionsFor({store.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo info = *remote.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote, info, kSeed, 0, 200));
  const Step step = ReadStep(info, kSeed, 0, 199, 1, Sparq(5, 20, 4, 2));
  const StepResult before = RunOne(remote, 0, step, {.mode = RemoteMode::kRows});
  const absl::StatusOr<engine::ParkReport> report = remote.Park({}, info.handle);
  ASSERT_OK(report);
  EXPECT_EQ(report->info.durable_length, 200);
  EXPECT_GT(report->freed_row_bytes, 0u);
  EXPECT_GT(report->freed_index_bytes, 0u);
  EXPECT_EQ(report->kept_bytes, 0u);
  EXPECT_TRUE(remote.Describe(info.handle)->summary.parked);
  EXPECT_EQ((*remote.ListTiers())[0].stats.used_bytes, 0u);
  const StepResult after = RunOne(remote, 0, step, {.mode = RemoteMode::kRows});
  ExpectSameAnswer(before, after);
  EXPECT_GT(after.account.disk.rows, 0u) << "the worker held its rows";
  EXPECT_FALSE(remote.Describe(info.handle)->summary.parked);
  EXPECT_THAT(remote.Park({}, "nonsense"), StatusIs(absl::StatusCode::kNotFound));
}

// I10. The same appends and steps, in every mode; steps after one another so that rows are held.
TEST_F(RemoteEngineTest, StepsGiveTheBitsOfAnEmbeddedEngine) {
  ASSERT_OK(remote_.Connect(Soon()));
  const auto embedded = OpenEngine(MemoryOptions());
  for (const RemoteMode mode : {RemoteMode::kRows, RemoteMode::kPartial, RemoteMode::kAuto}) {
    for (const attention::Policy& policy :
         {attention::Policy(attention::DensePolicy()), Sparq(5, 20, 4, 2),
          Sparq(5, 20, 4, 2, attention::ValueMean::kMean),
          Sparq(5, 20, 4, 2, attention::ValueMean::kResidual)}) {
      SCOPED_TRACE(::testing::Message()
                   << static_cast<int>(mode) << " " << attention::PolicyName(policy));
      const SequenceInfo here = *embedded->Create({}, Spec(SmallGeometry()));
      const SequenceInfo there = *remote_.Create({}, Spec(SmallGeometry()));
      ASSERT_OK(AppendSeed(*embedded, here, kSeed, 0, 55));
      ASSERT_OK(AppendSeed(remote_, there, kSeed, 0, 55));
      int64_t position = 55;
      for (const int64_t n : {1, 1, 3, 1, 1, 1, 8, 1, 1, 1, 1, 1}) {
        for (int layer = 0; layer < 2; ++layer) {
          const StepResult expected =
              RunOne(*embedded, layer, AppendStep(here, kSeed, layer, position, n, policy));
          const StepResult got = RunOne(
              remote_, layer, AppendStep(there, kSeed, layer, position, n, policy), {.mode = mode});
          ASSERT_OK(expected.status);
          ExpectSameAnswer(expected, got);
          EXPECT_TRUE(got.appended);
          EXPECT_EQ(got.layer_length, position + n);
          EXPECT_GT(got.account.wire_bytes, 0u);
          const bool dense = std::holds_alternative<attention::DensePolicy>(policy);
          if (mode != RemoteMode::kAuto) {
            EXPECT_EQ(got.account.mode, dense ? RemoteMode::kPartial : mode);
          }
        }
        position += n;
      }
    }
  }
}

TEST_F(RemoteEngineTest, AdjacentStepsSendFewRowsTwice) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo info = *remote_.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote_, info, kSeed, 0, 200));
  const Step step = ReadStep(info, kSeed, 0, 199, 1, Sparq(5, 50));
  const StepResult first = RunOne(remote_, 0, step, {.mode = RemoteMode::kRows});
  const StepResult second = RunOne(remote_, 0, step, {.mode = RemoteMode::kRows});
  ExpectSameAnswer(first, second);
  // 100 rows of 128 bytes stayed at home.
  EXPECT_GE(first.account.wire_bytes, second.account.wire_bytes + 100 * 128);
  EXPECT_EQ(second.account.host.rows, 0u);

  // What a truncate replaced is sent anew.
  ASSERT_OK(store_.engine->Truncate({}, info.handle, info.writer_epoch, 100));
  ASSERT_OK(AppendSeed(remote_, info, kSeed + 1, 100, 200));
  const auto embedded = OpenEngine(MemoryOptions());
  const SequenceInfo same = *embedded->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*embedded, same, kSeed, 0, 100));
  ASSERT_OK(AppendSeed(*embedded, same, kSeed + 1, 100, 200));
  ExpectSameAnswer(RunOne(*embedded, 0, ReadStep(same, kSeed, 0, 199, 1, Sparq(5, 50))),
                   RunOne(remote_, 0, step, {.mode = RemoteMode::kRows}));
}

TEST_F(RemoteEngineTest, ItemsFailAloneAndCarryWhy) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo a = *remote_.Create({}, Spec(SmallGeometry()));
  const SequenceInfo b = *remote_.Create({}, Spec(SmallGeometry()));
  const Step good = AppendStep(a, kSeed, 0, 0, 1, Sparq(4, 4));
  const Step gap = AppendStep(b, kSeed, 0, 9, 1, Sparq(4, 4));
  Step unknown = good;
  unknown.handle = engine::NewHandle(0);
  Step nonsense = good;
  nonsense.handle = "nonsense";
  Step huge = ReadStep(a, kSeed, 0, 0, 1, Sparq(4, INT32_MAX, INT32_MAX, INT32_MAX));
  const std::vector<engine::StepRequest> requests = {
      gap.request(), good.request(), unknown.request(), nonsense.request(), huge.request()};
  for (const RemoteMode mode : {RemoteMode::kRows, RemoteMode::kPartial}) {
    const std::vector<StepResult> results = remote_.Attend({}, 0, requests, {.mode = mode});
    ASSERT_EQ(results.size(), 5u);
    ASSERT_TRUE(engine::DetailOf(results[0].status).has_value()) << results[0].status;
    EXPECT_EQ(engine::DetailOf(results[0].status)->metadata.at("expected_position"), "0");
    EXPECT_FALSE(results[0].appended);
    EXPECT_OK(results[1].status);
    EXPECT_THAT(results[2].status, StatusIs(absl::StatusCode::kNotFound));
    EXPECT_THAT(results[3].status, StatusIs(absl::StatusCode::kNotFound));
  }
  EXPECT_THAT(remote_.Attend({}, 7, {requests.data() + 1, 1}, {})[0].status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
  EXPECT_THAT(remote_.Attend({}, -1, {requests.data() + 1, 1}, {})[0].status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
}

TEST_F(RemoteEngineTest, TenantsTravelWithEveryCall) {
  ASSERT_OK(remote_.Connect(Soon()));
  engine::Caller mine;
  mine.tenant = "mine";
  const SequenceInfo info = *remote_.Create(mine, Spec(SmallGeometry()));
  const Step step = AppendStep(info, kSeed, 0, 0, 1, Sparq(4, 4));
  EXPECT_THAT(RunOne(remote_, 0, step).status, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_OK(RunOne(remote_, 0, step, {}, mine).status);
  EXPECT_THAT(remote_.Get({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_OK(remote_.Get(mine, info.handle));
  EXPECT_EQ(store_.engine->Describe(info.handle)->summary.tenant, "mine");
}

TEST_F(RemoteEngineTest, VerbsThatTheStoreRefusesLeaveHeldRowsAlone) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo info = *remote_.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote_, info, kSeed, 0, 200));
  const Step step = ReadStep(info, kSeed, 0, 199, 1, Sparq(5, 50));
  const StepResult first = RunOne(remote_, 0, step, {.mode = RemoteMode::kRows});
  const engine::Caller other = {.tenant = "other"};
  for (const absl::Status& refused :
       {remote_.Truncate(other, info.handle, info.writer_epoch, 10).status(),
        remote_.Truncate({}, info.handle, info.writer_epoch + 1, 10).status(),
        remote_.Truncate({}, info.handle, info.writer_epoch, 201).status(),
        remote_.Delete(other, info.handle)}) {
    EXPECT_FALSE(refused.ok());
    const StepResult second = RunOne(remote_, 0, step, {.mode = RemoteMode::kRows});
    ExpectSameAnswer(first, second);
    EXPECT_EQ(second.account.host.rows, 0u) << refused;
  }
}

TEST_F(RemoteEngineTest, AStepThatIsLateChangesNothing) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo info = *remote_.Create({}, Spec(SmallGeometry()));
  const Step step = AppendStep(info, kSeed, 0, 0, 1, Sparq(4, 4));
  const absl::Time past = absl::Now() - absl::Seconds(1);
  for (const StepResult& late : {RunOne(remote_, 0, step, {.deadline = past}),
                                 RunOne(remote_, 0, step, {}, {.deadline = past})}) {
    EXPECT_THAT(late.status, StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_FALSE(late.appended);
  }
  EXPECT_THAT(remote_.Get({.deadline = past}, info.handle),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  // Answers come in order, so nothing of the late ones is still on its way after this.
  EXPECT_OK(RunOne(remote_, 0, AppendStep(info, kSeed + 1, 0, 0, 1, Sparq(4, 4))).status);
}

TEST_F(RemoteEngineTest, AStoreThatIsGoneIsNamedAndFoundAgainOnItsPort) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo info = *remote_.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote_, info, kSeed, 0, 100));
  const Step step = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, 10));
  const StepResult before = RunOne(remote_, 0, step);
  ASSERT_OK(before.status);
  const int port = store_.server->port();
  const std::string endpoint = store_.server->endpoint();
  store_.server->Stop();
  for (const absl::Status& gone :
       {RunOne(remote_, 0, step).status, remote_.Get({}, info.handle).status(),
        remote_.Create({}, Spec(SmallGeometry())).status(), remote_.ListTiers().status(),
        AppendSeed(remote_, info, kSeed, 100, 101)}) {
    EXPECT_THAT(gone, StatusIs(absl::StatusCode::kUnavailable, HasSubstr(endpoint)));
    ASSERT_TRUE(engine::DetailOf(gone).has_value());
    EXPECT_EQ(engine::DetailOf(gone)->reason, "SHARD_UNAVAILABLE");
    EXPECT_EQ(engine::DetailOf(gone)->metadata.at("endpoint"), endpoint);
  }
  store_.Start(port);
  StepResult after;
  const absl::Time end = Soon();
  do {
    after = RunOne(remote_, 0, step);
  } while (!after.status.ok() && absl::Now() < end);
  ExpectSameAnswer(before, after);
}

TEST_F(RemoteEngineTest, ADrainingStoreAnswersWhatItReadAndThenIsUnavailable) {
  ASSERT_OK(remote_.Connect(Soon()));
  const SequenceInfo info = *remote_.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(remote_, info, kSeed, 0, 100));
  const Step step = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, 10));
  const StepResult before = RunOne(remote_, 0, step);
  ASSERT_OK(before.status);
  store_.server->StartDrain();
  // What is sent before the goodbye arrives may still be read, and is then answered in full.
  StepResult after;
  const absl::Time end = Soon();
  while ((after = RunOne(remote_, 0, step)).status.ok() && absl::Now() < end) {
    ExpectSameAnswer(before, after);
  }
  EXPECT_THAT(after.status, StatusIs(absl::StatusCode::kUnavailable));
}

TEST(RemoteShardsTest, HandlesRouteAndListingsCoverAllShards) {
  Store one(OnShard(1));
  Store two(OnShard(2));
  RemoteEngine remote(OptionsFor({two.server->endpoint(), one.server->endpoint()}));
  ASSERT_OK(remote.Connect(Soon()));
  std::set<std::string> handles;
  std::set<uint16_t> shards;
  std::vector<SequenceInfo> all;
  // Rendezvous picks either: 64 in a row on one shard do not happen.
  while (all.size() < 4 || (shards.size() < 2 && all.size() < 64)) {
    all.push_back(*remote.Create({}, Spec(SmallGeometry())));
    handles.insert(all.back().handle);
    shards.insert(*engine::ShardOf(all.back().handle));
    ASSERT_OK(AppendSeed(remote, all.back(), kSeed + all.size(), 0, 20));
  }
  EXPECT_EQ(shards, (std::set<uint16_t>{1, 2}));
  EXPECT_EQ(one.engine->sequence_count() + two.engine->sequence_count(), all.size());

  // One batch over both shards.
  std::vector<Step> steps;
  std::vector<engine::StepRequest> requests;
  for (const SequenceInfo& info : all) {
    steps.push_back(ReadStep(info, kSeed, 0, 19, 1, Sparq(4, 10)));
  }
  for (const Step& step : steps) requests.push_back(step.request());
  const std::vector<StepResult> results = remote.Attend({}, 0, requests, {});
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_OK(results[i].status);
    engine::EmbeddedEngine& owner = engine::ShardOf(all[i].handle) == 1 ? *one.engine : *two.engine;
    EXPECT_EQ(results[i].output, RunOne(owner, 0, steps[i]).output);
  }

  for (const int limit : {1, 3, 100}) {
    std::vector<std::string> listed;
    std::string after;
    while (true) {
      const auto page = remote.ListSequences("", after, limit);
      ASSERT_OK(page);
      if (page->empty()) break;
      for (const engine::SequenceSummary& summary : *page) listed.push_back(summary.handle);
      after = listed.back();
    }
    EXPECT_EQ(listed, std::vector<std::string>(handles.begin(), handles.end())) << limit;
  }
  const auto tiers = *remote.ListTiers();
  ASSERT_EQ(tiers.size(), 2u);
  EXPECT_EQ(tiers[0].shard, 1u);
  EXPECT_EQ(tiers[1].shard, 2u);
  EXPECT_THAT(remote.Get({}, engine::NewHandle(3)), StatusIs(absl::StatusCode::kNotFound));

  // One shard gone: its items fail, the others' do not.
  one.server->Stop();
  const std::vector<StepResult> half = remote.Attend({}, 0, requests, {});
  for (size_t i = 0; i < all.size(); ++i) {
    const bool gone = engine::ShardOf(all[i].handle) == 1;
    EXPECT_EQ(half[i].status.code(), gone ? absl::StatusCode::kUnavailable : absl::StatusCode::kOk);
  }
  // New sequences go to the one that lives.
  EXPECT_EQ(engine::ShardOf(remote.Create({}, Spec(SmallGeometry()))->handle), 2);
}

TEST(RemoteShardsTest, TwoStoresOfTheSameShardAreRefused) {
  Store one(OnShard(5));
  Store two(OnShard(5));
  RemoteEngine remote(OptionsFor({one.server->endpoint(), two.server->endpoint()}));
  EXPECT_THAT(remote.Connect(Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("shard 5")));
}

TEST(RemoteShardsTest, AStoreThatStartsLateIsUsedWhenItIsNeeded) {
  int port = 0;
  {
    Store probe;
    port = probe.server->port();
  }
  RemoteEngine remote(OptionsFor({"127.0.0.1:" + std::to_string(port)}));
  EXPECT_THAT(remote.Connect(absl::Now() + absl::Milliseconds(200)),
              StatusIs(absl::StatusCode::kUnavailable));
  Store store;
  store.server->Stop();
  store.Start(port);
  const absl::Time end = Soon();
  absl::StatusOr<SequenceInfo> info;
  do {
    info = remote.Create({}, Spec(SmallGeometry()));
  } while (!info.ok() && absl::Now() < end);
  ASSERT_OK(info);
  EXPECT_OK(remote.Get({}, info->handle));
}

TEST_F(RemoteEngineTest, ManyThreadsShareItsStreams) {
  ASSERT_OK(remote_.Connect(Soon()));
  const auto embedded = OpenEngine(MemoryOptions());
  const SequenceInfo here = *embedded->Create({}, Spec(SmallGeometry()));
  const SequenceInfo there = *remote_.Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*embedded, here, kSeed, 0, 100));
  ASSERT_OK(AppendSeed(remote_, there, kSeed, 0, 100));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t position = t; position < 100; position += 4) {
        const RemoteMode mode = position % 3 == 0 ? RemoteMode::kRows : RemoteMode::kPartial;
        const StepResult expected =
            RunOne(*embedded, 0, ReadStep(here, kSeed, 0, position, 1, Sparq(5, 20)));
        const StepResult got = RunOne(
            remote_, 0, ReadStep(there, kSeed, 0, position, 1, Sparq(5, 20)), {.mode = mode});
        ExpectSameAnswer(expected, got);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace terrace::testing
