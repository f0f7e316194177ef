// Prefix sharing: what is found, for whom, and that what is shared is what was appended.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>

#include "tests/services/engine/prefix_client.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

class PrefixTest : public ::testing::Test {
 protected:
  SequenceInfo Create(const engine::Caller& caller = {}) {
    return *engine_->Create(caller, Spec(SmallGeometry()));
  }
  SequenceInfo CreateWith(const Ids& ids, const engine::Caller& caller = {}) {
    const SequenceInfo info = Create(caller);
    EXPECT_OK(AppendIds(*engine_, info, kSeed, 0, ids, caller));
    return info;
  }
  int64_t Found(const Ids& ids, bool accept_sparse = false, const engine::Caller& caller = {}) {
    return FoundTokens(*engine_, ids, accept_sparse, caller);
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
};

TEST_F(PrefixTest, FullBlocksAreFoundUpToTheFirstOtherToken) {
  const Ids ids = TextIds(1, 200);
  CreateWith(ids);
  for (const int64_t size : {0, 1, 63, 64, 65, 127, 128, 191, 192, 200}) {
    EXPECT_EQ(Found(Ids(ids.begin(), ids.begin() + size)), size / 64 * 64) << size;
  }
  EXPECT_EQ(Found(TextIds(1, 1000)), 192);
  EXPECT_EQ(Found(WithOther(ids, 0)), 0);
  EXPECT_EQ(Found(WithOther(ids, 63)), 0);
  EXPECT_EQ(Found(WithOther(ids, 64)), 64);
  EXPECT_EQ(Found(WithOther(ids, 191)), 128);
  EXPECT_EQ(Found(WithOther(ids, 192)), 192);
  // A block is what it is by all that went before it.
  EXPECT_EQ(Found(Ids(ids.begin() + 64, ids.end())), 0);
}

TEST_F(PrefixTest, ASequenceOpenedOnAPrefixSharesItsSegmentsAndGivesTheSameBits) {
  const Ids ids = TextIds(1, 200);
  const SequenceInfo parent = CreateWith(ids);
  const absl::StatusOr<SequenceInfo> child = engine_->OpenOnPrefix({}, QueryOf(ids), "");
  ASSERT_OK(child);
  EXPECT_EQ(child->length, 192);
  EXPECT_NE(child->handle, parent.handle);
  const auto of_parent = engine_->Describe(parent.handle);
  const auto of_child = engine_->Describe(child->handle);
  ASSERT_OK(of_parent);
  ASSERT_OK(of_child);
  ASSERT_EQ(of_child->segments.size(), 2u);
  EXPECT_EQ(of_child->segments[0].segment, of_parent->segments[0].segment);
  EXPECT_EQ(of_child->segments[0].end_block, 3u);
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 192, ids));
  ExpectSameBits(*engine_, parent, *engine_, *child);
  // It keeps what it shares.
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 200, TextIds(1, 300)));
  ASSERT_OK(engine_->Delete({}, parent.handle));
  const SequenceInfo whole = CreateWith(TextIds(1, 300));
  ExpectSameBits(*engine_, whole, *engine_, *child);
}

TEST_F(PrefixTest, WithoutAMatchTheSequenceIsNewAndEmpty) {
  CreateWith(TextIds(1, 200));
  const absl::StatusOr<SequenceInfo> other =
      engine_->OpenOnPrefix({}, QueryOf(TextIds(2, 200)), "");
  ASSERT_OK(other);
  EXPECT_EQ(other->length, 0);
  ASSERT_OK(AppendIds(*engine_, *other, kOtherSeed, 0, TextIds(2, 200)));
  EXPECT_EQ(Found(TextIds(2, 200)), 192);
}

TEST_F(PrefixTest, AChainGrowsAcrossSequences) {
  const SequenceInfo first = CreateWith(TextIds(1, 130));
  const absl::StatusOr<SequenceInfo> second =
      engine_->OpenOnPrefix({}, QueryOf(TextIds(1, 400)), "");
  ASSERT_OK(second);
  ASSERT_EQ(second->length, 128);
  ASSERT_OK(AppendIds(*engine_, *second, kSeed, 128, TextIds(1, 330)));
  ASSERT_OK(engine_->Delete({}, first.handle));
  EXPECT_EQ(Found(TextIds(1, 400)), 320);
}

TEST_F(PrefixTest, NothingIsSharedWithAnotherTenantModelSaltOrFormat) {
  const Ids ids = TextIds(1, 200);
  CreateWith(ids);
  ASSERT_EQ(Found(ids), 192);
  EXPECT_EQ(Found(ids, true, {.tenant = "other"}), 0);
  const auto found = [&](auto change) {
    engine::PrefixQuery query = QueryOf(ids, true);
    change(query.spec);
    const auto answer = engine_->LookupPrefix({}, query, {});
    EXPECT_OK(answer);
    return answer->tokens;
  };
  EXPECT_EQ(found([](engine::SequenceSpec&) {}), 192);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.model_fingerprint = "model2"; }), 0);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.adapter_id = "lora"; }), 0);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.sharing_salt = "salt"; }), 0);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.geometry.scale = 1; }), 0);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.geometry.layers = 1; }), 0);
  EXPECT_EQ(found([](engine::SequenceSpec& spec) {
              spec.geometry.storage = attention::Dtype::kBFloat16;
            }),
            0);
  EXPECT_EQ(
      found([](engine::SequenceSpec& spec) { spec.index_format = attention::IndexFormat::kInt8; }),
      0);
  // How long it lives is not what it is.
  EXPECT_EQ(found([](engine::SequenceSpec& spec) { spec.idle_ttl = absl::Hours(1); }), 192);
}

TEST_F(PrefixTest, I11AnotherTenantsSequenceOnTheSameTextIsNeverShared) {
  const Ids ids = TextIds(1, 200);
  const SequenceInfo mine = CreateWith(ids);
  const absl::StatusOr<SequenceInfo> theirs =
      engine_->OpenOnPrefix({.tenant = "other"}, QueryOf(ids), "");
  ASSERT_OK(theirs);
  EXPECT_EQ(theirs->length, 0);
  ASSERT_OK(AppendIds(*engine_, *theirs, kOtherSeed, 0, ids, {.tenant = "other"}));
  const absl::StatusOr<SequenceInfo> again = engine_->OpenOnPrefix({}, QueryOf(ids), "");
  ASSERT_OK(again);
  ASSERT_OK(AppendIds(*engine_, *again, kSeed, 192, ids));
  ExpectSameBits(*engine_, mine, *engine_, *again);
}

TEST_F(PrefixTest, ABlockIsFoundOnceItIsCompleteInAllLayers) {
  const Ids ids = TextIds(1, 130);
  const SequenceInfo info = Create();
  ASSERT_OK(AppendLayer(*engine_, info, kSeed, 0, 0, ids));
  EXPECT_EQ(Found(ids), 0);
  ASSERT_OK(AppendLayer(*engine_, info, kSeed, 1, 0, Ids(ids.begin(), ids.begin() + 127)));
  EXPECT_EQ(Found(ids), 64);
  ASSERT_OK(AppendLayer(*engine_, info, kSeed, 1, 127, Ids(ids.begin(), ids.begin() + 128)));
  EXPECT_EQ(Found(ids), 128);
}

TEST_F(PrefixTest, TokensWithoutIdsEndTheChain) {
  const Ids ids = TextIds(1, 300);
  const SequenceInfo info = CreateWith(Ids(ids.begin(), ids.begin() + 100));
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 100, 101));
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 101, ids));
  EXPECT_EQ(Found(ids), 64);
  // Ids that come with a repeat of the rows close the gap.
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 100, ids));
  EXPECT_EQ(Found(ids), 256);
}

TEST_F(PrefixTest, IdsOfRowsThatAreRefusedAreNotTaken) {
  const Ids ids = TextIds(1, 64);
  const SequenceInfo info = Create();
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 64));
  EXPECT_THAT(AppendIds(*engine_, info, kOtherSeed, 0, ids),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(Found(ids), 0);
  SequenceInfo stale = info;
  ++stale.writer_epoch;
  EXPECT_THAT(AppendIds(*engine_, stale, kSeed, 0, ids),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(Found(ids), 0);
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 0, ids));
  EXPECT_EQ(Found(ids), 64);
}

TEST_F(PrefixTest, ATruncateTakesTheCutBlocksBackAndOthersMayFollow) {
  const Ids ids = TextIds(1, 200);
  const SequenceInfo info = CreateWith(ids);
  for (const int64_t cut : {192, 191, 128, 127, 66, 64, 1, 0}) {
    SCOPED_TRACE(cut);
    ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, cut));
    EXPECT_EQ(Found(ids), cut / 64 * 64);
  }
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 0, ids));
  ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 100));
  Ids other = TextIds(2, 200);
  std::copy_n(ids.begin(), 100, other.begin());
  ASSERT_OK(AppendIds(*engine_, info, kOtherSeed, 100, other));
  EXPECT_EQ(Found(ids), 64);
  EXPECT_EQ(Found(other), 192);
}

TEST_F(PrefixTest, AForkInheritsTheChainUpToItsPosition) {
  const Ids ids = TextIds(1, 200);
  const SequenceInfo parent = CreateWith(ids);
  const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, parent.handle, 100, "");
  ASSERT_OK(child);
  ASSERT_OK(engine_->Delete({}, parent.handle));
  EXPECT_EQ(Found(ids), 64);
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 100, ids));
  EXPECT_EQ(Found(ids), 192);
  ASSERT_OK(engine_->Delete({}, child->handle));
  EXPECT_EQ(Found(ids), 0);
}

// A step that appends with ids, of all layers.
absl::Status StepWithIds(engine::KvEngine& engine, const SequenceInfo& info, int64_t position,
                         const Ids& ids, const attention::Policy& policy) {
  for (int layer = 0; layer < info.spec.geometry.layers; ++layer) {
    const Step step = AppendStep(info, kSeed, layer, position,
                                 static_cast<int64_t>(ids.size()) - position, policy);
    engine::StepRequest request = step.request();
    request.token_ids = absl::MakeConstSpan(ids).subspan(position);
    absl::Status status = engine.Attend({}, layer, {&request, 1}, {}).at(0).status;
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST_F(PrefixTest, BlocksFromASparseStepOnServeOnlyWhoAcceptsThem) {
  const Ids ids = TextIds(1, 256);
  const SequenceInfo info = CreateWith(Ids(ids.begin(), ids.begin() + 64));
  ASSERT_OK(StepWithIds(*engine_, info, 64, Ids(ids.begin(), ids.begin() + 128),
                        attention::DensePolicy()));
  EXPECT_EQ(Found(ids), 128);
  ASSERT_OK(StepWithIds(*engine_, info, 128, Ids(ids.begin(), ids.begin() + 129), Sparq(4, 8)));
  // Dense rows over sparse ones are no better.
  ASSERT_OK(StepWithIds(*engine_, info, 129, ids, attention::DensePolicy()));
  EXPECT_EQ(Found(ids), 128);
  EXPECT_EQ(Found(ids, true), 256);
  const absl::StatusOr<SequenceInfo> child = engine_->OpenOnPrefix({}, QueryOf(ids, true), "");
  ASSERT_OK(child);
  ASSERT_EQ(child->length, 256);
  ExpectSameBits(*engine_, info, *engine_, *child);
  // The child knows what its rows are.
  ASSERT_OK(engine_->Delete({}, info.handle));
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 256, TextIds(1, 320)));
  EXPECT_EQ(Found(TextIds(1, 320)), 128);
  EXPECT_EQ(Found(TextIds(1, 320), true), 320);
  // What follows after a cut below the sparse step is dense again.
  ASSERT_OK(engine_->Truncate({}, child->handle, child->writer_epoch, 128));
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 128, ids));
  EXPECT_EQ(Found(ids), 256);
}

TEST_F(PrefixTest, ASparseLookBeforeTheOtherLayersAreAppendedCountsOneAfterwardsDoesNot) {
  const Ids ids = TextIds(1, 128);
  const SequenceInfo info = CreateWith(Ids(ids.begin(), ids.begin() + 64));
  ASSERT_OK(RunOne(*engine_, 0, ReadStep(info, kSeed, 0, 63, 1, Sparq(4, 8))).status);
  ASSERT_OK(AppendLayer(*engine_, info, kSeed, 0, 64, ids));
  ASSERT_OK(RunOne(*engine_, 0, ReadStep(info, kSeed, 0, 127, 1, Sparq(4, 8))).status);
  ASSERT_OK(AppendLayer(*engine_, info, kSeed, 1, 64, ids));
  EXPECT_EQ(Found(ids), 64);
  EXPECT_EQ(Found(ids, true), 128);
}

TEST_F(PrefixTest, OfADenseAndASparseBranchTheLongerIsFound) {
  const Ids ids = TextIds(1, 320);
  CreateWith(Ids(ids.begin(), ids.begin() + 192));
  const SequenceInfo sparse = CreateWith(Ids(ids.begin(), ids.begin() + 64));
  ASSERT_OK(StepWithIds(*engine_, sparse, 64, Ids(ids.begin(), ids.begin() + 256), Sparq(4, 8)));
  EXPECT_EQ(Found(ids), 192);
  EXPECT_EQ(Found(ids, true), 256);
  EXPECT_EQ(Found(Ids(ids.begin(), ids.begin() + 200), true), 192);
}

// All texts look alike to it.
std::array<std::byte, 32> Weak(absl::string_view /*bytes*/) { return {}; }

TEST(PrefixCollisionTest, ACollisionOfTheFirstDigestSharesNothing) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.prefix_digest = Weak;
  const std::unique_ptr<engine::EmbeddedEngine> engine = OpenEngine(options);
  const SequenceInfo one = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendIds(*engine, one, kSeed, 0, TextIds(1, 200)));
  EXPECT_EQ(FoundTokens(*engine, TextIds(2, 200)), 0);
  const SequenceInfo two = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendIds(*engine, two, kOtherSeed, 0, TextIds(2, 200)));
  for (const auto& [text, info] : {std::pair(1U, one), std::pair(2U, two)}) {
    const auto child = engine->OpenOnPrefix({}, QueryOf(TextIds(text, 200)), "");
    ASSERT_OK(child);
    ASSERT_EQ(child->length, 192);
    ASSERT_OK(AppendIds(*engine, *child, text == 1 ? kSeed : kOtherSeed, 192, TextIds(text, 200)));
    ExpectSameBits(*engine, info, *engine, *child);
  }
}

// The hash is a format: what one version recorded, the next one must find.
TEST(PrefixHashTest, TheDigestIsSha256) {
  const std::array<std::byte, 32> digest = engine::Sha256("abc");
  const unsigned char expected[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea};
  EXPECT_EQ(std::memcmp(digest.data(), expected, sizeof(expected)), 0);
}

}  // namespace
}  // namespace terrace::testing
