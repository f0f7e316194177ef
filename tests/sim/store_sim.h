// StoreSim: random verbs on a block store on a bad disk, and on a model of it, compared after each.
//
// What is verified: every byte that is read or pinned (I1, I3); that nothing beyond what a restart
// may take is missing, that nothing beyond what was sealed is there, and that manifests come back
// in the order they were made (I6); budgets (I5) and conservation (I8) after each verb; that
// the store works again when the disk does.
#ifndef TERRACE_TESTS_SIM_STORE_SIM_H_
#define TERRACE_TESTS_SIM_STORE_SIM_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/sim/faulty_disk.h"
#include "tests/sim/store_model.h"

namespace terrace::kvstore {

// Not thread-safe; the store's own threads run.
class StoreSim {
 public:
  explicit StoreSim(uint64_t seed);
  // Fails the current test at the first disagreement, and prints what led to it.
  void Run();

 private:
  using Loss = terrace::testing::FaultyDisk::Loss;

  // Pins that are held on to, and what they must go on to show.
  struct HeldPins {
    Pins pins;
    std::vector<std::function<bool(const std::byte* data)>> checks;
  };

  uint32_t Draw(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  // Where something is broken or full on purpose, waiting long is of no use.
  absl::Time Patience() const {
    return absl::Now() + (faulty_ ? absl::Milliseconds(2) : absl::Milliseconds(300));
  }
  uint16_t Lanes() const { return static_cast<uint16_t>(layout_.layers * layout_.heads); }
  uint16_t LayerOf(uint16_t lane) const { return static_cast<uint16_t>(lane / layout_.heads); }
  uint16_t HeadOf(uint16_t lane) const { return static_cast<uint16_t>(lane % layout_.heads); }
  // For whoever reads a failure: what was done, to which segment, and how it ended.
  void Note(const char* what, SegmentId segment, const absl::Status& status = {});
  // Whether a write may end so.
  bool Excused(const absl::Status& status) const;
  // Whether a write that failed may be there after a restart.
  bool MayStand() const { return disk_.dead() || disk_.sync_has_failed(); }

  void Do(uint32_t verb);
  void Check();
  // The log is one: all that was written before is synced with what was synced now.
  void Synced();
  // A write that goes through undoes those that failed before.
  void Wrote();
  // What is durable now, and was so before the process died.
  void NoteWritten();

  SequenceModel* Pick(std::string* name = nullptr);
  // Some sealed block: its segment, lane and index.
  bool PickBlock(SegmentModelRef* segment, uint16_t* lane, uint32_t* block);
  SegmentModelRef NewSegment(uint32_t first_block);
  // Makes the sequence so in store and model; false when the disk refused.
  bool Commit(const std::string& name, std::vector<RangeModel> ranges);

  void Create();
  void Append();
  bool DropStaleTail(SegmentModel& segment);
  HeldPins RowChecks(std::vector<ReadRequest>* requests);
  HeldPins StripeChecks(std::vector<ReadRequest>* requests);
  void ReadRows();
  void ReadStripes();
  void ReadLate();
  void ReadAhead();
  void CheckAndHold(HeldPins held, bool may_be_late);
  void ReleasePins();
  void Fork();
  void Truncate();
  void Delete();
  void Flush();
  void Park();
  SegmentModel::Tail WriteTail(const SegmentModel& segment, uint16_t layer);
  void DropTail();
  void Break();
  void Heal();

  // Cuts in place: store_sim_unseal.cc.
  void Unseal();
  void Reopen(SegmentModel& segment, uint32_t block, uint32_t rows);

  // Restarts: store_sim_restart.cc.
  void Restart(Loss loss);
  bool Open(Loss* loss);
  void Recover(Loss loss);
  void CheckSegment(SegmentModel& segment, uint32_t named_end, Loss loss);
  void CheckLane(SegmentModel& segment, uint16_t lane, uint32_t served, Loss loss);
  void CheckTails(SegmentModel& segment, Loss loss);
  // What an owner does after a restart: the sequence ends where its durable prefix ends.
  void CutToDurable(const std::string& name);

  std::mt19937_64 random_;
  const TempFolder folder_;
  terrace::testing::FaultyDisk disk_;
  StoreOptions options_;
  BlockLayout layout_ = SmallLayout();
  // A fault was there since the store was opened: writes may fail.
  bool faulty_ = false;
  // Bits have flipped: reads may be told so from then on.
  bool flipped_ = false;
  bool reads_fail_ = false;
  StoreModel model_;
  ManifestJournal journal_;
  std::unique_ptr<BlockStore> store_;
  std::deque<HeldPins> pins_;
  uint32_t names_ = 0;
  uint32_t changes_ = 0;
  uint32_t salts_ = 0;
  std::vector<std::string> history_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_TESTS_SIM_STORE_SIM_H_
