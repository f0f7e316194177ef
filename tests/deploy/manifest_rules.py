"""What must hold between rendered Kubernetes manifests. Each rule yields sentences that name what
is wrong; none for good manifests. check() asks them all."""

import re

from pod_settings import (config_mounts, cpu_count, duration_seconds, find, pod_spec, settings,
                          size_bytes, workloads)

# The names that the daemons answer in gRPC's health service.
HEALTH_SERVICES = {"liveness", "readiness"}
PROBES = {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": "readiness"}
# Memory beyond the budgets: RocksDB, gRPC's buffers, threads, indexes over blocks. The part in
# proportion to what is kept is for tables that grow with the number of blocks.
OVERHEAD_BYTES = 512 * 2**20
OVERHEAD_SHARE = 1 / 8
# Space on a volume beyond disk-bytes: the file system's own and the database's logs.
VOLUME_SHARE = 1.15
# What a daemon may need after its drain until it is gone.
EXIT_SECONDS = 10


def _matches(selector, labels):
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


def _pod_labels(docs):
    return [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads(docs)]


def _containers(docs):
    for workload in workloads(docs):
        for container in pod_spec(workload)["containers"]:
            yield workload, pod_spec(workload), container


def _name(doc):
    return f"{doc['kind']} {doc['metadata']['name']}"


def unique_names(docs):
    seen = set()
    for doc in docs:
        if _name(doc) in seen:
            yield f"{_name(doc)}: defined twice"
        seen.add(_name(doc))


def selectors(docs):
    """Every selector matches a pod template, and a workload's its own."""
    for doc in docs:
        spec = doc.get("spec", {})
        if doc["kind"] == "Service":
            found = [{"matchLabels": spec.get("selector", {})}]
        elif doc["kind"] == "PodDisruptionBudget":
            found = [spec["selector"]]
        elif doc["kind"] == "NetworkPolicy":
            found = [spec["podSelector"]]
        else:
            found = []
        for selector in found:
            if not any(_matches(selector, labels) for labels in _pod_labels(docs)):
                yield f"{_name(doc)}: selector matches no pod: {selector}"
    for workload in workloads(docs):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        spread = pod_spec(workload).get("topologySpreadConstraints", [])
        for selector in [workload["spec"]["selector"], *(s["labelSelector"] for s in spread)]:
            if not _matches(selector, labels):
                yield f"{_name(workload)}: selector does not match its own pods: {selector}"
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        covering = [doc["spec"].get("selector") or doc["spec"].get("podSelector")
                    for doc in docs if doc["kind"] == kind]
        for workload in workloads(docs):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            if not any(_matches(selector, labels) for selector in covering):
                yield f"{_name(workload)}: no {kind}"


def references(docs):
    """What a pod names exists: ConfigMaps, Secrets, accounts, claims, volumes, services."""
    for workload in workloads(docs):
        spec = pod_spec(workload)
        account = find(docs, "ServiceAccount", spec.get("serviceAccountName"))
        if account is None:
            yield f"{_name(workload)}: no ServiceAccount {spec.get('serviceAccountName')}"
        elif account.get("automountServiceAccountToken") is not False:
            yield f"{_name(account)}: mounts its token"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{_name(workload)}: mounts its account's token"
        claims = {claim["metadata"]["name"]
                  for claim in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for kind, name in _volume_sources(volumes.values()):
            if find(docs, kind, name) is None:
                yield f"{_name(workload)}: no {kind} {name}"
        if workload["kind"] == "StatefulSet":
            service = find(docs, "Service", workload["spec"]["serviceName"])
            if service is None or service["spec"].get("clusterIP") != "None":
                yield f"{_name(workload)}: no headless Service {workload['spec']['serviceName']}"
            elif not service["spec"].get("publishNotReadyAddresses"):
                yield f"{_name(service)}: hides pods that are not ready from their peers"
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes.keys() | claims:
                    yield f"{_name(workload)}: no volume {mount['name']}"


def _volume_sources(volumes):
    for volume in volumes:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def ports(docs):
    """Services, probes, policies and the daemons' own listen address agree on ports."""
    for workload, spec, container in _containers(docs):
        numbers = {port["containerPort"] for port in container.get("ports", [])}
        listen = settings(docs, spec, container).get("listen", "127.0.0.1:0")
        host, _, port = listen.rpartition(":")
        if host in ("127.0.0.1", "localhost", "[::1]") or int(port) not in numbers:
            yield f"{_name(workload)}: listens on {listen}, which no containerPort shows"
        for probe, service in PROBES.items():
            grpc = container.get(probe, {}).get("grpc", {})
            if grpc.get("port") not in numbers:
                yield f"{_name(workload)}: {probe} asks port {grpc.get('port')}"
            if grpc.get("service") not in HEALTH_SERVICES or grpc["service"] != service:
                yield f"{_name(workload)}: {probe} asks for {grpc.get('service')!r}"
    for service in (doc for doc in docs if doc["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if not _is_container_port(docs, service["spec"].get("selector", {}), target):
                yield f"{_name(service)}: targetPort {target} is no containerPort"


def _is_container_port(docs, labels, target):
    for workload, _, container in _containers(docs):
        if _matches({"matchLabels": labels}, workload["spec"]["template"]["metadata"]["labels"]):
            for port in container.get("ports", []):
                if target in (port["containerPort"], port.get("name")):
                    return True
    return False


def network_policies(docs):
    """Worker pods may reach the stores and DNS, and the stores let them in."""
    def allows(policy, direction, peer_labels, number):
        for rule in policy["spec"].get(direction, []):
            peers = rule.get("from" if direction == "ingress" else "to")
            numbers = [port["port"] for port in rule.get("ports", [])]
            if number in numbers and (peers is None or peer_labels is not None and any(
                    _matches(peer.get("podSelector", {}), peer_labels) for peer in peers)):
                return True
        return False

    for client, server, number in _store_connections(docs):
        client_labels = client["spec"]["template"]["metadata"]["labels"]
        server_labels = server["spec"]["template"]["metadata"]["labels"]
        for policy in (doc for doc in docs if doc["kind"] == "NetworkPolicy"):
            selector = policy["spec"]["podSelector"]
            if _matches(selector, client_labels):
                if not allows(policy, "egress", server_labels, number):
                    yield f"{_name(policy)}: does not let the worker out to port {number}"
                if not allows(policy, "egress", None, 53):
                    yield f"{_name(policy)}: does not let the worker out to DNS"
            if _matches(selector, server_labels):
                if not allows(policy, "ingress", client_labels, number):
                    yield f"{_name(policy)}: does not let the worker in at port {number}"


def _store_connections(docs):
    """(worker, store, port) for every remote engine."""
    for workload, spec, container in _containers(docs):
        if settings(docs, spec, container).get("engine") != "remote":
            continue
        for store in (doc for doc in workloads(docs) if doc["kind"] == "StatefulSet"):
            yield workload, store, pod_spec(store)["containers"][0]["ports"][0]["containerPort"]


def stores(docs):
    """A remote worker names every shard by its pod's DNS name, in order."""
    for worker, store, _ in _store_connections(docs):
        service = find(docs, "Service", store["spec"]["serviceName"])
        name, spec = store["metadata"]["name"], store["spec"]
        expected = ",".join(f"{name}-{shard}.{spec['serviceName']}:"
                            f"{service['spec']['ports'][0]['port'] if service else '?'}"
                            for shard in range(spec.get("replicas", 1)))
        container = pod_spec(worker)["containers"][0]
        given = settings(docs, pod_spec(worker), container).get("stores")
        if given != expected:
            yield f"{_name(worker)}: stores is {given!r}, the shards are {expected!r}"


def security(docs):
    """Pod Security Standard "restricted", and nothing writable but volumes."""
    for workload, spec, container in _containers(docs):
        pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
        merged = pod | own
        wanted = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser", 0) != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "hostNetwork": not any(spec.get(key)
                                   for key in ("hostNetwork", "hostPID", "hostIPC")),
        }
        for key, good in wanted.items():
            if not good:
                yield f"{_name(workload)}: {key} is not as \"restricted\" asks"
        if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
            yield f"{_name(workload)}: nothing is mounted at /tmp"
        if not re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"]):
            yield f"{_name(workload)}: image {container['image']} names no version"


def resources(docs):
    """Limits hold the budgets and what comes on top; so do volumes and processors."""
    for workload, spec, container in _containers(docs):
        told = settings(docs, spec, container)
        limits = container.get("resources", {}).get("limits", {})
        requests = container.get("resources", {}).get("requests", {})
        if not {"cpu", "memory"} <= limits.keys() & requests.keys():
            yield f"{_name(workload)}: no cpu and memory requests and limits"
            continue
        if size_bytes(requests["memory"]) != size_bytes(limits["memory"]):
            yield f"{_name(workload)}: memory request differs from its limit"
        if "inflight-bytes" not in told:
            yield f"{_name(workload)}: no inflight-bytes"
        kept = sum(size_bytes(told.get(key, 0)) for key in ("host-bytes", "row-cache-bytes"))
        needed = (kept * (1 + OVERHEAD_SHARE) + size_bytes(told.get("inflight-bytes", 0))
                  + OVERHEAD_BYTES)
        if size_bytes(limits["memory"]) < needed:
            yield (f"{_name(workload)}: memory limit {limits['memory']} is less than budgets and "
                   f"overhead, {needed / 2**20:.0f}Mi")
        # An engine in the pod computes; calls that wait for stores need no processor.
        computing = int(told.get("compute-threads", 0))
        if told.get("engine") != "remote" and \
                not 1 <= computing <= max(1, cpu_count(limits["cpu"])):
            yield (f"{_name(workload)}: compute-threads {computing}, 0 being one per core of the "
                   f"node, for cpu {limits['cpu']}")
        if "disk-path" in told:
            yield from _volume(workload, container, told)


def _volume(workload, container, told):
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for claim in workload["spec"].get("volumeClaimTemplates", []):
        path = mounts.get(claim["metadata"]["name"])
        if path and told["disk-path"].startswith(path + "/"):
            storage = claim["spec"]["resources"]["requests"]["storage"]
            if size_bytes(storage) < size_bytes(told["disk-bytes"]) * VOLUME_SHARE:
                yield f"{_name(workload)}: volume of {storage} for {told['disk-bytes']}"
            return
    yield f"{_name(workload)}: disk-path {told['disk-path']} is on no claimed volume"


def shutdown(docs):
    """The grace period covers the preStop wait, the drain and the exit."""
    for workload, spec, container in _containers(docs):
        told = settings(docs, spec, container)
        command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        wait = float(command[1]) if command else 0
        if workload["kind"] == "Deployment" and wait == 0:
            yield f"{_name(workload)}: no preStop wait, so calls arrive while it drains"
        if "drain-timeout" not in told:
            yield f"{_name(workload)}: no drain-timeout"
            continue
        needed = wait + duration_seconds(told["drain-timeout"]) + EXIT_SECONDS
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield f"{_name(workload)}: grace period {grace} s, needs {needed:.0f} s"


def configuration(docs):
    """Each container reads a configuration file that is mounted, where a daemon refuses a name
    that it does not know; a mistyped variable would go unnoticed."""
    for workload, spec, container in _containers(docs):
        files = [f"{path}/{name}" for path, data in config_mounts(docs, spec, container)
                 for name in data]
        if not any(f"--config={file}" in container.get("args", []) for file in files):
            yield f"{_name(workload)}: reads none of the files mounted: {files}"
        if container.get("env") or container.get("envFrom"):
            yield f"{_name(workload)}: is configured by its environment"
        if workload["kind"] == "StatefulSet" and \
                "shard-from-hostname" not in settings(docs, spec, container):
            yield f"{_name(workload)}: every pod would be the same shard"


RULES = (unique_names, selectors, references, ports, network_policies, stores, security, resources,
         shutdown, configuration)


def check(docs):
    return [problem for rule in RULES for problem in rule(docs)]
