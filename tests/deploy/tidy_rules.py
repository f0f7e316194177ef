"""House rules over the source tree that no compiler checks. Each rule takes a file's path from the
root and its text, and yields what is wrong with it."""

import fnmatch
import re

FILE_LINES = 500
FUNCTION_LINES = 70

# (files, what they must not include, why). Generated protocol headers lie under terrace/ and
# google/.
PROTOCOL = ["grpc*/*", "*.pb.h", "google/protobuf/*"]
DIRECTIONS = [
    ("kvstore/*", ["attention/*", "services/*", *PROTOCOL], "kvstore knows bytes only"),
    ("attention/*", ["kvstore/*", "services/*", *PROTOCOL], "attention is mathematics on views"),
    ("services/engine/*", ["services/[!e]*", *PROTOCOL], "the engine knows no calls"),
    ("services/runtime/*", ["services/[!re]*"], "runtime is what every process shares"),
    ("proto/*", ["kvstore/*", "attention/*", "services/*"], "proto depends on nothing of ours"),
    ("[!t]*", ["tests/*"], "nothing depends on tests"),
]
# The disk tier is the one place that knows its database.
ROCKSDB_USERS = ["kvstore/disk*", "tests/bench/disk*", "tests/kvstore/disk*"]
# Headers that may include gRPC: services and clients of the protocol, and what serves them.
GRPC_HEADERS = [
    "services/*_service.h",
    "services/*_client.h",
    "services/*/convert*.h",
    "services/runtime/*.h",
    "services/kv_store/block_*.h",
    "services/kv_store/step_stub.h",
    "services/frontend/*_backend.h",
    "tests/services/*.h",
    "tests/fakes/*.h",
]
COUNTED = (".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake", "CMakeLists.txt")
# Put together, so that this file passes its own rule.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
# At column 0 and not the start of a function.
NO_FUNCTION = re.compile(r"(namespace|class|struct|enum|union|extern|using|typedef|#|//|\}|\)|/\*)")


def _any(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_cpp(path):
    return path.endswith((".cc", ".h", ".cu", ".cuh"))


def include_direction(path, text):
    if not _is_cpp(path):
        return
    for include in INCLUDE.findall(text):
        for files, forbidden, why in DIRECTIONS:
            if fnmatch.fnmatchcase(path, files) and _any(include, forbidden):
                yield f"includes {include}: {why}"
        if include.startswith("rocksdb/") and not _any(path, ROCKSDB_USERS):
            yield f"includes {include}: only the disk tier knows RocksDB"
        if include.startswith("grpc") and path.endswith(".h") and not _any(path, GRPC_HEADERS):
            yield f"includes {include}: a header that is not listed as knowing gRPC"


def file_length(path, text):
    lines = text.count("\n")
    if path.endswith(COUNTED) and lines > FILE_LINES:
        yield f"has {lines} lines, more than {FILE_LINES}"


def function_length(path, text):
    """Relies on clang-format: a function outside a class starts at column 0 and its closing brace
    stands there too."""
    if not path.endswith((".cc", ".h")):
        return
    start = None
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("}"):
            if start is not None and number - start + 1 > FUNCTION_LINES:
                yield (f"line {start}: a function of {number - start + 1} lines, more than "
                       f"{FUNCTION_LINES}")
            start = None
        elif NO_FUNCTION.match(line):
            start = None if start is None or not line.startswith(("#", "//", ")")) else start
        elif line and not line[0].isspace():
            # A table is no function, however long.
            start = None if line.endswith("= {") else number


def unfinished(_, text):
    for number, line in enumerate(text.split("\n"), 1):
        if UNFINISHED.search(line):
            yield f"line {number}: unfinished work: {line.strip()}"


def header_guard(path, text):
    if not path.endswith((".h", ".cuh")):
        return
    guard = "TERRACE_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"
    if path.endswith("-inl.h"):  # Highway includes it once per instruction set
        if f"#if defined({guard}) == defined(HWY_TARGET_TOGGLE)\n" not in text:
            yield f"has no toggled guard {guard}"
        return
    directives = [line for line in text.split("\n") if line.startswith("#")]
    expected = [f"#ifndef {guard}", f"#define {guard}"]
    if directives[:2] != expected or directives[-1:] != [f"#endif  // {guard}"]:
        yield f"has no include guard {guard}"


RULES = (include_direction, file_length, function_length, unfinished, header_guard)


def check(path, text):
    return [f"{path}: {problem}" for rule in RULES for problem in rule(path, text)]
