"""Do the documents for Kubernetes, KServe and llm-d say what their schemas allow, and fit together?

    pip install kubernetes-validate==1.37.0 && pip install --no-deps --requirement .ci/kserve.txt
    python tools/kubernetes/check.py packaging/kubernetes/*.yaml

Kinds of Kubernetes have strict schemas in kubernetes-validate. Those of KServe are made here from the types that its Python package
names; they are read and not imported, since the package needs 30 others. A file `llm-d.values.yaml` has values of llm-d's chart.
"""

import ast
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
VERSION = utils.latest_version()
DEFINITIONS = utils.schema_contents(f"kubernetes-json-schema/v{VERSION}-local-strict/_definitions.json", VERSION)
CORE = "io.k8s.api.core.v1."
REGISTRY = Registry().with_resource("kubernetes", Resource.from_contents(DEFINITIONS))


def closed(properties, required=()):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def kubernetes(name, *path):
    return {"$ref": "/".join([f"kubernetes#/$defs/{name}", *path])}


def parts(name, *without):
    """The fields of a kind of Kubernetes, but for some."""
    keys = DEFINITIONS["$defs"][CORE + name]["properties"].keys() - set(without)
    return {key: kubernetes(CORE + name, "properties", key) for key in keys}


BASIC = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}
# Named otherwise than all kinds that are `V1` and a name in `core`.
OTHER = {
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "ResourceQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
}


class KServe:
    """Schemas from the classes of its package."""

    def __init__(self):
        self.schemas = {}
        models = Path(distribution("kserve").locate_file("kserve/models"))
        for file in sorted(models.glob("v*.py")):
            text = file.read_text()
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef):
                    self.schemas[node.name] = self.schema(node, text)

    def schema(self, node, text):
        values = {a.targets[0].id: ast.literal_eval(a.value) for a in node.body if isinstance(a, ast.Assign)}
        names = values["attribute_map"]
        required = [names[name] for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)]
        return closed({names[key]: self.type(value) for key, value in values["openapi_types"].items()}, required)

    def type(self, name):
        if found := re.fullmatch(r"list\[(.*)\]", name):
            return {"type": "array", "items": self.type(found[1])}
        if found := re.fullmatch(r"dict\(str, (.*)\)", name):
            return {"type": "object", "additionalProperties": self.type(found[1])}
        if name in BASIC:
            return {"type": BASIC[name]}
        known = OTHER.get(name) or CORE + name.removeprefix("V1")
        return kubernetes(known) if known in DEFINITIONS["$defs"] else {"$ref": f"#/$defs/{name}"}

    def faults_of(self, document):
        version = document["apiVersion"].partition("/")[2]
        name = version.capitalize() + document["kind"]
        if name not in self.schemas:
            yield f"KServe has no {document['kind']} {version}"
            return
        # What the package itself does not describe must not be used.
        missing = set(re.findall(r"#/\$defs/([A-Za-z0-9]+)", str(self.schemas))) - set(self.schemas)
        yield from disagreements({"$ref": f"#/$defs/{name}", "$defs": {**self.schemas, **dict.fromkeys(missing, False)}}, document)


def llm_d():
    """What both v0.4.0 of the chart (github.com/llm-d-incubation/llm-d-modelservice, commit 024c0f2d0237) and its commit
    17ceeea976c0 read, as far as it is about one server without accelerators: the chart's own schema lets any field pass in
    `decode`. `extraConfig` may have what the templates do not write themselves."""
    text, number, boolean = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
    texts = {"type": "object", "additionalProperties": text}
    written = ["name", "image", "command", "args", "env", "ports", "resources", "volumeMounts"]
    container = closed(
        {
            **{key: kubernetes(CORE + "Container", "properties", key) for key in [*written, "imagePullPolicy"]},
            "modelCommand": {"enum": ["vllmServe", "imageDefault", "custom"]},
            "mountModelVolume": boolean,
            "extraConfig": closed(parts("Container", *written)),
        },
        ["name", "image", "modelCommand"],
    )
    # The sidecar fetches what other workers have read.
    proxy = closed({"enabled": {"const": False}}, ["enabled"])
    workers = {
        "create": boolean,
        "replicas": number,
        "annotations": texts,
        "podAnnotations": texts,
        "nodeSelector": texts,
        "tolerations": kubernetes(CORE + "PodSpec", "properties", "tolerations"),
        "initContainers": kubernetes(CORE + "PodSpec", "properties", "initContainers"),
        "volumes": kubernetes(CORE + "PodSpec", "properties", "volumes"),
        "enableServiceLinks": boolean,
        "terminationGracePeriodSeconds": number,
        "extraConfig": closed(
            parts(
                "PodSpec", "containers", "initContainers", "volumes", "serviceAccountName", "nodeSelector", "tolerations",
                "enableServiceLinks", "terminationGracePeriodSeconds",
            )
        ),
        "containers": {"type": "array", "items": container},
        "monitoring": closed({"podmonitor": closed({"enabled": boolean, **dict.fromkeys(["portName", "path", "interval"], text)})}),
    }  # fmt: skip
    return closed(
        {
            "fullnameOverride": text,
            "serviceAccountOverride": text,
            "multinode": boolean,
            "modelArtifacts": closed(
                {
                    **dict.fromkeys(["name", "size", "authSecretName", "mountPath"], text),
                    "uri": {"type": "string", "pattern": "^(hf|pvc|pvc[+]hf)://"},
                    "labels": texts,
                },
                ["name", "uri", "labels"],
            ),
            "accelerator": closed({"type": {"enum": ["cpu"]}}, ["type"]),
            "routing": closed({"servicePort": number, "proxy": proxy}, ["servicePort", "proxy"]),
            "prefill": closed(workers),
            "decode": closed(workers, ["containers"]),
            "extraObjects": {"type": "array", "items": {"type": "object"}},
        },
        ["modelArtifacts", "accelerator", "routing", "prefill", "decode"],
    )


def disagreements(schema, document):
    for error in Draft202012Validator(schema, registry=REGISTRY).iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path)) or 'the document'}: {error.message[:300]}"


def of_kubernetes(document):
    try:
        utils.validate(document, VERSION, strict=True)
    except utils.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
    except utils.SchemaNotFoundError as error:
        yield error.message


def ports_of_probes(container):
    ports = {port[key] for port in container.get("ports", []) for key in ("name", "containerPort") if key in port}
    settings = {**container, **container.get("extraConfig", {})}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if name not in settings:
            yield f"{container['name']}: no {name}"
        elif (port := settings[name]["httpGet"]["port"]) not in ports:
            yield f"{container['name']}: {name} asks {port}, which is none of {ports}"


def of_values(values):
    """What a cluster would find out late."""
    port, name = values["routing"]["servicePort"], values["modelArtifacts"]["name"]
    for container in values["decode"]["containers"]:
        yield from ports_of_probes(container)
        if port not in [entry["containerPort"] for entry in container["ports"]]:
            yield f"{container['name']}: requests come to {port}"
        for argument in (f"--port={port}", f"--served-model-name={name}"):
            if argument not in container["args"]:
                yield f"{container['name']}: no {argument}"
    for document in values.get("extraObjects", []):
        yield from of_kubernetes(document)


def of_metrics(text):
    ours = (ROOT / "crates/braidinfer-server/src/metrics.rs").read_text()
    for name in re.findall(r"vllm:\w+", text):
        if f'"{name}"' not in ours:
            yield f"the server has no metric {name}"


def of_services(documents):
    """KServe refuses services whose runtime does not fit."""
    runtimes = {document["metadata"]["name"]: document["spec"] for document in documents if document["kind"] == "ServingRuntime"}
    for runtime in runtimes.values():
        if "kserve-container" not in [container["name"] for container in runtime["containers"]]:
            yield "KServe looks for a container named kserve-container"
    for document in documents:
        if document["kind"] == "InferenceService":
            model = document["spec"]["predictor"]["model"]
            formats = [entry["name"] for entry in runtimes.get(model["runtime"], {}).get("supportedModelFormats", [])]
            if model["modelFormat"]["name"] not in formats:
                yield f"no runtime {model['runtime']} for {model['modelFormat']['name']} is in these files"


def containers_of(document):
    spec = document.get("spec", {})
    return spec.get("containers") or spec.get("template", {}).get("spec", {}).get("containers") or []


def faults_of(document, is_values, kserve):
    if is_values:
        return [*disagreements(llm_d(), document)] or [*of_values(document)]
    of_kserve = document["apiVersion"].startswith("serving.kserve.io/")
    wrong = [*(kserve.faults_of(document) if of_kserve else of_kubernetes(document))]
    return wrong or [fault for container in containers_of(document) for fault in ports_of_probes(container)]


def main():
    kserve, faults, others = KServe(), [], []
    for path in map(Path, sys.argv[1:]):
        text = path.read_text()
        documents = [document for document in yaml.safe_load_all(text) if document]
        is_values = path.name.endswith(".values.yaml")
        found = [*of_metrics(text), *(fault for document in documents for fault in faults_of(document, is_values, kserve))]
        others += [] if is_values else documents
        print(f"{path}: {len(documents)} documents, {len(found)} faults")
        faults += [f"{path}: {fault}" for fault in found]
    sys.exit("\n".join(faults or of_services(others)) or None)


if __name__ == "__main__":
    main()
