// The version that binaries print and GetLimits answers.
#ifndef TERRACE_SERVICES_RUNTIME_VERSION_H_
#define TERRACE_SERVICES_RUNTIME_VERSION_H_

namespace terrace::runtime {

inline constexpr char kVersion[] = TERRACE_VERSION;

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_VERSION_H_
