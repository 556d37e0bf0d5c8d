"""Starts the app: `python app.py`, with options on the command line or in the environment."""

import argparse
import ipaddress
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.serving.server import Page

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
LOG_FORMATS = ("text", "json")
STRANGERS_QUESTIONS = 240
"""Questions of a visitor in an hour, where anybody may come and nothing else was said: one every 15 seconds."""
CONFIGS = ("serve", "kuberay")


@dataclass(frozen=True)
class Option:
    """One setting: `--name` on the command line or GEMMA_NAME in the environment."""

    name: str
    read: Callable[[str], Any]
    help: str
    default: Any = None
    metavar: str | None = None
    many: bool = False
    """The option may be repeated; in the environment, commas separate the values."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"GEMMA_{self.name.upper()}"


def read_text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    return value.strip()


def read_switch(value: str) -> bool:
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{value!r} is not 1 or 0 (true/false, yes/no and on/off also work)")


def read_port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port; use a number from 1 to 65535")
    return int(value)


def read_count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of 1 or more")
    return int(value)


def read_limit(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number; 0 is no limit")
    return int(value)


def read_budget(value: str) -> dict[str, int]:
    """ "500 questions, 200000 tokens" -> {"questions": 500, "tokens": 200000}."""
    parts = [part.split() for part in value.split(",")]
    numbered = [part for part in parts if len(part) == 2 and part[0].isdecimal() and int(part[0])]
    amounts = {what: int(most) for most, what in numbered}
    if len(amounts) != len(parts) or not amounts.keys() <= {"questions", "pictures", "tokens"}:
        raise argparse.ArgumentTypeError(
            f'{value[:80]!r} is no budget; write for example "500 questions" or "500 questions, 100 pictures, '
            '200000 tokens"'
        )
    return amounts


def read_networks(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value.strip(), strict=False))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{value[:80]!r} is no address or network; write for example 10.0.0.7 or 10.0.0.0/8"
        ) from None


def read_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
        raise argparse.ArgumentTypeError("is no address; write for example http://127.0.0.1:4318/v1/traces")
    return value


def read_login(value: str) -> tuple[str, str]:
    user, colon, password = value.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("must have the form USER:PASSWORD")  # the value stays out of logs
    return user, password


def read_key(value: str) -> str:
    if not re.fullmatch(r"[!-~]{8,}", value):
        raise argparse.ArgumentTypeError("must have 8 characters or more, without spaces")  # it stays out of logs
    return value


def read_sources(value: str) -> str:
    """Sources of the policy's frame-ancestors; anything else in there could add to the policy."""
    sources = value.split()
    if sources in (["*"], ["none"]):
        return "*" if sources == ["*"] else "'none'"
    if not sources or not all(
        re.fullmatch(r"https?://(\*\.)?[A-Za-z0-9.-]+(:(\d+|\*))?", source) for source in sources
    ):
        raise argparse.ArgumentTypeError(
            f'{value[:80]!r} names no sites; write for example "https://example.org https://*.example.org", * or none'
        )
    return " ".join(sources)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A reader that accepts only these words."""

    def read(value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return read


OPTIONS = (
    Option("model", read_text, "a Gemma 3 checkpoint (default: the demo model in assets)", metavar="SOURCE"),
    Option("mmproj", read_text, "the file that reads pictures for a GGUF model (default: the one beside it)"),
    Option("adapter", read_text, "a LoRA adapter for the model: a folder or Hub id", (), "SOURCE", many=True),
    Option("merge_adapter", read_switch, "make the adapter part of the weights", default=False),
    Option("also", read_text, "another model that visitors may choose", (), "SOURCE", many=True),
    Option("keep", read_count, "how many of these stay in memory besides the first (default: 1)", default=1),
    Option("at_once", read_count, "how many questions are answered at once (default: 8)", default=8),
    Option("replicas", read_count, "how many engines answer, each in a process of its own (needs Ray)"),
    Option("min_replicas", read_count, "at least so many, where their number follows the questions"),
    Option("max_replicas", read_count, "at most so many, where their number follows the questions"),
    Option("ray", read_text, "the address of a Ray cluster whose machines answer, or auto", metavar="ADDRESS"),
    Option("print_config", one_of(CONFIGS), "print the replicas as a file for `serve deploy` or KubeRay, and end"),
    Option("tensor_parallel", read_count, "how many GPUs share the model's layers, a process each", metavar="GPUS"),
    Option("int4", read_switch, "answer with int4 weights: less memory, a little less exact", default=False),
    Option("device", one_of(DEVICES), f"{', '.join(DEVICES)} (default: auto)", default="auto"),
    Option("dtype", one_of(DTYPES), f"{', '.join(DTYPES)} (default: auto)", default="auto"),
    Option("host", read_text, "address to listen on (default: this machine only)"),
    Option("port", read_port, "default: the first free one from 7860 on"),
    Option("share", read_switch, "make a public link that works for up to a week", default=False),
    Option("forgetful", read_switch, "keep no conversations in visitors' browsers", default=False),
    Option("find", read_switch, "list the models of llama.cpp and LM Studio on this machine too", default=False),
    Option("look_in", read_text, "a folder whose models are listed on the page", (), "FOLDER", many=True),
    Option("frame_ancestors", read_sources, "the sites that may show the page in a frame", "", "SITES"),
    Option("mcp", read_switch, "serve the question as a tool for programs that speak MCP", default=False),
    Option("api_key", read_key, "a key that programs must send to /v1/, OpenAI's interface", (), "KEY", many=True),
    Option(
        "openai", read_text, "a server of OpenAI's interface that answers instead (vLLM, llama.cpp, …)", None, "URL"
    ),
    Option("openai_model", read_text, "the server's model (default: its first)", metavar="NAME"),
    Option("openai_key", read_text, "the server's API key", metavar="KEY"),
    Option("auth", read_login, "the login that the page asks for", metavar="USER:PASSWORD"),
    Option("questions_per_hour", read_limit, "a visitor's questions in an hour (with --share or on a Space: 240)"),
    Option("pictures_per_day", read_limit, "a visitor's pictures in a day"),
    Option("tokens_per_day", read_limit, "a visitor's tokens in a day, read and written"),
    Option("streams_per_address", read_limit, "answers that are written to one address at the same time"),
    Option("share_budget", read_budget, "what all who have the public link may use of it in all", metavar="BUDGET"),
    Option("trusted_proxy", read_networks, "a proxy that tells visitors' addresses", (), "NETWORK", many=True),
    Option("metrics", read_switch, "serve figures for Prometheus to this machine at /metrics", default=False),
    Option("metrics_token", read_key, "serve them to whoever sends this token instead", metavar="TOKEN"),
    Option("log_format", one_of(LOG_FORMATS), "text, or json with a line for each question", default="text"),
    Option("trace_to", read_address, "a collector that gets OpenTelemetry's spans over HTTP", metavar="ADDRESS"),
    Option("drain_seconds", read_limit, "how long SIGTERM lets running answers go on (default: 8)", default=8),
)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Reads the settings: the command line wins over the environment, the environment over the defaults.

    An invalid value ends the program with a message that names its option or variable.
    """
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Answers questions about pictures, and shows what the model saw. SOURCE is a folder, a GGUF file, "
        "a Hub id, or OWNER/REPO:FILE for a GGUF file on the Hub.",
        epilog="Each option can also be set in the environment: GEMMA_MODEL, GEMMA_INT4, and so on.",
    )
    for option in OPTIONS:
        if option.read is read_switch:
            parser.add_argument(option.flag, action="store_const", const=True, help=option.help)
        elif option.many:
            parser.add_argument(
                option.flag, action="append", type=option.read, help=option.help, metavar=option.metavar
            )
        else:
            parser.add_argument(option.flag, type=option.read, help=option.help, metavar=option.metavar)
    settings = parser.parse_args(arguments)
    for option in OPTIONS:
        if getattr(settings, option.name) is None:
            setattr(settings, option.name, _from_environment(parser, option, environment))
        elif option.many:
            setattr(settings, option.name, tuple(getattr(settings, option.name)))
    return settings


def listens_here_only(settings: argparse.Namespace, environment: Mapping[str, str]) -> bool:
    """Whether only programs on this machine can reach the page, as far as the app can tell."""
    host = settings.host or environment.get("GRADIO_SERVER_NAME") or "127.0.0.1"  # the order that Gradio uses
    from components.serving.callers import is_loopback

    # A proxy brings strangers, and its address may be this machine's.
    brought = settings.share or settings.trusted_proxy or "SPACE_ID" in environment
    return not brought and is_loopback(host.strip("[]"))


def _from_environment(parser: argparse.ArgumentParser, option: Option, environment: Mapping[str, str]) -> Any:
    value = environment.get(option.variable)
    if value is None:
        return option.default
    try:
        return tuple(map(option.read, value.split(","))) if option.many else option.read(value)
    except argparse.ArgumentTypeError as error:
        parser.error(f"environment variable {option.variable}: {error}")


def has_replicas(settings: argparse.Namespace) -> bool:
    """Whether other processes answer."""
    chosen = (settings.replicas, settings.min_replicas, settings.max_replicas, settings.ray, settings.print_config)
    return any(one is not None for one in chosen)


def replica_options(settings: argparse.Namespace) -> Any:
    """The settings as gemma3_core.replicas takes them. Raises Gemma3Error for those that exclude one another."""
    from gemma3_core.engine import Gemma3Error
    from gemma3_core.replicas.options import ReplicaOptions

    if settings.openai:
        raise Gemma3Error("--openai asks another server. Leave it out, or the replicas.")
    if settings.find or settings.look_in:
        raise Gemma3Error("--find and --look-in list one machine's models. Leave them out, or the replicas.")

    def source(name: str) -> str:
        return os.path.abspath(name) if os.path.exists(name) else name

    models = {name: getattr(settings, name) for name in ("device", "dtype", "int4", "keep", "at_once", "merge_adapter")}
    for name, value in (("model", settings.model), ("mmproj", settings.mmproj)):
        models[name] = None if value is None else source(value)
    models |= {"also": [*map(source, settings.also)], "adapters": [*map(source, settings.adapter)]}
    if settings.tensor_parallel:
        models["tensor_parallel"] = settings.tensor_parallel
    numbers = (settings.replicas, settings.min_replicas, settings.max_replicas)
    return ReplicaOptions(models, *numbers, settings.ray)


def build(settings: argparse.Namespace) -> "Page":
    """Loads the model, or starts replicas that do until `settings.until_end` is closed, and builds the page.

    Raises Gemma3Error if the checkpoint can't be used.
    """
    from components.page import build_page
    from components.serving.zero_gpu import is_zero_gpu, lender
    from gemma3_core.engine import Gemma3Error, ModelRegistry

    operation = _operation(settings)  # before the model, which can take minutes to load
    lend = lender() if is_zero_gpu(os.environ) else None
    if has_replicas(settings):
        from gemma3_core.replicas.start import replicas

        if "SPACE_ID" in os.environ or not hasattr(settings, "until_end"):
            raise Gemma3Error("A Space answers by itself. Leave out the replicas.")
        models: ModelRegistry = settings.until_end.enter_context(replicas(replica_options(settings)))
    elif settings.openai:
        models = _outside(settings)
    elif settings.openai_model or settings.openai_key:
        raise Gemma3Error("--openai-model and --openai-key belong to --openai. Name the server too, or leave them out.")
    else:
        options = (settings.device, settings.dtype, settings.int4, settings.keep, lend, settings.at_once)
        adapters = (settings.adapter, settings.merge_adapter)
        shared = settings.tensor_parallel or 1
        models = ModelRegistry.load(
            settings.model, settings.also, *options, settings.mmproj, *adapters, tensor_parallel=shared
        )
    return build_page(
        models,
        forgetful=settings.forgetful,
        frame_ancestors=settings.frame_ancestors,
        api_keys=settings.api_key,
        machine=_machine(settings) if getattr(settings, "owned", False) else None,
        operation=operation,
    )


def _outside(settings: argparse.Namespace) -> Any:
    """The models of a page whose answers come from another server; --model is for Inside."""
    from gemma3_core.engine import Engine, Gemma3Error, ModelRegistry, OutsideEngine

    of_here = ("adapter", "also", "find", "int4", "look_in", "tensor_parallel")
    if given := [f"--{name.replace('_', '-')}" for name in of_here if getattr(settings, name)]:
        raise Gemma3Error(f"--openai asks another server, and {given[0]} is for models on this machine. Leave one out.")
    local = None
    if settings.model is not None:
        local = Engine.load(settings.model, settings.device, settings.dtype, mmproj=settings.mmproj)
    there = (settings.openai, settings.openai_model, settings.openai_key)
    return ModelRegistry(OutsideEngine.connect(*there, local=local, at_once=settings.at_once))


def _machine(settings: argparse.Namespace) -> Any:
    from components.models.machine import Machine

    where = (settings.look_in, settings.find, settings.device, settings.dtype)
    return Machine(*where, offers=settings.model is None)


def _operation(settings: argparse.Namespace) -> Any:
    """How much visitors may ask, and who watches. Raises Gemma3Error where a package is missing."""
    from components.serving.desk import Operation
    from components.serving.limits import LogLimit
    from components.watch.logs import MOST_QUESTIONS, QuestionLog
    from components.watch.metrics import Metrics
    from components.watch.spans import Spans

    watchers: list[Any] = [QuestionLog(LogLimit(MOST_QUESTIONS))] if settings.log_format == "json" else []
    if settings.trace_to:
        watchers.append(Spans(settings.trace_to))
    return Operation(
        ledger=_ledger(settings),
        knows_addresses=bool(settings.trusted_proxy) or not _comes_through_tunnel(settings, os.environ),
        watchers=watchers,
        metrics=Metrics() if settings.metrics or settings.metrics_token else None,
        metrics_token=settings.metrics_token or "",
        behind_proxy=bool(settings.trusted_proxy) or "SPACE_ID" in os.environ,
        trusted_proxies=settings.trusted_proxy,
    )


def _ledger(settings: argparse.Namespace) -> Any:
    """Where visitors' questions are counted: in one place for all pages of a cluster, or here."""
    from components.serving.ledger import MemoryLedger
    from components.serving.shared_ledger import SharedLedger

    allowed = allowances(settings, os.environ)
    return SharedLedger(allowed) if settings.ray and allowed else MemoryLedger(allowed)


def _comes_through_tunnel(settings: argparse.Namespace, environment: Mapping[str, str]) -> bool:
    """Whether the address from which a request comes may be this machine's or a Space's own, whoever sent it."""
    return settings.share or "SPACE_ID" in environment or listens_here_only(settings, environment)


def allowances(settings: argparse.Namespace, environment: Mapping[str, str]) -> list[Any]:
    """How much each visitor may ask, and all who have the link together. Raises Gemma3Error for a budget without
    --share."""
    from components.serving.ledger import DAY_S, HOUR_S, Allowance
    from gemma3_core.engine import Gemma3Error

    if settings.share_budget and not settings.share:
        raise Gemma3Error("--share-budget is the budget of a public link. Give --share too, or leave it out.")
    questions = settings.questions_per_hour
    if questions is None and (settings.share or "SPACE_ID" in environment):
        questions = STRANGERS_QUESTIONS
    own = (
        Allowance("questions", questions or 0, HOUR_S),
        Allowance("pictures", settings.pictures_per_day or 0, DAY_S),
        Allowance("tokens", settings.tokens_per_day or 0, DAY_S),
        Allowance("streams", settings.streams_per_address or 0),
    )
    budget = (settings.share_budget or {}).items()
    return [
        *(allowance for allowance in own if allowance.most),
        *(Allowance(what, most, together=True) for what, most in budget),  # type: ignore[arg-type]
    ]


def print_models(settings: argparse.Namespace) -> None:
    """Prints the models on this machine. Raises Gemma3Error for a folder that is not there."""
    from gemma3_core.engine import find_models, free_memory, listing

    found = find_models(settings.look_in, settings.find, settings.device, settings.dtype)
    print(listing(found, free_memory(settings.device)), flush=True)


def _refuse_page_options(settings: argparse.Namespace) -> None:
    """Raises Gemma3Error for options that the manifest's pages would silently lack."""
    from gemma3_core.engine import Gemma3Error

    models = {"model", "mmproj", "adapter", "merge_adapter", "also", "keep", "at_once", "int4", "device", "dtype"}
    replicas = {"replicas", "min_replicas", "max_replicas", "ray", "tensor_parallel", "print_config"}
    left = [
        one.flag for one in OPTIONS if one.name not in models | replicas and getattr(settings, one.name) != one.default
    ]
    if left:
        raise Gemma3Error(f"The manifest does not carry {', '.join(left)}. Add them to the pages' command in it.")


def print_config(settings: argparse.Namespace) -> None:
    """Prints the file for `serve deploy`, or KubeRay's manifest. Ends the program for settings that are no good."""
    from gemma3_core.engine import Gemma3Error
    from gemma3_core.replicas.options import printed

    try:
        options = replica_options(settings)
        if settings.print_config == "kuberay":
            _refuse_page_options(settings)
        print(printed(options, settings.print_config), end="")
    except Gemma3Error as error:
        sys.exit(f"app.py: {error}")


def main() -> None:
    """`python app.py`: serves the page until it is interrupted."""
    settings = parse(sys.argv[1:], os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a normal exit also deletes the uploads
    logging.basicConfig(format="%(message)s")
    logging.getLogger("gemma3_core.engine").setLevel(logging.INFO)  # its progress
    from gemma3_core.engine import PUBLISHED, UNGATED, Gemma3Error

    if settings.print_config:
        print_config(settings)
        return
    if settings.log_format == "json":
        from components.watch.logs import log_as_json

        log_as_json()
    here_only = listens_here_only(settings, os.environ) and not has_replicas(settings)
    if settings.model is None and here_only and not (settings.openai or settings.tensor_parallel):
        # Asking these models starts a download. On a public page a stranger could do that.
        settings.also = (*settings.also, UNGATED, PUBLISHED)
    # Whoever started the program is the only one to come: no login for others, no other site's frame around the page.
    settings.owned = here_only and not (settings.auth or settings.frame_ancestors or settings.openai)

    with ExitStack() as settings.until_end:
        try:
            if settings.find or settings.look_in:
                print_models(settings)
            if settings.mcp:
                from components.serving.tool import prepare_tool

                if settings.auth:
                    raise Gemma3Error("--mcp serves programs without a login. Leave out --mcp or --auth.")
                prepare_tool()
            page = build(settings)
        except Gemma3Error as error:
            sys.exit(f"app.py: {error}")
        serve(page, settings)


def serve(page: "Page", settings: argparse.Namespace) -> None:
    """Serves the page until the program is interrupted."""
    from components.serving.stopping import Stopping

    where = {"server_name": settings.host, "server_port": settings.port}
    how = {"share": settings.share, "auth": settings.auth, "mcp_server": settings.mcp}
    page.launch(**where, **how, prevent_thread_lock=True)
    if settings.log_format == "json":
        from components.watch.logs import log_as_json

        log_as_json()  # the server has set up handlers of its own
    signal.signal(signal.SIGTERM, Stopping(page.desk, settings.drain_seconds))
    if page.share_url:
        from components.serving.public_link import public_link_text

        print(public_link_text(page.share_url, datetime.now()))
    page.block_thread()


def __getattr__(name: str) -> Any:
    """`from app import demo` builds the page on first use, not at import."""
    if name != "demo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["demo"] = page = build(parse([], os.environ))
    return page


if __name__ == "__main__":
    main()
