"""Checks the whole source tree against tidy_rules, tidy_rules against small wrong files, and what
tests/tidy.sh would check in a small repository.

Usage: tidy_test.py
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import tidy_rules

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("attention", "deploy", "kvstore", "proto", "services", "tests", ".ci")
SUFFIXES = (".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake", ".md", ".yaml", ".toml",
            ".html", ".js", ".css", "Dockerfile", "CMakeLists.txt", ".ci/run")


def sources():
    """Every source file of ours, as its path from the root."""
    found = [pathlib.PurePath(path.name) for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        for parent, _, names in os.walk(ROOT / folder):
            found += [pathlib.PurePath(parent, name).relative_to(ROOT) for name in names]
    return sorted(path.as_posix() for path in found if path.as_posix().endswith(SUFFIXES))


class Tree(unittest.TestCase):
    def test_keeps_the_house_rules(self):
        paths = sources()
        self.assertIn("kvstore/block_store.h", paths)
        problems = []
        for path in paths:
            problems += tidy_rules.check(path, (ROOT / path).read_text(encoding="utf-8"))
        self.assertEqual(problems, [], "\n" + "\n".join(problems))


def header(path, body=""):
    guard = "TERRACE_" + path.upper().replace("/", "_").replace(".", "_") + "_"
    return f"#ifndef {guard}\n#define {guard}\n{body}#endif  // {guard}\n"


def function(lines):
    return "int Long(\n    int a) {\n" + "  a++;\n" * (lines - 3) + "}\n"


def message(fields):
    return "message M {\n" + fields + "}\n"


def service(*comment):
    lines = "".join(f"  //{' ' if line else ''}{line}\n" for line in comment)
    return "service S {\n" + lines + "  rpc Do(A) returns (B);\n}\n"


LONG = "int x;\n" * tidy_rules.FILE_LINES

# Path, text, and a part of what must be said about it; None where nothing must be.
CASES = [
    ("kvstore/a.cc", '#include "attention/sparq.h"\n', "bytes only"),
    ("kvstore/a.cc", '#include "services/engine/geometry.h"\n', "bytes only"),
    ("kvstore/a.cc", '#include "terrace/v1/tensor.pb.h"\n', "bytes only"),
    ("kvstore/a.cc", '#include "kvstore/block_key.h"\n', None),
    ("kvstore/disk_tier.cc", "#include <rocksdb/db.h>\n", None),
    ("kvstore/block_store.cc", "#include <rocksdb/db.h>\n", "only the disk tier"),
    ("services/engine/a.cc", "#  include <rocksdb/db.h>\n", "only the disk tier"),
    ("attention/a.cu", '#include "kvstore/block_key.h"\n', "mathematics on views"),
    ("attention/a.cc", "#include <grpcpp/grpcpp.h>\n", "mathematics on views"),
    ("services/engine/a.cc", '#include "kvstore/block_key.h"\n', None),
    ("services/engine/a.cc", '#include "services/engine/b.h"\n', None),
    ("services/engine/a.cc", '#include "services/kv_store/b.h"\n', "knows no calls"),
    ("services/engine/a.cc", '#include "services/runtime/b.h"\n', "knows no calls"),
    ("services/engine/a.cc", "#include <grpcpp/server.h>\n", "knows no calls"),
    ("services/engine/a.cc", '#include "terrace/v1/kv_store.grpc.pb.h"\n', "knows no calls"),
    ("services/runtime/a.cc", '#include "services/kv_store/b.h"\n', "every process shares"),
    ("services/runtime/a.cc", '#include "services/runtime/b.h"\n', None),
    ("services/kv_store/main.cc", '#include "tests/fakes/clock.h"\n', "depends on tests"),
    ("tests/kvstore/a_test.cc", '#include "tests/fakes/clock.h"\n', None),
    ("services/kv_store/a.h", header("services/kv_store/a.h", "#include <grpcpp/server.h>\n"),
     "not listed"),
    ("services/kv_store/kv_store_service.h",
     header("services/kv_store/kv_store_service.h", "#include <grpcpp/server.h>\n"), None),
    ("kvstore/a.cc", LONG, None),
    ("kvstore/a.cc", LONG + "\n", "501 lines"),
    ("kvstore/a.cc", function(tidy_rules.FUNCTION_LINES), None),
    ("kvstore/a.cc", "namespace n {\n" + function(tidy_rules.FUNCTION_LINES + 1) + "}\n",
     "a function of 71 lines"),
    ("kvstore/a.cc", "class A {\n" + "  int x;\n" * 100 + "};\n", None),
    ("kvstore/a.cc", "// TO" "DO: finish\n", "line 1: unfinished"),
    ("deploy/a.sh", "x # FIX" "ME\n", "unfinished"),
    ("deploy/a.sh", "mktemp a.XXXXXX\n", None),
    ("kvstore/a.h", header("kvstore/a.h"), None),
    ("kvstore/a.h", header("kvstore/b.h"), "no include guard TERRACE_KVSTORE_A_H_"),
    ("kvstore/a.h", "#pragma once\n", "no include guard"),
    ("kvstore/a.h", "", "no include guard"),
    ("attention/a-inl.h", header("attention/a-inl.h"),
     "no toggled guard TERRACE_ATTENTION_A_INL_H_"),
    ("attention/a-inl.h",
     "#if defined(TERRACE_ATTENTION_A_INL_H_) == defined(HWY_TARGET_TOGGLE)\n", None),
    ("attention/a.cuh", "// nothing\n", "no include guard TERRACE_ATTENTION_A_CUH_"),
    ("proto/a.proto", message("  // Bytes.\n  uint64 a = 1;\n"), None),
    ("proto/a.proto", message("  // [n, heads].\n  repeated .b.C a = 1 [packed = true];\n"), None),
    ("proto/a.proto", message("  map<string, d.E> a = 1;  // By name.\n"), None),
    ("proto/a.proto", message("  uint64 a = 1;\n"), "line 2: field a has no comment"),
    ("proto/a.proto", message("  uint64 a = 1;  //\n"), "line 2: field a has no comment"),
    ("proto/a.proto", message("  //\n  uint64 a = 1;\n"), "line 3: field a has no comment"),
    ("proto/a.proto", message("  // Both.\n  uint64 a = 1;\n  optional uint64 b = 2;\n"),
     "line 4: field b has no comment"),
    ("proto/a.proto", message("  // Far.\n\n  uint64 a = 1;\n"), "line 4: field a has no comment"),
    ("proto/a.proto", message("  // One.\n  oneof b {\n    d.E a = 1;\n  }\n"),
     "line 4: field a has no comment"),
    ("proto/a.proto", message("  repeated uint32 a = 1 [packed = true];\n"), "field a has no"),
    ("proto/a.proto", message("  map<string, uint64> a = 1;\n"), "field a has no comment"),
    ("proto/a.proto", "message M { uint64 a = 1; }\n", "line 1: field a has no comment"),
    ("proto/a.proto", 'syntax = "proto3";\nenum E {\n  A = 0;\n  B = 1;\n}\n', None),
    ("proto/a.proto", service("No method-specific errors."), None),
    ("proto/a.proto", service("Reads.", "", "Errors:", " * NOT_FOUND. Do not", "   retry."), None),
    ("proto/a.proto", service("Errors: those of Get."), None),
    ("proto/a.proto", service(), "line 2: rpc Do names no errors"),
    ("proto/a.proto", service("Reads."), "rpc Do names no errors"),
    ("proto/a.proto", service("Errors: NOT_FOUND."), "rpc Do does not say whether to retry"),
    ("proto/a.proto", service("Do not retry. Errors: NOT_FOUND."), "whether to retry"),
    ("proto/a.proto", "// " + "·" * (tidy_rules.PROTO_COLUMNS - 3) + "\n", None),
    ("proto/a.proto", "\n// " + "x" * (tidy_rules.PROTO_COLUMNS - 2) + "\n", "line 2: 101 columns"),
    ("kvstore/a.md", "x" * (tidy_rules.PROTO_COLUMNS + 1) + "\n", None),
]


class Invariants(unittest.TestCase):
    def test_each_has_tests_that_name_it(self):
        tests = ROOT / "tests"

        def read(path):
            return (tests / path).read_text() if (tests / path).is_file() else None

        readme = (tests / "README.md").read_text()
        self.assertEqual(list(tidy_rules.invariant_index(readme, read)), [])

    def test_what_is_missing_is_noticed(self):
        good = "".join(f"| I{i} | | `a.cc` Holds |\n" for i in range(1, tidy_rules.INVARIANTS + 1))
        text = "TEST(A, Holds) " + " ".join(f"I{i}" for i in range(1, tidy_rules.INVARIANTS + 1))
        for readme, content, expected in (
                (good, text, []),
                (good.replace("| I3 |", "| J3 |"), text, ["I3: no test is listed"]),
                (good.replace("I2 | | `a.cc` Holds", "I2 | | `a.cc` Gone"), text,
                 ["I2: no test Gone in a.cc"]),
                (good, text.replace("I1 ", ""), ["I1: a.cc does not name it"]),
                (good.replace("I5 | | `a.cc`", "I5 | | `b.cc`"), text,
                 ["I5: no test Holds in b.cc"])):
            with self.subTest(expected=expected):
                found = tidy_rules.invariant_index(readme, {"a.cc": content}.get)
                self.assertEqual(list(found), expected)


# A tree of sources, with what each includes.
TREE = {
    "attention/own.h": None, "attention/own.cc": "attention/own.h",
    "attention/user.cc": "attention/own.h",
    "kvstore/only.h": None, "kvstore/z.cc": "kvstore/only.h", "kvstore/a.cc": "kvstore/only.h",
    "services/x/deep.h": None, "services/x/mid.h": "services/x/deep.h",
    "services/x/top.cc": "services/x/mid.h",
    "services/x/unused.h": None, "services/x/gone.h": None,
    "services/x/notes.md": None, "tests/t.h": None,
}

# Files that change, and the sources that are to be checked.
CHANGES = [
    ([], []),
    (["attention/own.cc"], ["attention/own.cc"]),
    (["attention/own.h"], ["attention/own.cc"]),
    (["attention/own.h", "attention/own.cc"], ["attention/own.cc"]),
    (["kvstore/only.h"], ["kvstore/a.cc"]),
    (["services/x/deep.h"], ["services/x/top.cc"]),
    (["services/x/deep.h", "services/x/mid.h", "kvstore/z.cc"],
     ["kvstore/z.cc", "services/x/top.cc"]),
    (["services/x/unused.h", "services/x/notes.md", "tests/t.h"], []),
    (["services/x/new.cc", "attention/own.h"], ["attention/own.cc", "services/x/new.cc"]),
]


class Script(unittest.TestCase):
    """tidy.sh in a repository of its own, with a clang-tidy that notes what it is asked."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        for path, included in TREE.items():
            self.write(path, f'#include "{included}"\n' if included else "")
        self.write("build/release/compile_commands.json", "[]\n")
        self.write("tests/tidy.sh", (ROOT / "tests/tidy.sh").read_text())
        self.write("bin/clang-tidy", '#!/bin/sh\nfor a; do :; done\necho "$a" >>"$TIDY_LOG"\n')
        (self.root / "bin/clang-tidy").chmod(0o755)
        self.write(".gitignore", "/bin/\n/build/\n/log\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "t")

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def git(self, *words):
        subprocess.run(["git", *words], cwd=self.root, check=True, timeout=60)

    def checked(self):
        log = self.root / "log"
        log.write_text("")
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        subprocess.run(["bash", "tests/tidy.sh", "release", "HEAD"], cwd=self.root, check=True,
                       env=os.environ | {"PATH": path, "TIDY_LOG": str(log)}, timeout=60,
                       stdout=subprocess.DEVNULL)
        return sorted(log.read_text().split())

    def test_checks_a_header_through_a_source(self):
        for changed, expected in CHANGES:
            with self.subTest(changed):
                for path in changed:
                    old = self.root / path
                    self.write(path, (old.read_text() if old.exists() else "") + "int x;\n")
                self.assertEqual(self.checked(), expected)
                self.git("checkout", "--quiet", ".")
                self.git("clean", "--quiet", "--force")

    def test_a_header_that_is_gone_needs_no_check(self):
        (self.root / "services/x/gone.h").unlink()
        self.assertEqual(self.checked(), [])


class Rules(unittest.TestCase):
    def test_notice_what_is_wrong_and_nothing_else(self):
        for path, text, expected in CASES:
            with self.subTest(path, expected=expected):
                problems = tidy_rules.check(path, text)
                if expected is None:
                    self.assertEqual(problems, [])
                else:
                    self.assertEqual(len(problems), 1, problems)
                    self.assertIn(expected, problems[0])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])  # the folder of the binaries is not needed
