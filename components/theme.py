"""The design tokens: one accent color on quiet grays, system fonts, an 8 px grid."""

from gradio.themes import Base, Color, Size

_ACCENT = Color(
    "#effaf8", "#d5f2ed", "#a9e3da", "#74cdc1", "#41b0a3", "#1f9488",
    "#0f766e", "#0f5f59", "#114b47", "#123f3c", "#072523", name="accent",
)  # fmt: skip
_GRAY = Color(
    "#fafaf9", "#f4f4f2", "#e6e6e3", "#d3d3cf", "#a2a29d", "#6d6d69",
    "#52524f", "#3c3c3a", "#282827", "#1b1b1a", "#111110", name="gray",
)  # fmt: skip
_SPACING = Size(xxs="2px", xs="4px", sm="8px", md="8px", lg="16px", xl="24px", xxl="32px", name="grid")
_RADIUS = Size(xxs="4px", xs="4px", sm="8px", md="8px", lg="12px", xl="16px", xxl="24px", name="round")
_TEXT = Size(xxs="11px", xs="12px", sm="13px", md="15px", lg="16px", xl="20px", xxl="24px", name="text")
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def build_theme() -> Base:
    """The theme, light and dark. Text reaches AA contrast (4.5 to 1) on its background in both."""
    theme = Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=_GRAY,
        spacing_size=_SPACING,
        radius_size=_RADIUS,
        text_size=_TEXT,
        font=_FONT,
        font_mono=_MONO,
    )
    return theme.set(
        body_background_fill="white",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_950",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_900",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_800",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_padding="8px 0",
        block_title_text_weight="600",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_color_dark="*body_text_color_subdued",
        block_info_text_size="*text_sm",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_width="1px",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        input_shadow="none",
        input_shadow_focus="none",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_400",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_text_color="*neutral_900",
        button_secondary_text_color_dark="*neutral_100",
        button_transition="none",
        color_accent_soft="*neutral_100",
        color_accent_soft_dark="*neutral_800",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        loader_color="*primary_600",
        loader_color_dark="*primary_400",
        chatbot_text_size="*text_lg",
    )
