#include "tests/bench/data_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>

#include "tests/bench/require.h"

namespace terrace::bench {

namespace {

// Folders in use: they go at the end of the process when a wrong answer ends it.
class OpenFolders {
 public:
  static OpenFolders& Get() {
    static OpenFolders folders;
    return folders;
  }
  ~OpenFolders() {
    while (!paths_.empty()) Remove(*paths_.begin());
  }
  void Add(const std::string& path) { paths_.insert(path); }
  void Remove(std::string path) {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
    paths_.erase(path);
  }

 private:
  std::set<std::string> paths_;
};

}  // namespace

DataFolder::DataFolder(const std::string& parent) {
  std::string path = parent + "/terrace-bench-XXXXXX";
  Require(mkdtemp(path.data()) != nullptr, "making a folder in " + parent);
  path_ = path;
  OpenFolders::Get().Add(path_);
}

DataFolder::~DataFolder() { OpenFolders::Get().Remove(path_); }

void ChillFiles(const std::string& path) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (!entry.is_regular_file()) continue;
    const int fd = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    Require(fd >= 0, "opening " + entry.path().string());
    // Dirty pages would stay.
    Require(fsync(fd) == 0, "syncing");
    Require(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping cached pages");
    close(fd);
  }
}

uint64_t StorageBytesRead() {
  std::ifstream io("/proc/self/io");
  for (std::string name; io >> name;) {
    uint64_t value = 0;
    io >> value;
    if (name == "read_bytes:") return value;
  }
  return 0;
}

}  // namespace terrace::bench
