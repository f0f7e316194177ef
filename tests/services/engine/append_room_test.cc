// Appends into memory that is full of what is only kept for later: it gives way at once, with and
// without a disk, in every mode of durability.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/prefix_client.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;
using engine::SequenceInfo;
using kvstore::Durability;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kBlock = 256 << 10;
constexpr int64_t kTokens = 1024;

struct Mode {
  const char* name;
  bool disk;
  Durability durability;
};

class AppendRoomTest : public ::testing::TestWithParam<Mode> {
 protected:
  AppendRoomTest() {
    engine::EmbeddedOptions options = GetParam().disk ? DiskOptions(folder_) : MemoryOptions();
    options.store.durability = GetParam().durability;
    // Nobody sweeps: room is made by who needs it.
    options.sweep_interval = absl::ZeroDuration();
    engine_ = OpenEngine(options);
  }

  SequenceInfo Create(absl::Duration retention = {}, const Caller& caller = {}) {
    engine::SequenceSpec spec = Spec(SmallGeometry());
    spec.retention = retention;
    return *engine_->Create(caller, spec);
  }
  void Retain(uint32_t text, const Caller& caller = {}) {
    const SequenceInfo info = Create(absl::Hours(1), caller);
    ASSERT_OK(AppendIds(*engine_, info, kSeed, 0, TextIds(text, kTokens), caller));
    ASSERT_OK(engine_->Delete(caller, info.handle));
  }
  // Twice the memory, all layers.
  uint64_t texts() const {
    const kvstore::BlockLayout block =
        engine::SequenceLayout::Make(Spec(SmallGeometry()), 64, 1024).block;
    const uint64_t bytes =
        kTokens / 64 * block.layers * block.heads * (block.rows_bytes() + block.piece_bytes());
    return 2 * (uint64_t{16} << 20) / bytes;
  }
  // Puts until memory is full, and leases all that is there.
  void LeaseMemory(const Caller& caller, int count) {
    for (int i = 0; i < count; ++i) {
      const std::string key = "key" + std::to_string(i);
      ASSERT_OK(PutValue(*engine_, key, ValueBytes(i, kBlock), {}, caller));
      ASSERT_OK(engine_->values().Lookup(caller, {key}, absl::Hours(1)));
    }
  }

  TempFolder folder_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_P(AppendRoomTest, RetainedSequencesGiveWay) {
  for (uint32_t text = 1; text <= texts(); ++text) {
    Retain(text);
    if (HasFatalFailure()) FAIL() << text;
  }
  EXPECT_EQ(FoundTokens(*engine_, TextIds(texts(), kTokens)), kTokens) << "the newest stay";
  if (!GetParam().disk) {
    EXPECT_EQ(FoundTokens(*engine_, TextIds(1, kTokens)), 0);
  }
}

TEST_P(AppendRoomTest, ValuesGiveWay) {
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK(PutValue(*engine_, "key" + std::to_string(i), ValueBytes(i, kBlock))) << i;
  }
  const SequenceInfo info = Create();
  for (int64_t first = 0; first < 4 * kTokens; first += kTokens) {
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, first, first + kTokens));
  }
  EXPECT_TRUE(HasValue(*engine_, "key99"));
}

TEST_P(AppendRoomTest, WhatOneTenantLeasesStopsNobodyElsesFromGivingWay) {
  LeaseMemory({.tenant = "leasing"}, 40);
  for (uint32_t text = 1; text <= texts() / 2; ++text) {
    Retain(text);
    if (HasFatalFailure()) FAIL() << text;
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_TRUE(HasValue(*engine_, "key" + std::to_string(i), {.tenant = "leasing"})) << i;
  }
}

// What lives does not give way, and says so in time.
TEST_P(AppendRoomTest, WithoutAnythingToGiveUpTheAppendIsRefused) {
  if (GetParam().durability != Durability::kNone && GetParam().disk) {
    GTEST_SKIP() << "memory is written behind";
  }
  const SequenceInfo info = Create();
  absl::Status status = absl::OkStatus();
  int64_t length = 0;
  for (; status.ok() && length < 100 * kTokens; length += kTokens) {
    status = AppendSeed(*engine_, info, kSeed, length, length + kTokens);
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_GE(engine_->Get({}, info.handle)->length, 4 * kTokens);
}

INSTANTIATE_TEST_SUITE_P(Modes, AppendRoomTest,
                         ::testing::Values(Mode{"MemoryNone", false, Durability::kNone},
                                           Mode{"MemoryAsync", false, Durability::kAsync},
                                           Mode{"MemorySync", false, Durability::kSync},
                                           Mode{"DiskNone", true, Durability::kNone},
                                           Mode{"DiskAsync", true, Durability::kAsync},
                                           Mode{"DiskSync", true, Durability::kSync}),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace terrace::testing
