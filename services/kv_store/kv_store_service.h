// KvStoreService over an embedded engine: one shard.
#ifndef TERRACE_SERVICES_KV_STORE_KV_STORE_SERVICE_H_
#define TERRACE_SERVICES_KV_STORE_KV_STORE_SERVICE_H_

#include <cstdint>
#include <memory>

#include "services/engine/embedded_engine.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace terrace::kv_store {

// The engine, the executor and the drain must outlive the service.
std::unique_ptr<grpc::Service> MakeKvStoreService(engine::EmbeddedEngine& engine,
                                                  runtime::Executor& executor,
                                                  runtime::Drain& drain,
                                                  uint64_t max_message_bytes);

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_KV_STORE_SERVICE_H_
