"""What a container's daemon is told: its flags and its configuration file taken together."""

import re
import tomllib

_SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def size_bytes(text):
    """Bytes of a daemon's SIZE ("512MiB") or a Kubernetes quantity ("512Mi")."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    if not match or match[2] not in _SIZES:
        raise ValueError(f"not a size: {text!r}")
    return int(match[1]) * _SIZES[match[2]]


def duration_seconds(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", str(text))
    if not match:
        raise ValueError(f"not a duration: {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def cpu_count(quantity):
    text = str(quantity)
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def find(docs, kind, name):
    """The document of that kind and name, or None."""
    for doc in docs:
        if doc["kind"] == kind and doc["metadata"]["name"] == name:
            return doc
    return None


def workloads(docs):
    return [doc for doc in docs if doc["kind"] in ("Deployment", "StatefulSet")]


def pod_spec(workload):
    return workload["spec"]["template"]["spec"]


def config_mounts(docs, spec, container):
    """[(path in the container, {file name: text})] of the ConfigMaps it mounts."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    mounts = []
    for mount in container.get("volumeMounts", []):
        source = volumes.get(mount["name"], {}).get("configMap")
        config = find(docs, "ConfigMap", source["name"]) if source else None
        if config:
            mounts.append((mount["mountPath"], config.get("data", {})))
    return mounts


def flags(container):
    """{name: value} of arguments in the form --name=value or --name."""
    result = {}
    for argument in container.get("args", []):
        name, _, value = argument.removeprefix("--").partition("=")
        result[name] = value or True
    return result


def settings(docs, spec, container):
    """{flag name: value} in effect: flags win over the file."""
    given = flags(container)
    result = {}
    for path, files in config_mounts(docs, spec, container):
        for name, text in files.items():
            if given.get("config") == f"{path}/{name}":
                result.update(tomllib.loads(text))
    return result | given
