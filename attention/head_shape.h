// What a kernel knows of one KV head and the query heads that share it.
#ifndef TERRACE_ATTENTION_HEAD_SHAPE_H_
#define TERRACE_ATTENTION_HEAD_SHAPE_H_

#include <cstddef>

#include "attention/dtype.h"

namespace terrace::attention {

struct HeadShape {
  // Elements of one key and of one value: a multiple of 8.
  int head_dim = 0;
  // Query heads per KV head, at least 1.
  int group = 1;
  // Stored type of rows.
  Dtype dtype = Dtype::kFloat32;
  // Factor on q·k before the softmax.
  float scale = 1.0F;

  // A row is K then V.
  size_t row_bytes() const { return 2 * static_cast<size_t>(head_dim) * DtypeBytes(dtype); }
};

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_HEAD_SHAPE_H_
