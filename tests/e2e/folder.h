// A folder of a test's own, on the file system of the build: real disks, where files can be read
// past the page cache.
#ifndef TERRACE_TESTS_E2E_FOLDER_H_
#define TERRACE_TESTS_E2E_FOLDER_H_

#include <string>

#include "absl/strings/string_view.h"

namespace terrace::testing {

// Removed with all it holds, unless the test has failed.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const;
  // The path of a new file with this text.
  std::string Write(absl::string_view name, absl::string_view text) const;

 private:
  std::string path_;
};

// Empty when there is no such file.
std::string ReadFile(const std::string& path);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_FOLDER_H_
