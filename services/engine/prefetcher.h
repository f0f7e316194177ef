// Prefetcher: reads ahead what the next layers of a sequence will probably ask for. Adjacent tokens
// select mostly the same rows, so when a layer has selected, what a layer a little further on
// selected at the last token is brought from disk, behind the step's back.
//
// What is wanted waits in a bounded queue; it is dropped when the layer runs before its turn came,
// when the queue is full, and when the sequence has ended or changed hands. The store decides what
// is worth a place in memory. Nothing here can fail a step.
#ifndef TERRACE_SERVICES_ENGINE_PREFETCHER_H_
#define TERRACE_SERVICES_ENGINE_PREFETCHER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/sequence.h"

namespace terrace::engine {

// Thread-safe.
class Prefetcher {
 public:
  // `store` must outlive this.
  explicit Prefetcher(kvstore::BlockStore& store);
  // Waits for the read that runs.
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // A step of that layer is about to read `requests`. Waits for nothing but a short lock.
  void NoteStep(Sequence& sequence, int layer, absl::Span<const kvstore::ReadRequest> requests);
  // Drops what is queued and remembered of a sequence that nobody steps now, and waits for a read
  // of it that runs, until `deadline`, a second at most.
  void Forget(const Sequence& sequence, absl::Time deadline);

 private:
  // Granules of one block.
  struct Wanted {
    uint64_t cells = 0;
    uint32_t block = 0;
    uint16_t head = 0;
  };
  // What the last steps of one sequence selected.
  struct Memory {
    std::weak_ptr<Sequence> sequence;
    // By layer.
    std::vector<std::vector<Wanted>> layers;
    size_t count = 0;
    std::list<const Sequence*>::iterator place;
  };
  struct Job {
    std::weak_ptr<Sequence> sequence;
    uint16_t layer = 0;
    std::vector<Wanted> wanted;
  };

  Memory& Remember(Sequence& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropMemory(const Sequence* sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Run();
  void ReadAhead(const Job& job);

  kvstore::BlockStore& store_;
  kvstore::Mutex mu_;
  kvstore::CondVar queued_;
  kvstore::CondVar done_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  // Whose job runs; null for none.
  const Sequence* running_ ABSL_GUARDED_BY(mu_) = nullptr;
  absl::flat_hash_map<const Sequence*, Memory> memories_ ABSL_GUARDED_BY(mu_);
  // Stepped longest ago first.
  std::list<const Sequence*> order_ ABSL_GUARDED_BY(mu_);
  size_t wanted_count_ ABSL_GUARDED_BY(mu_) = 0;
  // Last: it uses the rest.
  std::thread thread_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_PREFETCHER_H_
