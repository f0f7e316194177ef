// What a StoreSim finds after its process or its machine has died.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/store_sim.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {

bool StoreSim::Open(Loss* loss) {
  // It may die again while it comes back.
  faulty_ = Draw(4) == 0;
  if (faulty_) disk_.DieAfter(Draw(30));
  while (true) {
    auto store = OpenBlockStore(options_, nullptr, disk_.env());
    if (store.ok()) {
      store_ = *std::move(store);
      return true;
    }
    if (!disk_.dead()) {
      ADD_FAILURE() << "opening: " << store.status();
      return false;
    }
    const Loss again = Draw(2) == 0 ? Loss::kNothing : Loss::kUnsynced;
    if (again == Loss::kUnsynced) *loss = again;
    disk_.Restart(again);
    faulty_ = false;
  }
}

void StoreSim::Restart(Loss loss) {
  history_.push_back(loss == Loss::kNothing ? "the process restarts" : "the machine restarts");
  while (!pins_.empty()) ReleasePins();
  // Only names are left of them.
  for (auto& [name, sequence] : model_) {
    for (RangeModel& range : sequence.ranges) range.segment->segment.reset();
  }
  store_.reset();
  disk_.Restart(loss);
  reads_fail_ = false;
  if (Open(&loss)) Recover(loss);
}

void StoreSim::Recover(Loss loss) {
  std::map<std::string, Manifest> recovered;
  std::map<std::string, std::string> attributes;
  for (Manifest& manifest : store_->TakeRecovered()) {
    if (manifest.name == "probe") continue;
    attributes[manifest.name] = manifest.attributes;
    recovered[manifest.name] = std::move(manifest);
  }
  auto explained = journal_.Explain(attributes, loss == Loss::kUnsynced);
  ASSERT_TRUE(explained) << "I6: manifests that never were there together";
  model_ = *std::move(explained);
  journal_.Restart(model_);
  std::map<SegmentModelRef, uint32_t> named_ends;
  for (auto& [name, sequence] : model_) {
    const Manifest& manifest = recovered[name];
    ASSERT_EQ(manifest.ranges.size(), sequence.ranges.size());
    for (size_t i = 0; i < manifest.ranges.size(); ++i) {
      const SegmentRange& range = manifest.ranges[i];
      const RangeModel& expected = sequence.ranges[i];
      EXPECT_EQ(store_->id(*range.segment), expected.segment->id);
      EXPECT_EQ(range.first_block, expected.first_block);
      EXPECT_EQ(range.end_block, expected.end_block);
      expected.segment->segment = range.segment;
      uint32_t& end = named_ends[expected.segment];
      end = std::max(end, range.end_block);
    }
  }
  for (auto& [segment, end] : named_ends) {
    segment->Trim(end);
    CheckSegment(*segment, end, loss);
  }
  if (::testing::Test::HasFailure()) return;
  std::vector<std::string> names;
  for (const auto& [name, sequence] : model_) names.push_back(name);
  for (const std::string& name : names) CutToDurable(name);
}

void StoreSim::CheckSegment(SegmentModel& segment, uint32_t named_end, Loss loss) {
  for (uint16_t lane = 0; lane < Lanes(); ++lane) {
    const uint32_t served = store_->SealedEnd(*segment.segment, LayerOf(lane), HeadOf(lane));
    // What is durable in a layer reaches as far as its shortest head (I6).
    uint32_t durable = std::min(named_end, segment.refused_from);
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      const size_t other = LayerOf(lane) * layout_.heads + head;
      durable = std::min(
          durable, loss == Loss::kNothing ? segment.written_end[other] : segment.synced_end[other]);
    }
    EXPECT_GE(served, durable) << "I6: durable blocks are lost, lane " << lane;
    const uint32_t once =
        loss == Loss::kNothing ? segment.sealed_end[lane] : segment.sealed_once[lane];
    ASSERT_LE(served, std::min(named_end, once)) << "I6: blocks from nowhere";
    CheckLane(segment, lane, served, loss);
    if (::testing::Test::HasFailure()) return;
    segment.sealed_end[lane] = segment.sealed_once[lane] = served;
    segment.written_end[lane] = segment.synced_end[lane] = served;
  }
  CheckTails(segment, loss);
  segment.old_salts.clear();
  segment.was_unsealed = false;
  segment.refused_from = kOpenEnd;
}

void StoreSim::CheckLane(SegmentModel& segment, uint16_t lane, uint32_t served, Loss loss) {
  for (uint32_t block = segment.first_block; block < served; ++block) {
    uint32_t& salt = segment.salts.at({lane, block});
    std::vector<uint32_t> lives = {salt};
    // The block may have been unsealed, and sealed with other rows, and none of it was synced.
    if (loss == Loss::kUnsynced) {
      const std::vector<uint32_t>& old = segment.old_salts[{lane, block}];
      lives.insert(lives.end(), old.begin(), old.end());
    }
    absl::Status status;
    for (const uint32_t life : lives) {
      status = CheckBlock(*store_, *segment.segment, LayerOf(lane), HeadOf(lane), block, life);
      if (!status.ok()) continue;
      salt = life;
      break;
    }
    ASSERT_OK(status) << "I1: block " << block << ", lane " << lane;
  }
}

void StoreSim::CheckTails(SegmentModel& segment, Loss loss) {
  for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
    ASSERT_OK(store_->RestoreTail(*segment.segment, layer, Soon()));
    const DurableExtent durable = store_->Durable(*segment.segment, layer);
    Note(absl::StrCat("layer ", layer, " has a tail of ", durable.tail_rows, " at ",
                      durable.end_block)
             .c_str(),
         segment.id);
    // The loss of the machine may bring one back that was cut.
    const bool came_back = segment.tails[layer].rows == 0 && durable.tail_rows != 0;
    if (loss == Loss::kUnsynced && (came_back || segment.was_unsealed)) {
      segment.tails_are_known = false;
    }
    if (!segment.tails_are_known) continue;
    // Written behind since, the block counts for more than its tail.
    if (durable.end_block > segment.tails[layer].block) segment.tails[layer] = {};
    const SegmentModel::Tail tail = segment.tails[layer];
    ASSERT_EQ(durable.tail_rows, tail.rows);
    if (tail.rows == 0) continue;
    ASSERT_EQ(durable.end_block, tail.block);
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      std::vector<std::byte> expected(size_t{tail.rows} * layout_.row_bytes);
      FillBytes({segment.id, layer, head, tail.block}, tail.salts[head], false, expected.size(),
                expected.data());
      EXPECT_EQ(std::memcmp(store_->OpenRows(*segment.segment, layer, head, tail.block),
                            expected.data(), expected.size()),
                0)
          << "I1: wrong rows of a tail";
    }
  }
}

void StoreSim::CutToDurable(const std::string& name) {
  const SequenceModel sequence = model_.at(name);
  for (const RangeModel& range : sequence.ranges) {
    const uint32_t durable = range.segment->SealedEnd();
    if (durable >= range.end_block || range.end_block == kOpenEnd) continue;
    std::vector<RangeModel> ranges = sequence.Prefix(durable);
    const SegmentModelRef segment = NewSegment(durable);
    if (segment == nullptr) break;
    ranges.push_back({segment, durable, kOpenEnd});
    if (!Commit(name, std::move(ranges))) break;
    return;
  }
}

}  // namespace terrace::kvstore
