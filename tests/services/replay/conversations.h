// A made-up workload of conversations, for claims about policies.
#ifndef TERRACE_TESTS_SERVICES_REPLAY_CONVERSATIONS_H_
#define TERRACE_TESTS_SERVICES_REPLAY_CONVERSATIONS_H_

#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "services/replay/reference_trace.h"

namespace terrace::testing {

struct Habits {
  // How many of 100 turns are the last of their conversation.
  uint32_t ends_after_first = 0;
  uint32_t ends_after_later = 0;
  // Whether it takes time to read and think: half to one and a half times that of a turn of each
  // conversation. Else the next turn may be anybody's.
  bool thinks = false;
};
// Most people ask once, and who goes on is likely to go on again: what was used says what will be.
inline constexpr Habits kPeople = {.ends_after_first = 70, .ends_after_later = 15, .thinks = true};
// Whatever happened so far says nothing about the next turn.
inline constexpr Habits kDice = {.ends_after_first = 33, .ends_after_later = 33, .thinks = false};

// Turns of many conversations, `open` at a time. A turn refers to a block that all share, to what
// its conversation has so far, and to a few new blocks. Whoever ends makes room for a new one.
inline replay::ReferenceTrace Conversations(Habits habits, size_t open, int turns, uint32_t seed) {
  std::mt19937 random(seed);
  replay::ReferenceTrace trace;
  trace.distinct_blocks = 1;
  struct Conversation {
    std::vector<uint32_t> blocks = {0};
    int turns = 0;
  };
  std::multimap<size_t, Conversation> by_next_turn;
  while (by_next_turn.size() < open) by_next_turn.emplace(random() % open, Conversation());
  for (int turn = 0; turn < turns; ++turn) {
    auto next = by_next_turn.extract(by_next_turn.begin());
    Conversation& one = next.mapped();
    for (size_t added = 1 + random() % 8; added > 0; --added) {
      one.blocks.push_back(trace.distinct_blocks++);
    }
    trace.blocks.insert(trace.blocks.end(), one.blocks.begin(), one.blocks.end());
    const uint32_t end = ++one.turns == 1 ? habits.ends_after_first : habits.ends_after_later;
    if (random() % 100 < end) one = {};
    if (habits.thinks) {
      next.key() += open / 2 + random() % (open + 1);
    } else {
      while (random() % open != 0) ++next.key();
    }
    by_next_turn.insert(std::move(next));
    ++trace.steps;
  }
  return trace;
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_REPLAY_CONVERSATIONS_H_
