"""The page's colours, light and dark: one table for the style sheet and the figures.

Text colours have a contrast of at least 4.5 on their background, in both schemes (a test computes it). Right and
wrong are blue and orange, which people of every colour vision tell apart, and always differ in shape as well.
Figures are drawn with the light values; the page exchanges each for its dark one, so no value stands twice.
"""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1a2330",
    "muted": "#566172",
    "hairline": "#dfe3e9",
    "grid": "#e8ebf0",
    "axis": "#b4bcc8",
    "accent": "#3451b2",
    "accent-soft": "#e9edfb",
    "right": "#0b69b3",
    "right-fill": "rgba(11,105,179,0.14)",
    "wrong": "#b5430b",
    "wrong-fill": "rgba(181,67,11,0.16)",
    "low-zone": "rgba(181,67,11,0.055)",
    "interval": "rgba(26,35,48,0.13)",
    "good": "#14713a",
    "good-soft": "#e3f4e9",
    "caution": "#855600",
    "caution-soft": "#fdf1d8",
    "bad": "#b3261e",
    "bad-soft": "#fdeceb",
    "neutral-soft": "#eceff3",
    "line-gate": "#4630a8",
    "line-random": "#6d7683",
    "line-top1": "#0c6ab5",
    "line-best": "#0b7568",
    "line-logistic": "#955a01",
    "scale-none": "#fbfbf9",
    "scale-some": "#fde3bf",
    "scale-much": "#f7bd78",
    "scale-most": "#ee9440",
    "scale-opposed": "#f0a25e",
    "scale-half-opposed": "#f8d2ae",
    "scale-zero": "#f4f5f7",
    "scale-half-alike": "#b9d2f3",
    "scale-alike": "#6fa5e8",
}

DARK: Mapping[str, str] = {
    "page": "#10151c",
    "card": "#181f29",
    "ink": "#e9edf3",
    "muted": "#a5b0bf",
    "hairline": "#2c3643",
    "grid": "#26303c",
    "axis": "#55616f",
    "accent": "#a3b8ff",
    "accent-soft": "#232d4b",
    "right": "#63b4f6",
    "right-fill": "rgba(99,180,246,0.20)",
    "wrong": "#ff9f63",
    "wrong-fill": "rgba(255,159,99,0.20)",
    "low-zone": "rgba(255,159,99,0.070)",
    "interval": "rgba(233,237,243,0.17)",
    "good": "#6bd394",
    "good-soft": "#173524",
    "caution": "#f0bf5f",
    "caution-soft": "#3a2e12",
    "bad": "#ff948b",
    "bad-soft": "#43201e",
    "neutral-soft": "#252e3a",
    "line-gate": "#b7a4ff",
    "line-random": "#98a3b1",
    "line-top1": "#63b4f7",
    "line-best": "#4fd1bd",
    "line-logistic": "#efbe60",
    "scale-none": "#1a222d",
    "scale-some": "#4a3118",
    "scale-much": "#6e4016",
    "scale-most": "#94500f",
    "scale-opposed": "#8a4a14",
    "scale-half-opposed": "#513620",
    "scale-zero": "#1d2530",
    "scale-half-alike": "#274468",
    "scale-alike": "#2f5fa6",
}


def exchange() -> dict[str, str]:
    """Light value -> dark value, as the page's script applies it to a figure."""
    return {LIGHT[role]: DARK[role] for role in LIGHT}


def style_sheet() -> str:
    """The colours as CSS variables: light, dark where the system asks for it, and as the reader chose."""
    light, dark = (
        "".join(f"--{role}:{value};" for role, value in scheme.items()) + f"color-scheme:{name};"
        for name, scheme in (("light", LIGHT), ("dark", DARK))
    )
    return (
        f":root{{{light}}}"
        f'@media screen and (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{{dark}}}}}'
        f'@media screen{{:root[data-theme="dark"]{{{dark}}}}}'
    )


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two #rrggbb colours, in [1, 21] (WCAG 2, 1.4.3)."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
