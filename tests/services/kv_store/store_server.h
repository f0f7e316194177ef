// kv-stores in this process, for tests of the worker's side.
#ifndef TERRACE_TESTS_SERVICES_KV_STORE_STORE_SERVER_H_
#define TERRACE_TESTS_SERVICES_KV_STORE_STORE_SERVER_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "services/admin/admin_service.h"
#include "services/kv_store/kv_store_service.h"
#include "services/kv_store/remote_engine.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/rpc_server.h"

namespace terrace::testing {

// One kv-store: an engine and, while it serves, a server.
struct Store {
  explicit Store(engine::EmbeddedOptions options = MemoryOptions(), int port = 0)
      : engine(OpenEngine(options)) {
    Start(port);
  }
  void Start(int port) {
    server = std::make_unique<RpcServer>(
        [this](runtime::Executor& executor, runtime::Drain& drain) {
          std::vector<std::unique_ptr<grpc::Service>> services;
          services.push_back(
              kv_store::MakeKvStoreService(*engine, executor, drain, RpcServer::kMessageBytesMax));
          services.push_back(admin::MakeAdminService(*engine, executor));
          return services;
        },
        port);
    ASSERT_TRUE(server->serving());
  }

  std::unique_ptr<engine::EmbeddedEngine> engine;
  std::unique_ptr<RpcServer> server;
};

inline engine::EmbeddedOptions OnShard(uint16_t shard) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.shard = shard;
  return options;
}

inline kv_store::RemoteOptions OptionsFor(const std::vector<std::string>& stores) {
  kv_store::RemoteOptions options;
  options.stores = stores;
  options.max_message_bytes = RpcServer::kMessageBytesMax;
  return options;
}

// Long enough for a busy machine and a sanitizer.
inline absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_KV_STORE_STORE_SERVER_H_
