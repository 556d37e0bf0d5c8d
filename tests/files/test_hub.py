"""A folder wins over a Hub id; what can't be had is told in words, without a stack behind it."""

from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import httpx

from gemma3_core.errors import CheckpointError
from gemma3_core.files.hub import resolve_folder
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
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
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
        (hub_errors.GatedRepoError("403", response=response(403)), ["licence", "HF_TOKEN"]),
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

    def record(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    resolve_folder("some/model", weights=False)
    files = {"config.json": True, "tokenizer.json": True, "chat_template.jinja": True, "model.safetensors": False}
    assert {f: any(fnmatch(f, pattern) for pattern in asked["allow_patterns"]) for f in files} == files


def test_a_folder_without_a_checkpoint_says_which_file_is_missing_and_not_where(tmp_path):
    with pytest.raises(CheckpointError) as error:
        Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    assert_plain(error.value, "config.json is missing", "give the folder that holds it")
    assert str(tmp_path) not in str(error.value)
