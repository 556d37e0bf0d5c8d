"""A folder wins over a Hub id; what can't be had is told in words, without a stack behind it."""

import re
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import httpx

from gemma3_core.errors import CheckpointError
from gemma3_core.files import hub
from gemma3_core.files.hub import resolve_adapter, resolve_folder
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.usefixtures("no_download")
def test_an_existing_folder_wins_over_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "google" / "gemma-3-4b-it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("google/gemma-3-4b-it").resolve() == tmp_path / "google" / "gemma-3-4b-it"


@pytest.mark.usefixtures("no_download")
def test_a_folder_may_be_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_folder("~/model") == tmp_path / "model"


@pytest.mark.usefixtures("no_download")
def test_a_file_is_not_a_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve_folder(path)


def assert_plain(error: CheckpointError, *words: str) -> None:
    """In words, and with no trace of another library's error behind it."""
    assert all(word in str(error) for word in words), str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert "Traceback" not in str(error)
    assert "http" not in str(error)


def test_a_hub_id_that_is_not_there_offline():
    with pytest.raises(CheckpointError) as error:
        resolve_folder("nobody/such-a-model")
    assert_plain(error.value, "nobody/such-a-model", "could not be downloaded", "give a folder")


def test_loading_a_model_by_an_id_that_is_not_there_says_the_same():
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        Gemma3ForConditionalGeneration.from_pretrained("nobody/such-a-model")


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "what is this?", "-x-/..y"])
def test_what_is_neither_folder_nor_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        resolve_folder(name)
    assert_plain(error.value, name, "neither a folder")


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api/models/a/b"))


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (hub_errors.GatedRepoError("403", response=response(403)), ["license", "HF_TOKEN"]),
        (hub_errors.RepositoryNotFoundError("404", response=response(404)), ["no public Hub repository", "HF_TOKEN"]),
        (hub_errors.RevisionNotFoundError("404", response=response(404)), ["no revision 'v9'"]),
        (hub_errors.HfHubHTTPError("500", response=response(500)), ["could not be downloaded", "network"]),
        (hub_errors.HfHubHTTPError("401", response=response(401)), ["does not let you read", "401", "HF_TOKEN"]),
        (hub_errors.HfHubHTTPError("403", response=response(403)), ["does not let you read", "403", "HF_TOKEN"]),
        (hub_errors.OfflineModeIsEnabled("offline"), ["could not be downloaded", "network"]),
        (hub_errors.LocalEntryNotFoundError("offline"), ["could not be downloaded", "network"]),
        (httpx.ReadError("cut off in the middle"), ["could not be downloaded", "network"]),
        (httpx.ProxyError("no proxy"), ["could not be downloaded", "network"]),
        (httpx.RemoteProtocolError("closed"), ["could not be downloaded", "network"]),
        (OSError("disk full"), ["could not be downloaded"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_failure_of_a_download_says_what_to_do(monkeypatch, raised, words):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as error:
        resolve_folder("some/model", revision="v9")
    assert_plain(error.value, "some/model", *words)


def test_only_what_is_read_is_fetched_and_never_pickles(monkeypatch, tmp_path):
    asked = {}
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()

    def record(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    assert resolve_folder("some/model", revision="main", token="secret") == tmp_path
    assert (asked["repo_id"], asked["revision"], asked["token"]) == ("some/model", "main", "secret")
    files = {"config.json": True, "model-00001-of-00002.safetensors": True, "chat_template.jinja": True}
    files |= {"pytorch_model.bin": False, "model.gguf": False, "run.py": False, "tokenizer.model": False}
    assert {f: any(fnmatch(f, pattern) for pattern in asked["allow_patterns"]) for f in files} == files


def test_without_weights_only_small_files_are_fetched(monkeypatch, tmp_path):
    asked = {}
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()

    def record(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    resolve_folder("some/model", weights=False)
    files = {"config.json": True, "tokenizer.json": True, "chat_template.jinja": True, "model.safetensors": False}
    assert {f: any(fnmatch(f, pattern) for pattern in asked["allow_patterns"]) for f in files} == files


def test_of_an_adapter_only_its_config_and_its_weights_are_fetched(monkeypatch, tmp_path):
    asked = {}

    def record(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    assert resolve_adapter("some/adapter", revision="v2") == tmp_path
    assert asked == {
        "repo_id": "some/adapter", "revision": "v2",
        "allow_patterns": ["adapter_config.json", "adapter_model.safetensors"],
    }  # fmt: skip


def test_an_adapter_that_is_not_there_says_what_to_do():
    with pytest.raises(CheckpointError) as error:
        resolve_adapter("some/adapter")
    assert_plain(error.value, "some/adapter", "not on this machine")


REPOSITORY_FILES = (
    "README.md", "gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q8_0.gguf", "gemma-3-4b-it-f16-00001-of-00002.gguf",
    "gemma-3-4b-it-f16-00002-of-00002.gguf", "mmproj-model-Q8_0.gguf", "mmproj-model-f16.gguf",
)  # fmt: skip


@pytest.fixture
def gguf_repository(monkeypatch, tmp_path):
    """A repository of GGUF files, as ungated copies are; gives the patterns that are downloaded from it."""
    downloads = []

    def download(repo_id, allow_patterns, **_):
        assert repo_id == "some/model-GGUF"
        downloads.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: list(REPOSITORY_FILES))
    monkeypatch.setattr(hub, "find_checkpoint", lambda model, mmproj: (model, mmproj))
    monkeypatch.setattr(hub, "folder_of", lambda found: found)
    return downloads


@pytest.mark.parametrize(
    ("asked", "model", "files"),
    [
        ("", "gemma-3-4b-it-Q4_K_M.gguf", 1),
        (":q8_0", "gemma-3-4b-it-Q8_0.gguf", 1),
        (":gemma-3-4b-it-Q8_0.gguf", "gemma-3-4b-it-Q8_0.gguf", 1),
        (":F16", "gemma-3-4b-it-f16-00001-of-00002.gguf", 2),
    ],
)
def test_a_file_of_a_gguf_repository(gguf_repository, tmp_path, asked, model, files):
    found = resolve_folder(f"some/model-GGUF{asked}")
    assert found == (tmp_path / model, tmp_path / "mmproj-model-f16.gguf")
    assert gguf_repository[-1][0] == model
    assert len(gguf_repository[-1]) == files + 1


@pytest.mark.usefixtures("gguf_repository")
def test_a_file_that_a_gguf_repository_does_not_have():
    with pytest.raises(CheckpointError) as error:
        resolve_folder("some/model-GGUF:Q2_K")
    told = "some/model-GGUF has no GGUF file Q2_K. Name one of these after a colon: .*Q4_K_M.gguf, "
    assert re.match(told, str(error.value))


def test_offline_a_gguf_repository_is_what_the_cache_has_of_it(monkeypatch, gguf_repository, tmp_path):
    (tmp_path / "gemma-3-4b-it-Q8_0.gguf").touch()
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: 1 / 0)
    assert resolve_folder("some/model-GGUF") == (tmp_path / "gemma-3-4b-it-Q8_0.gguf", None)
    assert gguf_repository[-1] == ["gemma-3-4b-it-Q8_0.gguf"]


def test_a_folder_without_a_checkpoint_says_which_file_is_missing_and_not_where(tmp_path):
    with pytest.raises(CheckpointError) as error:
        Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    assert_plain(error.value, "config.json is missing", "give the folder that holds it")
    assert str(tmp_path) not in str(error.value)
