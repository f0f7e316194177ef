// DataFolder: a folder for the files of a benchmark, gone with it, and how cold it is.
#ifndef TERRACE_TESTS_BENCH_DATA_FOLDER_H_
#define TERRACE_TESTS_BENCH_DATA_FOLDER_H_

#include <cstdint>
#include <string>

namespace terrace::bench {

class DataFolder {
 public:
  explicit DataFolder(const std::string& parent);
  ~DataFolder();
  DataFolder(const DataFolder&) = delete;
  DataFolder& operator=(const DataFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Writes back all files below `path` and takes them out of the page cache.
void ChillFiles(const std::string& path);

// Bytes that this process had the storage read so far; 0 where the system does not count.
uint64_t StorageBytesRead();

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_DATA_FOLDER_H_
