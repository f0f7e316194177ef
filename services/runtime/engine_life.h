// What a daemon with an engine of its own does around serving.
#ifndef TERRACE_SERVICES_RUNTIME_ENGINE_LIFE_H_
#define TERRACE_SERVICES_RUNTIME_ENGINE_LIFE_H_

#include "services/engine/embedded_engine.h"
#include "services/runtime/server.h"

namespace terrace::runtime {

// Starts `engine`, which is not open, and logs what came back, how long it took and what did not;
// at the end, what FlushBeforeExit and FinishRecording say. The engine must outlive it.
Around AroundEngine(engine::EmbeddedEngine& engine, const kvstore::StoreOptions& options);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_ENGINE_LIFE_H_
