// The file format of RocksDB's MANIFEST, read to see whether a byte of it rotted.
//
// RocksDB checks the sums of records, but takes one for the end of the file whose length says more
// than the file holds (as a crash leaves a record that was being written), or whose type says that
// it is of a file that was written over. When it is the length or the type that rotted, all that
// the file says from there on would be gone in silence: an older state of the database would open,
// with what has been deleted since.
//
// Format: RocksDB's wiki, "Write Ahead Log File Format"; a MANIFEST's records are not recyclable.
#ifndef TERRACE_KVSTORE_RECORD_LOG_H_
#define TERRACE_KVSTORE_RECORD_LOG_H_

#include <string_view>

#include "absl/status/status.h"

namespace terrace::kvstore {

// DataLoss, with the offset, unless `log`, a whole file, is made of whole records whose sums are
// right, and at most one more at its end that was never written whole: its sum fits no part of it.
absl::Status CheckRecordLog(std::string_view log);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_RECORD_LOG_H_
