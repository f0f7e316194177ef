// One KV head with random rows and queries, its score index, and the same as a reference problem.
#ifndef TERRACE_TESTS_ATTENTION_KV_HEAD_H_
#define TERRACE_TESTS_ATTENTION_KV_HEAD_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/head_shape.h"
#include "attention/reference.h"
#include "attention/score_index.h"

namespace terrace::testing {

struct KvHead {
  attention::HeadShape shape;
  int tokens = 0;
  std::vector<float> q;         // [group][head_dim]
  std::vector<float> k;         // [tokens][head_dim], as stored: already rounded to shape.dtype
  std::vector<float> v;         // same
  std::vector<std::byte> rows;  // [tokens][K, V] in shape.dtype
};

// Normal q, k and v, a mean per channel of k; scale 1/sqrt(head_dim).
KvHead RandomKvHead(int head_dim, int group, int tokens, attention::Dtype dtype, uint64_t seed);

// `queries` further query groups: [queries][group][head_dim].
std::vector<float> RandomQueries(const attention::HeadShape& shape, int queries, uint64_t seed);

// The head as a problem of the reference; k holds what is stored.
attention::reference::Problem ToProblem(const KvHead& head);

// Stripes of every full block of a head, and the tail. Moving it keeps views valid; the head
// must outlive it.
class ScoreIndex {
 public:
  // Fails the test when a block cannot be encoded.
  ScoreIndex(const KvHead& head, const attention::IndexLayout& layout);

  // Every stripe one strip.
  attention::ScoreView View() const;
  // Strips of at most `blocks` blocks, and each stripe a copy of its own per strip: as after forks.
  attention::ScoreView SplitView(int blocks);

  // What the index decodes to, the tail's keys as stored: [tokens][head_dim].
  std::vector<double> DecodedKeys() const;
  // One decoded key element; and the largest value that its block could decode to.
  double Decode(int token, int channel) const;
  double Minimum(int token, int channel) const;
  double Step(int token, int channel) const;

 private:
  void Scatter(const std::vector<std::byte>& piece, int block);
  int indexed_tokens() const;

  const KvHead* head_;
  attention::IndexLayout layout_;
  std::vector<std::vector<std::byte>> stripes_;
  std::vector<attention::IndexStrip> strips_;
  std::vector<std::vector<std::byte>> split_stripes_;
  std::vector<attention::IndexStrip> split_strips_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_ATTENTION_KV_HEAD_H_
