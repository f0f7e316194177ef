// How a StoreSim takes seals off, in store and model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/sim/store_sim.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {

// Cuts in place, and shows that the rows that stay are there.
void StoreSim::Unseal() {
  const SequenceModel* sequence = Pick();
  if (sequence == nullptr) return;
  SegmentModel& segment = *sequence->open();
  const uint32_t block = segment.first_block + Draw(segment.SealedEnd() - segment.first_block + 1);
  const uint32_t rows = block == segment.SealedEnd() ? 0 : Draw(layout_.block_tokens);
  const auto on_disk = store_->Unseal(*segment.segment, block, rows, Soon());
  Note(absl::StrCat("unseal from row ", rows, " of block ", block, " on").c_str(), segment.id,
       on_disk.status());
  if (absl::IsFailedPrecondition(on_disk.status())) return;
  if (!on_disk.ok()) {
    EXPECT_TRUE(Excused(on_disk.status())) << on_disk.status();
    segment.tails_are_known = false;
    if (MayStand()) segment.refused_from = std::min(segment.refused_from, block);
    return;
  }
  for (uint16_t layer = 0; rows != 0 && layer < layout_.layers; ++layer) {
    if ((*on_disk)[layer]) {
      const absl::Status restored = store_->RestoreTail(*segment.segment, layer, Patience());
      EXPECT_TRUE(restored.ok() || Excused(restored) || reads_fail_ || flipped_) << restored;
      if (!restored.ok()) continue;
    }
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      const auto lane = static_cast<uint16_t>(layer * layout_.heads + head);
      const BlockKey key{segment.id, layer, head, block};
      const auto expected = RowsOf(layout_, key, segment.salts.at({lane, block}));
      EXPECT_EQ(std::memcmp(store_->OpenRows(*segment.segment, layer, head, block), expected.data(),
                            size_t{rows} * layout_.row_bytes),
                0)
          << "I1: wrong rows of an unsealed block";
    }
  }
  Reopen(segment, block, rows);
}

void StoreSim::Reopen(SegmentModel& segment, uint32_t block, uint32_t rows) {
  for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
    const DurableExtent durable = store_->Durable(*segment.segment, layer);
    SegmentModel::Tail& tail = segment.tails[layer];
    if (durable.end_block < block) continue;
    EXPECT_EQ(durable.end_block, block);
    EXPECT_LE(durable.tail_rows, rows);
    tail = {block, durable.tail_rows, {}};
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      const auto salt =
          segment.salts.find({static_cast<uint16_t>(layer * layout_.heads + head), block});
      if (salt != segment.salts.end()) tail.salts.push_back(salt->second);
    }
  }
  if (options_.durability != Durability::kSync) {
    segment.was_unsealed = true;
    for (const auto& [key, salt] : segment.salts) {
      if (key.second >= block) segment.old_salts[key].push_back(salt);
    }
  }
  for (auto* ends : {&segment.sealed_end, &segment.written_end, &segment.synced_end}) {
    for (uint32_t& end : *ends) end = std::min(end, block);
  }
}

}  // namespace terrace::kvstore
