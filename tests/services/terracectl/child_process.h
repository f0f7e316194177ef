// Runs a program to its end, as a shell would.
#ifndef TERRACE_TESTS_SERVICES_TERRACECTL_CHILD_PROCESS_H_
#define TERRACE_TESTS_SERVICES_TERRACECTL_CHILD_PROCESS_H_

#include <string>
#include <vector>

namespace terrace::testing {

struct ProcessResult {
  // Exit status; 128 + the signal for a program that a signal ended.
  int exit_code = -1;
  std::string out;
  std::string err;
};

struct ProcessOptions {
  // NAME=VALUE, replacing inherited ones. TERRACE_ENDPOINT and NO_COLOR are not inherited.
  std::vector<std::string> environment = {};
  // Columns of a terminal that standard output is connected to; 0 for a file.
  int terminal_columns = 0;
  // A file to write standard output to, instead of ProcessResult::out.
  std::string stdout_path = {};
};

// Standard input is empty. The test fails when the program cannot be started.
ProcessResult RunProcess(const std::string& program, const std::vector<std::string>& arguments,
                         const ProcessOptions& options = {});

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_TERRACECTL_CHILD_PROCESS_H_
