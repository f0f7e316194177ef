// Demoter: the thread that brings host memory from its high watermark down to the low one, so that
// who reserves rarely has to evict.
#ifndef TERRACE_KVSTORE_DEMOTER_H_
#define TERRACE_KVSTORE_DEMOTER_H_

#include <thread>

#include "kvstore/store_core.h"

namespace terrace::kvstore {

class Demoter {
 public:
  // Woken by core.crowded.
  explicit Demoter(StoreCore& core);
  ~Demoter();
  Demoter(const Demoter&) = delete;
  Demoter& operator=(const Demoter&) = delete;

 private:
  void Run();

  StoreCore& core_;
  // Guarded by the mutex of the core.
  bool stopping_ = false;
  // Last: it uses the rest.
  std::thread thread_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DEMOTER_H_
