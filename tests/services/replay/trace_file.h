// A trace for one test.
#ifndef TERRACE_TESTS_SERVICES_REPLAY_TRACE_FILE_H_
#define TERRACE_TESTS_SERVICES_REPLAY_TRACE_FILE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace terrace::testing {

// A file of its own, removed when it goes out of scope.
class TraceFile {
 public:
  explicit TraceFile(const std::string& text = "")
      : path_(::testing::TempDir() + "replay_trace_XXXXXX") {
    const int file = ::mkstemp(path_.data());
    if (file < 0) std::abort();
    ::close(file);
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TraceFile() { std::filesystem::remove(path_); }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A line of a request trace.
inline std::string Request(const std::string& hash_ids) {
  return "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [" +
         hash_ids + "]}\n";
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_REPLAY_TRACE_FILE_H_
