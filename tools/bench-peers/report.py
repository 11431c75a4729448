"""Medians, spreads and tables."""

from statistics import median

BASELINE = "braidinfer"


def results(samples):
    """One entry for each engine, model, weight type and piece of work."""
    fields = ("engine", "model", "weights", "work")
    return [dict(zip(fields, key, strict=True)) | summary(taken) for key, taken in samples.items()]


def summary(samples):
    """A figure needs every repetition: one failure makes it None, with the reason."""
    reasons = [sample["reason"] for sample in samples if sample["tok_s"] is None]
    values = [sample["tok_s"] for sample in samples]
    others = [sample["others_cores"] for sample in samples if sample["others_cores"] is not None]
    answer = {"median": None, "smallest": None, "largest": None, "reason": reasons[0] if reasons else None}
    if not reasons:
        answer |= {"median": median(values), "smallest": min(values), "largest": max(values)}
    return answer | {"samples": values, "others_cores": max(others, default=None)}


def short(sample):
    return f"{sample['tok_s']:.1f}" if sample["tok_s"] is not None else f"({sample['reason']})"


def markdown(record):
    lines = ["| | |", "|---|---|", *machine_rows(record), *engine_rows(record)]
    for model in in_order(entry["model"] for entry in record["results"]):
        title = f"{model}, tokens per second: median of {record['repetitions']} (smallest to largest)"
        lines += ["", f"{title}; × is the ratio to {BASELINE}.", "", *table(record, model)]
    return "\n".join(lines + footnotes(record)) + "\n"


def machine_rows(record):
    machine = record["machine"]
    size = f"{machine['cores']} cores, {machine['memory_gib']} GiB"
    yield f"| CPU | {machine['cpu']}, {size}, kernel {machine['kernel']} |"
    yield f"| flags | {' '.join(machine['flags'])} |"
    yield f"| threads | {record['threads']} |"


def engine_rows(record):
    for name, answer in record["engines"].items():
        if "unavailable" in answer:
            yield f"| {name} | not measured: {answer['unavailable']} |"
        else:
            yield f"| {name} | {'; '.join(answer['description'].values())} |"


def table(record, model):
    work = record["work"]
    yield f"| weights | engine | {' | '.join(work)} |"
    yield "|---" * (len(work) + 2) + "|"
    found = {
        (entry["weights"], entry["engine"], entry["work"]): entry
        for entry in record["results"]
        if entry["model"] == model
    }
    for weights, engine in in_order(key[:2] for key in found):
        cells = [cell(found, weights, engine, name) for name in work]
        yield f"| {weights} | {label(record, engine, weights)} | {' | '.join(cells)} |"


def label(record, engine, weights):
    """Names the engine's own form of the weights where it is another one."""
    own = record["engines"][engine]["weights"].get(weights, weights)
    return engine if own == weights else f"{engine} ({own})"


def cell(found, weights, engine, work):
    entry = found[weights, engine, work]
    if entry["median"] is None:
        return "none, see below"
    text = f"{rounded(entry['median'])} ({rounded(entry['smallest'])} to {rounded(entry['largest'])})"
    baseline = found.get((weights, BASELINE, work), {}).get("median")
    if baseline and engine != BASELINE:
        text += f" ×{entry['median'] / baseline:.2f}"
    return text


def footnotes(record):
    """Why figures are missing, and how far the machine was ours."""
    missing = {}
    for entry in record["results"]:
        if entry["reason"]:
            key = (entry["model"], entry["weights"], entry["engine"], entry["reason"])
            missing.setdefault(key, []).append(entry["work"])
    lines = [f"- {', '.join(key[:3])}, {'; '.join(work)}: {key[3]}" for key, work in missing.items()]
    others = [entry["others_cores"] for entry in record["results"] if entry["others_cores"] is not None]
    if others:
        lines.append(f"- Other processes kept at most {max(others)} cores busy during a measurement.")
    return ["", *lines] if lines else []


def rounded(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def in_order(items):
    """Each once, as they first come."""
    return list(dict.fromkeys(items))
