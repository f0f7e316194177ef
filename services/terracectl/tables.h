// Answers of AdminService as text for people. Pure functions: the same answer and view give the
// same text, ending in a newline. Lines are as long as their cells: nothing is wrapped, handles and
// tenants are printed whole, and the model fingerprint of a list is elided.
#ifndef TERRACE_SERVICES_TERRACECTL_TABLES_H_
#define TERRACE_SERVICES_TERRACECTL_TABLES_H_

#include <cstddef>
#include <string>

#include "absl/time/time.h"
#include "terrace/v1/admin.pb.h"

namespace terrace::terracectl {

// How the reader sees the text.
struct View {
  // What ages are measured against.
  absl::Time now;
  // Draw how full a tier is.
  bool bars = false;
  // Columns of the terminal; 0 if unknown. Bars are left out of a table that they would widen
  // beyond it.
  size_t width = 0;
};

// Both lists end with a line for each shard that does not answer and so is not in it.

// A line per tier and shard of what it holds, another of what went through it (in blocks of rows,
// and in bytes of the device), the last error of each that has one, and sums by tier. Two tables,
// because one would be wider than most terminals.
std::string TiersTable(const v1::ListTiersResponse& answer, const View& view);

// A line per sequence, and a summary.
std::string SequencesTable(const v1::ListSequencesResponse& answer, const View& view);

// Facts of one sequence, a line per layer, a line per segment range, and a summary.
std::string SequenceTable(const v1::DescribeSequenceResponse& answer, const View& view);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_TABLES_H_
