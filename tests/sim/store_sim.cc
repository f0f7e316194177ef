#include "tests/sim/store_sim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/sim_seeds.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

constexpr int kVerbs = 60;
constexpr uint64_t kMiB = uint64_t{1} << 20;

}  // namespace

StoreSim::StoreSim(uint64_t seed)
    : random_(seed), folder_(terrace::testing::FastFolder()), disk_(seed) {
  options_.host_bytes = (1 + Draw(2)) * kMiB;
  options_.disk_path = folder_.path() + "/disk";
  options_.disk_bytes = 64 * kMiB;
  options_.durability = static_cast<Durability>(Draw(3));
  options_.reader_threads = static_cast<int>(1 + Draw(3));
  options_.placement = static_cast<PolicyKind>(seed % 3);
  layout_.layers = static_cast<uint16_t>(1 + Draw(2));
  layout_.row_bytes = 32u << Draw(5);
  layout_.stripe_blocks = 1u << Draw(5);
  layout_.granule_tokens = 1u << Draw(5);
  if (Draw(8) == 0) layout_.planes.clear();
}

void StoreSim::Run() {
  Loss loss = Loss::kNothing;
  if (!Open(&loss)) return;
  // By weight.
  const std::vector<std::pair<uint32_t, void (StoreSim::*)()>> verbs = {
      {6, &StoreSim::Create},      {20, &StoreSim::Append},     {3, &StoreSim::ReadAhead},
      {12, &StoreSim::ReadRows},   {6, &StoreSim::ReadStripes}, {1, &StoreSim::ReadLate},
      {4, &StoreSim::ReleasePins}, {6, &StoreSim::Fork},        {5, &StoreSim::Truncate},
      {4, &StoreSim::Delete},      {8, &StoreSim::Flush},       {2, &StoreSim::DropTail},
      {3, &StoreSim::Park},        {4, &StoreSim::Break},       {3, &StoreSim::Heal},
      {8, &StoreSim::Unseal},
  };
  uint32_t sum = 0;
  for (const auto& [weight, verb] : verbs) sum += weight;
  for (int i = 0; i < kVerbs && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("verb ", i));
    uint32_t pick = Draw(sum);
    size_t verb = 0;
    while (pick >= verbs[verb].first) pick -= verbs[verb++].first;
    (this->*verbs[verb].second)();
    Check();
    // Nobody comes back from a disk whose bits flip to one that is known to be whole.
    if (flipped_ && (disk_.dead() || Draw(30) == 0)) break;
    if (Draw(disk_.dead() ? 3 : 30) == 0) Restart(Draw(2) == 0 ? Loss::kNothing : Loss::kUnsynced);
  }
  if (!flipped_ && !::testing::Test::HasFailure()) Restart(Loss::kNothing);
  while (!pins_.empty()) ReleasePins();
  if (!::testing::Test::HasFailure()) return;
  for (const std::string& line : history_) std::printf("%s\n", line.c_str());
}

void StoreSim::Note(const char* what, SegmentId segment, const absl::Status& status) {
  history_.push_back(absl::StrCat(what, " ", static_cast<uint64_t>(segment), " ",
                                  status.ok() ? "" : status.ToString(),
                                  disk_.dead() ? " (dead)" : ""));
}

bool StoreSim::Excused(const absl::Status& status) const {
  if (absl::IsResourceExhausted(status)) return true;
  return faulty_ && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status));
}

void StoreSim::Check() {
  ASSERT_THAT(store_->HostStats(), IsConserved());
  ASSERT_THAT(store_->DiskStats(), IsConserved());
  ASSERT_TRUE(flipped_ || store_->DiskStats().corrupt_granules == 0);
  NoteWritten();
}

void StoreSim::NoteWritten() {
  std::map<SegmentModelRef, std::vector<uint32_t>> ends;
  for (const auto& [name, sequence] : model_) {
    for (const RangeModel& range : sequence.ranges) {
      std::vector<uint32_t>& written = ends[range.segment];
      if (!written.empty()) continue;
      for (uint16_t lane = 0; lane < Lanes(); ++lane) {
        written.push_back(store_->Durable(*range.segment->segment, LayerOf(lane)).end_block);
      }
    }
  }
  if (disk_.dead()) return;
  const bool synced = options_.durability == Durability::kSync;
  for (const auto& [segment, written] : ends) {
    segment->written_end = written;
    if (synced) segment->synced_end = written;
  }
}

SequenceModel* StoreSim::Pick(std::string* name) {
  if (model_.empty()) return nullptr;
  const auto it = std::next(model_.begin(), Draw(static_cast<uint32_t>(model_.size())));
  if (name != nullptr) *name = it->first;
  return &it->second;
}

bool StoreSim::PickBlock(SegmentModelRef* segment, uint16_t* lane, uint32_t* block) {
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

SegmentModelRef StoreSim::NewSegment(uint32_t first_block) {
  auto segment = store_->CreateSegment(layout_, first_block);
  if (!segment.ok()) {
    EXPECT_TRUE(Excused(segment.status())) << segment.status();
    return nullptr;
  }
  auto model = std::make_shared<SegmentModel>();
  model->segment = *segment;
  model->id = store_->id(**segment);
  model->first_block = first_block;
  for (auto* ends :
       {&model->sealed_end, &model->sealed_once, &model->written_end, &model->synced_end}) {
    ends->assign(Lanes(), first_block);
  }
  model->tails.resize(layout_.layers);
  return model;
}

bool StoreSim::Commit(const std::string& name, std::vector<RangeModel> ranges) {
  SequenceModel sequence{.attributes = absl::StrCat("change ", ++changes_),
                         .ranges = std::move(ranges)};
  Manifest manifest{.name = name, .attributes = sequence.attributes, .ranges = {}};
  for (const RangeModel& range : sequence.ranges) {
    manifest.ranges.push_back({range.segment->segment, range.first_block, range.end_block});
  }
  const absl::Status status = store_->CommitManifest(manifest, absl::InfiniteFuture());
  Note(absl::StrCat("commit ", name, " of ", manifest.ranges.size(), " ranges, from ",
                    manifest.ranges.back().first_block, " on")
           .c_str(),
       sequence.open()->id, status);
  if (!status.ok()) {
    EXPECT_TRUE(Excused(status)) << status;
    if (MayStand()) journal_.Add(name, std::move(sequence), false);
    return false;
  }
  const std::vector<RangeModel> before = model_[name].ranges;
  model_[name] = sequence;
  journal_.Add(name, std::move(sequence), true);
  Wrote();
  if (options_.durability == Durability::kSync) Synced();
  TrimUnnamed(model_, before);
  return true;
}

void StoreSim::Create() {
  const SegmentModelRef segment = NewSegment(0);
  if (segment == nullptr) return;
  Commit(absl::StrCat("sequence ", ++names_), {{segment, 0, kOpenEnd}});
}

// Seals up to some blocks in each lane, lanes not all alike.
void StoreSim::Append() {
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
      segment.sealed_once[lane] = std::max(segment.sealed_once[lane], block + 1);
    }
  }
}

// Rows that a flush has written are overwritten now.
bool StoreSim::DropStaleTail(SegmentModel& segment) {
  const absl::Status status = store_->CutTail(*segment.segment, segment.first_block, 0, Soon());
  Note("cut the tail of", segment.id, status);
  if (!status.ok()) {
    EXPECT_TRUE(Excused(status)) << status;
    segment.tails_are_known = false;
    return false;
  }
  // With nothing to cut it says so in death, too.
  if (disk_.dead()) return true;
  for (SegmentModel::Tail& tail : segment.tails) tail = {};
  segment.tails_are_known = true;
  return true;
}

void StoreSim::DropTail() {
  if (const SequenceModel* sequence = Pick()) DropStaleTail(*sequence->open());
}

StoreSim::HeldPins StoreSim::RowChecks(std::vector<ReadRequest>* requests) {
  HeldPins held;
  for (uint32_t i = 0; i < 1 + Draw(40); ++i) {
    SegmentModelRef segment;
    uint16_t lane = 0;
    uint32_t block = 0;
    if (!PickBlock(&segment, &lane, &block)) continue;
    const uint64_t cells = random_() & AllGranules(layout_);
    if (cells == 0) continue;
    const float mass = Draw(4) == 0 ? kUntoldMass : static_cast<float>(Draw(1000)) / 1000;
    requests->push_back({segment->segment.get(), LayerOf(lane), HeadOf(lane), block, cells, mass});
    held.checks.emplace_back(
        [this, cells, salt = segment->salts.at({lane, block}),
         key = BlockKey{segment->id, LayerOf(lane), HeadOf(lane), block}](const std::byte* data) {
          return SameGranules(layout_, key, data, cells, salt);
        });
  }
  return held;
}

StoreSim::HeldPins StoreSim::StripeChecks(std::vector<ReadRequest>* requests) {
  HeldPins held;
  for (uint32_t i = 0; i < 1 + Draw(20); ++i) {
    SegmentModelRef segment;
    uint16_t lane = 0;
    uint32_t block = 0;
    if (!PickBlock(&segment, &lane, &block)) continue;
    requests->push_back({segment->segment.get(), LayerOf(lane), HeadOf(lane),
                         block / layout_.stripe_blocks,
                         uint64_t{1} << block % layout_.stripe_blocks});
    held.checks.emplace_back(
        [this, salt = segment->salts.at({lane, block}),
         key = BlockKey{segment->id, LayerOf(lane), HeadOf(lane), block}](const std::byte* data) {
          return SamePiece(layout_, key, data, salt);
        });
  }
  return held;
}

void StoreSim::ReadRows() {
  std::vector<ReadRequest> requests;
  HeldPins held = RowChecks(&requests);
  held.pins = store_->PinRows(requests, Soon());
  CheckAndHold(std::move(held), false);
}

void StoreSim::ReadStripes() {
  if (layout_.planes.empty()) return;
  std::vector<ReadRequest> requests;
  HeldPins held = StripeChecks(&requests);
  held.pins = store_->PinStripes(requests, Soon());
  CheckAndHold(std::move(held), false);
}

// The disk answers when the deadline is long over.
void StoreSim::ReadLate() {
  std::vector<ReadRequest> requests;
  HeldPins held = RowChecks(&requests);
  disk_.SetReadsStall(true);
  held.pins = store_->PinRows(requests, absl::Now() + absl::Milliseconds(1));
  disk_.SetReadsStall(false);
  CheckAndHold(std::move(held), true);
}

void StoreSim::ReadAhead() {
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

void StoreSim::CheckAndHold(HeldPins held, bool may_be_late) {
  for (size_t i = 0; i < held.checks.size(); ++i) {
    const PinnedExtent& extent = held.pins.extents()[i];
    if (!extent.status.ok()) {
      const bool excused = (reads_fail_ && absl::IsUnavailable(extent.status)) ||
                           (faulty_ && absl::IsUnavailable(extent.status)) ||
                           (flipped_ && absl::IsDataLoss(extent.status)) ||
                           (may_be_late && absl::IsDeadlineExceeded(extent.status));
      EXPECT_TRUE(excused) << extent.status;
      return;
    }
    EXPECT_TRUE(held.checks[i](extent.data)) << "I1: wrong bytes in request " << i;
  }
  if (Draw(3) == 0) pins_.push_back(std::move(held));
  if (pins_.size() > 4) ReleasePins();
}

void StoreSim::ReleasePins() {
  if (pins_.empty()) return;
  const HeldPins& held = pins_.front();
  for (size_t i = 0; i < held.checks.size(); ++i) {
    EXPECT_TRUE(held.checks[i](held.pins.extents()[i].data)) << "I3: pinned bytes have changed";
  }
  pins_.pop_front();
}

void StoreSim::Fork() {
  const SequenceModel* parent = Pick();
  if (parent == nullptr || parent->Length() == 0) return;
  const uint32_t at = 1 + Draw(parent->Length());
  std::vector<RangeModel> ranges = parent->Prefix(at);
  const SegmentModelRef segment = NewSegment(at);
  if (segment == nullptr) return;
  ranges.push_back({segment, at, kOpenEnd});
  Commit(absl::StrCat("sequence ", ++names_), std::move(ranges));
}

void StoreSim::Truncate() {
  std::string name;
  const SequenceModel* sequence = Pick(&name);
  if (sequence == nullptr || sequence->Length() == 0) return;
  const uint32_t at = Draw(sequence->Length());
  std::vector<RangeModel> ranges = sequence->Prefix(at);
  const SegmentModelRef segment = NewSegment(at);
  if (segment == nullptr) return;
  ranges.push_back({segment, at, kOpenEnd});
  Commit(name, std::move(ranges));
}

void StoreSim::Wrote() {
  for (auto& [name, sequence] : model_) {
    for (const RangeModel& range : sequence.ranges) range.segment->refused_from = kOpenEnd;
  }
}

void StoreSim::Synced() {
  Wrote();
  journal_.Sync();
  for (auto& [name, sequence] : model_) {
    for (const RangeModel& range : sequence.ranges) {
      range.segment->old_salts.clear();
      range.segment->was_unsealed = false;
    }
  }
}

void StoreSim::Delete() {
  std::string name;
  if (Pick(&name) == nullptr) return;
  const absl::Status status = store_->DeleteManifest(name, absl::InfiniteFuture());
  Note(absl::StrCat("delete ", name).c_str(), model_[name].open()->id, status);
  if (!status.ok()) {
    EXPECT_TRUE(Excused(status)) << status;
    if (MayStand()) journal_.Add(name, std::nullopt, false);
    return;
  }
  const std::vector<RangeModel> before = model_[name].ranges;
  model_.erase(name);
  journal_.Add(name, std::nullopt, true);
  Wrote();
  if (options_.durability == Durability::kSync) Synced();
  TrimUnnamed(model_, before);
}

void StoreSim::Flush() {
  const SequenceModel* sequence = Pick();
  if (sequence == nullptr) return;
  SegmentModel& segment = *sequence->open();
  std::vector<uint32_t> tail_rows;
  std::vector<SegmentModel::Tail> tails(layout_.layers);
  if (Draw(2) == 0) {
    if (!DropStaleTail(segment)) return;
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      tails[layer] = WriteTail(segment, layer);
      tail_rows.push_back(tails[layer].rows);
    }
  }
  const absl::Status status = store_->Flush(*segment.segment, tail_rows, Patience());
  Note(tail_rows.empty() ? "flush" : "flush with tails", segment.id, status);
  if (!status.ok()) {
    EXPECT_TRUE(Excused(status) || absl::IsDeadlineExceeded(status)) << status;
    if (!tail_rows.empty()) segment.tails_are_known = false;
    return;
  }
  segment.written_end = segment.synced_end = segment.sealed_end;
  Synced();
  if (tail_rows.empty()) return;
  segment.tails = tails;
  segment.tails_are_known = true;
}

// Out of memory, and perhaps in use again: nothing changes.
void StoreSim::Park() {
  std::string name;
  if (Pick(&name) == nullptr) return;
  EXPECT_OK(store_->Park(name));
  if (Draw(2) == 0) store_->Unpark(name);
}

// Fills some open rows where all heads of the layer are equally long.
SegmentModel::Tail StoreSim::WriteTail(const SegmentModel& segment, uint16_t layer) {
  const auto lane = static_cast<uint16_t>(layer * layout_.heads);
  const uint32_t block = segment.sealed_end[lane];
  for (uint16_t head = 1; head < layout_.heads; ++head) {
    if (segment.sealed_end[lane + head] != block) return {};
  }
  const SegmentModel::Tail tail{block, 1 + Draw(layout_.block_tokens - 1),
                                std::vector<uint32_t>(layout_.heads, ++salts_)};
  if (!store_->Reserve(*segment.segment, layer, block, block + 1, Patience()).ok()) return {};
  for (uint16_t head = 0; head < layout_.heads; ++head) {
    FillBytes({segment.id, layer, head, block}, tail.salts[head], false,
              size_t{tail.rows} * layout_.row_bytes,
              store_->OpenRows(*segment.segment, layer, head, block));
  }
  return tail;
}

void StoreSim::Break() {
  const uint32_t fault = Draw(12);
  history_.push_back(absl::StrCat("break ", fault));
  if (fault < 5) {
    disk_.DieAfter(Draw(40));
  } else if (fault < 6) {
    disk_.SetSyncsFail(true);
  } else if (fault < 8) {
    disk_.SetWritesFail(true);
  } else if (fault < 9) {
    disk_.SetFull(true);
  } else if (fault < 11) {
    disk_.SetReadsFail(true);
    reads_fail_ = true;
  } else {
    disk_.SetFlips(1 + Draw(8));
    flipped_ = true;
  }
  faulty_ = true;
}

// The store works again as soon as its disk does.
void StoreSim::Heal() {
  history_.push_back("heal");
  disk_.Heal();
  reads_fail_ = false;
  absl::Status status;
  const absl::Time end = Soon();
  do {
    status = store_->CommitManifest({.name = "probe", .attributes = "", .ranges = {}},
                                    absl::InfiniteFuture());
    if (status.ok()) status = store_->DeleteManifest("probe", absl::InfiniteFuture());
    if (disk_.dead()) return;
  } while (absl::IsUnavailable(status) && !flipped_ && absl::Now() < end);
  EXPECT_TRUE(flipped_ || status.ok() || absl::IsResourceExhausted(status)) << status;
}

}  // namespace terrace::kvstore
