// RawFile: a file without any store, read past the page cache: what a disk gives.
#ifndef TERRACE_TESTS_BENCH_RAW_FILE_H_
#define TERRACE_TESTS_BENCH_RAW_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace terrace::bench {

class RawFile {
 public:
  // Writes `bytes`, a multiple of 1 MiB, to a new file of that name, and drops them from the page
  // cache.
  RawFile(const std::string& path, uint64_t bytes);
  ~RawFile();
  RawFile(const RawFile&) = delete;
  RawFile& operator=(const RawFile&) = delete;

  // Seconds to read `size` bytes at each offset, in order, by threads that take one after the
  // other. Requires: multiples of 4 KiB.
  double Read(const std::vector<uint64_t>& offsets, size_t size, int threads) const;
  // All of it, 1 MiB at a time.
  double ReadAll(int threads) const;

  // False where the file system knows no direct reads: then the page cache helps.
  bool direct() const { return direct_; }
  uint64_t bytes() const { return bytes_; }

 private:
  const uint64_t bytes_;
  int fd_ = -1;
  bool direct_ = true;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_RAW_FILE_H_
