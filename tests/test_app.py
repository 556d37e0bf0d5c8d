"""app.py: its options, from the command line and the environment."""

import os
import subprocess
import sys

import pytest
from places import REPOSITORY
from warm import ran

import app

OPERATION = {
    "questions_per_hour": None, "pictures_per_day": None, "tokens_per_day": None, "streams_per_address": None,
    "share_budget": None, "trusted_proxy": (), "metrics": False, "metrics_token": None, "log_format": "text",
    "trace_to": None, "drain_seconds": 8,
}  # fmt: skip


def test_defaults_are_the_demo_model_on_this_machine_only():
    settings = app.parse([], {})
    expected = {
        "model": None, "mmproj": None, "adapter": (), "merge_adapter": False, "also": (),
        "keep": 1, "at_once": 8, "int4": False, "device": "auto",
        "dtype": "auto", "host": None, "port": None, "share": False, "mcp": False, "auth": None,
        "forgetful": False, "frame_ancestors": "", "api_key": (), "find": False, "look_in": (),
        "openai": None, "openai_model": None, "openai_key": None,
        **OPERATION,
        "replicas": None, "min_replicas": None, "max_replicas": None, "ray": None, "print_config": None,
        "tensor_parallel": None,
    }  # fmt: skip
    assert vars(settings) == expected


def test_each_option_can_be_given():
    line = "--model some/folder --also a/b --also c --keep 2 --int4 --device cpu --dtype float32 --host 0.0.0.0 "
    line += "--adapter an/adapter --adapter c --merge-adapter --find --look-in a --look-in b "
    line += "--mmproj m.gguf --port 8000 --share --mcp --auth me:secret --forgetful --frame-ancestors https://*.a.org:*"
    line += " --api-key one-of-our-keys --api-key 12345678"
    line += " --openai http://there/v1 --openai-model m --openai-key secret"
    settings = app.parse(line.split(), {})
    assert (settings.openai, settings.openai_model, settings.openai_key) == ("http://there/v1", "m", "secret")
    assert (settings.forgetful, settings.frame_ancestors) == (True, "https://*.a.org:*")
    assert (settings.model, settings.int4, settings.device, settings.dtype) == ("some/folder", True, "cpu", "float32")
    assert (settings.host, settings.port, settings.share, settings.mcp) == ("0.0.0.0", 8000, True, True)
    assert (settings.also, settings.keep) == (("a/b", "c"), 2)
    assert settings.auth == ("me", "secret")
    assert (settings.mmproj, settings.api_key) == ("m.gguf", ("one-of-our-keys", "12345678"))
    assert (settings.adapter, settings.merge_adapter) == (("an/adapter", "c"), True)
    assert (settings.find, settings.look_in) == (True, ("a", "b"))


def test_each_option_can_come_from_the_environment():
    environment = {
        "GEMMA_MODEL": "google/gemma-3-4b-it", "GEMMA_INT4": "yes", "GEMMA_DEVICE": "cuda", "GEMMA_DTYPE": "bfloat16",
        "GEMMA_HOST": "0.0.0.0", "GEMMA_PORT": "7000", "GEMMA_SHARE": "0", "GEMMA_AUTH": "me:a:b",
        "GEMMA_ALSO": "a/b, c d", "GEMMA_KEEP": "3", "GEMMA_MMPROJ": "m.gguf", "GEMMA_AT_ONCE": "2",
        "GEMMA_MCP": "true", "GEMMA_FORGETFUL": "on", "GEMMA_FRAME_ANCESTORS": "none",
        "GEMMA_API_KEY": "one-of-our-keys,12345678",
        "GEMMA_ADAPTER": "an/adapter,c", "GEMMA_MERGE_ADAPTER": "1",
        "GEMMA_FIND": "1", "GEMMA_LOOK_IN": "a,b c",
        "GEMMA_OPENAI": "http://there", "GEMMA_OPENAI_MODEL": "m", "GEMMA_OPENAI_KEY": "secret",
        "GEMMA_REPLICAS": "2", "GEMMA_MIN_REPLICAS": "1", "GEMMA_MAX_REPLICAS": "4", "GEMMA_RAY": "auto",
        "GEMMA_PRINT_CONFIG": "serve", "GEMMA_TENSOR_PARALLEL": "2",
    }  # fmt: skip
    settings = app.parse([], environment)
    assert vars(settings) == {
        "model": "google/gemma-3-4b-it", "mmproj": "m.gguf", "int4": True, "device": "cuda", "dtype": "bfloat16",
        "host": "0.0.0.0", "port": 7000, "share": False, "mcp": True, "auth": ("me", "a:b"),
        "also": ("a/b", "c d"), "keep": 3, "at_once": 2, "forgetful": True, "frame_ancestors": "'none'",
        "api_key": ("one-of-our-keys", "12345678"),
        "adapter": ("an/adapter", "c"), "merge_adapter": True,
        "find": True, "look_in": ("a", "b c"),
        "openai": "http://there", "openai_model": "m", "openai_key": "secret",
        **OPERATION,
        "replicas": 2, "min_replicas": 1, "max_replicas": 4, "ray": "auto", "print_config": "serve",
        "tensor_parallel": 2,
    }  # fmt: skip


def test_what_an_operator_sets_is_read():
    line = "--questions-per-hour 30 --pictures-per-day 0 --streams-per-address 2 --trusted-proxy 10.1.2.3/8 "
    line += "--metrics --metrics-token 12345678 --log-format json --drain-seconds 0 --trace-to http://127.0.0.1:4318/v1/traces"
    settings = app.parse(
        line.split(),
        {"GEMMA_SHARE_BUDGET": "500 questions, 9 tokens", "GEMMA_TRUSTED_PROXY": "::1", "GEMMA_SHARE": "1"},
    )
    assert (settings.questions_per_hour, settings.pictures_per_day, settings.streams_per_address) == (30, 0, 2)
    assert settings.share_budget == {"questions": 500, "tokens": 9}
    assert (settings.trusted_proxy, settings.drain_seconds) == (("10.0.0.0/8",), 0)
    assert (settings.metrics, settings.metrics_token, settings.log_format) == (True, "12345678", "json")
    told = [(one.what, one.most, one.period_s, one.together) for one in app.allowances(settings, {})]
    assert told == [
        ("questions", 30, 3600, False), ("streams", 2, None, False),
        ("questions", 500, None, True), ("tokens", 9, None, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "environment", "questions"),
    [
        ("", {}, None), ("--host 0.0.0.0", {}, None), ("--share", {}, 240), ("", {"SPACE_ID": "me/space"}, 240),
        ("--share --questions-per-hour 0", {}, None), ("--questions-per-hour 5", {}, 5),
    ],
)  # fmt: skip
def test_questions_are_limited_where_strangers_come_and_nothing_else_was_said(line, environment, questions):
    limits = app.allowances(app.parse(line.split(), environment), environment)
    assert [limit.most for limit in limits] == ([] if questions is None else [questions])


@pytest.mark.parametrize(
    ("line", "knows", "behind"),
    [
        ("", False, False), ("--host 0.0.0.0", True, False), ("--share", False, False),
        ("--trusted-proxy 127.0.0.1", True, True), ("--share --trusted-proxy ::1", True, True),
    ],
)  # fmt: skip
def test_an_address_is_believed_where_a_proxy_is_named_or_none_can_be_between(line, knows, behind):
    operation = app._operation(app.parse(line.split(), {}))
    assert (operation.knows_addresses, operation.behind_proxy, operation.metrics) == (knows, behind, None)
    assert bool(operation.trusted_proxies) is ("--trusted-proxy" in line)


def test_the_command_line_wins():
    assert app.parse(["--port", "8001"], {"GEMMA_PORT": "8000"}).port == 8001
    assert app.parse(["--int4"], {"GEMMA_INT4": "0"}).int4 is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "tpu"], "--device: 'tpu' is not one of auto, cuda, mps, cpu"),
        (["--dtype", "float16"], "--dtype: 'float16' is not one of auto, bfloat16, float32"),
        (["--port", "70000"], "--port: '70000' is not a port"),
        (["--api-key", "secret"], "--api-key: must have 8 characters or more, without spaces"),
        (["--auth", "nobody"], "--auth: must have the form USER:PASSWORD"),
        (["--frame-ancestors", "https://a.org; script-src *"], "names no sites"),
        (["--frame-ancestors", "* https://a.org"], "names no sites"),
        (["--model", " "], "--model: is empty"),
        (["--also", ""], "--also: is empty"),
        (["--keep", "0"], "--keep: '0' is not a whole number of 1 or more"),
        (["--prot", "1"], "--prot"),
        (["--share-budget", "5 answers"], "'5 answers' is no budget"),
        (["--share-budget", "5 tokens, 5 tokens"], "is no budget"),
        (["--share-budget", "0 questions"], "is no budget"),
        (["--trusted-proxy", "nginx"], "'nginx' is no address or network"),
        (["--tokens-per-day", "-1"], "'-1' is not a whole number; 0 is no limit"),
        (["--trace-to", "collector:4318"], "--trace-to: is no address"),
    ],
)
def test_a_bad_option_is_named(arguments, says, capsys):
    with pytest.raises(SystemExit):
        app.parse(arguments, {})
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GEMMA_INT4", "perhaps"), ("GEMMA_DEVICE", "tpu"), ("GEMMA_DTYPE", "half"), ("GEMMA_PORT", "web"),
        ("GEMMA_SHARE", ""), ("GEMMA_AUTH", "secret-without-user"),
        ("GEMMA_ALSO", "a/b,"), ("GEMMA_KEEP", "some"),
    ],
)  # fmt: skip
def test_a_bad_variable_is_named(variable, value, capsys):
    with pytest.raises(SystemExit):
        app.parse([], {variable: value})
    message = capsys.readouterr().err
    assert f"environment variable {variable}" in message
    if variable == "GEMMA_AUTH":
        assert "secret-without-user" not in message


@pytest.mark.parametrize(
    ("line", "environment", "here"),
    [
        ("", {}, True), ("--host localhost", {}, True), ("--host 127.0.0.2", {}, True), ("--host ::1", {}, True),
        ("--host 0.0.0.0", {}, False), ("--host 192.168.0.7", {}, False), ("--host example.org", {}, False),
        ("--trusted-proxy 127.0.0.1", {}, False), ("--share", {}, False), ("", {"SPACE_ID": "me/space"}, False),
        ("", {"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        ("--host 127.0.0.1", {"GRADIO_SERVER_NAME": "0.0.0.0"}, True), ("", {"GEMMA_SHARE": "1"}, False),
    ],
)  # fmt: skip
def test_whether_strangers_reach_the_page(line, environment, here):
    assert app.listens_here_only(app.parse(line.split(), environment), environment) is here


OFFERED = ("ggml-org/gemma-3-4b-it-GGUF:gemma-3-4b-it-Q4_K_M.gguf", "google/gemma-3-4b-it")  # the ungated one first


@pytest.mark.parametrize(
    ("line", "also"),
    [
        ("app.py", OFFERED), ("app.py --also a/b", ("a/b", *OFFERED)),
        ("app.py --model a/b", ()), ("app.py --host 0.0.0.0", ()), ("app.py --share --also c", ("c",)),
    ],
)  # fmt: skip
def test_the_published_model_is_offered_only_where_no_model_is_named_and_no_stranger_comes(line, also, monkeypatch):
    built = []

    class Page:
        share_url = desk = None

        def launch(self, **options):
            built.append(options)

        def block_thread(self):
            built.append("served")

    monkeypatch.setattr(app, "build", lambda settings: built.append(settings.also) or Page())
    monkeypatch.setattr("sys.argv", line.split())
    app.main()
    assert (built[0], built[-1]) == (also, "served")


@pytest.mark.parametrize(
    ("line", "owned"),
    [
        ("app.py", True), ("app.py --model a/b", True), ("app.py --host 0.0.0.0", False), ("app.py --share", False),
        ("app.py --auth me:secret", False), ("app.py --frame-ancestors https://a.org", False),
    ],
)  # fmt: skip
def test_the_machines_models_are_shown_only_to_whoever_started_the_program(line, owned, monkeypatch):
    built = []

    class Page:
        share_url = desk = None

        def launch(self, **options):
            built.append(options["auth"])

        def block_thread(self):
            pass

    monkeypatch.setattr(app, "build", lambda settings: built.append(settings.owned) or Page())
    monkeypatch.setattr("sys.argv", line.split())
    app.main()
    assert built == [owned, ("me", "secret") if "--auth" in line else None]


def test_the_models_that_are_found_are_printed_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    settings = app.parse(["--look-in", str(REPOSITORY / "assets" / "demo_model"), "--device", "cpu"], {})
    app.print_models(settings)
    printed = capsys.readouterr().out
    assert "demo_model (safetensors, bfloat16, 26.6 MB, in a folder that was named)" in printed
    assert "Reads text and pictures. Needs 60.1 MB in float32, 41.2 MB in int4." in printed


def test_importing_the_app_loads_nothing_heavy():
    code = "import sys, app; sys.exit(' '.join({'torch', 'gradio', 'gemma3_core'} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_the_engine_refuses_ends_in_one_line():
    command = [sys.executable, "app.py", "--int4", "--device", "mps"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert is_one_line(result.returncode, result.stderr)


@pytest.mark.parametrize(
    "option",
    [
        ["--model", "no/such/folder/anywhere"],
        ["--also", "/no/such/folder"],
        ["--mcp", "--auth", "me:secret"],
        ["--share-budget", "5 questions"],
        ["--look-in", "/no/such/folder"],
        ["--openai", "http://127.0.0.1:9/v1", "--also", "a/b"],
        ["--openai", "http://127.0.0.1:9/v1", "--find"],
        ["--tensor-parallel", "2", "--device", "cpu"],
        ["--tensor-parallel", "2", "--replicas", "2", "--int4"],
        ["--openai-model", "m"],
        ["--openai-key", "secret-key"],
    ],
)
def test_so_does_each_other_refusal(option, tmp_path):
    status, _, errors = ran(REPOSITORY / "app.py", option, os.environ, tmp_path)
    assert is_one_line(status, errors)


def is_one_line(status, errors):
    return status != 0 and errors.startswith("app.py: ") and errors.count("\n") == 1


def test_the_pages_options_reach_it(monkeypatch):
    monkeypatch.setattr("components.page.build_page", lambda _models, **options: options)
    monkeypatch.setattr("gemma3_core.engine.ModelRegistry.load", lambda *_, **__: None)
    line = "--forgetful --frame-ancestors https://a.org --api-key one-of-our-keys"
    options = app.build(app.parse(line.split(), {}))
    assert (options["forgetful"], options["frame_ancestors"]) == (True, "https://a.org")
    assert options["api_keys"] == ("one-of-our-keys",)
    options = app.build(app.parse([], {}))
    assert (options["forgetful"], options["frame_ancestors"], options["api_keys"]) == (False, "", ())


def test_demo_is_built_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(app, "build", lambda settings: ("page", settings.model))
    monkeypatch.setenv("GEMMA_MODEL", "a/folder")
    try:
        assert app.demo == ("page", "a/folder")
        assert app.demo is app.demo
    finally:
        del app.demo
    with pytest.raises(AttributeError):
        app.nothing  # noqa: B018


def test_a_public_link_is_told_with_its_code(monkeypatch, capsys):
    class Page:
        share_url = "https://0123456789.gradio.live"
        desk = None

        def launch(self, **options):
            assert options["share"]

        def block_thread(self):
            assert "0123456789.gradio.live" in capsys.readouterr().out

    monkeypatch.setattr(app, "build", lambda _settings: Page())
    monkeypatch.setattr("sys.argv", ["app.py", "--share"])
    app.main()
