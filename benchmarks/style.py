"""How the figures look, and where they go."""

from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
