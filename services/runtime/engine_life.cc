#include "services/runtime/engine_life.h"

#include <spdlog/spdlog.h>

#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/runtime/parting_flush.h"

namespace terrace::runtime {
namespace {

absl::Status Recover(engine::EmbeddedEngine& engine) {
  const absl::Time begin = absl::Now();
  if (absl::Status status = engine.Start(); !status.ok()) return status;
  spdlog::info("event=recovered sequences={} time_to_ready={} values={}", engine.sequence_count(),
               absl::FormatDuration(absl::Now() - begin), engine.values().size());
  for (const std::string& message : engine.damaged()) {
    spdlog::error("event=damaged_sequence message=\"{}\"", message);
  }
  return absl::OkStatus();
}

}  // namespace

Around AroundEngine(engine::EmbeddedEngine& engine, const kvstore::StoreOptions& options) {
  return {.start = [&engine] { return Recover(engine); },
          .cancel = nullptr,
          .finish =
              [&engine, options](absl::Time deadline) {
                FlushBeforeExit(engine, options, deadline);
                FinishRecording(engine);
              }};
}

}  // namespace terrace::runtime
