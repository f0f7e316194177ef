// What an orderly end owes the sequences: their tails are durable too, as after a Flush.
#ifndef TERRACE_SERVICES_RUNTIME_PARTING_FLUSH_H_
#define TERRACE_SERVICES_RUNTIME_PARTING_FLUSH_H_

#include "absl/time/time.h"
#include "services/engine/embedded_engine.h"

namespace terrace::runtime {

// Flushes every sequence of `engine` that has tokens which are not durable, until `deadline`, logs
// how many, and records their token ids, by which prefixes are found again. Nothing without a disk,
// or when only clients may ask for writes (durability none). Call it when no calls run any more.
void FlushBeforeExit(engine::EmbeddedEngine& engine, const kvstore::StoreOptions& options,
                     absl::Time deadline);

// Completes the file of recorded steps, if there is one, and logs what it holds.
void FinishRecording(engine::EmbeddedEngine& engine);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_PARTING_FLUSH_H_
