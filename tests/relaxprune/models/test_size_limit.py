"""What a configuration asks for is compared with the checkpoint before it is made."""

from __future__ import annotations

import logging
import os
import shutil
import threading

import pytest
import torch
from torch import nn

from relaxprune.models.loading import check_running, load_model
from relaxprune.models.size_limit import limited
from relaxprune.problems import RelaxPruneError
from relaxprune.support import json_files

from ..saved_models import edit_config, refused, shard
from ..tiny_models import tiny_model


@pytest.mark.parametrize(
    "entries",
    [
        {"hidden_size": 2**31},
        {"vocab_size": 2**40},
        {"intermediate_size": 2**35},
        {"head_dim": 2**31},
        {"num_hidden_layers": 2**31},
        {"num_key_value_heads": 2**30},
        {"num_labels": 2**31},
    ],
    ids=str,
)
def test_a_configuration_of_terabytes(tiny_folder, entries):
    edit_config(tiny_folder, **entries)
    assert "checkpoint has" in refused(tiny_folder, "fetch it again")


@pytest.mark.parametrize("name", ["n_embd", "n_inner", "n_positions", "n_layer"])
def test_other_families_words(tmp_path, tiny_tokenizer, name):
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    load_model(str(tmp_path))
    edit_config(tmp_path, **{name: 2**36})
    refused(tmp_path, "fetch it again")


def test_settings_that_do_not_fit_each_other(tmp_path, tiny_tokenizer):
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    edit_config(tmp_path, num_experts_per_tok=60)
    with pytest.raises(RelaxPruneError, match="could not be run"):
        check_running(load_model(str(tmp_path)))


def test_more_layers_than_tensors_can_be_are_not_made():
    with pytest.raises(RelaxPruneError, match="1041 tensors"), limited(100, 10), torch.device("meta"):
        nn.ModuleList(nn.Linear(2, 2) for _ in range(10**9))
    with limited(100, 10), torch.device("meta"):
        nn.ModuleList(nn.Linear(2, 2) for _ in range(500))


def test_the_limit_is_that_of_one_thread_and_ends():
    def other() -> None:
        nn.Linear(2**15, 2**15, device="meta")

    with limited(1, None):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(RelaxPruneError):
            other()
    other()


def test_files_without_end_and_what_is_no_file(tiny_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        folder = shutil.copytree(tiny_folder, tmp_path / f"long {name}")
        os.truncate(folder / name, 2**36)
        refused(folder, f"{name}' is damaged: it has {2**36} bytes")
    shard(tiny_folder)
    first = tiny_folder / "model-00001-of-00002.safetensors"
    first.unlink()
    os.mkfifo(first)
    refused(tiny_folder, "lacks the shard")


def test_json_files_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_MOST_BYTES", 10)
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}  ')
    assert json_files.read_json(path) == {"a": 1}
    path.write_text('{"a": 1}   ')
    with pytest.raises(RelaxPruneError, match="it has 11 bytes, of at most 10"):
        json_files.read_json(path)


@pytest.mark.parametrize("part", ["[],", "{},", "0,"])
def test_short_texts_that_take_much_memory(part):
    with pytest.raises(ValueError, match="more than 4194304 parts"):
        json_files.parse_json(f"[{part * 2**22}0]")


def test_an_optional_file_is_a_file(tmp_path):
    assert not json_files.present(tmp_path / "absent")
    (tmp_path / "link").symlink_to("nowhere")
    for place in (tmp_path, tmp_path / "link"):
        with pytest.raises(RelaxPruneError, match="should be a file"):
            json_files.present(place)


def test_loading_says_nothing_but_its_sentence(tiny_folder, capfd):
    edit_config(tiny_folder, intermediate_size=48, rope_parameters={"rope_type": "default", "rope_theta": 1.0, "x": 1})
    level = logging.getLogger("transformers").level
    refused(tiny_folder, "wrong shape")
    assert not [line for line in capfd.readouterr().err.splitlines() if line.strip() and "it/s" not in line]
    assert logging.getLogger("transformers").level == level
