// The loads of store_bench. Each verifies what it gets before it is timed, and adds its lines.
#ifndef TERRACE_TESTS_BENCH_STORE_LOADS_H_
#define TERRACE_TESTS_BENCH_STORE_LOADS_H_

#include "tests/bench/bench_args.h"
#include "tests/bench/sheet.h"

namespace terrace::bench {

// Many tokens at once through the engine, and into the store alone, against copying the bytes.
void MeasureBulkAppend(const BenchArgs& args, Sheet& sheet);
// Token by token.
void MeasureDecodeAppend(const BenchArgs& args, Sheet& sheet);
// Random rows from the host tier, against the same rows of one buffer.
void MeasureGather(const BenchArgs& args, Sheet& sheet);
// All rows, and random granules, after a restart, against bare reads of a file.
void MeasureDisk(const BenchArgs& args, Sheet& sheet);
// Memory beside the rows, and what it takes to open, fork and cut a long sequence.
void MeasureLongSequence(const BenchArgs& args, Sheet& sheet);

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_STORE_LOADS_H_
