// What terrace-generate says at the end, to people and to programs.
#ifndef TERRACE_SERVICES_FRONTEND_RUN_REPORT_H_
#define TERRACE_SERVICES_FRONTEND_RUN_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "services/frontend/policy_run.h"

namespace terrace::frontend {

struct RunReport {
  std::string model;
  std::string fingerprint;
  std::string address;
  std::string service_version;
  // As on the command line.
  std::string storage;
  std::string index;
  std::string mode;
  int64_t prompt_tokens = 0;
  int64_t chunk_tokens = 0;
  absl::Duration prefill_wall;
  // The prefilled sequence; empty unless it was kept.
  std::string handle;
  std::vector<PolicyResult> policies;

  // One column per policy, ends with a newline. Bytes and rows are per step.
  std::string Table() const;
  // One object, ends with a newline. Valid UTF-8 whatever was generated: `text` is the generated
  // bytes if they are UTF-8, else one character per byte, and `text_encoding` says which.
  std::string Json() const;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_RUN_REPORT_H_
