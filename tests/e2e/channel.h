// What clients of the daemons have in common.
#ifndef TERRACE_TESTS_E2E_CHANNEL_H_
#define TERRACE_TESTS_E2E_CHANNEL_H_

#include <memory>
#include <string>

#include "terrace/v1/attention.pb.h"
#include "tests/e2e/rows.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace terrace::testing {

// Reconnects soon; bounds no message.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);
// Of a sequence of that shape.
void FillSpec(const Shape& shape, v1::SequenceSpec& spec);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_CHANNEL_H_
