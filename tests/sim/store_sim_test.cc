// Random verbs on a block store and on a model of it, compared after each. The seed is printed;
// TERRACE_SIM_SEED=N runs that one alone, TERRACE_SIM_SEEDS=N that many.
//
// Faults that the store must survive here: writes and reads that fail for a while, memory and disk
// too small for what is asked, and reopening without a flush.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/sim/store_model.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

constexpr int kSeeds = 200;
constexpr int kVerbs = 60;
constexpr uint64_t kMiB = uint64_t{1} << 20;

// Memory where there is such a folder: the sim opens hundreds of databases, and each syncs.
std::string FastFolder() {
  return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : ::testing::TempDir();
}

class StoreSim {
 public:
  explicit StoreSim(uint32_t seed) : random_(seed) {
    options_.host_bytes = (1 + Draw(3)) * kMiB;
    options_.disk_path = folder_.path() + "/disk";
    options_.disk_bytes = 64 * kMiB;
    options_.durability = static_cast<Durability>(Draw(3));
    options_.reader_threads = static_cast<int>(1 + Draw(3));
    options_.placement = static_cast<PolicyKind>(seed % 3);
    layout_.stripe_blocks = 1u << Draw(5);
    layout_.granule_tokens = 1u << Draw(5);
    if (Draw(8) == 0) layout_.planes.clear();
  }

  void Run() {
    Open();
    const std::vector<std::pair<uint32_t, std::function<void()>>> verbs = {
        {6, [this] { Create(); }},      {20, [this] { Append(); }},
        {3, [this] { ReadAhead(); }},   {16, [this] { ReadRows(); }},
        {8, [this] { ReadStripes(); }}, {4, [this] { ReleasePins(); }},
        {6, [this] { Fork(); }},        {5, [this] { Truncate(); }},
        {4, [this] { Delete(); }},      {7, [this] { Flush(); }},
        {2, [this] { DropTail(); }},    {2, [this] { Reopen(); }},
        {3, [this] { ToggleFault(); }},
    };
    uint32_t sum = 0;
    for (const auto& [weight, verb] : verbs) sum += weight;
    for (int i = 0; i < kVerbs && !::testing::Test::HasFailure(); ++i) {
      uint32_t pick = Draw(sum);
      size_t verb = 0;
      while (pick >= verbs[verb].first) pick -= verbs[verb++].first;
      verbs[verb].second();
      CheckStats();
    }
    if (::testing::Test::HasFailure()) return;
    Reopen();
    pins_.clear();
  }

 private:
  // Pins that are held on to, and what they must go on to show.
  struct HeldPins {
    Pins pins;
    std::vector<std::function<bool()>> checks;
  };

  uint32_t Draw(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  absl::Time Patience() const {
    // Where something is broken or full on purpose, waiting long is of no use.
    return absl::Now() + (writes_fail_ ? absl::Milliseconds(2) : absl::Milliseconds(300));
  }
  uint16_t Lanes() const { return static_cast<uint16_t>(layout_.layers * layout_.heads); }
  uint16_t LayerOf(uint16_t lane) const { return static_cast<uint16_t>(lane / layout_.heads); }
  uint16_t HeadOf(uint16_t lane) const { return static_cast<uint16_t>(lane % layout_.heads); }

  void Open() {
    auto store = OpenBlockStore(options_, [this](DiskOperation operation) {
      const bool fails = operation == DiskOperation::kRead ? reads_fail_ : writes_fail_;
      return fails ? absl::UnavailableError("injected") : absl::OkStatus();
    });
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  SequenceModel* Pick(std::string* name = nullptr) {
    if (model_.empty()) return nullptr;
    const auto it = std::next(model_.begin(), Draw(static_cast<uint32_t>(model_.size())));
    if (name != nullptr) *name = it->first;
    return &it->second;
  }

  SegmentModelRef NewSegment(uint32_t first_block) {
    auto segment = store_->CreateSegment(layout_, first_block);
    if (!segment.ok()) {
      EXPECT_TRUE(writes_fail_) << segment.status();
      return nullptr;
    }
    auto model = std::make_shared<SegmentModel>();
    model->segment = *segment;
    model->first_block = first_block;
    model->sealed_end.assign(Lanes(), first_block);
    model->flushed_end.assign(Lanes(), first_block);
    model->tails.resize(layout_.layers);
    return model;
  }

  // Makes the sequence so in store and model; false when the disk refused.
  bool Commit(const std::string& name, SequenceModel sequence) {
    Manifest manifest{.name = name, .attributes = sequence.attributes, .ranges = {}};
    for (const RangeModel& range : sequence.ranges) {
      manifest.ranges.push_back({range.segment->segment, range.first_block, range.end_block});
    }
    const absl::Status status = store_->CommitManifest(manifest, absl::InfiniteFuture());
    if (!status.ok()) {
      EXPECT_TRUE(writes_fail_ || absl::IsResourceExhausted(status)) << status;
      return false;
    }
    const std::vector<RangeModel> before = model_[name].ranges;
    model_[name] = std::move(sequence);
    TrimUnnamed(model_, before);
    return true;
  }

  void Create() {
    const SegmentModelRef segment = NewSegment(0);
    if (segment == nullptr) return;
    Commit(absl::StrCat("sequence ", ++names_),
           {.attributes = absl::StrCat(Draw(1000)), .ranges = {{segment, 0, kOpenEnd}}});
  }

  // Seals up to some blocks in each lane, lanes not all alike.
  void Append() {
    SequenceModel* sequence = Pick();
    if (sequence == nullptr) return;
    SegmentModel& segment = *sequence->open();
    if (!DropStaleTail(segment)) return;
    const uint32_t end = segment.SealedEnd() + 1 + Draw(20);
    for (uint16_t lane = 0; lane < Lanes(); ++lane) {
      const uint32_t lane_end = Draw(10) == 0 ? end - 1 : end;
      for (uint32_t block = segment.sealed_end[lane]; block < lane_end; ++block) {
        const uint32_t salt = ++salts_;
        const absl::Status status = AppendBlock(*store_, *segment.segment, LayerOf(lane),
                                                HeadOf(lane), block, salt, Patience());
        if (!status.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
          return;
        }
        segment.salts[{lane, block}] = salt;
        segment.sealed_end[lane] = block + 1;
      }
    }
  }

  // Rows that a flush has written are overwritten now.
  bool DropStaleTail(SegmentModel& segment) {
    const absl::Status status = store_->CutTail(*segment.segment, segment.first_block, 0, Soon());
    if (!status.ok()) {
      EXPECT_TRUE(writes_fail_) << status;
      return false;
    }
    for (SegmentModel::Tail& tail : segment.tails) tail = {};
    return true;
  }

  // Some sealed block: its segment, lane and index.
  bool PickBlock(SegmentModelRef* segment, uint16_t* lane, uint32_t* block) {
    const SequenceModel* sequence = Pick();
    if (sequence == nullptr) return false;
    const auto& range = sequence->ranges[Draw(static_cast<uint32_t>(sequence->ranges.size()))];
    *segment = range.segment;
    *lane = static_cast<uint16_t>(Draw(Lanes()));
    const uint32_t sealed = range.segment->sealed_end[*lane] - range.segment->first_block;
    if (sealed == 0) return false;
    *block = range.segment->first_block + Draw(sealed);
    return true;
  }

  void ReadRows() {
    std::vector<ReadRequest> requests;
    HeldPins held;
    for (uint32_t i = 0; i < 1 + Draw(40); ++i) {
      SegmentModelRef segment;
      uint16_t lane = 0;
      uint32_t block = 0;
      if (!PickBlock(&segment, &lane, &block)) continue;
      const uint64_t cells = random_() & AllGranules(layout_);
      if (cells == 0) continue;
      const float mass = Draw(4) == 0 ? kUntoldMass : static_cast<float>(Draw(1000)) / 1000;
      requests.push_back({segment->segment.get(), LayerOf(lane), HeadOf(lane), block, cells, mass});
      held.checks.push_back(
          [this, cells, salt = segment->salts.at({lane, block}),
           key = BlockKey{store_->id(*segment->segment), LayerOf(lane), HeadOf(lane), block},
           data = static_cast<const std::byte*>(nullptr)]() mutable {
            if (data == nullptr) data = current_;
            return SameGranules(layout_, key, data, cells, salt);
          });
    }
    held.pins = store_->PinRows(requests, Soon());
    CheckAndHold(std::move(held));
  }

  void ReadAhead() {
    std::vector<ReadRequest> requests;
    for (uint32_t i = 0; i < 1 + Draw(40); ++i) {
      SegmentModelRef segment;
      uint16_t lane = 0;
      uint32_t block = 0;
      if (!PickBlock(&segment, &lane, &block)) continue;
      // Also beyond what is there.
      requests.push_back({segment->segment.get(), LayerOf(lane), HeadOf(lane), block + Draw(3),
                          AllGranules(layout_)});
    }
    store_->ReadAhead(requests, Soon());
  }

  void ReadStripes() {
    if (layout_.planes.empty()) return;
    std::vector<ReadRequest> requests;
    HeldPins held;
    for (uint32_t i = 0; i < 1 + Draw(20); ++i) {
      SegmentModelRef segment;
      uint16_t lane = 0;
      uint32_t block = 0;
      if (!PickBlock(&segment, &lane, &block)) continue;
      requests.push_back({segment->segment.get(), LayerOf(lane), HeadOf(lane),
                          block / layout_.stripe_blocks,
                          uint64_t{1} << block % layout_.stripe_blocks});
      held.checks.push_back(
          [this, salt = segment->salts.at({lane, block}),
           key = BlockKey{store_->id(*segment->segment), LayerOf(lane), HeadOf(lane), block},
           data = static_cast<const std::byte*>(nullptr)]() mutable {
            if (data == nullptr) data = current_;
            return SamePiece(layout_, key, data, salt);
          });
    }
    held.pins = store_->PinStripes(requests, Soon());
    CheckAndHold(std::move(held));
  }

  void CheckAndHold(HeldPins held) {
    for (size_t i = 0; i < held.checks.size(); ++i) {
      const PinnedExtent& extent = held.pins.extents()[i];
      if (!extent.status.ok()) {
        EXPECT_TRUE(reads_fail_ && absl::IsUnavailable(extent.status)) << extent.status;
        return;
      }
      current_ = extent.data;
      EXPECT_TRUE(held.checks[i]()) << "wrong bytes in request " << i;
    }
    if (Draw(3) == 0) pins_.push_back(std::move(held));
    if (pins_.size() > 4) ReleasePins();
  }

  void ReleasePins() {
    if (pins_.empty()) return;
    for (const auto& check : pins_.front().checks) {
      EXPECT_TRUE(check()) << "pinned bytes have changed";
    }
    pins_.pop_front();
  }

  void Fork() {
    const SequenceModel* parent = Pick();
    if (parent == nullptr || parent->Length() == 0) return;
    const uint32_t at = 1 + Draw(parent->Length());
    SequenceModel child{.attributes = "fork", .ranges = parent->Prefix(at)};
    const SegmentModelRef segment = NewSegment(at);
    if (segment == nullptr) return;
    child.ranges.push_back({segment, at, kOpenEnd});
    Commit(absl::StrCat("sequence ", ++names_), std::move(child));
  }

  void Truncate() {
    std::string name;
    const SequenceModel* sequence = Pick(&name);
    if (sequence == nullptr || sequence->Length() == 0) return;
    const uint32_t at = Draw(sequence->Length());
    SequenceModel cut{.attributes = "cut", .ranges = sequence->Prefix(at)};
    const SegmentModelRef segment = NewSegment(at);
    if (segment == nullptr) return;
    cut.ranges.push_back({segment, at, kOpenEnd});
    Commit(name, std::move(cut));
  }

  void Delete() {
    std::string name;
    if (Pick(&name) == nullptr) return;
    const absl::Status status = store_->DeleteManifest(name, absl::InfiniteFuture());
    if (!status.ok()) {
      EXPECT_TRUE(writes_fail_) << status;
      return;
    }
    const std::vector<RangeModel> before = model_[name].ranges;
    model_.erase(name);
    TrimUnnamed(model_, before);
  }

  void Flush() {
    const SequenceModel* sequence = Pick();
    if (sequence == nullptr) return;
    SegmentModel& segment = *sequence->open();
    std::vector<uint32_t> tail_rows;
    std::vector<SegmentModel::Tail> tails(layout_.layers);
    if (Draw(2) == 0) {
      for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
        tails[layer] = WriteTail(segment, layer);
        tail_rows.push_back(tails[layer].rows);
      }
    }
    const absl::Status status = store_->Flush(*segment.segment, tail_rows, Patience());
    if (!status.ok()) {
      EXPECT_TRUE(writes_fail_ || absl::IsResourceExhausted(status) ||
                  absl::IsDeadlineExceeded(status))
          << status;
      // The tails may be there or not.
      if (!tail_rows.empty()) uncertain_tails_ = true;
      return;
    }
    segment.flushed_end = segment.sealed_end;
    if (!tail_rows.empty()) segment.tails = tails;
  }

  // Fills some open rows where all heads of the layer are equally long.
  SegmentModel::Tail WriteTail(const SegmentModel& segment, uint16_t layer) {
    const auto lane = static_cast<uint16_t>(layer * layout_.heads);
    const uint32_t block = segment.sealed_end[lane];
    for (uint16_t head = 1; head < layout_.heads; ++head) {
      if (segment.sealed_end[lane + head] != block) return {};
    }
    const SegmentModel::Tail tail{block, 1 + Draw(layout_.block_tokens - 1), ++salts_};
    if (!store_->Reserve(*segment.segment, layer, block, block + 1, Patience()).ok()) return {};
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      FillBytes({store_->id(*segment.segment), layer, head, block}, tail.salt, false,
                size_t{tail.rows} * layout_.row_bytes,
                store_->OpenRows(*segment.segment, layer, head, block));
    }
    return tail;
  }

  void DropTail() {
    if (const SequenceModel* sequence = Pick()) DropStaleTail(*sequence->open());
  }

  void ToggleFault() {
    std::atomic<bool>& fault = Draw(2) == 0 ? reads_fail_ : writes_fail_;
    fault = !fault;
  }

  void Reopen() {
    reads_fail_ = writes_fail_ = false;
    while (!pins_.empty()) ReleasePins();
    for (auto& [name, sequence] : model_) {
      for (RangeModel& range : sequence.ranges) range.segment->segment.reset();
    }
    store_.reset();
    Open();
    if (store_ == nullptr) return;
    std::map<std::string, Manifest> recovered;
    for (Manifest& manifest : store_->TakeRecovered()) {
      recovered[manifest.name] = std::move(manifest);
    }
    ASSERT_EQ(recovered.size(), model_.size());
    for (auto& [name, sequence] : model_) CheckRecovered(recovered[name], sequence);
    for (auto& [name, sequence] : model_) CutToDurable(name, sequence);
    uncertain_tails_ = false;
  }

  void CheckRecovered(const Manifest& manifest, SequenceModel& sequence) {
    EXPECT_EQ(manifest.attributes, sequence.attributes);
    ASSERT_EQ(manifest.ranges.size(), sequence.ranges.size());
    for (size_t i = 0; i < manifest.ranges.size(); ++i) {
      const SegmentRange& range = manifest.ranges[i];
      SegmentModel& segment = *sequence.ranges[i].segment;
      EXPECT_EQ(range.first_block, sequence.ranges[i].first_block);
      EXPECT_EQ(range.end_block, sequence.ranges[i].end_block);
      if (segment.segment != nullptr) {
        EXPECT_EQ(segment.segment, range.segment) << "one segment, whoever names it";
        continue;
      }
      segment.segment = range.segment;
      for (uint16_t lane = 0; lane < Lanes(); ++lane) {
        const uint32_t served = store_->SealedEnd(*segment.segment, LayerOf(lane), HeadOf(lane));
        // What was flushed is there in each layer up to its shortest head (I6).
        uint32_t flushed = kOpenEnd;
        for (uint16_t head = 0; head < layout_.heads; ++head) {
          flushed = std::min(flushed, segment.flushed_end[LayerOf(lane) * layout_.heads + head]);
        }
        EXPECT_GE(served, flushed);
        EXPECT_LE(served, segment.sealed_end[lane]);
        segment.sealed_end[lane] = segment.flushed_end[lane] = served;
        for (uint32_t block = segment.first_block; block < served; ++block) {
          EXPECT_OK(CheckBlock(*store_, *segment.segment, LayerOf(lane), HeadOf(lane), block,
                               segment.salts.at({lane, block})));
        }
      }
      CheckTails(segment);
    }
  }

  void CheckTails(SegmentModel& segment) {
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      ASSERT_OK(store_->RestoreTail(*segment.segment, layer, Soon()));
      const SegmentModel::Tail tail = std::exchange(segment.tails[layer], {});
      const DurableExtent durable = store_->Durable(*segment.segment, layer);
      // Written behind since, the block counts for more than its tail.
      if (uncertain_tails_ || tail.rows == 0 || durable.end_block > tail.block) continue;
      ASSERT_EQ(durable.end_block, tail.block);
      ASSERT_EQ(durable.tail_rows, tail.rows);
      for (uint16_t head = 0; head < layout_.heads; ++head) {
        std::vector<std::byte> expected(size_t{tail.rows} * layout_.row_bytes);
        FillBytes({store_->id(*segment.segment), layer, head, tail.block}, tail.salt, false,
                  expected.size(), expected.data());
        EXPECT_EQ(std::memcmp(store_->OpenRows(*segment.segment, layer, head, tail.block),
                              expected.data(), expected.size()),
                  0);
      }
    }
  }

  // What an owner does after a restart: the sequence ends where its durable prefix ends.
  void CutToDurable(const std::string& name, const SequenceModel& sequence) {
    for (const RangeModel& range : sequence.ranges) {
      const uint32_t durable = range.segment->SealedEnd();
      if (durable >= range.end_block || range.end_block == kOpenEnd) continue;
      SequenceModel cut{.attributes = "recovered", .ranges = sequence.Prefix(durable)};
      const SegmentModelRef segment = NewSegment(durable);
      ASSERT_NE(segment, nullptr);
      cut.ranges.push_back({segment, durable, kOpenEnd});
      ASSERT_TRUE(Commit(name, std::move(cut)));
      return;
    }
  }

  void CheckStats() {
    ASSERT_THAT(store_->HostStats(), IsConserved());
    ASSERT_THAT(store_->DiskStats(), IsConserved());
    ASSERT_EQ(store_->DiskStats().corrupt_granules, 0u);
  }

  std::mt19937_64 random_;
  const TempFolder folder_{FastFolder()};
  StoreOptions options_;
  BlockLayout layout_ = SmallLayout();
  std::atomic<bool> reads_fail_ = false;
  std::atomic<bool> writes_fail_ = false;
  StoreModel model_;
  std::unique_ptr<BlockStore> store_;
  std::deque<HeldPins> pins_;
  // Data of the extent whose check runs for the first time.
  const std::byte* current_ = nullptr;
  uint32_t names_ = 0;
  uint32_t salts_ = 0;
  bool uncertain_tails_ = false;
};

uint32_t FromEnvironment(const char* name, uint32_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : static_cast<uint32_t>(std::strtoul(value, nullptr, 10));
}

TEST(StoreSim, AgreesWithItsModel) {
  if (std::getenv("TERRACE_SIM_SEED") != nullptr) {
    StoreSim(FromEnvironment("TERRACE_SIM_SEED", 0)).Run();
    return;
  }
  const uint32_t first = std::random_device()();
  const uint32_t seeds = FromEnvironment("TERRACE_SIM_SEEDS", kSeeds);
  for (uint32_t i = 0; i < seeds && !HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("TERRACE_SIM_SEED=", first + i));
    StoreSim(first + i).Run();
  }
}

}  // namespace
}  // namespace terrace::kvstore
