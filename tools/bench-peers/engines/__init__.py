"""The engines by name. Modules are imported when an engine is asked for: most need a package of their own."""

from importlib import import_module

MODULES = {
    "braidinfer": "braidinfer",
    "llama.cpp": "llama_cpp",
    "ik_llama.cpp": "ik_llama_cpp",
    "openvino": "openvino_genai",
    "mistralrs": "mistral_rs",
    "transformers": "torch_transformers",
}


def create(name, settings):
    return import_module(f"engines.{MODULES[name]}").Adapter(settings)
