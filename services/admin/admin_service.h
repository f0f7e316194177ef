// AdminService over any engine.
#ifndef TERRACE_SERVICES_ADMIN_ADMIN_SERVICE_H_
#define TERRACE_SERVICES_ADMIN_ADMIN_SERVICE_H_

#include <memory>

#include "services/engine/kv_engine.h"
#include "services/runtime/executor.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace terrace::admin {

// The engine and the executor must outlive the service.
std::unique_ptr<grpc::Service> MakeAdminService(engine::KvEngine& engine,
                                                runtime::Executor& executor);

}  // namespace terrace::admin

#endif  // TERRACE_SERVICES_ADMIN_ADMIN_SERVICE_H_
