"""Renders the Kubernetes manifests and checks that they hold together, that the daemons accept what
they are told in them, and that the checks themselves notice mistakes.

Usage: manifests_test.py BIN_DIR      where terrace-kv-store and terrace-attention-worker lie
The environment variable KUBECTL names another kubectl to render with.
"""

import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

import manifest_rules
from pod_settings import config_mounts, find, flags, pod_spec, settings, workloads

ROOT = pathlib.Path(__file__).resolve().parents[2]
RENDERED = {}
BIN_DIR = None


def render(name):
    """The documents of deploy/k8s/NAME, rendered once."""
    if name not in RENDERED:
        command = [os.environ.get("KUBECTL", "kubectl"), "kustomize", ROOT / "deploy/k8s" / name]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if run.returncode != 0:
            raise AssertionError(f"{name} does not render: {run.stderr}")
        RENDERED[name] = [doc for doc in yaml.safe_load_all(run.stdout) if doc]
    return copy.deepcopy(RENDERED[name])


OVERLAYS = ["base"] + [f"overlays/{path.parent.name}" for path in
                       sorted(ROOT.glob("deploy/k8s/overlays/*/kustomization.yaml"))]


def image_stages():
    """{stage: its lines} of the Dockerfile."""
    stages, lines = {}, []
    for line in (ROOT / "deploy/docker/Dockerfile").read_text().splitlines():
        start = re.match(r"FROM \S+ AS (\S+)", line)
        if start:
            lines = stages.setdefault(start[1], [])
        lines.append(line)
    return stages


def binary(container):
    """The daemon that the container's image starts."""
    stage = re.match(r"terrace/([a-z-]+):", container["image"])[1]
    entry = [line for line in image_stages()[stage] if line.startswith("ENTRYPOINT ")]
    return BIN_DIR / pathlib.PurePath(json.loads(entry[0].removeprefix("ENTRYPOINT "))[0]).name


def with_host_name(name):
    """The start of a command that runs the rest of it under that host name; None where the system
    does not allow it."""
    for unshare in (["unshare", "--uts"], ["unshare", "--user", "--map-root-user", "--uts"]):
        prefix = unshare + ["sh", "-c", 'hostname "$0" && exec "$@"', name]
        try:
            if subprocess.run(prefix + ["true"], capture_output=True, check=False).returncode == 0:
                return prefix
        except FileNotFoundError:
            return None
    return None


def check_config(docs, workload, host_name=None):
    """(exit code, output) of the daemon's --check-config with what the pod gives it, its files and
    its disk moved to a folder for this call."""
    spec = pod_spec(workload)
    container = spec["containers"][0]
    arguments = list(container["args"])
    told = settings(docs, spec, container)
    with tempfile.TemporaryDirectory() as folder:
        for path, files in config_mounts(docs, spec, container):
            for name, text in files.items():
                if "disk-path" in told:
                    text = text.replace(told["disk-path"], f"{folder}/blocks")
                pathlib.Path(folder, name).write_text(text, encoding="utf-8")
            arguments = [argument.replace(f"={path}/", f"={folder}/") for argument in arguments]
        prefix = with_host_name(host_name or f"{workload['metadata']['name']}-1")
        if prefix is None:
            arguments = ["--shard=1" if a == "--shard-from-hostname" else a for a in arguments]
        command = [*(prefix or []), str(binary(container)), *arguments, "--check-config"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             check=False, timeout=60)
        return run.returncode, run.stdout


class GoodManifests(unittest.TestCase):
    def test_hold_together(self):
        for name in OVERLAYS:
            with self.subTest(name):
                self.assertEqual(manifest_rules.check(render(name)), [])

    def test_daemons_accept_what_they_are_told(self):
        for name in OVERLAYS:
            docs = render(name)
            for workload in workloads(docs):
                with self.subTest(name, workload=workload["metadata"]["name"]):
                    code, output = check_config(docs, workload)
                    self.assertEqual(code, 0, output)

    def test_daemons_know_every_flag(self):
        for workload in workloads(render("base")):
            container = pod_spec(workload)["containers"][0]
            usage = subprocess.run([binary(container), "--help"], capture_output=True, text=True,
                                   check=True, timeout=60).stdout
            for flag in flags(container):
                self.assertRegex(usage, rf"--{flag}\b")

    def test_pods_are_what_the_images_are(self):
        version = re.search(r"project\(terrace VERSION (\S+)",
                            (ROOT / "CMakeLists.txt").read_text())[1]
        stages = image_stages()
        user = [line for line in stages["runtime"] if line.startswith("USER ")]
        for name in OVERLAYS:
            for workload in workloads(render(name)):
                spec = pod_spec(workload)
                container = spec["containers"][0]
                image, tag = container["image"].split(":")
                self.assertEqual(tag, version)
                self.assertIn(f"EXPOSE {container['ports'][0]['containerPort']}",
                              stages[image.removeprefix("terrace/")])
                context = spec["securityContext"]
                self.assertEqual(user, [f"USER {context['runAsUser']}:{context['runAsGroup']}"])


def config_text(docs, workload_name, old, new):
    """Replaces text in a workload's configuration file."""
    workload = named(docs, workload_name)
    for volume in pod_spec(workload)["volumes"]:
        config = find(docs, "ConfigMap", volume.get("configMap", {}).get("name"))
        for name, text in (config or {}).get("data", {}).items():
            assert old in text, f"{old!r} is not in {name}"
            config["data"][name] = text.replace(old, new)


def named(docs, name):
    return next(workload for workload in workloads(docs) if workload["metadata"]["name"] == name)


STORE, WORKER = "terrace-kv-store", "terrace-attention-worker"


def put(kind, name, *path_and_value):
    """A mistake: sets, or deletes if the value is ..., one field of one document."""
    *path, last, value = path_and_value

    def apply(docs):
        node = find(docs, kind, name)
        for key in path:
            node = node[key]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return apply


def in_pod(kind, name, *path_and_value):
    return put(kind, name, "spec", "template", "spec", *path_and_value)


def in_container(kind, name, *path_and_value):
    return in_pod(kind, name, "containers", 0, *path_and_value)


def in_config(name, old, new):
    return lambda docs: config_text(docs, name, old, new)


def without(kind, name):
    return lambda docs: docs.remove(find(docs, kind, name))


def duplicated(kind, name):
    return lambda docs: docs.append(find(docs, kind, name))


# Mistakes in the base's manifests, each with a part of what must be said about it.
MISTAKES = [
    ("defined twice", duplicated("Service", WORKER)),
    ("selector matches no pod", put("Service", WORKER, "spec", "selector", {"app": "x"})),
    ("selector matches no pod", put("Service", STORE, "spec", "selector", {})),
    ("selector matches no pod",
     put("PodDisruptionBudget", STORE, "spec", "selector", "matchLabels", {"app": "x"})),
    ("no PodDisruptionBudget", without("PodDisruptionBudget", STORE)),
    ("no NetworkPolicy", without("NetworkPolicy", WORKER)),
    ("does not match its own pods",
     put("StatefulSet", STORE, "spec", "selector", "matchLabels", {"app": "x"})),
    ("no ServiceAccount", without("ServiceAccount", STORE)),
    ("mounts its token", put("ServiceAccount", STORE, "automountServiceAccountToken", ...)),
    ("mounts its account's token",
     in_pod("Deployment", WORKER, "automountServiceAccountToken", ...)),
    ("no ConfigMap", in_pod("Deployment", WORKER, "volumes", 0, "configMap", "name", "x")),
    ("no Secret", in_pod("Deployment", WORKER, "volumes", 1,
                         {"name": "tmp", "secret": {"secretName": "x"}})),
    ("no PersistentVolumeClaim", in_pod("Deployment", WORKER, "volumes", 1, {
        "name": "tmp", "persistentVolumeClaim": {"claimName": "x"}})),
    ("no volume tmp", in_pod("StatefulSet", STORE, "volumes", 1, "name", "x")),
    ("no headless Service", put("StatefulSet", STORE, "spec", "serviceName", "x")),
    ("no headless Service", put("Service", STORE, "spec", "clusterIP", ...)),
    ("hides pods", put("Service", STORE, "spec", "publishNotReadyAddresses", ...)),
    ("no containerPort shows", in_config(STORE, "0.0.0.0:7401", "0.0.0.0:7402")),
    ("no containerPort shows", in_config(STORE, "0.0.0.0:7401", "127.0.0.1:7401")),
    ("asks port 7402", in_container("StatefulSet", STORE, "livenessProbe", "grpc", "port", 7402)),
    ("asks for 'ready'",
     in_container("StatefulSet", STORE, "readinessProbe", "grpc", "service", "ready")),
    ("startupProbe asks for None", in_container("StatefulSet", STORE, "startupProbe", ...)),
    ("targetPort http", put("Service", WORKER, "spec", "ports", 0, "targetPort", "http")),
    ("let the worker in", put("NetworkPolicy", STORE, "spec", "ingress", [])),
    ("let the worker out to port", put("NetworkPolicy", WORKER, "spec", "egress", 0,
                                       "to", 0, "podSelector", "matchLabels", {"app": "x"})),
    ("out to DNS", put("NetworkPolicy", WORKER, "spec", "egress", 1,
                       "to", [{"podSelector": {"matchLabels": {"k8s-app": "dns"}}}])),
    ("the shards are", put("StatefulSet", STORE, "spec", "replicas", 3)),
    ("the shards are", in_config(WORKER, "-1.terrace-kv-store:7401", "-1.terrace-kv-store:7400")),
    ("the shards are", put("Service", STORE, "spec", "ports", 0, "port", 9)),
    ("runAsNonRoot", in_pod("Deployment", WORKER, "securityContext", "runAsNonRoot", ...)),
    ("runAsUser", in_pod("Deployment", WORKER, "securityContext", "runAsUser", 0)),
    ("seccompProfile", in_pod("Deployment", WORKER, "securityContext", "seccompProfile", ...)),
    ("allowPrivilegeEscalation", in_container(
        "Deployment", WORKER, "securityContext", "allowPrivilegeEscalation", True)),
    ("readOnlyRootFilesystem", in_container(
        "Deployment", WORKER, "securityContext", "readOnlyRootFilesystem", ...)),
    ("capabilities", in_container("Deployment", WORKER, "securityContext", "capabilities",
                                  {"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    ("hostNetwork", in_pod("Deployment", WORKER, "hostNetwork", True)),
    ("nothing is mounted at /tmp",
     in_container("Deployment", WORKER, "volumeMounts", 1, "mountPath", "/x")),
    ("names no version", in_container("Deployment", WORKER, "image", "terrace/x:latest")),
    ("requests and limits", in_container("Deployment", WORKER, "resources", "limits", "cpu", ...)),
    ("differs from its limit",
     in_container("StatefulSet", STORE, "resources", "requests", "memory", "5Gi")),
    ("less than budgets", in_config(STORE, '"4GiB"', '"5GiB"')),
    ("less than budgets", in_config(WORKER, '"1GiB"', '"1400MiB"')),
    ("less than budgets", in_config(STORE, 'inflight-bytes = "256MiB"',
                                    'inflight-bytes = "1025MiB"')),
    ("less than budgets", in_config(WORKER, 'inflight-bytes = "256MiB"',
                                    'inflight-bytes = "385MiB"')),
    ("no inflight-bytes", in_config(STORE, "inflight-bytes", "inflight")),
    ("compute-threads 5", in_config(STORE, "\ncompute-threads = 4", "\ncompute-threads = 5")),
    ("compute-threads 0", in_config(STORE, "\ncompute-threads = 4", "")),
    ("compute-threads 0", in_config(WORKER, 'engine = "remote"', 'engine = "embedded"')),
    ("volume of 100Gi", in_config(STORE, '"80GiB"', '"90GiB"')),
    ("no claimed volume", in_config(STORE, '"/var/lib/terrace/blocks"', '"/tmp/blocks"')),
    ("no preStop wait", in_container("Deployment", WORKER, "lifecycle", ...)),
    ("grace period", in_config(STORE, '"30s"', '"81s"')),
    ("grace period", in_pod("Deployment", WORKER, "terminationGracePeriodSeconds", 44)),
    ("no drain-timeout", in_config(STORE, "drain-timeout", "drain")),
    ("reads none", in_container("StatefulSet", STORE, "args", 0, "--config=/etc/terrace/x.toml")),
    ("same shard", in_container("StatefulSet", STORE, "args", 1, ...)),
    ("by its environment", in_container(
        "StatefulSet", STORE, "env", [{"name": "TERRACE_THREADS", "value": "1"}])),
]

# Settings that a daemon has to refuse.
REFUSED = [
    ("unknown name", STORE, in_config(STORE, "host-bytes", "host-byte")),
    ("unknown name", WORKER, in_config(WORKER, "row-cache-bytes", "row-cache")),
    ("not a size", STORE, in_config(STORE, '"4GiB"', '"4 lots"')),
    ("not a duration", WORKER, in_config(WORKER, '"30s"', '"soon"')),
    ("not a choice", STORE, in_config(STORE, '"async"', '"perhaps"')),
    ("plain text by accident", STORE, in_config(STORE, "allow-plaintext = true", "")),
    ("remote without stores", WORKER, in_config(WORKER, "\nstores =", "\n# stores =")),
    ("unknown flag", WORKER, in_container("Deployment", WORKER, "args", [
        "--config=/etc/terrace/attention-worker.toml", "--no-such-flag"])),
    ("no such file", WORKER, in_container("Deployment", WORKER, "args", ["--config=/nowhere"])),
]


class Mistakes(unittest.TestCase):
    def test_are_noticed(self):
        for expected, mistake in MISTAKES:
            with self.subTest(expected):
                docs = render("base")
                mistake(docs)
                problems = manifest_rules.check(docs)
                self.assertTrue(any(expected in problem for problem in problems), problems)

    def assert_refused(self, code, output):
        # 126 and more: the shell did not find the binary, or it died of a signal.
        self.assertTrue(0 < code < 126, f"exit code {code}: {output}")

    def test_are_refused_by_the_daemons(self):
        for name, workload, mistake in REFUSED:
            with self.subTest(name, workload=workload):
                docs = render("base")
                mistake(docs)
                code, output = check_config(docs, named(docs, workload))
                self.assert_refused(code, output)

    def test_in_a_host_name_are_refused(self):
        if with_host_name("store") is None:
            self.skipTest("this system lets no process have a host name of its own")
        docs = render("base")
        code, output = check_config(docs, named(docs, STORE), "store-without-number")
        self.assert_refused(code, output)


if __name__ == "__main__":
    BIN_DIR = pathlib.Path(sys.argv.pop(1)).resolve()
    program = unittest.main(exit=False)
    for test, reason in program.result.skipped:  # as GoogleTest says it, for run.sh
        print(f"{test.id()}: Skipped\n{reason}\n[  SKIPPED ] {test.id()} (0 ms)")
    sys.exit(not program.result.wasSuccessful())
