#include "kvstore/region.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace terrace::kvstore {
namespace {

// A tenth of a second of what a fast disk reads.
constexpr size_t kHeadStartBytes = size_t{128} << 20;
// Announcements of use are gathered up to so much, so that few of them wake the thread.
constexpr size_t kAnnouncedBytes = size_t{16} << 20;
// At a time: while pages are made present, nobody else can map or unmap memory.
constexpr size_t kStepBytes = size_t{2} << 20;

// False where the system cannot, or has no memory left: then pages come when they are touched.
bool MakePresent(std::byte* start, size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  return madvise(start, bytes, MADV_POPULATE_WRITE) == 0;
#else
  static_cast<void>(start);
  static_cast<void>(bytes);
  return false;
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Region>> Region::Create(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("reserving ", bytes, " bytes of memory: ", std::strerror(errno)));
  }
  // Advice only: without huge pages everything works, with more TLB misses.
  madvise(data, bytes, MADV_HUGEPAGE);
  std::unique_ptr<Region> region(new Region(static_cast<std::byte*>(data), bytes));
  region->Advance(0);
  return region;
}

Region::Region(std::byte* data, size_t bytes)
    : data_(data), bytes_(bytes), thread_([this] { Run(); }) {}

Region::~Region() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    advanced_.NotifyAll();
  }
  thread_.join();
  munmap(data_, bytes_);
}

void Region::Advance(size_t used) {
  const size_t announced = (used + kAnnouncedBytes - 1) / kAnnouncedBytes * kAnnouncedBytes;
  const size_t wanted = std::min(bytes_, announced + kHeadStartBytes);
  MutexLock lock(mu_);
  if (wanted <= wanted_) return;
  wanted_ = wanted;
  advanced_.NotifyAll();
}

void Region::Run() {
  for (size_t present = 0; present < bytes_;) {
    {
      MutexLock lock(mu_);
      while (!stopping_ && present >= wanted_) advanced_.Wait(mu_);
      if (stopping_) return;
    }
    const size_t step = std::min(kStepBytes, bytes_ - present);
    if (!MakePresent(data_ + present, step)) return;
    present += step;
  }
}

}  // namespace terrace::kvstore
