// Rot on disk, for tests of what comes of it.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_DISK_DAMAGE_H_
#define TERRACE_TESTS_SERVICES_ENGINE_DISK_DAMAGE_H_

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace terrace::testing {

// Flips a bit of every copy of `bytes` in the files of a closed database; how many there were.
inline int FlipOnDisk(const std::string& folder, const std::vector<std::byte>& bytes) {
  int flipped = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string extension = entry.path().extension();
    if (extension != ".blob" && extension != ".sst") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const std::string needle(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (size_t at = all.find(needle); at != std::string::npos; at = all.find(needle, at + 1)) {
      file.clear();
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(all[at] ^ 1));
      ++flipped;
    }
  }
  return flipped;
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_DISK_DAMAGE_H_
