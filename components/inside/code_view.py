"""An answer as a program: scripts that ask the same again, with its settings and its seed."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

from components.chat.conversation import Exchange
from components.examples import FOLDER as EXAMPLES
from components.settings import MOST_NEW_TOKENS
from components.shown.token_view import word_at, word_of_content
from gemma3_core.engine import DEMO_NAME, AdapterFacts, ModelInfo, Request, SamplingSettings, Turn

INSIDE = "gemma3_core, looking inside"

_ASK = SamplingSettings()
_EARLIER = "# /ask takes one question, and this one had others before it: use one of the first two programs."

_GGUF_PICTURES = "# transformers reads no mmproj file, and so no pictures with this model: use the first program.\n"
_BASE_PICTURES = "# This base model continues a text with pictures in it, not a chat: use the first program.\n"
_NO_CROPS = "# transformers takes no crops of one's own, and this answer looked closer: use the first program.\n"
_GGUF = ".gguf"
_OTHER = "# /ask asks {first}, and this answer is by {name}: {instead}.\n"
_LONG = f"# /ask takes at most {MOST_NEW_TOKENS:,} new tokens: use one of the first two programs.\n"
_CAPTIONS = (
    "# /ask puts no times before pictures, as they stand before a video's frames: use one of the first two programs."
)


@dataclass(frozen=True)
class Address:
    """Where programs reach this server: `client` for gradio_client, `url` for curl. `/ask` asks the model `asks`; where
    that is not told, it is the one that answered."""

    client: str
    url: str
    asks: str | None = None


def address(headers: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Address:
    """The server's address as a request's headers have it; in a Space, the Space's own."""
    if space := environment.get("SPACE_ID"):
        return Address(space, f"https://{environment.get('SPACE_HOST', '')}")
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0]
    url = f"{scheme if scheme == 'https' else 'http'}://{headers.get('host', '127.0.0.1:7860')}"
    return Address(url, url)


def code_html(exchange: Exchange, info: ModelInfo, where: Address) -> str:
    """HTML of the scripts, each folded, with a button to copy it."""
    folds = "".join(
        f"<details{' open' if number == 0 else ''}><summary>{name}</summary>"
        f'<button type="button" data-copy aria-label="Copy the script for {name}">Copy</button>'
        f'<pre tabindex="0"><code>{escape(script)}</code></pre></details>'
        for number, (name, script) in enumerate(scripts(exchange, info, where).items())
    )
    return f'<p class="note">The same question with the same settings, from a program.</p>{folds}'


def scripts(exchange: Exchange, info: ModelInfo, where: Address) -> dict[str, str]:
    """The scripts by the name of what runs them. `info` is of the model that gave the answer."""
    request, stats = exchange.answered.request, exchange.stats
    sampling = request.settings(info.sampling)
    if stats.seed is not None:
        sampling = SamplingSettings(sampling.temperature, sampling.top_k, sampling.top_p, stats.seed)
    int4 = stats.quantization == "int4"
    here = {
        "gemma3_core": _own(request, sampling, int4, stats.dtype, info),
        "transformers": _transformers(request, sampling, int4, stats.dtype, info),
    }
    if exchange.choices and not info.outside:
        here[INSIDE] = here["gemma3_core"] + _inside(exchange)
    beyond = _beyond_ask(request, stats.model, info, where.asks)
    return {
        **({} if info.outside else here),  # another server's weights and precision are not known
        "gradio_client": beyond or _client(request, sampling, int4, where.client),
        "curl": beyond or _curl(request, sampling, int4, where.url),
    }


def _own(request: Request, sampling: SamplingSettings, int4: bool, dtype: str, info: ModelInfo) -> str:
    turns = "".join(f"        {_turn(turn)},\n" for turn in request.turns)
    source = "" if _is_demo(info) else f"{_source(info)!r}, "
    if info.adapter is not None:
        merged = ", merge_adapter=True" if info.adapter.merged else ""
        source += f"adapter={_adapter_source(info.adapter)!r}{merged}, "
    continue_text = "" if request.continue_text is None else f"    continue_text={request.continue_text},\n"
    continue_text += "" if request.json_schema is None else f"    json_schema={request.json_schema!r},\n"
    return (
        "from gemma3_core.engine import Engine, Request, SamplingSettings, Turn\n\n"
        f"engine = Engine.load({source}dtype={dtype!r})\n"
        "request = Request(\n"
        f"    turns=(\n{turns}    ),\n"
        f"    system_prompt={request.system_prompt!r},\n"
        f"    pan_and_scan={request.pan_and_scan},\n"
        f"    int4={int4},\n"
        f"    max_new_tokens={request.max_new_tokens},\n"
        f"{continue_text}"
        f"    sampling=SamplingSettings({_arguments(sampling)}),\n"
        ")\n"
        "*_, done = engine.stream(request)\n"
        "print(done.text)\n"
    )


def _inside(exchange: Exchange) -> str:
    """The lines that look at the answer's word of content, as Inside does."""
    choices = list(exchange.choices)
    number = word_of_content(choices, exchange.question.text)
    word = list(word_at(choices, number or 0))
    return (
        "\n# Why the word of these tokens? (Counted from 0.)\n"
        "from gemma3_core.engine import Answered\n\n"
        f"word = {word}\n"
        "answered = Answered(request, done)\n"
        "looked = engine.attention(answered, word)\n"
        'print("on the pictures:", round(looked.on_pictures, 3))\n'
        "why = engine.why(answered, word)\n"
        "if why.rests_on is not None:\n"
        '    print("with and without pictures:", why.rests_on.seen, why.rests_on.unseen)\n'
        '    print("estimated place:", why.place)\n'
        "for layer in why.said:\n"
        "    print(layer.layer, [one.text for one in layer.likeliest])\n"
        "for head in why.heads[:3]:\n"
        "    print(head)\n"
    )


def _turn(turn: Turn) -> str:
    pictures = "".join(f"{_name(picture)!r}, " for picture in turn.pictures)
    more = f", pictures=({pictures.rstrip()})" if pictures else ""
    more += f", captions={turn.captions!r}" if turn.captions else ""
    more += "" if turn.pan_and_scan is None else f", pan_and_scan={turn.pan_and_scan}"
    more += f", crops={_boxes(turn)!r}" if turn.crops else ""
    return f"Turn({turn.role!r}, {turn.text!r}{more})"


def _boxes(turn: Turn) -> tuple[object, ...]:
    """The crops of the turn's pictures in plain Python."""
    return tuple(one if isinstance(one, str | None) else tuple(map(tuple, one)) for one in turn.crops)


def _arguments(sampling: SamplingSettings) -> str:
    if sampling.greedy:
        return "temperature=0.0"
    return f"temperature={sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}, seed={sampling.seed}"


def _transformers(request: Request, sampling: SamplingSettings, int4: bool, dtype: str, info: ModelInfo) -> str:
    system = [_message("system", request.system_prompt)] if request.system_prompt else []
    messages = "".join(f"    {message},\n" for message in [*system, *map(_message_of, request.turns)])
    cut = {bool(turn.pan_and_scan) for turn in request.turns if turn.pictures and turn.pan_and_scan is not None}
    notes = ["# In full precision; the answer on the page was in int4."] if int4 else []
    if len(cut) > 1:
        notes.append("# Pan & scan was on for some of these pictures only; here it is on for all.")
    if request.json_schema is not None:
        notes.append("# transformers does not enforce the JSON schema, so its answer may have another form.")
    if not sampling.greedy:
        notes.append("# transformers draws its tokens in another way, so a sampled answer has other words.")
    name = info.base_name or info.name
    if info.multimodal and name.endswith(_GGUF):
        return _GGUF_PICTURES
    continues = info.continues_text if request.continue_text is None else request.continue_text
    if info.multimodal and continues:
        return _BASE_PICTURES
    if any(turn.crops for turn in request.turns):
        return _NO_CROPS
    kind = "Gemma3ForConditionalGeneration" if info.multimodal else "AutoModelForCausalLM"
    reader = "AutoProcessor" if info.multimodal else "AutoTokenizer"
    crops = f", do_pan_and_scan={True in cut or request.pan_and_scan}" if info.multimodal else ""
    how = (
        "do_sample=False"
        if sampling.greedy
        else f"do_sample=True, temperature={sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}"
    )
    source = repr("assets/demo_model" if _is_demo(info) else _source(info))
    if name.endswith(_GGUF):
        source = f"'path/to', gguf_file={name!r}"
    # With peft installed, transformers loads it.
    adapter = "" if info.adapter is None else f"model.load_adapter({_adapter_source(info.adapter)!r})\n"
    if continues:
        asked = _continued(request)
    else:
        asked = (
            f"messages = [\n{messages}]\n"
            "inputs = processor.apply_chat_template(\n"
            '    messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True'
            f"{crops}\n).to(model.device, dtype=model.dtype)\n"
        )
    return "".join(f"{note}\n" for note in notes) + (
        "import torch\n"
        f"from transformers import {', '.join(sorted((kind, reader)))}\n\n"
        f"model = {kind}.from_pretrained({source}, dtype=torch.{dtype})\n"
        f"{adapter}"
        f"processor = {reader}.from_pretrained({source})\n"
        f"{asked}"
        f"answer = model.generate(**inputs, max_new_tokens={request.max_new_tokens}, {how})\n"
        'print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def _continued(request: Request) -> str:
    """The lines that make inputs of a text that goes on, for a model that reads text only."""
    text = request.system_prompt.strip()
    for turn in request.turns:
        text += turn.text if turn.role == "assistant" else ("\n" if text else "") + turn.text.strip()
    return f'inputs = processor({text!r}, return_tensors="pt").to(model.device)\n'


def _message_of(turn: Turn) -> str:
    parts: list[dict[str, str]] = []
    for picture, caption in zip_longest(turn.pictures, turn.captions, fillvalue=""):
        parts += [{"type": "text", "text": caption}] if caption else []
        parts.append({"type": "image", "path": _name(picture)})
    return _message("user" if turn.role == "user" else "assistant", turn.text, parts)


def _message(role: str, text: str, before: Sequence[dict[str, str]] = ()) -> str:
    return repr({"role": role, "content": [*before, {"type": "text", "text": text}]})


def _client(request: Request, sampling: SamplingSettings, int4: bool, where: str) -> str:
    pictures = ", ".join(f"handle_file({_name(picture)!r})" for picture in request.turns[0].pictures)
    arguments = "".join(f"    {value!r},\n" for value in _ask_arguments(request, sampling, int4))
    return _sampled(sampling) + (
        "from gradio_client import Client, handle_file\n\n"
        f"client = Client({where!r})\n"
        f'answer, stats = client.predict(\n    [{pictures}],\n{arguments}    api_name="/ask",\n)\n'
        "print(answer)\n"
    )


def _curl(request: Request, sampling: SamplingSettings, int4: bool, url: str) -> str:
    rest = "".join(f", {json.dumps(value, ensure_ascii=False)}" for value in _ask_arguments(request, sampling, int4))
    parts = ["printf '%s' '{\"data\": [['"]
    for number, picture in enumerate(request.turns[0].pictures):
        comma = ", " if number else ""
        parts += [f"printf '%s' '{comma}\"data:;base64,'", f"base64 < {shlex.quote(_name(picture))} | tr -d '\\n'"]
        parts.append("printf '\"'")
    parts.append(f"printf '%s' {shlex.quote(']' + rest + ']}')}")
    body = "; ".join(parts)
    ask = shlex.quote(f"{url}/gradio_api/call/ask")
    return _sampled(sampling) + (
        f"id=$({{ {body}; }} |\n"
        f"  curl -s {ask} -H 'Content-Type: application/json' -d @- | sed 's/.*\"event_id\": *\"//; s/\".*//')\n"
        f"curl -sN {ask}/$id\n"
    )


def _beyond_ask(request: Request, name: str, info: ModelInfo, first: str | None) -> str:
    """Why `/ask`, which asks the model `first`, can't ask this of the model `name`, as a comment; empty if it can."""
    if first not in (None, name):
        instead = "ask /v1/chat/completions" if info.outside else "use one of the first two programs"
        return _OTHER.format(first=first, name=name, instead=instead)
    if len(request.turns) > 1:
        return f"{_EARLIER}\n"
    if (request.max_new_tokens or 0) > MOST_NEW_TOKENS:
        return _LONG
    return f"{_CAPTIONS}\n" if request.turns[0].captions else ""


def _ask_arguments(request: Request, sampling: SamplingSettings, int4: bool) -> tuple[object, ...]:
    """The arguments of `/ask` after the pictures."""
    seed = 0 if sampling.seed is None else sampling.seed
    turn, system, most = request.turns[0], request.system_prompt, request.max_new_tokens
    crops = json.loads(json.dumps(_boxes(turn))) if turn.crops else None
    rest = [crops, request.json_schema]
    while rest and rest[-1] is None:
        rest.pop()
    return turn.text, system, request.pan_and_scan, int4, most, sampling.temperature, seed, *rest


def _sampled(sampling: SamplingSettings) -> str:
    if sampling.greedy or (sampling.top_k, sampling.top_p) == (_ASK.top_k, _ASK.top_p):
        return ""
    return f"# /ask samples with top_k {_ASK.top_k} and top_p {_ASK.top_p}, so its answer may have other words.\n"


def _name(picture: object) -> str:
    """A picture's file as a script names it: an example by its place in the repository, an upload by its name."""
    path = Path(str(picture))
    return f"assets/examples/{path.name}" if path.parent == EXAMPLES else path.name


def _source(info: ModelInfo) -> str:
    return info.hub_id or f"path/to/{info.base_name or info.name}"


def _is_demo(info: ModelInfo) -> bool:
    """Whether the weights are the demo model's, with or without an adapter."""
    return info.is_demo or info.base_name == DEMO_NAME


def _adapter_source(adapter: AdapterFacts) -> str:
    return adapter.hub_id or f"path/to/{adapter.name}"
