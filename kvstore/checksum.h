// CRC32C (Castagnoli), as iSCSI and ext4 use it.
#ifndef TERRACE_KVSTORE_CHECKSUM_H_
#define TERRACE_KVSTORE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

namespace terrace::kvstore {

// Extends `crc` over more bytes; 0 starts a new one.
uint32_t ExtendCrc32c(uint32_t crc, const void* bytes, size_t size);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_CHECKSUM_H_
