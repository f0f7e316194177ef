// AttentionService over an engine, embedded or remote.
#ifndef TERRACE_SERVICES_ATTENTION_WORKER_ATTENTION_SERVICE_H_
#define TERRACE_SERVICES_ATTENTION_WORKER_ATTENTION_SERVICE_H_

#include <cstdint>
#include <memory>

#include "services/engine/kv_engine.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace terrace::attention_worker {

struct AttentionServiceOptions {
  uint64_t max_message_bytes = 0;
  uint32_t shard = 0;
  // What REMOTE_MODE_AUTO of a request means.
  engine::RemoteMode default_mode = engine::RemoteMode::kAuto;
};

// The engine, the executor and the drain must outlive the service.
std::unique_ptr<grpc::Service> MakeAttentionService(engine::KvEngine& engine,
                                                    runtime::Executor& executor,
                                                    runtime::Drain& drain,
                                                    const AttentionServiceOptions& options);

}  // namespace terrace::attention_worker

#endif  // TERRACE_SERVICES_ATTENTION_WORKER_ATTENTION_SERVICE_H_
