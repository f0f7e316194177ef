// Region: memory reserved at once, whose pages are made present a little ahead of their use.
//
// A page is cleared when it is first touched, and a huge one takes as long to clear as dozens of
// granules take to read: whoever fills the memory should not have to wait for that. What is not
// used stays untouched, but for the head start.
#ifndef TERRACE_KVSTORE_REGION_H_
#define TERRACE_KVSTORE_REGION_H_

#include <cstddef>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "kvstore/mutex.h"

namespace terrace::kvstore {

class Region {
 public:
  // ResourceExhausted when the system has no such region. Requires: not 0.
  static absl::StatusOr<std::unique_ptr<Region>> Create(size_t bytes);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // The first `used` bytes are in use now or soon; what follows them is likely to be next.
  void Advance(size_t used);

 private:
  Region(std::byte* data, size_t bytes);

  void Run();

  std::byte* const data_;
  const size_t bytes_;

  Mutex mu_;
  CondVar advanced_;
  // How much is to be present.
  size_t wanted_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  // Last: it uses the rest.
  std::thread thread_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_REGION_H_
