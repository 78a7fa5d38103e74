"""Charts as Vega-Lite: what stands on which axis, in which unit. Colours are told apart by the colour-blind.

Every function takes rows as a query gives them, and returns a specification whose data are those rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Spec = dict[str, Any]

BLUE, ORANGE, GREEN, RED, PINK, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#8a8a8a"
"""Of the palette of Okabe and Ito; each is seen on white and on black paper."""
SCALE = "cividis"
"""Colours of maps, from low to high: the same to all eyes, and in grey."""

PERCENT = ".0%"


def _spec(rows: Sequence[Row], height: int, **rest: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "height": height,
        "data": {"values": [dict(row) for row in rows]},
        **rest,
    }


def _axis(field: str, title: str, kind: str = "quantitative", **rest: Any) -> Spec:
    return {"field": field, "type": kind, "title": title, **rest}


def _tooltip(*fields: tuple[str, str, str | None]) -> list[Spec]:
    return [{"field": name, "title": title, **({"format": form} if form else {})} for name, title, form in fields]


def lines(
    rows: Sequence[Row], x: tuple[str, str], y_title: str, names: Mapping[str, str], between: str | None = None
) -> Spec:
    """Lines over an axis, where wished with the band between the columns ``q10`` and ``q90`` behind them.

    Args:
        rows: with the columns of ``x`` and of the lines.
        x: column of the horizontal axis, and what it is, with its unit.
        y_title: what the lines are, with their unit.
        names: name in the legend by column; three at most.
        between: what the band is; None for none.
    """
    palette = [BLUE, ORANGE, GREEN][: len(names)]
    scale = {"domain": [*names.values(), *([between] if between else [])], "range": [*palette, GREY]}
    legend = {"orient": "top", "labelLimit": 300, "symbolOpacity": 1}
    color = {"type": "nominal", "title": None, "scale": scale, "legend": legend}
    x_axis = _axis(*x, scale={"nice": False}, axis={"tickMinStep": 1, "format": "d"})
    fitting = {"zero": False}
    tips = _tooltip((*x, "d"), *((name, title, ".4f") for name, title in names.items()))
    layers: list[Spec] = []
    if between:
        encoding: Spec = {"x": x_axis, "y": _axis("q10", y_title, scale=fitting), "y2": {"field": "q90"}}
        mark: Spec = {"type": "area", "opacity": 0.3}
        layers.append({"mark": mark, "encoding": {**encoding, "color": {"datum": between, **color}}})
    for name, title in names.items():
        mark = {"type": "line", "strokeWidth": 2, "point": len(rows) < 3}
        encoding = {"x": x_axis, "y": _axis(name, y_title, scale=fitting), "tooltip": tips}
        encoding["color"] = {"datum": title, **color}
        layers.append({"mark": mark, "encoding": encoding})
    return _spec(rows, 280, layer=layers)


def cloud(rows: Sequence[Row]) -> Spec:
    """Candidates by what they keep and score, shaded by generation, and a line through those that none beats."""
    x = _axis("kept_ratio", "kept ratio (tokens held / tokens seen)", axis={"format": PERCENT}, scale={"zero": False})
    y = _axis("ratio", "score / full cache's score", axis={"format": PERCENT}, scale={"zero": False})
    color = _axis("generation", "generation", scale={"scheme": SCALE}, legend={"orient": "top", "gradientLength": 160})
    line = {
        "transform": [{"filter": "datum.is_best"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": RED, "strokeWidth": 2, "point": {"color": RED}},
        "encoding": {"x": x, "y": y, "order": {"field": "kept_ratio", "type": "quantitative"}},
    }
    points = {
        "mark": {"type": "circle", "size": 30, "opacity": 0.75},
        "encoding": {
            "x": x,
            "y": y,
            "color": color,
            "tooltip": _tooltip(
                ("generation", "generation", "d"), ("kept_ratio", "kept", ".1%"), ("ratio", "score / full", ".1%")
            ),
        },
    }
    return _spec(rows, 360, layer=[points, line])


def intervals(rows: Sequence[Row], label: str, value: str, margin: str, title: str, ours: Sequence[str]) -> Spec:
    """A point with its interval for every label, in the order of the rows; ours are blue and square."""
    is_ours = {"field": label, "oneOf": list(ours)}
    encoding = {
        "y": _axis(label, "", "nominal", sort=None, axis={"labelLimit": 170}),
        "color": {"condition": {"test": is_ours, "value": BLUE}, "value": RED},
    }
    shape = {"condition": {"test": is_ours, "value": "square"}, "value": "circle"}
    tips = _tooltip((label, "memory", None), (value, title, ".1%"), (margin, "±", ".1%"))
    return _with_margins(rows, 20 * len(rows), (value, margin, title), encoding, {"shape": shape, "tooltip": tips})


def survival(rows: Sequence[Row], kinds: Sequence[str], memories: Sequence[str]) -> Spec:
    """Share of the tokens of each kind that survive, with intervals, by memory: one colour and one shape each."""
    names = list(memories)
    colors = {"domain": names, "range": [BLUE, ORANGE, GREY, GREEN, PINK, RED][: len(names)]}
    shapes = {"domain": names, "range": ["square", "circle", "triangle-up", "diamond", "cross"][: len(names)]}
    memory = {"field": "memory_name", "type": "nominal"}
    legend = {"orient": "top", "title": None}
    encoding = {
        "y": _axis("kind", "", "nominal", sort=list(kinds)),
        "yOffset": {**memory, "sort": names},
        "color": {**memory, "scale": colors, "legend": legend},
    }
    shape = {**memory, "scale": shapes, "legend": legend}
    tips = _tooltip(
        ("memory_name", "memory", None),
        ("kind", "kind", None),
        ("survival", "kept", ".1%"),
        ("margin", "±", ".1%"),
        ("tokens", "tokens", ",d"),
    )
    height = (16 * len(names) + 8) * len({row["kind"] for row in rows})
    measure = ("survival", "margin", "share held after the last update")
    return _with_margins(rows, height, measure, encoding, {"shape": shape, "tooltip": tips}, highest=1)


def _with_margins(
    rows: Sequence[Row], height: int, measure: tuple[str, str, str], encoding: Spec, of_points: Spec, highest: int = 9
) -> Spec:
    """Points, each with a line as far as its margin; ``measure``: columns of both, and what they are."""
    value, margin, title = measure
    form = {"format": PERCENT}
    low, high = f"max(0, datum.{value} - datum.{margin})", f"min({highest}, datum.{value} + datum.{margin})"
    line = {"x": _axis("low", title, axis=form), "x2": {"field": "high"}, **encoding}
    points = {"x": _axis(value, title, axis=form), **encoding, **of_points}
    return _spec(
        rows,
        height,
        transform=[{"calculate": low, "as": "low"}, {"calculate": high, "as": "high"}],
        layer=[
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": line},
            {"mark": {"type": "point", "filled": True, "size": 75, "opacity": 1}, "encoding": points},
        ],
    )


def heat(
    rows: Sequence[Row], x: tuple[str, str], y: tuple[str, str], value: tuple[str, str], *, kinds: Sequence[str] = ()
) -> Spec:
    """A map: a coloured field for each pair, with its value in it where there are few.

    Args:
        rows: a row for each field.
        x: column and title of the horizontal axis.
        y: the same, vertical.
        value: column and title of the colour, from 0 to 1.
        kinds: order of ``y`` where it has words.
    """
    columns = len({row[x[0]] for row in rows})
    lines = len({row[y[0]] for row in rows})
    many_columns = columns > 24
    axis_x = {"labelAngle": 0, **({"labelOverlap": True} if many_columns else {})}
    encoding: Spec = {
        "x": _axis(x[0], x[1], "ordinal", axis=axis_x),
        "y": _axis(y[0], y[1], "ordinal", **({"sort": list(kinds)} if kinds else {})),
    }
    tips = _tooltip((x[0], x[1], None), (y[0], y[1] or "kind", None), (value[0], value[1], ".1%"))
    color = _axis(
        value[0], value[1], scale={"scheme": SCALE}, legend={"orient": "top", "format": PERCENT, "gradientLength": 160}
    )
    layers: list[Spec] = [{"mark": "rect", "encoding": {**encoding, "color": color, "tooltip": tips}}]
    if columns <= 16 and lines <= 40:
        low, high = (pick([row[value[0]] for row in rows]) for pick in (min, max))
        middle = (low + high) / 2
        ink = {"condition": {"test": f"datum['{value[0]}'] > {middle}", "value": "#000000"}, "value": "#ffffff"}
        text = {"field": value[0], "type": "quantitative", "format": PERCENT}
        layers.append({"mark": {"type": "text", "fontSize": 11}, "encoding": {**encoding, "text": text, "color": ink}})
    return _spec(rows, lines * (22 if lines <= 40 else 8), layer=layers)


def curves(rows: Sequence[Row], x: tuple[str, str], y: tuple[str, str], by: str) -> Spec:
    """One line for each value of a column, told apart by colour and by dashes."""
    names = list(dict.fromkeys(str(row[by]) for row in rows))
    palette = [BLUE, ORANGE, GREEN, RED, PINK, GREY]
    dashes = [[1, 0], [6, 3], [2, 2], [10, 4], [8, 3, 2, 3], [4, 4]]
    count = len(names)
    color = {"domain": names, "range": [palette[place % 6] for place in range(count)]}
    dash = {"domain": names, "range": [dashes[(place + place // 6) % 6] for place in range(count)]}
    legend = {"orient": "top", "title": None, "labelLimit": 300, "columns": 3}
    return _spec(
        rows,
        280,
        mark={"type": "line", "strokeWidth": 2, "point": len(rows) < 3 * count},
        encoding={
            "x": _axis(*x, axis={"tickMinStep": 1, "format": "d"}, scale={"nice": False}),
            "y": _axis(*y, scale={"zero": False}),
            "color": {"field": by, "type": "nominal", "scale": color, "legend": legend},
            "strokeDash": {"field": by, "type": "nominal", "scale": dash, "legend": legend},
            "tooltip": _tooltip((by, by, None), (*x, "d"), (*y, ".4f")),
        },
    )
