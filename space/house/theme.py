"""The Gradio theme: a coffee house by day and by night. The page's own parts take their colours from static/house.css."""

import gradio as gr
from gradio.themes import Color

COFFEE = Color(
    "#fbf3e8", "#f6e3cf", "#eec9a5", "#e3a878", "#d58650", "#bf6634", "#a4501f", "#86401b", "#6a331a", "#4a2413", "#2d160b"
)
CREAM = Color(
    "#fdf9f2", "#f7efe2", "#ebdfcd", "#d9c9b3", "#b8a48c", "#937d66", "#735f4b", "#594939", "#3d3027", "#2a201a", "#1b1411"
)


def theme() -> gr.themes.Base:
    """Fonts by name only: static/house.css brings them, and no other host is asked."""
    return gr.themes.Base(
        primary_hue=COFFEE,
        secondary_hue=COFFEE,
        neutral_hue=CREAM,
        font=["Nunito Sans", "system-ui", "sans-serif"],
        font_mono=["Courier Prime", "Courier New", "monospace"],
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        body_background_fill="#f6ecdd",
        body_background_fill_dark="#17110d",
        body_text_color="#35261c",
        body_text_color_dark="#f3e6d4",
        body_text_color_subdued="#6d5643",
        body_text_color_subdued_dark="#c3ad95",
        background_fill_primary="#fffaf2",
        background_fill_primary_dark="#241a14",
        background_fill_secondary="#f8efe2",
        background_fill_secondary_dark="#2c2019",
        block_background_fill="#fffaf2",
        block_background_fill_dark="#241a14",
        block_border_color="#e6d6c0",
        block_border_color_dark="#433227",
        block_label_text_color="#6d5643",
        block_label_text_color_dark="#d8c3aa",
        block_title_text_color="#35261c",
        block_title_text_color_dark="#f3e6d4",
        block_shadow="none",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1c1410",
        input_border_color="#cdb79d",
        input_border_color_dark="#5b4536",
        input_placeholder_color="#7d6753",
        input_placeholder_color_dark="#a8917a",
        button_primary_background_fill="#9c4a1c",
        button_primary_background_fill_hover="#843c14",
        button_primary_background_fill_dark="#e59a5c",
        button_primary_background_fill_hover_dark="#f0ad75",
        button_primary_text_color="#fffaf2",
        button_primary_text_color_dark="#24140a",
        button_secondary_background_fill="#f3e5d1",
        button_secondary_background_fill_hover="#ecd9be",
        button_secondary_background_fill_dark="#3a2a20",
        button_secondary_background_fill_hover_dark="#4a362a",
        button_secondary_text_color="#4a2f1c",
        button_secondary_text_color_dark="#f3e6d4",
    )
