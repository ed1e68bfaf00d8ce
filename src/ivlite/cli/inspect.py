"""`ivlite inspect`: shows what a GGUF file holds, of this architecture or another, without loading its weights."""

import argparse
import math

from ivlite.cli import json_line
from ivlite.cli.arguments import path
from ivlite.errors import IvliteError
from ivlite.stop import checkpoint

EPILOG = """\
examples:
  ivlite inspect model.gguf
  ivlite inspect model.gguf --tensors | less
  ivlite inspect model.gguf --json | python -m json.tool

Exit code 3 when the file cannot be read as GGUF. A readable file that ivlite cannot run is shown, with the reason.
"""

SHOWN = 96  # characters of a metadata value that are shown; a tokenizer has millions

# group, prefixes of tensor names; the first match applies
GROUPS = (
    ("embeddings", ("token_embd",)),
    ("head", ("output.",)),
    ("text norms", ("output_norm",)),
    ("text", ("blk.",)),
    ("vision embeddings", ("v.patch_embd", "v.position_embd")),
    ("vision blocks", ("v.blk.",)),
    ("mergers", ("v.merger", "v.deepstack")),
)


def add_parser(commands):
    parser = commands.add_parser(
        "inspect",
        help="show what a model file holds",
        description="Shows architecture, sizes, types per tensor group, padding, defaults and metadata of a GGUF file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=path, help="a GGUF file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")


def run(args):
    from ivlite.gguf import GGUFFile

    checkpoint()
    with GGUFFile(args.file) as file:
        facts = describe(file, tensors=args.tensors)
    if args.json:
        print(json_line(facts))
    else:
        for line in lines(facts):
            checkpoint()
            print(line)
    return 0


def group(name):
    """The group of a tensor."""
    found = next((g for g, starts in GROUPS if name.startswith(starts)), "other")
    if found != "text":
        return found
    return "text attention" if ".attn" in name else "text mlp"


def describe(file, tensors=False):
    """All facts as plain data; with `config`, or with `problem`, the reason why there is none."""
    from ivlite.gguf.file import text_of

    meta = file.metadata
    count = sum(math.prod(t.shape) for t in file.tensors.values())
    size = sum(t.nbytes for t in file.tensors.values())
    facts = {
        "file": str(file.path),
        "size": file.size,
        "architecture": shortened(file.architecture) or None,
        "name": shortened(text_of(meta, "general.name")) or None,
        "tensors": len(file.tensors),
        "parameters": count,
        "bits_per_weight": round(8 * size / count, 3) if count else None,
        "groups": groups(file.tensors.values()),
        **configuration(file),
        **recipe(file),
        "metadata": {key: shortened(value) for key, value in meta.items()},
    }
    if tensors:
        notes = facts.get("notes", {})
        facts["tensor_list"] = [
            {
                "name": t.name,
                "shape": list(t.shape),
                "format": t.format,
                "bytes": t.nbytes,
                "note": notes.get(t.name, ""),
            }
            for t in file.tensors.values()
        ]
    return facts


def recipe(file):
    """{"recipe": its name, "notes": {tensor: "padded from 4304", ...}} of a file that ivlite converted, else {}."""
    from ivlite import models
    from ivlite.gguf import config
    from ivlite.quantize import recipe_file, recipes

    found = recipe_file.from_text(file.metadata.get("ivlite.recipe"))
    if found is None:
        return {}
    try:
        cfg = config.Config.from_metadata(file.metadata, file.path)
        specs = models.module(file.architecture).tensor_names(cfg)
    except IvliteError:
        return {}
    written, told = found
    made = recipes.made_of(written.name, written.rows)
    if made is not None:
        notes = {choice.spec.gguf: choice.note for choice in recipes.plan(specs, made) if choice.note}
    else:  # a file's patterns are never run
        notes = padded(specs, file.tensors) if told is None else told
    known = {name: shortened(n) for name, n in notes.items() if name in file.tensors and isinstance(n, str)}
    return {"recipe": written.name, "notes": known}


def padded(specs, tensors):
    """A note for every tensor whose rows are longer than the model's; files of older versions tell no more."""
    columns = ((spec.gguf, spec.shape[-1]) for spec in specs if spec.gguf in tensors)
    return {name: f"padded from {n}" for name, n in columns if tensors[name].shape[-1] > n}


def groups(tensors):
    """Per group: parameters, bytes, and parameters per format."""
    out = {}
    for t in tensors:
        entry = out.setdefault(group(t.name), {"parameters": 0, "bytes": 0, "formats": {}})
        count = math.prod(t.shape)
        entry["parameters"] += count
        entry["bytes"] += t.nbytes
        entry["formats"][t.format] = entry["formats"].get(t.format, 0) + count
    return out


def configuration(file):
    """{"config": ...} of a model that ivlite runs, else {"problem": sentence}."""
    from dataclasses import asdict

    from ivlite import models, ops
    from ivlite.gguf import config
    from ivlite.model import cache_bytes_per_token

    try:
        architecture = models.module(file.architecture, file.path)
        cfg = config.Config.from_metadata(file.metadata, file.path)
        config.check_tensors(file.tensors, architecture.tensor_names(cfg), file.path)
    except IvliteError as error:
        return {"problem": str(error)}
    cache = {kind: cache_bytes_per_token(cfg.text, kind) for kind in ops.CACHE_KINDS}
    return {"config": asdict(cfg), "cache_bytes_per_token": cache}


def shortened(value):
    """A metadata value for display: long texts and arrays are shortened to their beginning and length."""
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0):
        items = [shortened(item) for item in (value[:16].tolist() if hasattr(value, "tolist") else value[:16])]
        return items if len(value) <= 16 else f"{len(value)} values: {str(items[:6])[1:-1][:SHOWN]}, ..."
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[:SHOWN]}... ({len(value):,} characters)"
    return value


def lines(facts):
    """The facts as text."""
    from ivlite.cli import printable
    from ivlite.machine import gigabytes

    yield printable(f"{facts['file']}: {facts['architecture']}, {facts['name'] or 'no name'}")
    bits = f", {facts['bits_per_weight']:.2f} bits per weight" if facts["bits_per_weight"] else ""
    yield f"{gigabytes(facts['size'])}, {facts['parameters'] / 1e9:.3f} billion parameters in {facts['tensors']} tensors{bits}"
    if "problem" in facts:
        yield printable(f"ivlite cannot run it: {facts['problem']}")
    yield ""
    for name, entry in facts["groups"].items():
        most = sorted(entry["formats"].items(), key=lambda item: -item[1])
        shares = ", ".join(f"{fmt} {100 * n / entry['parameters']:.4g} %" for fmt, n in most if entry["parameters"])
        yield f"  {name:<18} {entry['parameters'] / 1e6:>10.2f} M {gigabytes(entry['bytes']):>10}   {shares}"
    if facts.get("notes"):
        yield ""
        yield from remarks(facts["notes"])
    if "config" in facts:
        yield ""
        yield from settings(facts["config"], facts["cache_bytes_per_token"])
    yield ""
    for key, value in facts["metadata"].items():
        yield printable(f"  {key} = {value}".replace("\n", "\\n"))
    if "tensor_list" in facts:
        yield ""
        for t in facts["tensor_list"]:
            yield printable(
                f"  {t['name']:<40} {t['format']:<6} {'x'.join(map(str, t['shape'])):>16} {t['bytes']:>14,}  {t['note']}"
            ).rstrip()


def remarks(notes):
    """A line for each kind of deviation of tensors from the recipe, with their number and an example."""
    from collections import Counter

    first = {note: name for name, note in reversed(notes.items())}
    for note, count in Counter(notes.values()).most_common():
        name = first[note]
        yield f"  {count} tensor{'s' if count > 1 else ''} {note} ({name}{', ...' if count > 1 else ''})"


def shown(value):
    """Formats a default for display."""
    return f"{value:g}" if isinstance(value, float) else value


def settings(config, cache):
    """Lines about shape, context, cache and defaults of a model that ivlite runs."""
    text, vision, image, video = (config[k] for k in ("text", "vision", "image", "video"))
    ranks = sorted(set(text["kv_lora_rank"]))
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    yield (
        f"  text       {text['num_layers']} layers of {text['hidden_size']}, {text['num_heads']} heads, latent rank {span}, "
        f"rope {text['qk_rope_head_dim']}, mlp {text['intermediate_size']}, vocabulary {text['vocab_size']:,}"
    )
    yield (
        f"  vision     {vision['depth']} layers of {vision['hidden_size']}, {vision['num_heads']} heads, "
        f"patch {vision['patch_size']}, taps {', '.join(map(str, vision['deepstack_indexes']))}"
    )
    sizes = ", ".join(f"{kind} {n:,}" for kind, n in cache.items())
    yield f"  context    {text['context_length']:,} tokens; cache bytes per token: {sizes}"
    yield f"  images     {image['min_pixels']:,} to {image['max_pixels']:,} pixels"
    yield (
        f"  videos     {video['fps']:g} frames per second, {video['min_frames']} to {video['max_frames']} frames "
        f"of {video['min_pixels']:,} to {video['max_pixels']:,} pixels"
    )
    defaults = ", ".join(f"{name} {shown(value)}" for name, value in config["generation"].items())
    yield f"  answers    {defaults}"
