// EngineSim: random verbs on an engine whose disk is bad, and on plain arrays, compared after each.
//
// Rows follow from the ids of all tokens up to theirs, as those of a model do, so that sequences
// that share a prefix can be judged. What is verified: answers against the fp64 reference, and rows
// bit by bit (I1); durable <= length, and after a death the durable prefix of each sequence, of
// what it was at that moment (I6); repeats and gaps (I7); what was leased is found until the lease
// is over; who has a time to live ends when it is over; conservation (I8) and budgets (I5).
#ifndef TERRACE_TESTS_SIM_ENGINE_SIM_H_
#define TERRACE_TESTS_SIM_ENGINE_SIM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "services/engine/embedded_engine.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/services/engine/prefix_client.h"
#include "tests/sim/faulty_disk.h"

namespace terrace::testing {

// Not thread-safe; threads of the engine and its store run.
class EngineSim {
 public:
  explicit EngineSim(uint64_t seed);
  // Fails the current test at the first disagreement, and prints what led to it.
  void Run();

 private:
  using Loss = FaultyDisk::Loss;
  static constexpr int kBlock = 16;
  static constexpr int64_t kLengthMax = 200;
  static constexpr size_t kSequencesMax = 6;

  // The tokens of a sequence: by position, what its row follows from.
  using Chain = std::vector<uint64_t>;

  struct Sequence {
    explicit Sequence(const engine::SequenceInfo& opened)
        : info(opened), plain(opened.spec.geometry) {}

    engine::SequenceInfo info;
    // As far as the longest layer.
    Chain chain;
    // Those of the chain; none when they are not told.
    Ids ids;
    bool tells_ids = true;
    // As far as each layer goes.
    PlainCache plain;
    // What the death of the process leaves at least, and that of the machine.
    int64_t written = 0;
    int64_t synced = 0;
    // Unless it is that of a cut that was refused when it was in the log already.
    int64_t refused_cut = INT64_MAX;
    // What was cut off since the last sync: the death of the machine may bring it back.
    std::vector<Chain> cut;
    // It may not be there after the death of the machine; or after any, as deleting it failed.
    bool is_new = true;
    bool may_be_gone = false;
    // Last use that is certain, and last that may have been one.
    absl::Time used;
    absl::Time used_at_most;

    int64_t length() const { return info.length; }
  };
  using Entry = std::map<int64_t, Sequence>::iterator;
  struct Lease {
    Ids ids;
    int64_t tokens = 0;
    absl::Time expires;
    std::string name;
  };

  int64_t Pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool OneIn(int64_t n) { return Pick(1, n) == 1; }
  Entry AnyEntry();
  Sequence& Any() { return AnyEntry()->second; }
  // Block edges more often than chance.
  int64_t PickLength(int64_t most);
  engine::Caller Patient() const;
  // Whether a verb may end so.
  bool Excused(const absl::Status& status) const;
  bool MayStand() const { return disk_.dead() || disk_.sync_has_failed(); }
  void Note(const Sequence& s, const char* what, int64_t where);

  void Operate();
  void Check();

  // What a token adds to a chain.
  static uint64_t Link(uint64_t before, uint32_t id);
  // Lengthens the chain to `length`.
  void Extend(Sequence& s, int64_t length);
  KvRows RowsOf(const Chain& chain, int layer, int64_t position, int64_t n) const;
  // Adds to the arrays what the engine says that it has taken.
  void Took(Sequence& s, int layer, int64_t layer_length);
  void CutTo(Sequence& s, int64_t length);
  void Used(Sequence& s, bool is_certain) { (is_certain ? s.used : s.used_at_most) = now_; }
  // After a verb that did not come to its end.
  void Heard(Sequence& s);
  Sequence* Adopt(const engine::SequenceInfo& info, const Sequence* parent, int64_t length);

  void Create();
  void Fork(Sequence& parent);
  void Truncate(Sequence& s);
  void Delete(Entry entry);
  void Flush(Sequence& s);
  void Park(Sequence& s);
  // Something was written: what was refused before is not there any more.
  void Wrote();
  void Synced();
  void Resume(Sequence& s);
  void Append(Sequence& s);
  void Repeat(Sequence& s);
  void Step(Sequence& s);
  void Read(Sequence& s);
  void ReadLate(Sequence& s);
  void Break();
  void Heal();

  // Prefixes and time: engine_sim_prefix.cc.
  void Remember(const Ids& ids);
  Ids AnyText();
  void OpenOnPrefix();
  void LookUp();
  void CheckLease();
  void Pass();

  // Answers: engine_sim_judge.cc.
  attention::Policy AnyPolicy();
  void Judge(const Sequence& s, int layer, const testing::Step& step, const engine::StepResult& got,
             int64_t n);

  // Restarts: engine_sim_restart.cc.
  void Open(Loss* loss);
  void Restart(Loss loss);
  void CheckRecovered(Loss loss);
  // False when the sequence is not there, as it may be.
  bool CheckSequence(Sequence& s, Loss loss);
  bool ServesChain(const Sequence& s, const Chain& chain, int64_t length);
  void EndUnknown(Loss loss);

  const engine::Geometry geometry_ = SmallGeometry();
  std::mt19937_64 random_;
  FaultyDisk disk_;
  const TempFolder folder_;
  engine::EmbeddedOptions options_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  // A fault was there since the engine was opened: verbs may fail.
  bool faulty_ = false;
  // Bits have flipped: reads may be told so from then on.
  bool flipped_ = false;
  // By age: handles are random, and a run must not be.
  std::map<int64_t, Sequence> sequences_;
  int64_t created_ = 0;
  std::set<std::string> deleted_since_sync_;
  bool births_in_doubt_ = false;
  std::vector<Ids> texts_;
  std::vector<Lease> leases_;
  std::vector<std::string> history_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SIM_ENGINE_SIM_H_
