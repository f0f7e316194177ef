#include "tests/e2e/folder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace terrace::testing {

Folder::Folder() : path_(TERRACE_E2E_DIR "/data-XXXXXX") {
  if (::mkdtemp(path_.data()) == nullptr) std::abort();
}

Folder::~Folder() {
  if (::testing::Test::HasFailure()) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string Folder::File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

std::string Folder::Write(absl::string_view name, absl::string_view text) const {
  std::ofstream file(File(name), std::ios::binary);
  file << text;
  return File(name);
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace terrace::testing
