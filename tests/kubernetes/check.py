"""What tests ask a reader that shares nothing with ours: is a manifest valid, and what does a patch make of it?

Tasks come as a JSON list on standard input; the answers go as a JSON list to standard output, in the same order:
  {"valid": YAML, "versions": [...]}   the problems, each a sentence
  {"read": YAML}                       the documents, as JSON
  {"patch": [...], "of": JSON}         what RFC 6902 makes of it
  {"fits": JSON, "schema": {...}}      the problems, each a sentence
"""

import functools
import json
import sys

import jsonpatch
import jsonschema
import kubernetes_validate
import yaml

# It looks for versions and reads their schemas anew for each object.
utils = kubernetes_validate.utils
utils.schema_contents = functools.lru_cache(maxsize=None)(utils.schema_contents)
utils.all_versions = functools.lru_cache(maxsize=None)(utils.all_versions)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(text):
    return [document for document in yaml.load_all(text, LOADER) if document is not None]


def objects(text):
    for document in documents(text):
        if document.get("kind") == "List":
            yield from document["items"]
        else:
            yield document


def problems(text, versions):
    for item in objects(text):
        # Kinds that a cluster learns from others have no schema here.
        if item["apiVersion"].split("/")[0] in ("monitoring.coreos.com", "kustomize.config.k8s.io"):
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except Exception as problem:  # whatever it is, it is the answer
                name = item.get("metadata", {}).get("name")
                yield f"{item['kind']}/{name} in {version}: {getattr(problem, 'message', problem)}"


def answer(task):
    if "valid" in task:
        return list(problems(task["valid"], task["versions"]))
    if "read" in task:
        return documents(task["read"])
    if "fits" in task:
        found = jsonschema.validators.Draft7Validator(task["schema"]).iter_errors(task["fits"])
        return [problem.message for problem in found]
    return jsonpatch.apply_patch(task["of"], task["patch"])


json.dump([answer(task) for task in json.load(sys.stdin)], sys.stdout, default=str)
