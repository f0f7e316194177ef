// The bundled model at work: what terrace-generate gets.
#ifndef TERRACE_TESTS_E2E_MODEL_H_
#define TERRACE_TESTS_E2E_MODEL_H_

#include <string>
#include <vector>

#include "tests/e2e/folder.h"

namespace terrace::testing {

struct ModelRun {
  // The first bytes of the bundled documents.
  ModelRun(size_t prompt_bytes, size_t score_bytes);

  // Words of a command line that writes `tokens` tokens on the service at `address`.
  std::vector<std::string> Arguments(const std::string& address, int tokens) const;

  Folder folder;
  std::string prompt_file;
  std::string score_file;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_MODEL_H_
