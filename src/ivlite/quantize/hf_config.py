"""Reads the JSON settings of a Hugging Face checkpoint into an ivlite Config, and checks them against the tensors.

Tensors determine ranks, biases, the latent norm and tied embeddings. A setting that contradicts them is an error: one of
the two files belongs to another model.
"""

import re

from ivlite.errors import ModelFileError
from ivlite.gguf.config import (
    THINKING,
    Config,
    GenerationConfig,
    ImageConfig,
    TextConfig,
    TokenIds,
    VideoConfig,
    VisionConfig,
    checked,
)

MODEL = "internvideo3"
LAYER = "model.language_model.layers.{}.self_attn."
HALF = (0.5, 0.5, 0.5)
# The model card's settings for videos: one frame per second, each with 128 patches of 32 x 32 pixels. The checkpoint sets
# a total of pixels per video instead, with which a short clip would cost as much as a long one.
VIDEO_FPS = 1.0
VIDEO_PIXELS = 128 * 32 * 32
REQUIRED = object()
AGAIN = "download the checkpoint again"


class Section:
    """One JSON object of a file: its errors for missing or wrong values name file and key."""

    def __init__(self, path, data, prefix=""):
        self.path, self.data, self.prefix = path, data, prefix

    def has(self, key):
        return self.data.get(key) is not None

    def get(self, key, default=REQUIRED):
        """The value of a key; `default` if it is missing or null."""
        if self.has(key):
            return self.data[key]
        if default is REQUIRED:
            raise ModelFileError(f"{self.path} has no {self.prefix}{key}: it is not InternVideo3's, or not whole")
        return default

    def section(self, key, default=REQUIRED):
        value = self.get(key, default)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Section(self.path, value, f"{self.prefix}{key}.")

    def listed(self, key):
        """The values of a key with one value or a list; empty if it is missing."""
        value = self.get(key, [])
        return value if isinstance(value, list) else [value]

    def text(self, key):
        """A string; "" if the key is missing."""
        value = self.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def texts(self, key):
        """A list of strings; empty if the key is missing."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.wrong(key, value, "a list of texts")
        return value

    def made(self, part, keys=None, **values):
        """One of the dataclasses of ivlite.gguf.config; raises ModelFileError for a value out of its range.

        keys: field -> the key of this section that it is read from, where that has another name.
        """
        return checked(part, self.path, self.prefix, keys, AGAIN, **values)

    def only(self, key, *allowed):
        """Raises ModelFileError if the key has a value that is not in `allowed`."""
        if self.has(key) and self.data[key] not in allowed:
            raise self.wrong(key, self.data[key], " or ".join(map(repr, allowed)) or "absent")

    def wrong(self, key, value, needed):
        return ModelFileError(f"{self.path}: {self.prefix}{key} is {value!r:.80}; ivlite takes {needed} only")


def read(checkpoint, tokenizer):
    """The Config of a Checkpoint with a Tokenizer. Raises ModelFileError."""
    top = Section(checkpoint.folder / "config.json", checkpoint.json("config.json"))
    _check_model(top)
    text = top.section("text_config")
    config = Config(
        name=_name(checkpoint.folder.resolve(), top),
        text=_text(top, text, checkpoint.tensors),
        vision=_vision(top.section("vision_config")),
        image=_image(checkpoint, top),
        video=_video(checkpoint, top),
        tokens=_tokens(checkpoint, top, text, tokenizer.added),
        generation=_generation(checkpoint),
    )
    config.check(top.path, AGAIN)
    return config


def _name(folder, top):
    """The model's name: that of the repository if the folder is a snapshot, else the folder's."""
    name, above = folder.name, folder.parent
    if above.name == "snapshots" and above.parent.name.startswith("models--"):  # models--OWNER--NAME/snapshots/HASH
        name = above.parent.name.split("--", 2)[-1]
    elif re.fullmatch("[0-9a-f]{12,64}", name):
        name = top.text("_name_or_path").rstrip("/").split("/")[-1] or name
    return name.encode("utf-8", "replace").decode()[:200]  # a folder's name may be invalid UTF-8


def _check_model(top):
    names = [top.text("model_type"), *top.texts("architectures")]
    top.only("quantization_config")
    if not any(name.lower().startswith(MODEL) for name in names):
        raise ModelFileError(f"{top.path} describes a model of type {names[0]!r:.60}; ivlite converts InternVideo3")


# ------------------------------------------------------------------------------------------------ text


TEXT_KEYS = {
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "latent_norm": "qk_latent_layernorm",
    "context_length": "max_position_embeddings",
}  # fmt: skip


def _rank_key(text):
    return "kv_lora_rank_list" if text.has("kv_lora_rank_list") else "kv_lora_rank"


def _text(top, text, tensors):
    text.only("hidden_act", "silu")
    text.only("q_lora_rank")
    rope = text.section("rope_parameters" if text.has("rope_parameters") else "rope_scaling")
    for key in ("rope_type", "type"):
        rope.only(key, "default", "mrope", "qwen3_vl")
    layers = text.get("num_hidden_layers")
    rope_dim = text.get("qk_rope_head_dim")
    return text.made(
        TextConfig,
        keys=TEXT_KEYS
        | {"kv_lora_rank": _rank_key(text), "mrope_section": rope.prefix.removeprefix(text.prefix) + "mrope_section"},
        hidden_size=text.get("hidden_size"),
        num_layers=layers,
        num_heads=text.get("num_attention_heads"),
        kv_lora_rank=_ranks(text, layers, rope_dim, tensors),
        qk_rope_head_dim=rope_dim,
        qk_nope_head_dim=text.get("qk_nope_head_dim"),
        v_head_dim=text.get("v_head_dim"),
        intermediate_size=text.get("intermediate_size"),
        vocab_size=text.get("vocab_size"),
        rms_norm_eps=text.get("rms_norm_eps"),
        rope_theta=(rope if rope.has("rope_theta") else text).get("rope_theta"),
        mrope_section=rope.get("mrope_section"),
        mrope_interleaved=rope.get("mrope_interleaved", True),
        rope_interleave=text.get("rope_interleave", True),
        latent_norm=_present(text, "qk_latent_layernorm", "kv_a_layernorm.weight", tensors),
        attention_bias=_present(text, "attention_bias", "q_proj.bias", tensors),
        context_length=text.get("max_position_embeddings"),
        tie_word_embeddings=_tied(top, text, tensors),
    )


def _ranks(text, layers, rope_dim, tensors):
    """The latent rank of every layer, as the settings give it and the tensors confirm it."""
    key = _rank_key(text)
    for name, value in (("num_hidden_layers", layers), ("qk_rope_head_dim", rope_dim)):
        if not _count(value):
            raise text.wrong(name, value, "a whole number from 1 to 65536")
    measured = [tensors.get(LAYER.format(i) + "kv_b_proj.weight") for i in range(layers)]
    measured = [t.shape[-1] if t and t.shape else None for t in measured]
    declared = text.get(key, None)
    if declared is None:
        return measured
    ranks = declared if isinstance(declared, list) else [declared] * layers
    for i, (rank, found) in enumerate(zip(ranks, measured, strict=False)):
        latent = tensors.get(LAYER.format(i) + "kv_a_proj_with_mqa.weight")
        rows = latent.shape[0] - rope_dim if latent and latent.shape else None
        for name, other in (("kv_b_proj", found), ("kv_a_proj_with_mqa", rows)):
            if other not in (None, rank):
                raise ModelFileError(
                    f"{text.path}: text_config.{key} gives layer {i} a rank of {rank!r:.20}, and the tensor "
                    f"{LAYER.format(i)}{name}.weight one of {other}; they belong to different models"
                )
    return ranks


def _count(value):
    return type(value) is int and 0 < value <= 1 << 16


def _present(text, key, tensor, tensors):
    """Whether the attention layers have a tensor; a setting, if given, must agree."""
    found = any(name.endswith(f".self_attn.{tensor}") for name in tensors)
    if text.has(key) and text.data[key] is not found:
        raise ModelFileError(
            f"{text.path}: text_config.{key} is {text.data[key]!r:.20}, and the weights have "
            f"{'' if found else 'no '}self_attn.{tensor} tensors: they belong to different models, or the setting is "
            f"wrong and must be {str(found).lower()}"
        )
    return found


def _tied(top, text, tensors):
    """Whether the embedding table is also the head: by the settings, else by the absence of a head tensor."""
    for section in (top, text):  # the outer setting has precedence
        if section.has("tie_word_embeddings"):
            return section.get("tie_word_embeddings")
    return "lm_head.weight" not in tensors


# ------------------------------------------------------------------------------------------------ vision and media


def _vision(vision):
    vision.only("hidden_act", "gelu_pytorch_tanh")
    return vision.made(
        VisionConfig,
        keys={"deepstack_indexes": "deepstack_visual_indexes"},
        depth=vision.get("depth"),
        hidden_size=vision.get("hidden_size"),
        num_heads=vision.get("num_heads"),
        intermediate_size=vision.get("intermediate_size"),
        patch_size=vision.get("patch_size"),
        temporal_patch_size=vision.get("temporal_patch_size"),
        spatial_merge_size=vision.get("spatial_merge_size"),
        in_channels=vision.get("in_channels", 3),
        num_position_embeddings=vision.get("num_position_embeddings"),
        deepstack_indexes=vision.get("deepstack_visual_indexes"),
        out_hidden_size=vision.get("out_hidden_size"),
    )


def _processor(checkpoint, top, name, part):
    """The settings of an image or video processor: a separate file, or a part of processor_config.json."""
    path = checkpoint.folder / name
    section = Section(path, checkpoint.json(name, required=False))
    if not section.data:
        shared = Section(checkpoint.folder / "processor_config.json", checkpoint.json("processor_config.json", False))
        section = shared.section(part, {})
    vision = top.section("vision_config")
    for key, other in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        if section.has(key) and section.get(key) != vision.get(other):
            raise ModelFileError(
                f"{section.path}: {section.prefix}{key} is {section.get(key)!r:.20}, and {top.path.name} has "
                f"vision_config.{other} {vision.get(other)!r:.20}; they belong to different models"
            )
    return section


PIXEL_KEYS = {"mean": "image_mean", "std": "image_std"}


def _image(checkpoint, top):
    section = _processor(checkpoint, top, "preprocessor_config.json", "image_processor")
    size = section.section("size", {})
    return section.made(
        ImageConfig,
        keys=PIXEL_KEYS
        | {
            "min_pixels": "size.shortest_edge" if size.has("shortest_edge") else "min_pixels",
            "max_pixels": "size.longest_edge" if size.has("longest_edge") else "max_pixels",
        },
        min_pixels=size.get("shortest_edge", section.get("min_pixels", 65536)),
        max_pixels=size.get("longest_edge", section.get("max_pixels", 16777216)),
        mean=section.get("image_mean", HALF),
        std=section.get("image_std", HALF),
    )


def _video(checkpoint, top):
    section = _processor(checkpoint, top, "video_preprocessor_config.json", "video_processor")
    return section.made(
        VideoConfig,
        keys=PIXEL_KEYS,
        fps=VIDEO_FPS,
        min_frames=section.get("min_frames", 4),
        max_frames=section.get("max_frames", 768),
        min_pixels=VIDEO_PIXELS,
        max_pixels=VIDEO_PIXELS,
        mean=section.get("image_mean", HALF),
        std=section.get("image_std", HALF),
    )


# ------------------------------------------------------------------------------------------------ tokens and sampling


def _tokens(checkpoint, top, text, added):
    """Token ids by name from the tokenizer; ids in config.json must agree."""
    names = ("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end")
    missing = [f"<|{name}|>" for name in names if f"<|{name}|>" not in added]
    if missing:
        raise ModelFileError(f"{checkpoint.folder}: the tokenizer has no {missing[0]}; it is not InternVideo3's")
    ids = {name: added[f"<|{name}|>"] for name in names}
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    for key, name in zip(keys, names, strict=False):
        if top.has(key) and top.get(key) != ids[name]:
            raise ModelFileError(
                f"{top.path}: {key} is {top.get(key)!r:.20}, and the tokenizer has <|{name}|> as {ids[name]}; "
                "they belong to different models"
            )
    generation = _generation_file(checkpoint)
    ends = [added[name] for name in ("<|im_end|>", "<|endoftext|>") if name in added]
    found = next((s for s in (generation, top, text) if s.has("eos_token_id")), None)
    return (found or top).made(
        TokenIds, {"eos": "eos_token_id"}, **ids, eos=found.listed("eos_token_id") if found else ends
    )


def _generation_file(checkpoint):
    name = "generation_config.json"
    return Section(checkpoint.folder / name, checkpoint.json(name, required=False))


def _generation(checkpoint):
    """Sampling defaults; missing ones are those of transformers."""
    section = _generation_file(checkpoint)
    section.only("do_sample", True, False)
    greedy = not section.get("do_sample", False)
    return section.made(
        GenerationConfig,
        temperature=0.0 if greedy else section.get("temperature", 1.0),
        top_k=section.get("top_k", 0 if greedy else 50),
        top_p=section.get("top_p", 1.0),
        min_p=section.get("min_p", 0.0),
        repetition_penalty=section.get("repetition_penalty", 1.0),
        thinking=_thinking(checkpoint),
    )


def _thinking(checkpoint):
    """The kind of the chat template, a key of THINKING."""
    template = checkpoint.text("chat_template.jinja", required=False)
    if template is None:
        texts = (checkpoint.json(n, required=False) for n in ("chat_template.json", "tokenizer_config.json"))
        template = next((str(t["chat_template"]) for t in texts if t and t.get("chat_template")), "")
    template = template.replace("\\n", "\n")  # as a template spells a line break
    if "enable_thinking" not in template:
        return "none"
    return next((name for name in ("close", "open") if max(THINKING[name]) in template), "none")
