// A SparQ step: score the index, choose rows, fetch those, attend to them (or ship them).
//
// A query that sees `visible` rows scores the blocks that are full by then through the score index
// and the rows after them from their row copy. That depends on `visible` alone, so a retry, a
// step of several queries and single steps give the same bits.
#ifndef TERRACE_SERVICES_ENGINE_SPARQ_STEP_H_
#define TERRACE_SERVICES_ENGINE_SPARQ_STEP_H_

#include "absl/status/status.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"

namespace terrace::engine {

// Fills a part of either form; adds what was read to its account. Selected rows that are late or
// corrupt are left out and accounted for, unless options.strict.
// DataLoss, Unavailable or DeadlineExceeded when what must be read cannot be: the score index, the
// tail, a row of a strict step, or every selected row of a head.
// Requires: input.policy is SparQ.
absl::Status RunSparqStep(const StepInput& input, PartForm form, StepPart& part)
    ABSL_SHARED_LOCKS_REQUIRED(input.sequence.gate);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SPARQ_STEP_H_
