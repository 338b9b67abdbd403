"""Loading from the hub, through a stand-in for ``snapshot_download``: what is fetched, with which token, refusals."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from relaxprune.models.loading import LoadOptions, load_model

from ..saved_models import UP, edit_config, refused, shard

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_folder):
    """A hub that holds the tiny model, in the layout of its cache; the list holds the keywords of every call."""
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    calls = []

    def snapshot_download(name, **keywords):
        assert name == "owner/tiny"
        calls.append(keywords)
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in tiny_folder.iterdir():
            if any(file.match(pattern) for pattern in keywords["allow_patterns"]):
                (repository / "blobs" / f"blob-{file.name}").write_bytes(file.read_bytes())
                link = snapshot / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(repository / "blobs" / f"blob-{file.name}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return calls


@pytest.mark.parametrize("sharded", [False, True])
def test_hub_model(hub, tiny_folder, tiny_llama, sharded):
    if sharded:
        shard(tiny_folder)
    (tiny_folder / "README.md").write_text("---\nlicense: mit\n---\nA model\n")
    (tiny_folder / "evil.py").write_text("raise SystemExit\n")
    loaded = load_model("owner/tiny", LoadOptions(revision="main"))
    assert torch.equal(loaded.model.state_dict()[UP], tiny_llama.state_dict()[UP])
    assert loaded.commit == COMMIT and loaded.description["license"] == "mit"
    assert loaded.description["revision"] == "main"
    assert hub[0]["revision"] == "main" and hub[1]["revision"] == COMMIT  # both from one commit
    assert "*.py" not in hub[0]["allow_patterns"]
    assert all(call["token"] is False for call in hub)  # never a stored token


def test_hub_token_comes_from_the_environment_and_is_not_recorded(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    loaded = load_model("owner/tiny")
    assert all(call["token"] == "hf_secret" for call in hub)
    assert "hf_secret" not in str(loaded.description)


def test_quantised_hub_model_is_refused_before_its_weights_are_fetched(hub, tiny_folder):
    edit_config(tiny_folder, quantization_config={"quant_method": "fp8"})
    refused("owner/tiny", "quantised")
    assert len(hub) == 1


def hub_error(kind):
    error = kind.__new__(kind)
    error.args = ("foreign text\nover lines",)
    return error


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (hub_error(errors.GatedRepoError), "gated"),
        (hub_error(errors.RepositoryNotFoundError), "neither a local folder"),
        (hub_error(errors.RevisionNotFoundError), "revision 'v9' .* does not exist"),
        (errors.HFValidationError("bad id"), "neither a local folder"),
        (errors.LocalEntryNotFoundError("offline\nlong"), "hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "hub cannot be reached"),
        (ConnectionError("reset"), "hub cannot be reached"),
        (OSError("disk full\nmore"), "could not be fetched from the hub: disk full$"),
    ],
)
def test_hub_errors_are_one_sentence(monkeypatch, error, match):
    def failing(*arguments, **keywords):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    refused("owner/tiny", match, LoadOptions(revision="v9"))


def test_without_a_hub_the_answer_comes_at_once_and_hints(tmp_path):
    message = refused("smolm2-135m", "hub cannot be reached", LoadOptions(cache_dir=str(tmp_path)))
    assert "did you mean 'smollm2-135m'" in message
