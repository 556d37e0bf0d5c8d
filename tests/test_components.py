"""The page's pure functions: texts, figures, conversation, strip, examples."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from components import chat, markdown, strip
from components.conversation import Conversation, Exchange, question_of
from components.examples import FOLDER, load_examples
from components.serving import launch_options
from components.settings import Choices
from components.stats import figures_line
from components.theme import build_theme
from gemma3_core.engine import Gemma3Error, ModelInfo, PicturePreview, SamplingSettings, Stats, Turn

STATS = Stats("demo model", "cpu", "bfloat16", "none", 1, 2, 212, 0, 15, 0.0, 0.2123, 63.7, "stop")
DEMO = ModelInfo("demo model", "cpu", "float32", "none", True, True, 4_421_888, 8192, 64, SamplingSettings())


def changed(value, **fields):
    return type(value)(**{**vars(value), **fields})


def test_figures_line():
    line = "demo model · bfloat16 · 1 picture, 2 crops · 212 tokens · first token 0.21 s · 64 tokens/s"
    assert figures_line(STATS) == line


def test_figures_line_of_a_long_int4_conversation_without_crops():
    stats = changed(
        STATS, model="gemma-3-4b-it", quantization="int4", num_images=2, num_crops=0, prompt_tokens=1064,
        reused_tokens=820, new_tokens=256, tokens_per_s=None, stop_reason="length",
    )  # fmt: skip
    assert figures_line(stats) == (
        "gemma-3-4b-it · int4 · 2 pictures · 1,064 tokens (820 reused) · first token 0.21 s · cut at 256 new tokens"
    )


def test_figures_line_of_text_alone():
    stats = changed(STATS, num_images=0, num_crops=0, time_to_first_token_s=None, tokens_per_s=None)
    assert figures_line(stats) == "demo model · bfloat16 · 212 tokens"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("How many hearts?", "How many hearts?"),
        ("2 * 3 * 4 = _x_", r"2 \* 3 \* 4 = \_x\_"),
        ("<img src=http://x.example/a.png>", r"\<img src=http\://x.example/a.png>"),
        ("![a](http://x.example)", r"!\[a\](http\://x.example)"),
        ("> www.x.example a@x.example", r"\> www\.x.example a\@x.example"),
        ("# no title\n- no list", "\\# no title\n\\- no list"),
        ("1. one", "1\N{WORD JOINER}. one"),
        ("a\n    b", "a\n\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}b"),
        ("Größe 3,5 €", "Größe 3,5 €"),
    ],
)
def test_questions_are_shown_as_typed(typed, shown):
    assert markdown.literal(typed) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("**Two** circles, 1 < 2.", "**Two** circles, 1 < 2."),
        ("<img src='http://x.example/a.png'>", "&lt;img src='http://x.example/a.png'>"),
        ("see ![a](http://x.example/a.png)", "see !\\[a](http://x.example/a.png)"),
        ("use `<br>` or\n```html\n<b>\n", "use `<br>` or\n```html\n<b>\n"),
        ("</div><script>", "&lt;/div>&lt;script>"),
    ],
)
def test_answers_load_nothing_and_hold_no_html(written, shown):
    assert markdown.of_model(written) == shown


def test_indentation_of_an_answer_survives_gradio():
    text = "    four spaces\nthen none"
    processed = chat.gr.Chatbot().postprocess([chat.answering(text)])
    assert processed.root[0].content[0].text == text


def test_a_conversation_keeps_earlier_pictures():
    first = question_of(" What is this? ", ["/cache/a.png"])
    conversation = Conversation().add(Exchange(first, False, "A star.", STATS))
    turns = conversation.turns(Turn("user", "What color?"))
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].text == "What is this?"
    assert turns[0].pictures == first.pictures
    assert conversation.without_last() == Conversation()


def test_only_the_last_answer_can_be_asked_again():
    exchange = Exchange(Turn("user", "What?"), False, "A star.", STATS)
    two = Conversation().add(exchange).add(Exchange(Turn("user", "Where?"), False, "Left.", None))
    lines = [message["content"][1].value for message in chat.messages(two) if message["role"] == "assistant"]
    assert ["retry" in line for line in lines] == [False, True]
    assert "Stopped." in lines[1]
    assert not any("retry" in str(m["content"][1].value) for m in chat.messages(two, retry=False)[1::2])


def test_reasons_and_stages_are_text_not_html():
    for message in (chat.failed("<b>no</b> {{x}} ${1}"), chat.working("<b>no</b>")):
        assert "<b>" not in message["content"][0].value


def test_first_sight_says_the_demo_models_world_and_the_way_out():
    text = chat.first_sight(DEMO)
    for word in ("circle", "square", "triangle", "star", "heart", "rectangle", "eleven colors"):
        assert word in text
    assert "python app.py --model google/gemma-3-4b-it" in text
    other = chat.first_sight(changed(DEMO, name="gemma-3-4b-it", is_demo=False))
    assert "gemma\\" not in other
    assert "eleven" not in other
    assert "text only" in chat.first_sight(changed(DEMO, is_demo=False, multimodal=False))


def test_badge():
    assert chat.badge(DEMO) == "demo model · float32 · cpu · 4.4 million weights"


def test_settings_become_sampling():
    assert Choices(True, "", 0.7, 40.0, 0.9, " 3 ", 64.0).sampling() == SamplingSettings(0.7, 40, 0.9, 3)
    assert Choices(False, "", 0, 0, 1, "", 64).sampling().seed is None
    with pytest.raises(Gemma3Error, match="Temperature"):
        Choices(False, "", 3.0, 0, 1, "", 64).sampling()
    for wrong in ("-1", "1.5", "abc", "9" * 30):
        with pytest.raises(Gemma3Error, match="seed"):
            Choices(False, "", 0.0, 0, 1, wrong, 64).sampling()


class FakeBox:
    left, top, right, bottom = 100, 0, 200, 100


def preview(**fields):
    picture = Image.new("RGB", (200, 100), "red")
    square = Image.new("RGB", (64, 64), "red")
    basis = {
        "width": 200, "height": 100, "original": picture, "squares": (square, square), "boxes": (FakeBox(),),
        "tokens": 128, "note": "One crop & no <more>.",
    }  # fmt: skip
    return PicturePreview(**{**basis, **fields})


def test_strip_shows_squares_tokens_and_boxes():
    html = strip.strip_html([preview()], pan_and_scan=True)
    assert "What the model will see: 2 squares, 128 tokens" in html
    assert html.count("<img") == 3  # the original with its boxes, the whole, one crop
    assert html.count("64 tokens") == 2
    assert "left:50.00%;top:0.00%;width:50.00%;height:100.00%" in html
    assert "One crop &amp; no &lt;more&gt;." in html
    assert set(re.findall(r'src="(.{5})', html)) == {"data:"}


def test_strip_without_crops_and_without_pictures():
    html = strip.strip_html([preview(squares=preview().squares[:1], boxes=(), tokens=64)], False, answered=True)
    assert "What the model saw: 1 square, 64 tokens" in html
    assert html.count("<img") == 1
    assert "One crop" not in html  # the switch is off: nothing to explain
    assert strip.strip_html([], True) == ""


def test_examples_are_drawn_by_their_command(tmp_path):
    from training.examples import EXAMPLES, write

    write(tmp_path)
    assert json.loads((tmp_path / "examples.json").read_text()) == json.loads((FOLDER / "examples.json").read_text())
    for example in EXAMPLES:
        drawn, kept = (np.asarray(Image.open(folder / f"{example.name}.png")) for folder in (tmp_path, FOLDER))
        # Freetype-free drawing, but the smoothing's last bit may differ between Pillow's builds.
        assert np.abs(drawn.astype(int) - kept.astype(int)).max() <= 2


def test_example_scenes_lie_inside_the_demo_world():
    from training.colors import delta_e, is_clear, to_lab
    from training.examples import EXAMPLES
    from training.questions import KINDS
    from training.scenes import LARGEST, MIN_CONTRAST, SMALLEST, is_heldout_pair

    for example in EXAMPLES:
        scene = example.scene
        side = min(scene.width, scene.height)
        assert example.kind in KINDS
        for item in scene.objects:
            assert is_clear(item.rgb, item.color), (example.name, item.shape, item.color)
            assert SMALLEST <= item.size / side <= LARGEST
            assert delta_e(to_lab(item.rgb), to_lab(scene.background.colors[0])) > MIN_CONTRAST
            assert item.radius <= min(item.x, item.y, scene.width - item.x, scene.height - item.y)
            assert not is_heldout_pair(item.shape, item.color)


def test_cards_have_a_picture_words_for_it_and_a_question():
    cards = load_examples()
    assert 4 <= len(cards) <= 6
    assert any(max(Image.open(card.picture).size) == 2 * min(Image.open(card.picture).size) for card in cards)
    for card in cards:
        assert card.picture.is_file()
        assert card.alt
        assert card.question.endswith("?")


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("body_text_color", "body_background_fill"),
        ("body_text_color_subdued", "body_background_fill"),
        ("body_text_color_subdued", "background_fill_secondary"),
        ("input_placeholder_color", "input_background_fill"),
        ("link_text_color", "body_background_fill"),
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_secondary_text_color", "button_secondary_background_fill"),
        ("body_text_color", "color_accent_soft"),
    ],
)
@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_aa(text, ground, dark):
    theme = build_theme()

    def color(name: str) -> str:
        value = getattr(theme, f"{name}_dark" if dark else name, None) or getattr(theme, name)
        while value.startswith("*"):
            key = value[1:]
            value = getattr(theme, f"{key}_dark" if dark and hasattr(theme, f"{key}_dark") else key)
        return {"white": "#ffffff", "black": "#000000"}.get(value, value)

    assert contrast(color(text), color(ground)) >= 4.5, (color(text), color(ground))


def test_the_page_is_served_with_limits():
    options = launch_options()
    assert options["max_file_size"] == 20_000_000
    assert options["allowed_paths"] == [str(FOLDER)]
    assert options["run_history"] is False
    assert options["strict_cors"] is True
