#include "tests/e2e/model.h"

namespace terrace::testing {
namespace {

constexpr char kFrontend[] = TERRACE_SOURCE_DIR "/services/frontend";

std::string Head(const std::string& document, size_t bytes) {
  return ReadFile(kFrontend + ("/documents/" + document)).substr(0, bytes);
}

}  // namespace

ModelRun::ModelRun(size_t prompt_bytes, size_t score_bytes)
    : prompt_file(folder.Write("prompt", Head("northanger_prompt.txt", prompt_bytes))),
      score_file(folder.Write("score", Head("northanger_continuation.txt", score_bytes))) {}

std::vector<std::string> ModelRun::Arguments(const std::string& address, int tokens) const {
  return {"--model",       kFrontend + std::string("/model/tiny"),
          "--attention",   address,
          "--tokens",      std::to_string(tokens),
          "--prompt-file", prompt_file};
}

}  // namespace terrace::testing
