"""House rules over the source tree that no compiler checks. Each rule takes a file's path from the
root and its text, and yields what is wrong with it."""

import fnmatch
import re

FILE_LINES = 500
FUNCTION_LINES = 70
PROTO_COLUMNS = 100
INVARIANTS = 11

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
ROCKSDB_USERS = ["kvstore/disk*", "tests/bench/disk*", "tests/kvstore/disk*", "tests/sim/faulty_disk*"]
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
RPC = re.compile(r"\s*rpc\s+(\w+)")
# A type and a name before the number; values of an enum have no type.
FIELD = re.compile(r"[\w.>]\s+(\w+)\s*=\s*\d+\s*(\[[^\]]*\]\s*)?;")
COMMENT = re.compile(r"//.*\w")


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


def _comment_above(lines, index):
    """The comment that ends directly above a line, as one text."""
    first = index
    while first > 0 and lines[first - 1].lstrip().startswith("//"):
        first -= 1
    return " ".join(line.strip().lstrip("/").strip() for line in lines[first:index])


def _errors_problem(comment):
    """What is wrong with what an rpc's comment says about errors; None when nothing is."""
    if "No method-specific errors" in comment:
        return None
    _, found, errors = comment.partition("Errors:")
    if not found:
        return "names no errors (Errors:)"
    # Those that it refers to say it there.
    if "retry" not in errors.lower() and "those of" not in errors:
        return "does not say whether to retry after its errors"
    return None


def proto_comments(path, text):
    """Relies on one declaration a line."""
    if not path.endswith(".proto"):
        return
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if len(line) > PROTO_COLUMNS:
            yield f"line {index + 1}: {len(line)} columns, more than {PROTO_COLUMNS}"
        code, slashes, trailing = line.partition("//")
        rpc, field = RPC.match(code), FIELD.search(code)
        if rpc:
            problem = _errors_problem(_comment_above(lines, index))
            if problem:
                yield f"line {index + 1}: rpc {rpc[1]} {problem}"
        elif field and not COMMENT.match(slashes + trailing):
            above = lines[index - 1].strip() if index > 0 else ""
            if not COMMENT.match(above):
                yield f"line {index + 1}: field {field[1]} has no comment"


def invariant_index(readme, read):
    """The tests' readme has a table of tests for each invariant: they are there, and name it. `read`
    gives the text of a file below tests/, None when there is none."""
    rows = dict(re.findall(r"^\| (I\d+) \|[^|]*\|([^|]*)\|$", readme, re.MULTILINE))
    for name in (f"I{number}" for number in range(1, INVARIANTS + 1)):
        tests = re.findall(r"`([\w/.]+)` (\w+)", rows.get(name, ""))
        if not tests:
            yield f"{name}: no test is listed"
        for path, test in tests:
            text = read(path) or ""
            if f" {test})" not in text:
                yield f"{name}: no test {test} in {path}"
            elif not re.search(rf"\b{name}(?!\d)", text):
                yield f"{name}: {path} does not name it"


RULES = (include_direction, file_length, function_length, unfinished, header_guard, proto_comments)


def check(path, text):
    return [f"{path}: {problem}" for rule in RULES for problem in rule(path, text)]
