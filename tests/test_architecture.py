"""The shape of the house: who may import whom, and that importing does no work."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import REPOSITORY

# Data flows one way: a room imports from the rooms before it, and within itself. A room is a package, or a file that
# lies beside the packages. Rooms of the same line know nothing of each other.
ROOMS = {
    "gemma3_core": (
        "errors",
        "gguf model_inputs kernels",
        "files",
        "config images",
        "nn",
        "adapters int4 tokenizer",
        "generation processor_options",
        "processor models",
        "hf inspection parallel",
        "verify engine",
        "ask replicas",
    ),
    "components": (
        "bridge theme examples arguments watch",
        "shown settings",
        "chat",
        "inside serving",
        "endpoint models openai",
        "page",
    ),
}
CORE = sorted((REPOSITORY / "gemma3_core").rglob("*.py"))
VERIFY = REPOSITORY / "gemma3_core" / "verify.py"
COMPONENTS = sorted((REPOSITORY / "components").rglob("*.py"))
# What is imported when the program runs; the tests' and the training's own needs are not.
RUN_TIME = {"gradio", "torch", "safetensors", "tokenizers", "PIL", "matplotlib"}
BROUGHT_ALONG = {"numpy", "jinja2", "huggingface_hub", "safehttpx", "httpx", "yaml"}
# In requirements/, and imported only where a file or an answer needs it; with torch's builds for CUDA.
OPTIONAL = {"pillow_heif", "pypdfium2", "av", "triton", "llguidance", "ray", "grpc"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imports(path: Path, typing_too: bool = True) -> Iterator[str]:
    """Full names of all modules that a file imports, at any depth; optionally not those for type checkers."""
    yield from _imports([tree_of(path)], typing_too)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(trees: Iterable[ast.AST], typing_too: bool) -> Iterator[str]:
    for node in trees:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            assert node.module is not None
            # `from gemma3_core import masks` names a module just as `import gemma3_core.masks` does.
            yield from (f"{node.module}.{a.name}" for a in node.names) if "." not in node.module else [node.module]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            yield from _imports(node.orelse, typing_too)
        else:
            yield from _imports(ast.iter_child_nodes(node), typing_too)


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_the_walk_finds_every_kind_of_import(tmp_path):
    """Or the tests below would pass for nothing."""
    (tmp_path / "module.py").write_text(
        "import a.b, c\nfrom d.e import f\nfrom g import h\n"
        "def lazy():\n    if True:\n        import i.j\n"
        "class K:\n    from l.m import n\n"
        "if TYPE_CHECKING:\n    from o.p import q\nelse:\n    import r\n"
    )
    found = set(imports(tmp_path / "module.py"))
    assert found == {"a.b", "c", "d.e", "g.h", "i.j", "l.m", "o.p", "r"}
    assert set(imports(tmp_path / "module.py", typing_too=False)) == found - {"o.p"}


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[1].removesuffix(".py")


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_place_and_says_what_belongs_in_it(package):
    folder = REPOSITORY / package
    assert sorted(" ".join(ROOMS[package]).split()) == sorted(
        {room_of(path) for path in folder.rglob("*.py")} - {"__init__"}
    )
    for inside in {path.parent for path in folder.rglob("*.py")}:
        assert ast.get_docstring(tree_of(inside / "__init__.py")), name_of(inside)


@pytest.mark.parametrize("path", [path for path in [*CORE, *COMPONENTS] if room_of(path) != "__init__"], ids=name_of)
def test_a_room_imports_only_from_rooms_before_it(path):
    package, room = path.relative_to(REPOSITORY).parts[0], room_of(path)
    floor = next(number for number, rooms in enumerate(ROOMS[package]) if room in rooms.split())
    allowed = {room, *" ".join(ROOMS[package][:floor]).split()}
    # A name for a type checker is no way for data to flow.
    own = [name for name in imports(path, typing_too=False) if package_of(name) == package]
    assert [name for name in own if name.split(".")[1] not in allowed] == []


def test_no_modules_import_each_other_in_a_circle():
    modules = {name_of(path).removesuffix(".py").replace("/", "."): path for path in [*CORE, *COMPONENTS]}
    arrows = {name: modules.keys() & set(imports(path, typing_too=False)) for name, path in modules.items()}
    assert sum(map(len, arrows.values())) > 200
    list(TopologicalSorter(arrows).static_order())  # raises CycleError


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_knows_nothing_of_what_is_around_it(path):
    packages = {package_of(name) for name in imports(path)} - ({"transformers"} if path == VERIFY else set())
    assert not packages & {"gradio", "transformers", "components", "training", "benchmarks", "app", "tests"}
    assert packages <= RUN_TIME | BROUGHT_ALONG | OPTIONAL | {"gemma3_core"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", COMPONENTS, ids=name_of)
def test_components_know_the_engine_and_nothing_below_it(path):
    names = list(imports(path))
    assert {name for name in names if package_of(name) == "gemma3_core"} <= {"gemma3_core.engine"}
    assert not {package_of(name) for name in names} & {"torch", "transformers", "training", "benchmarks", "app"}


def test_only_training_and_benchmarks_import_themselves():
    for path in [*CORE, *COMPONENTS, REPOSITORY / "app.py"]:
        assert not {package_of(name) for name in imports(path)} & {"training", "benchmarks", "tests"}, name_of(path)


def test_transformers_is_a_matter_of_tests_and_benchmarks_and_of_the_command_that_compares_with_it():
    training = sorted((REPOSITORY / "training").rglob("*.py"))
    for path in {*CORE, *COMPONENTS, *training, REPOSITORY / "app.py"} - {VERIFY}:
        assert "transformers" not in {package_of(name) for name in imports(path)}, name_of(path)


def test_that_command_alone_imports_transformers():
    assert "transformers" in {package_of(name) for name in imports(VERIFY)}
    for path in {*CORE, *COMPONENTS, REPOSITORY / "app.py"} - {VERIFY}:
        assert "gemma3_core.verify" not in set(imports(path)), name_of(path)


def test_importing_the_package_loads_nothing_and_its_names_are_all_there():
    heavy = {"torch", "tokenizers", "safetensors", "huggingface_hub", "PIL", "numpy", "torchao", "transformers"}
    loaded = f"sorted({heavy} & set(sys.modules)), [n for n in sys.modules if n.startswith('gemma3_core.')]"
    named = "hasattr(gemma3_core, 'Gemma4Model'), 'pipeline' in dir(gemma3_core)"
    missing = "[n for n in gemma3_core.__all__ if not hasattr(gemma3_core, n)]"
    same = "set(gemma3_core.__all__) == set(gemma3_core._MODULES), 'transformers' in sys.modules"
    assert after_import("gemma3_core", f"{loaded}, {named}, {missing}, {same}") == "[] [] False True [] True False"


@pytest.mark.parametrize("path", [*CORE, *COMPONENTS], ids=name_of)
def test_no_module_keeps_state_in_globals(path):
    assert not [node.names for node in ast.walk(tree_of(path)) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("path", [*CORE, *COMPONENTS], ids=name_of)
def test_no_file_is_named_after_nothing(path):
    assert path.stem not in {"utils", "helpers", "misc", "common"}


def after_import(module: str, question: str) -> str:
    """What Python answers to an expression in a fresh process, right after importing a module."""
    code = f"import sys, threading, gc; import {module}; print({question})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_app_loads_and_builds_nothing():
    heavy = {"torch", "gradio", "tokenizers", "safetensors", "huggingface_hub", "gemma3_core.engine", "components.page"}
    question = f"sorted({heavy} & set(sys.modules)), threading.active_count(), 'demo' in vars(app)"
    assert after_import("app", question) == "[] 1 False"


def test_importing_the_engine_or_verify_builds_no_model_starts_no_thread_and_needs_no_page_and_no_transformers():
    """Verify imports transformers only when it runs. Nor does an answer import torch's compiler, which takes long: a
    tensor that is filled on the meta device is enough to do so."""
    others = "sorted({'gradio', 'transformers'} & set(sys.modules))"
    tensors = "sum(isinstance(o, sys.modules['torch'].Tensor) for o in gc.get_objects())"
    for_all = f"{others}, threading.active_count(), {tensors}"
    own = "gemma3_core.engine"
    asked = f"{own}.Request([{own}.Turn('user', 'Hello')])"
    answer = f"[*{own}.Engine.load('assets/demo_model').stream({asked})][-1].text != ''"
    compiler = "sorted({'torch._dynamo', 'sympy'} & set(sys.modules))"
    question = f"{for_all}, __import__('gemma3_core.verify').__name__, {for_all}, {answer}, {compiler}"
    assert after_import(own, question) == "[] 1 0 gemma3_core [] 1 0 True []"


def test_importing_the_page_builds_no_page_and_no_model_and_writes_no_stubs_for_editors():
    """Gradio would read each component's source for the stubs."""
    no_reading = (
        "import ast; reading = ast.get_source_segment; ast.get_source_segment = None; import components, gradio"
    )
    blocks = "sum(isinstance(o, sys.modules['gradio'].Blocks) for o in gc.get_objects())"
    parameters = "sum(isinstance(o, sys.modules['torch'].Tensor) for o in gc.get_objects())"
    where = "os.path.basename(inspect.getfile(sys.modules['gradio'].Button))"
    then = "ast.get_source_segment = reading; import components.page, inspect, os"
    assert after_import(f"ast; {no_reading}; {then}", f"{blocks}, {parameters}, {where}") == "0 0 button.py"
