#include "services/runtime/parting_flush.h"

#include <spdlog/spdlog.h>

#include <string>
#include <vector>

namespace terrace::runtime {
namespace {

constexpr int kPageSize = 1000;

}  // namespace

void FlushBeforeExit(engine::EmbeddedEngine& engine, const kvstore::StoreOptions& options,
                     absl::Time deadline) {
  if (options.disk_path.empty() || options.durability == kvstore::Durability::kNone) return;
  int flushed = 0;
  int failed = 0;
  std::string after;
  std::string error;
  while (true) {
    const absl::StatusOr<std::vector<engine::SequenceSummary>> page =
        engine.ListSequences("", after, kPageSize);
    if (!page.ok() || page->empty()) break;
    after = page->back().handle;
    for (const engine::SequenceSummary& summary : *page) {
      // One that is set aside has nothing to write.
      if (summary.durable_length == summary.length) continue;
      const absl::StatusOr<engine::SequenceInfo> info =
          engine.Flush({.tenant = summary.tenant, .deadline = deadline}, summary.handle);
      ++(info.ok() ? flushed : failed);
      if (!info.ok()) error = std::string(info.status().message());
    }
  }
  engine.RecordTokens(deadline);
  if (const absl::Status status = engine.values().AwaitRecorded(deadline); !status.ok()) {
    spdlog::warn("event=flushed_values message=\"{}\"", std::string(status.message()));
  }
  if (failed == 0) {
    spdlog::info("event=flushed sequences={}", flushed);
  } else {
    spdlog::warn("event=flushed sequences={} failed={} message=\"{}\"", flushed, failed, error);
  }
}

void FinishRecording(engine::EmbeddedEngine& engine) {
  engine::StepRecorder* recorder = engine.recorder();
  if (recorder == nullptr) return;
  if (const absl::Status status = recorder->Close(); !status.ok()) {
    spdlog::warn("event=recorded message=\"{}\"", std::string(status.message()));
    return;
  }
  spdlog::info("event=recorded steps={} dropped={}", recorder->steps(), recorder->dropped_steps());
}

}  // namespace terrace::runtime
