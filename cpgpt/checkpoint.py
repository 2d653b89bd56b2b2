"""A folder <-> a model with its tokenizer. Knows nothing about text, the Hub or training.

The folder is a standard Hugging Face checkpoint of a stock architecture, GPT-2 for the classic shape and Qwen3 for the modern one:

    config.json             the architecture's own fields and, under "cpgpt", ours
    model.safetensors       the architecture's own tensor names; a tied head is stored once
    tokenizer.json, tokenizer_config.json, generation_config.json
    drafts.safetensors      may be there: makes writing faster (`drafts.py`)

so `transformers` and what builds on it read it without code of ours. A mixture of switches that is neither shape has the model
type "cpgpt", our own tensor names, and loads only here. Nothing in a folder is executed: there is JSON and safetensors, no pickle.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cpgpt.drafts import Drafts
from cpgpt.model import CLASSIC, GPT, MODERN, Config, rotary_table
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # how safetensors calls them
LARGEST_TABLE = 2**24  # rotary positions are computed, not stored: a small file may not ask for a large table

# Module names, ours and the stock architecture's. Those of a block come after its prefix.
_NAMES = {
    "gpt2": {
        "blocks.": "transformer.h.",
        "embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    },
    "qwen3": {
        "blocks.": "model.layers.",
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "attention.qkv": "self_attn.qkv",  # stored as q_proj, k_proj and v_proj
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.out": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
}


class CheckpointError(ValueError):
    """A folder that does not hold a whole checkpoint of ours; the message names the file and what is wrong with it."""


@dataclass
class Checkpoint:
    """What a folder holds. `facts` is what training knew: the corpus's cast, places and lengths, and how the model was trained."""

    model: GPT
    tokenizer: Tokenizer
    facts: dict[str, Any] = field(default_factory=dict)
    drafts: Drafts | None = None


def model_type(config: Config) -> str:
    """The stock architecture whose shape this is: "gpt2", "qwen3", or "cpgpt" for a mixture of the two."""
    switches = dataclasses.asdict(config)
    classic = {**CLASSIC, "norm_eps": config.norm_eps, "activation": "relu" if config.activation == "relu" else "gelu"}
    if all(switches[name] == value for name, value in classic.items()):
        return "gpt2"
    if all(switches[name] == value for name, value in {**MODERN, "norm_eps": config.norm_eps}.items()):
        return "qwen3"
    return "cpgpt"


def stock_fields(config: Config) -> dict[str, Any]:
    """`config` in the words of its stock architecture's `config.json`."""
    fields: dict[str, Any] = {
        "model_type": model_type(config),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
    }
    if fields["model_type"] == "gpt2":
        fields |= {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "n_inner": config.n_hidden,
            "activation_function": "relu" if config.activation == "relu" else "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
        }
    if fields["model_type"] == "qwen3":
        fields |= {
            "architectures": ["Qwen3ForCausalLM"],
            "max_position_embeddings": config.block_size,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_head,
            "head_dim": config.head_size,
            "hidden_size": config.n_embd,
            "intermediate_size": config.n_hidden,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "attention_bias": False,
            "attention_dropout": config.dropout,
            "use_sliding_window": False,
        }
    return fields


def to_stock(model: GPT) -> dict[str, Tensor]:
    """The model's tensors under the names and in the layout of its stock architecture."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "head.weight" and model.config.tie_embeddings:
            continue
        for stock, part in zip(_stock_names(model.config, name), _parts(model.config, name, tensor), strict=True):
            tensors[stock] = part
    return tensors


class _Uninitialised(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: on the meta device it would only import PyTorch's compiler, for over a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _bare(config: Config) -> GPT:
    """A model without numbers: its names and shapes take no memory."""
    with torch.device("meta"), _Uninitialised():
        return GPT(config)


def from_stock(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_stock`: a state dictionary for `GPT(config)`."""
    names = list(_bare(config).state_dict())
    state: dict[str, Tensor] = {}
    for name in names:
        if name == "head.weight" and config.tie_embeddings:
            state[name] = state["embedding.weight"]
            continue
        parts = [tensors[stock] for stock in _stock_names(config, name)]
        state[name] = torch.cat(parts) if len(parts) > 1 else _parts(config, name, parts[0])[0]
    return state


def _stock_names(config: Config, name: str) -> list[str]:
    """Where the tensor that we call `name` is stored."""
    kind = model_type(config)
    if kind == "cpgpt":
        return [name]
    module, _, tensor = name.rpartition(".")
    prefix = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        prefix = f"{_NAMES[kind]['blocks.']}{layer}."
    stock = f"{prefix}{_NAMES[kind][module]}.{tensor}"
    if kind == "qwen3" and module == "attention.qkv":
        return [stock.replace("qkv", f"{letter}_proj") for letter in "qkv"]
    return [stock]


def _parts(config: Config, name: str, tensor: Tensor) -> list[Tensor]:
    """`tensor` as it is stored: GPT-2 keeps its matrices transposed, Qwen3 keeps queries, keys and values apart."""
    kind = model_type(config)
    if kind == "gpt2" and tensor.dim() == 2 and name.startswith("blocks."):
        return [tensor.T]
    if kind == "qwen3" and name.endswith("attention.qkv.weight"):
        return list(tensor.chunk(3))
    return [tensor]


def save(
    folder: str | os.PathLike[str],
    model: GPT,
    tokenizer: Tokenizer,
    facts: dict[str, Any] | None = None,
    dtype: str = "float32",
    drafts: Drafts | None = None,
) -> Path:
    """Write a checkpoint; a folder that is there already is replaced in one step, other files in it are kept.

    Args:
        facts: what should travel with the weights, as JSON; see `Checkpoint`.
        dtype: how weights are stored: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: an unknown dtype; facts under a name that the checkpoint keeps for itself.
    """
    for name in ("config", "sha256"):
        if name in (facts or {}):
            raise ValueError(f"facts cannot have {name!r}: that is where the checkpoint keeps its own")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")
    tensors = {name: tensor.detach().cpu().to(DTYPES[dtype]).contiguous() for name, tensor in to_stock(model).items()}
    files = {name: text.encode() for name, text in tokenizer.files().items()}
    files["model.safetensors"] = safetensors.torch.save(tensors, metadata={"format": "pt"})
    generation: dict[str, Any] = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": END_OF_TEXT_ID}
    generation |= {"do_sample": True, "temperature": 0.8, "max_length": model.config.block_size}
    files["generation_config.json"] = _json(generation)
    sha256 = {name: hashlib.sha256(files[name]).hexdigest() for name in ("model.safetensors", "tokenizer.json")}
    ours = {"config": dataclasses.asdict(model.config), "sha256": sha256, **(facts or {})}
    # "dtype" is what to compute in, whatever the weights are stored in.
    files["config.json"] = _json({**stock_fields(model.config), "dtype": "float32", "cpgpt": ours})
    with replaced_folder(folder) as fresh:
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if drafts is not None:
            drafts.save(fresh)
    return Path(folder)


def load(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, check all of it, and put the model on `device` as float32, ready to generate.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        CheckpointError: a file is damaged, foreign or does not fit the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not a checkpoint, or not a whole one")
    ours, config = read_config(folder / "config.json")
    try:
        tokenizer = Tokenizer.load(folder)
        drafts = Drafts.load(folder, tokenizer.vocab_size)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} ids, but config.json says vocab_size {config.vocab_size}"
        )
    tensors = _read_weights(folder / "model.safetensors", config)
    for name, expected in ours.get("sha256", {}).items():
        if name in ("model.safetensors", "tokenizer.json"):
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if actual != expected:
                raise CheckpointError(
                    f"{folder / name} has changed since it was saved (sha256 {actual}, config.json says {expected}): save or "
                    'download it again, or, if you changed it yourself, take "sha256" out of "cpgpt" in config.json'
                )
    model = _bare(config)
    model.load_state_dict(from_stock(config, {name: tensor.float() for name, tensor in tensors.items()}), assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    if config.positions == "rotary":
        model.cos, model.sin = rotary_table(config)
    facts = {k: v for k, v in ours.items() if k not in ("config", "sha256")}
    return Checkpoint(model.to(device).eval(), tokenizer, facts, drafts)


def read_config(path: Path) -> tuple[dict[str, Any], Config]:
    """Our part of a `config.json`, and the model that it describes; nothing is built.

    Raises:
        CheckpointError: it is not JSON, not ours, or contradicts itself.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    ours = data.get("cpgpt") if isinstance(data, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("config"), dict) or not isinstance(ours.get("sha256", {}), dict):
        raise CheckpointError(f'{path} has no "cpgpt" with a "config": it is not a checkpoint of ours')
    try:
        config = Config(**ours["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{path}, "cpgpt": {error}') from error
    if config.positions == "rotary" and config.block_size * config.head_size > LARGEST_TABLE:
        raise CheckpointError(
            f'{path}, "cpgpt": a context of {config.block_size} tokens needs a table of {config.block_size} x {config.head_size} '
            f"angles; more than {LARGEST_TABLE} numbers are not a model of ours"
        )
    for name, value in stock_fields(config).items():
        if name in data and data[name] != value:
            raise CheckpointError(f'{path} says {name} {data[name]!r}, but its "cpgpt" part means {value!r}')
    return ours, config


def _read_weights(path: Path, config: Config) -> dict[str, Tensor]:
    """The stored tensors, once names, dtypes and shapes are those of `config`: nothing large is taken before that is known."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = set(file.keys())
            if config.n_layer > len(names):
                raise CheckpointError(f"{path} has {len(names)} tensors: too few for {config.n_layer} layers")
            expected = {name: list(tensor.shape) for name, tensor in to_stock(_bare(config)).items()}
            for problem, some in (("lacks", expected.keys() - names), ("has an unknown", names - expected.keys())):
                if some:
                    more = f" (and {len(some) - 1} more)" if len(some) > 1 else ""
                    raise CheckpointError(f"{path} {problem} tensor {min(some)!r}{more}")
            for name, shape in expected.items():
                stored = file.get_slice(name)
                if stored.get_shape() != shape:
                    raise CheckpointError(f"{path}: tensor {name!r} has shape {stored.get_shape()}, config.json means {shape}")
                if stored.get_dtype() not in _STORED:
                    raise CheckpointError(f"{path}: tensor {name!r} is {stored.get_dtype()}, it must be one of {', '.join(DTYPES)}")
            return {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): save or download it again") from error


def stored_dtype(path: Path) -> str:
    """How the weights of a checkpoint are stored: "float32", "bfloat16" or "float16"."""
    with safetensors.safe_open(path, "pt") as file:
        return _STORED[file.get_slice(next(iter(file.keys()))).get_dtype()]


def write_atomically(path: Path, text: str) -> None:
    """Write a small file beside a checkpoint: whoever reads it sees the old one or the new one, whole."""
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` at the end, or vanishes if anything is raised.

    Files of the old folder that the new one lacks are kept. Nobody ever sees a folder with some files old and some new.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        for file in fresh.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        fresh.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            for kept in folder.iterdir():
                if not (fresh / kept.name).exists():
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, fresh / kept.name)
            old = fresh.with_name(fresh.name + "-old")
            folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
