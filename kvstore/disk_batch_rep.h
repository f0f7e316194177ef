// What a DiskBatch is made of. Only the disk tier includes this.
#ifndef TERRACE_KVSTORE_DISK_BATCH_REP_H_
#define TERRACE_KVSTORE_DISK_BATCH_REP_H_

#include <rocksdb/write_batch.h>

#include "kvstore/disk_batch.h"

namespace terrace::kvstore {

struct DiskBatch::Rep {
  rocksdb::WriteBatch batch;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_BATCH_REP_H_
