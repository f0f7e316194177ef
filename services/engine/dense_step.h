// Dense attention of one step: every visible row, block by block from the first, so that the bits
// do not depend on where rows lie or how a sequence was appended.
#ifndef TERRACE_SERVICES_ENGINE_DENSE_STEP_H_
#define TERRACE_SERVICES_ENGINE_DENSE_STEP_H_

#include "absl/status/status.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"

namespace terrace::engine {

// Fills a kPartial part; adds what was read to its account. A row that cannot be read fails the
// step if it is strict, or if a query is left without any: DataLoss, Unavailable or
// DeadlineExceeded. Otherwise it is left out; without approximate scores its mass is not known, so
// that the account claims the least: alpha 0 for the queries that miss it, missed mass 1.
absl::Status RunDenseStep(const StepInput& input, StepPart& part)
    ABSL_SHARED_LOCKS_REQUIRED(input.sequence.gate);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_DENSE_STEP_H_
