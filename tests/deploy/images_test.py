"""Checks deploy/docker/Dockerfile as far as that goes without building it: what it copies exists,
and the runtime packages hold every library that the binaries need.

Usage: images_test.py BIN_DIR      where the binaries lie
"""

import json
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ("terrace-kv-store", "terrace-attention-worker", "terracectl")
DAEMON_STAGES = {"kv-store": "terrace-kv-store", "attention-worker": "terrace-attention-worker"}
BIN_DIR = None


def dockerfile():
    """[(stage, instruction, arguments)], continued lines joined."""
    text = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stage, result = None, []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            stage = arguments.split()[-1]
        result.append((stage, instruction, " ".join(arguments.split())))
    return result


def arguments_of(stage, instruction):
    return [a for s, i, a in dockerfile() if (s, i) == (stage, instruction)]


def copied_sources():
    """Paths that the build stage takes from the repository."""
    return [source for copy in arguments_of("build", "COPY") for source in copy.split()[:-1]]


def runtime_packages():
    text = (ROOT / "deploy/apt-packages.txt").read_text(encoding="utf-8")
    section = text.split("[runtime]\n")[1].split("[")[0]
    return {line.split()[0] for line in section.splitlines() if line and line[0] != "#"}


def with_dependencies(packages):
    """The packages and all that they depend on, as installed here."""
    query = subprocess.run(["dpkg-query", "-W", "-f=${Package}\t${Depends}, ${Pre-Depends}\n"],
                           capture_output=True, text=True, check=True).stdout
    depends = {}
    for line in query.splitlines():
        name, _, fields = line.partition("\t")
        depends.setdefault(name, set()).update(re.findall(r"(?:^|[,|])\s*([a-z0-9.+-]+)", fields))
    found, pending = set(), set(packages)
    while pending:
        name = pending.pop()
        if name in depends and name not in found:
            found.add(name)
            pending |= depends[name]
    return found


def owners(libraries):
    """{library: the package that its file came in}; a library of no package is left out."""
    # A file may be recorded under /lib or under /usr/lib, which are one folder.
    paths = [prefix + library for library in libraries for prefix in ("", "/usr")]
    found = subprocess.run(["dpkg-query", "-S", *paths], capture_output=True, text=True,
                           check=False).stdout
    result = {}
    for package, path in re.findall(r"^([^:,\s]+)\S*: (\S+)$", found, re.MULTILINE):
        result[path] = result[path.removeprefix("/usr")] = package
    return {library: result[library] for library in libraries if library in result}


def libraries_outside(binary, packages):
    """{library: its package or None} that the binary loads and the packages do not bring."""
    output = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    loaded = [library for library in re.findall(r"=> (\S*/lib\S+) ", output)
              if not re.search(r"/lib(asan|ubsan|tsan)\.", library)]  # in a build for tests only
    owner = owners(loaded)
    return {library: owner.get(library) for library in loaded
            if owner.get(library) not in packages}


class Images(unittest.TestCase):
    def test_hold_every_library_that_the_binaries_load(self):
        packages = with_dependencies(runtime_packages())
        for name in BINARIES:
            with self.subTest(name):
                self.assertEqual(libraries_outside(BIN_DIR / name, packages), {})

    def test_missing_runtime_packages_would_be_noticed(self):
        packages = with_dependencies(runtime_packages() - {"librocksdb7.8"})
        outside = libraries_outside(BIN_DIR / "terrace-kv-store", packages)
        self.assertIn("librocksdb7.8", outside.values())

    def test_are_built_from_what_the_build_needs(self):
        for source in copied_sources():
            self.assertTrue((ROOT / source).exists(), source)
        cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        for folder in re.findall(r"^add_subdirectory\((\S+)\)", cmake, re.MULTILINE):
            self.assertIn(folder, copied_sources())

    def test_may_use_what_they_copy(self):
        ignore = (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text(encoding="utf-8")
        rules = [line for line in ignore.splitlines() if line and line[0] != "#"]
        self.assertEqual(rules[0], "*")
        for source in copied_sources() + ["deploy/apt-packages.txt", "deploy/install-packages.sh"]:
            self.assertIn("!" + source, rules)

    def test_build_every_binary_that_they_carry(self):
        build = arguments_of("build", "RUN")[-1]
        for name in BINARIES:
            self.assertIn(f"build/release/bin/{name}", build)
            self.assertRegex(build, rf"--target\s[^&]*\b{name}\b")

    def test_start_the_daemon_itself_and_not_as_root(self):
        self.assertRegex(arguments_of("runtime", "USER")[0], r"^[1-9]\d*:[1-9]\d*$")
        for stage, daemon in DAEMON_STAGES.items():
            with self.subTest(stage):
                entry = arguments_of(stage, "ENTRYPOINT")
                self.assertEqual([json.loads(e) for e in entry], [[f"/usr/bin/{daemon}"]])
                self.assertIn(f"--from=build /out/{daemon} /usr/bin/", arguments_of(stage, "COPY"))
                self.assertEqual(arguments_of(stage, "USER"), [])


if __name__ == "__main__":
    BIN_DIR = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
