"""Downloads against a Hub on this machine: what breaks off is continued, and what can't be had is said in words."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from local_hub import COMMIT, LocalHub, local_hub

from gemma3_core import AutoModelForCausalLM, Gemma3ForCausalLM
from gemma3_core.engine import Engine, ModelEntry, ModelRegistry
from gemma3_core.errors import CheckpointError, Gemma3Error, StoppedError
from gemma3_core.files import download
from gemma3_core.files.download import Watch, fetch
from gemma3_core.files.hub import resolve_folder

REPO, GATED = "somebody/model", "google/gated"
WEIGHTS = os.urandom(1_500_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": os.urandom(50_000)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSE_S", 0.01)
    with local_hub() as running, running.used(tmp_path / "cache"):
        from local_hub import Repository

        running.repositories = {REPO: Repository(dict(FILES)), GATED: Repository(dict(FILES), token="secret")}
        yield running


@pytest.fixture
def blobs(tmp_path):
    return tmp_path / "cache" / "models--somebody--model" / "blobs"


def partials(blobs: Path) -> list[int]:
    return [path.stat().st_size for path in blobs.glob("*.incomplete")]


def test_a_repository_is_downloaded_once_and_told_on_the_way(hub: LocalHub):
    told: list[str] = []
    hub.pause_s = 0.05
    folder = resolve_folder(REPO, watch=Watch(lambda text, _share: told.append(text)))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder.name, sorted(path.name for path in folder.iterdir())) == (
        COMMIT,
        ["config.json", "model.safetensors"],
    )
    assert told
    assert all(text.startswith("Downloading: ") and " of 1.5 MB" in text for text in told)
    assert resolve_folder(REPO, watch=Watch()) == folder
    assert hub.ranges == ["model.safetensors from 0"]


def test_checkpoints_in_a_repositorys_folders_are_left_out(hub: LocalHub):
    """Trainers upload checkpoint-500/… beside the model; transformers reads the top level alone."""
    told: list[str] = []
    hub.pause_s = 0.05
    for name in ("checkpoint-500/model.safetensors", "checkpoint-500/config.json", "onnx/tokenizer.json"):
        hub.repositories[REPO].files[name] = os.urandom(900_000)
    folder = resolve_folder(REPO, watch=Watch(lambda text, _share: told.append(text)))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert hub.ranges == ["model.safetensors from 0"]
    assert all(" of 1.5 MB" in text for text in told)


def test_a_config_beside_gguf_files_is_no_checkpoint(hub: LocalHub, blobs: Path, monkeypatch):
    """Model and processor are of the same files: the config alone is no tokenizer."""
    monkeypatch.setattr("gemma3_core.files.hub.find_checkpoint", lambda model, _mmproj: model)
    monkeypatch.setattr("gemma3_core.files.hub.folder_of", lambda found: found)
    files = hub.repositories[REPO].files
    del files["model.safetensors"]
    files["gemma-Q4_0.gguf"] = os.urandom(30_000)
    for weights in (True, False):
        assert resolve_folder(REPO, weights=weights).name == "gemma-Q4_0.gguf"
    hub.down = True
    assert resolve_folder(REPO, weights=False).name == "gemma-Q4_0.gguf"
    hub.down = False
    files["model.safetensors"] = WEIGHTS
    folder = blobs.parent / "snapshots" / COMMIT
    assert resolve_folder(REPO, weights=False) == resolve_folder(REPO) == folder
    assert resolve_folder(f"{REPO}:Q4_0").name == "gemma-Q4_0.gguf"


def test_a_config_alone_is_read_without_a_network(hub: LocalHub, blobs: Path):
    folder = resolve_folder(REPO, weights=False)
    hub.down = True
    assert resolve_folder(REPO, weights=False) == folder == blobs.parent / "snapshots" / COMMIT


def _load_in_registry(repo: str) -> None:
    models = ModelRegistry.load(None, device="cpu")
    entry = models.offer(ModelEntry("another", repo, from_hub=True))
    for _ in models.prepare(entry.name):
        pass


@pytest.mark.parametrize(
    "load",
    [AutoModelForCausalLM.from_pretrained, Gemma3ForCausalLM.from_pretrained, Engine.load, _load_in_registry],
    ids=["auto class", "class", "engine", "registry"],
)
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": "gemma3_text", "quantization_config": {"quant_method": "bitsandbytes"}}, "by 'bitsandbytes'"),
    ],
)
def test_what_can_not_run_is_refused_before_its_weights_are_downloaded(hub: LocalHub, load, config, says):
    hub.repositories[REPO].files["config.json"] = json.dumps(config).encode()
    with pytest.raises(Gemma3Error, match=says):
        load(REPO)
    assert not hub.ranges


def test_a_connection_that_breaks_is_opened_again_where_it_was(hub: LocalHub):
    hub.breaks = [400_000, 300_000]
    assert (resolve_folder(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges == [f"model.safetensors from {begin}" for begin in (0, 400_000, 700_000)]


def test_what_broke_off_stays_and_another_start_continues_it(hub: LocalHub, blobs: Path):
    hub.breaks = [600_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError) as error:
        resolve_folder(REPO)
    assert str(error.value) == (
        "The connection to the Hub broke after 600 kB of 1.5 MB. What has arrived is kept: start again, and the "
        "download continues."
    )
    assert partials(blobs) == [600_000]
    hub.ranges.clear()
    assert (resolve_folder(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert (hub.ranges, partials(blobs)) == (["model.safetensors from 600000"], [])


def test_a_server_without_ranges_begins_again(hub: LocalHub):
    hub.breaks, hub.ignores_ranges = [600_000], True
    assert (resolve_folder(REPO) / "model.safetensors").read_bytes() == WEIGHTS


def test_stopped_it_keeps_what_has_arrived(hub: LocalHub, blobs: Path):
    watch = Watch()
    watch.tell = lambda _text, _share: watch.stop.set()
    hub.pause_s = 0.1
    with pytest.raises(StoppedError, match="What has arrived is kept"):
        resolve_folder(REPO, watch=watch)
    assert 0 < partials(blobs)[0] < len(WEIGHTS)
    assert resolve_folder(REPO, watch=Watch()).name == COMMIT


def test_a_damaged_file_is_not_kept(hub: LocalHub, blobs: Path):
    hub.damages = True
    with pytest.raises(CheckpointError, match=r"model.safetensors arrived damaged, and was deleted\. Start"):
        resolve_folder(REPO)
    assert list(blobs.iterdir()) == []


Disk = namedtuple("Disk", "total used free")


def test_a_disk_without_room_is_told_before_anything_is_downloaded(hub: LocalHub, blobs: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, 80_000_000))
    with pytest.raises(CheckpointError) as error:
        resolve_folder(REPO)
    assert str(error.value) == (
        "somebody/model needs 101.5 MB on the disk, where 80.0 MB are free. Free some space, or set HF_HOME to a "
        "folder on another disk."
    )
    assert hub.ranges == []
    assert not blobs.exists() or not any(blobs.iterdir())


def test_what_has_arrived_needs_no_further_room(hub: LocalHub, monkeypatch):
    hub.breaks = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError, match="broke"):
        resolve_folder(REPO)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, 101_000_000))
    assert resolve_folder(REPO).name == COMMIT


def test_a_disk_that_fills_up_meanwhile(hub: LocalHub, monkeypatch):
    append = download._append

    def full(content, *rest):
        content.write(WEIGHTS[:500_000])
        rest[-1].have(500_000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_append", full)
    with pytest.raises(CheckpointError) as error:
        resolve_folder(REPO)
    assert str(error.value) == (
        "The disk is full: 500 kB of 1.5 MB have arrived and are kept. Free 101.0 MB, and start again."
    )
    monkeypatch.setattr(download, "_append", append)
    assert (resolve_folder(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges == ["model.safetensors from 500000"]


def test_a_gated_repository_says_what_to_do_in_two_sentences(hub: LocalHub, tmp_path):
    with pytest.raises(CheckpointError) as error:
        resolve_folder(GATED)
    assert str(error.value) == (
        "google/gated is gated: accept its license at huggingface.co/google/gated, then run `hf auth login` or set "
        "HF_TOKEN. ggml-org/gemma-3-4b-it-GGUF is a copy of Gemma 3 4B that needs neither."
    )
    with pytest.raises(CheckpointError, match="is gated"):
        resolve_folder(GATED, token="of somebody who has not accepted")
    assert hub.ranges == []
    with hub.used(tmp_path / "cache", token="secret"):
        assert (resolve_folder(GATED) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("hub")
def test_a_repository_that_does_not_exist():
    with pytest.raises(CheckpointError) as error:
        resolve_folder("somebody/no-such-model")
    assert str(error.value) == (
        "There is no folder and no public Hub repository named somebody/no-such-model. Check the spelling, or set "
        "HF_TOKEN."
    )


def test_without_a_network_what_is_here_is_used_and_else_the_sentence_says_so(hub: LocalHub):
    folder = resolve_folder(REPO)
    hub.down = True
    assert resolve_folder(REPO) == folder
    with pytest.raises(
        CheckpointError, match=r"is not on this machine and could not be downloaded\. Check the network"
    ):
        resolve_folder("somebody/other")


@pytest.mark.usefixtures("hub")
def test_where_there_are_no_links_the_snapshot_holds_the_file_itself(blobs: Path, monkeypatch):
    """As on Windows: a link to a blob would become a copy, and twice the size."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda _cache=None: False)
    file = resolve_folder(REPO) / "model.safetensors"
    assert not file.is_symlink()
    assert file.read_bytes() == WEIGHTS
    assert not [path for path in blobs.iterdir() if path.stat().st_size > 1000]


@pytest.mark.usefixtures("hub")
def test_a_folder_that_can_not_be_written_to(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download, "_fetch_file", refuse)
    with pytest.raises(CheckpointError, match=r"can't be written to the Hub's cache\. Set HF_HOME"):
        resolve_folder(REPO)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (31, "35 s"), (59, "60 s"), (100, "2 min"), (3600, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_the_time_left_is_rounded(seconds, words):
    assert download._duration(seconds) == words


def test_offline_and_from_the_cache_alone_nothing_is_asked_for(hub: LocalHub):
    fetch(REPO, ["*"], {"local_files_only": True}, Watch())
    assert hub.ranges == []
