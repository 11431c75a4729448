"""OpenAI's API at http://127.0.0.1:8000/v1 with two replicas, until Ctrl-C.

pip install braidinfer "ray[serve]"
python ray_serve.py [MODEL]
"""

import sys

from ray import serve

from braidinfer.ray_serve import Server


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else None
    two = Server.options(num_replicas=2, ray_actor_options={"num_cpus": 1})
    serve.run(two.bind(model, any_model_name=True), blocking=True)


if __name__ == "__main__":
    main()
