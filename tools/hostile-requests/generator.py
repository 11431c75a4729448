"""Hostile schemas, expressions, grammars, tool lists and chats, by kind and at random sizes.

Every kind is one that made some library overflow its stack, take memory or time without bound, or panic; sizes are drawn on
a logarithmic scale, so that limits are met from both sides. The same seed gives the same requests.
"""

import random
import string

PROMPT = "Once upon a time"


def size(rng, most):
    """A size from 1 to `most`, as often small as large."""
    return int(2 ** rng.uniform(0, (most).bit_length() - 1))


def word(rng, longest=12):
    return "".join(rng.choice(string.ascii_letters) for _ in range(rng.randint(1, longest)))


# Schemas.

def leaf(rng):
    return rng.choice([
        lambda: {"type": rng.choice(["string", "integer", "number", "boolean", "null", "wizard", 5])},
        lambda: {"type": "integer", "minimum": rng.randint(-10**9, 10**9), "maximum": rng.randint(-10**9, 10**9)},
        lambda: {"type": "number", "multipleOf": rng.choice([0, -1, 1e-300, 0.1, 1e300])},
        lambda: {"type": "string", "minLength": size(rng, 10**9), "maxLength": size(rng, 10**9)},
        lambda: {"type": "string", "pattern": expression(rng, 300)},
        lambda: {"type": "string", "format": rng.choice(["date-time", "uuid", "email", "wizard", "regex"])},
        lambda: {"enum": [rng.choice([1, "a", None, [1], {"a": 1}]) for _ in range(size(rng, 3000))]},
        lambda: {"const": word(rng, 400)},
        lambda: {"$ref": rng.choice(["#", "#/$defs/a", "#/properties/a", "http://example.org/x", "#/~0~1%25", ""])},
        lambda: rng.choice([True, False, {}, [], None, "string", 1e308]),
    ])()


def schema(rng, depth=0):
    """A random schema, mostly of parts that go together."""
    if depth > 6 or rng.random() < 0.25:
        return leaf(rng)
    inner = lambda: schema(rng, depth + 1)
    few = range(rng.randint(1, 4))
    return rng.choice([
        lambda: {"type": "object", "properties": {word(rng): inner() for _ in few},
                 "required": [word(rng)], "additionalProperties": rng.choice([True, False, inner()])},
        lambda: {"type": "object", "properties": {"ab": inner()}, "patternProperties": {rng.choice(["^a", ".*", "["]): inner()}},
        lambda: {"type": "array", "items": inner(), "minItems": size(rng, 10**7), "maxItems": size(rng, 10**7)},
        lambda: {"type": "array", "prefixItems": [inner() for _ in few]},
        lambda: {rng.choice(["allOf", "anyOf", "oneOf"]): [inner() for _ in few]},
        lambda: {"allOf": [{"anyOf": [inner(), inner()]}, {"anyOf": [inner(), inner()]}]},
        lambda: {"not": inner()},
        lambda: {"if": inner(), "then": inner(), "else": inner()},
        lambda: {"$defs": {"a": inner()}, "$ref": "#/$defs/a"},
        lambda: {"type": ["object", "array", "string"], "properties": {"a": inner()}, "items": inner()},
    ])()


def chain(rng):
    """Definitions that refer to one another: deep without being written so."""
    link = rng.choice([
        lambda ref: ref,
        lambda ref: {"type": "object", "properties": {"a": ref}, "required": ["a"]},
        lambda ref: {"type": "array", "items": ref, "minItems": 1},
        lambda ref: {"allOf": [ref, {"minimum": 1}]},
        lambda ref: {"anyOf": [ref, {"type": "string"}]},
        lambda ref: {"oneOf": [ref, {"type": "object", "properties": {"b": ref}}]},
        lambda ref: {"type": "object", "properties": {"a": ref, "b": ref}},
    ])
    links = size(rng, 5000)
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(links)}
    definitions[f"d{links}"] = rng.choice([{"type": "integer"}, {"$ref": "#/$defs/d0"}])
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def wide(rng):
    count = size(rng, 20000)
    return rng.choice([
        lambda: {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}},
        lambda: {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(count)},
                 "required": [f"p{i}" for i in range(count)]},
        lambda: {"anyOf": [{"const": word(rng, 30)} for _ in range(count)]},
        lambda: {"allOf": [{"anyOf": [{"const": i}, {"const": i + 1}]} for i in range(min(count, 500))]},
        lambda: {"enum": ["x" * size(rng, 200) for _ in range(count)]},
        lambda: {"type": "object", "properties": {"x" * count: {"type": "null"}}},
    ])()


def nested(rng):
    value, wrap = {"type": "integer"}, rng.choice([
        lambda inner: {"properties": {"a": inner}}, lambda inner: {"items": inner},
        lambda inner: {"allOf": [inner]}, lambda inner: {"anyOf": [inner, {"type": "null"}]}])
    for _ in range(size(rng, 60)):
        value = wrap(value)
    return value


def any_schema(rng):
    return rng.choice([schema, schema, schema, chain, wide, nested])(rng)


# Expressions.

def expression(rng, most=30000):
    count = size(rng, most)
    return rng.choice([
        lambda: "a?" * count + "a" * count,
        lambda: "(" * count + "a" + ")" * count,
        lambda: "(a|aa)+" * count,
        lambda: "(a*)*" * count + "b",
        lambda: f"(.*)(a|b){{{size(rng, 1000)}}}c",
        lambda: f"((a{{{size(rng, 300)}}}){{{size(rng, 300)}}}){{{size(rng, 300)}}}",
        lambda: f"[ab]{{{size(rng, 10**9)}}}",
        lambda: "|".join(word(rng, 20) for _ in range(count)),
        lambda: r"[\p{L}\p{N}]+" * min(count, 3000),
        lambda: r"[^\s\S]",
        lambda: "(?i)" + "é" * count,
        lambda: "(?=a)b|(?<!x)y|\\1",
        lambda: "[" * count,
        lambda: "\\" * count,
        lambda: "".join(rng.choice("ab.*+?|()[]{}^$\\1,-") for _ in range(min(count, 500))),
        lambda: f"(x{word(rng)}|y){{0,{size(rng, 5000)}}}(z+w)*",
    ])()


# Grammars.

def rules(rng):
    """A random small grammar, often an ambiguous one."""
    names = "abcde"[:rng.randint(1, 5)]
    item = lambda: rng.choice([rng.choice(names), rng.choice(names), '"x"', '"y"', "/[a-z]+/", '""', "(a | \"z\")*"])
    body = lambda: " | ".join(" ".join(item() for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 5)))
    return "start: a\n" + "\n".join(f"{name}: {body()}" for name in names)


def grammar(rng):
    count = size(rng, 8000)
    return rng.choice([
        rules, rules, rules,
        lambda rng: "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(count)) + f'\nr{count}: "b"',
        lambda rng: "start: T0\n" + "\n".join(f'T{i}: "a" T{i + 1}' for i in range(count)) + f'\nT{count}: "b"',
        lambda rng: "start: s\ns: s s s | s s | \"a\" | \"b\" |\n",
        lambda rng: "start: s\ns: " + "s " * rng.randint(2, 9) + "| s s | \"a\" | /[a-z ]/ |\n",
        lambda rng: "start: e\ne: e e | e \"+\" e | /.*/ | /[^x]*/ |\n",
        lambda rng: "start: " + "(" * count + '"a"' + ")" * count,
        lambda rng: "start: " + " | ".join(f'"{word(rng)}"' for _ in range(count)),
        lambda rng: f'start: (("a"~{size(rng, 1000)})~{size(rng, 1000)})~{size(rng, 1000)}',
        lambda rng: f"start: /{expression(rng, 3000)}/",
        lambda rng: "start: start",
        lambda rng: "start: %json {" + '"a":' * min(count, 100) + "1" + "}" * min(count, 100),
        lambda rng: "".join(rng.choice("start:ab|\"()~%\n/*") for _ in range(min(count, 300))),
    ])(rng)


# Requests.

def tools(rng):
    return [{"type": "function", "function": {"name": rng.choice([word(rng), "x" * size(rng, 5000), "a.b", ""]),
                                              "description": word(rng, 200), "parameters": any_schema(rng)}}
            for _ in range(size(rng, 60))]


def messages(rng):
    role = lambda: rng.choice(["user", "assistant", "system", "tool", "wizard", word(rng, 3000)])
    content = lambda: rng.choice([word(rng, 300), "x" * size(rng, 30000), "\u202e\x1b[31m", "{{ 1 }}{% raw %}", None,
                                  [{"type": "text", "text": word(rng)}] * size(rng, 300), {"a": 1}])
    return [{"role": role(), "content": content()} for _ in range(size(rng, 400))]


def chat(rng, **fields):
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": rng.randint(1, 24),
                                    "stream": rng.random() < 0.3, **fields}


def completion(rng, **fields):
    return "/v1/completions", {"prompt": PROMPT, "max_tokens": rng.randint(1, 24), "stream": rng.random() < 0.3,
                               "n": rng.choice([1, 1, 1, 2, 8]), **fields}


def request(rng, only=None):
    """A kind, a path and a body; of the kinds in `only`, if there are any."""
    kinds = {
        "schema": lambda: completion(rng, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": any_schema(rng)}}),
        "schema in a chat": lambda: chat(rng, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": any_schema(rng)}}),
        "expression": lambda: completion(rng, structured_outputs={"regex": expression(rng)}),
        "grammar": lambda: completion(rng, structured_outputs={"grammar": grammar(rng)}),
        "choice": lambda: completion(rng, structured_outputs={"choice": [word(rng, 300) for _ in range(size(rng, 3000))]}),
        "tools": lambda: chat(rng, tools=tools(rng), tool_choice=rng.choice(["auto", "required", "none"])),
        "chat": lambda: ("/v1/chat/completions", {"messages": messages(rng), "max_tokens": 4}),
        "variables": lambda: chat(rng, chat_template_kwargs={rng.choice(["messages", "bos_token", word(rng)]): any_schema(rng)}),
        "tokenize": lambda: ("/tokenize", {"messages": messages(rng)}),
        "prompts": lambda: ("/v1/completions", {"prompt": [word(rng, 30)] * size(rng, 2000), "max_tokens": size(rng, 4000),
                                                "n": size(rng, 16), "logprobs": rng.choice([None, 1, 20])}),
        "a long prompt": lambda: ("/v1/completions", {"prompt": [rng.randint(1, 200) for _ in range(size(rng, 60000))], "max_tokens": 2}),
        "embeddings": lambda: ("/v1/embeddings", {"input": [word(rng, 300)] * size(rng, 2000)}),
    }
    # Forms are what the limits are for.
    weights = dict(zip(kinds, [5, 2, 5, 5, 1, 3, 1, 1, 1, 1, 1, 1]))
    chosen = [kind for kind in kinds if not only or kind in only]
    kind = rng.choices(chosen, [weights[kind] for kind in chosen])[0]
    return kind, *kinds[kind]()


def template(rng):
    """A hostile chat template."""
    count = size(rng, 60000)
    wrap = rng.choice([("not ", "true", ""), ("(", "1", ")"), ("[", "1", "]"), ("-", "1", ""), ("1 + ", "1", ""),
                       ("1 if 1 else ", "1", ""), ("{'a': ", "1", "}"), ("a|", "b", ""), ("x(", "", ")")])
    step = rng.choice(["ns.x ~ ns.x", "ns.x + ns.x", "[ns.x, ns.x]", "ns.x|list + ns.x|list", "(ns.x, ns.x)", "ns.x|join(ns.x)",
                       "ns.x.replace('a', ns.x)", "ns.x * 9", "{'a': ns.x, 'b': ns.x}", "(ns.x|string) ~ (ns.x|tojson)"])
    shown = rng.choice(["", "|tojson", "|string", "|length", "|join", "|list", "|upper", "|indent(9)", "|title", "|sort", "|unique|list"])
    number = 10 ** rng.randint(3, 18)
    return rng.choice([
        lambda: "{{ " + wrap[0] * count + wrap[1] + wrap[2] * count + " }}",
        lambda: f"{{% set ns = namespace(x='ab') %}}{{% for i in range({size(rng, 80)}) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x{shown} }}}}",
        lambda: "{% if 1 %}" * count + "x" + "{% endif %}" * count,
        lambda: "".join(rng.choice(["{%", "%}", "{{", "}}", "{#", "#}", "-", " ", "if", "for", "x", "raw", "'", "|", "(", "generation"]) for _ in range(min(count, 400))),
        lambda: "{{ " + rng.choice(["'%{n}d' % 1", "'a' * {n}", "[1] * {n}", "[1]|batch({n}, 0)|list", "[1]|slice({n}, 0)|list", "'a'|indent({n})",
                                    "range({n})|list", "range({n})|join('x' * 99999)", "'a'.ljust({n})", "'a'|center({n})", "'%.{n}f' % 1.5",
                                    "'a'.zfill({n})", "10 ** {n}", "'{{:>{n}}}'.format(1)", "[3]|tojson(indent={n})", "'abc'|truncate({n})",
                                    "messages|map(attribute='x' * {n})|list"]).replace("{n}", str(number)) + shown + " }}",
        lambda: "{% macro m(a) %}{{ m(a ~ a) }}{% endmacro %}{{ m('ab') }}",
        lambda: "{% for a in range(99999) %}" * rng.randint(1, 6) + rng.choice(["", "x", "{{ messages }}"]) + "{% endfor %}" * 6,
    ])()
