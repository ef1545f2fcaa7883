"""What the arrays of one observation show: diagnostics/step-*.npz (docs/diagnostics.md).

Gains as in mHC's Figs. 3 and 7, mappings as in Fig. 8, similarity of neighbouring inputs as in FC's Fig. 2, the
connection matrix as in HC's section 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hcmegatron.report.charts import DEPTH, Chart, Line, Lines, Tiles

Arrays = Mapping[str, np.ndarray]


def observed_charts(arrays: Arrays) -> list[Chart]:
    """All that there is to draw of what is there."""
    return [chart for draw in CHARTS for chart in _drawn(draw, arrays)]


def _drawn(draw: Callable[[Arrays], list[Chart]], arrays: Arrays) -> list[Chart]:
    """Its charts; none where an array that it needs is not there or is of another shape than it should be."""
    try:
        return draw(arrays)
    except (KeyError, ValueError, IndexError, TypeError):
        return []


def _gains(arrays: Arrays) -> list[Chart]:
    names = _names(arrays)
    curves = {
        "gain_forward": "single, forward",
        "gain_backward": "single, backward",
        "composite_forward": "composite to the end, forward",
        "composite_backward": "composite to the end, backward",
    }
    lines = _by_depth(arrays, curves, names)
    return (
        [Lines("gains", "Amax gain of the residual maps by depth", "gain", DEPTH, lines, log=True)]
        if lines
        else []
    )


def _maps(arrays: Arrays) -> list[Chart]:
    """Of every sub-layer, and multiplied out from there to the end of the stack."""
    names, charts = _names(arrays), []
    for key, title in (
        ("residual_map", "Residual maps, mean over tokens"),
        ("composite_map", "Composite maps from each sub-layer to the end, mean over tokens"),
    ):
        if key in arrays:
            maps = arrays[key]
            streams = tuple(f"stream {i + 1}" for i in range(maps.shape[1]))
            tiles = {name: maps[i] for i, name in enumerate(names)}
            signed = bool((maps < 0).any())
            where = (streams, streams, "from", "to", signed, _numbered(names))
            charts.append(Tiles(f"{key.replace('_', '-')}s", title, "weight", tiles, *where))
    return charts


def _read_write(arrays: Arrays) -> list[Chart]:
    names, charts = _names(arrays), []
    for key, title in (
        ("pre", "What each sub-layer reads (pre)"),
        ("post", "Where each sub-layer writes (post)"),
    ):
        if key not in arrays:
            continue
        found = arrays[key]
        columns = tuple(f"stream {i + 1}" for i in range(found.shape[-1]))
        if found.ndim == 3:  # FC: each fraction of x is a sum of the streams of its own
            fractions = tuple(f"fraction {i + 1}" for i in range(found.shape[1]))
            tiles = {name: found[i] for i, name in enumerate(names)}
            where = (fractions, columns, "from", "to", bool((found < 0).any()), _numbered(names))
            charts.append(Tiles(key, title, "weight", tiles, *where))
        else:
            charts.append(_heat(key, title, "weight", found, names, columns, "sub-layer"))
    return charts


def _norms(arrays: Arrays) -> list[Chart]:
    norms = arrays["stream_norm"]
    depth = np.arange(len(norms), dtype=float)
    names = ("before the first", *_names(arrays))
    lines = tuple(
        Line(f"stream {i + 1}", str(i + 1), {"depth": depth}, norms[:, i], i, "marked", names)
        for i in range(norms.shape[1])
    )
    return [Lines("stream-norms", "Norms of the streams by depth", "norm", DEPTH, lines)]


def _stream_similarity(arrays: Arrays) -> list[Chart]:
    found = arrays["stream_similarity"]
    n = found.shape[1]
    if n < 2:
        return []
    streams = tuple(f"stream {i + 1}" for i in range(n))
    names = ("before the first", *(f"after {name}" for name in _names(arrays)))
    tiles = {name: found[i] for i, name in enumerate(names)}
    title = "Cosine similarity of the streams to each other"
    note = _numbered(names)
    return [Tiles("stream-similarity", title, "cosine", tiles, streams, streams, diverging=True, note=note)]


def _layer_similarity(arrays: Arrays) -> list[Chart]:
    found = arrays["layer_similarity"]
    depth, names = np.arange(1.0, 1 + len(found)), _names(arrays)[1:]
    lines = tuple(
        Line(words, words.partition(" ")[0], {"depth": depth}, found[:, i], i, "marked", names)
        for i, words in ((1, "median over tokens"), (0, "5th percentile"), (2, "95th percentile"))
    )
    title = "Cosine similarity of a sub-layer's input to the next one's"
    return [Lines("layer-similarity", title, "cosine", DEPTH, lines)]


def _connection_matrix(arrays: Arrays) -> list[Chart]:
    found = arrays["connection_matrix"]
    names = ("embedding", *_names(arrays), "output")
    if found.shape != (len(names), len(names)):
        return []
    title = "Connection matrix: what every sub-layer reads of every earlier output"
    return [_heat("connection-matrix", title, "weight", found, names, names, "read by", "output of")]


def _gradients(arrays: Arrays) -> list[Chart]:
    curves = {"sublayer_gradient_norm": "of the whole sub-layer", "gradient_norm": "of its connection"}
    lines = _by_depth(arrays, curves, _names(arrays))
    title = "Gradient norms of the sub-layers' parameters by depth, not clipped"
    return [Lines("gradients", title, "norm", DEPTH, lines, log=True)] if lines else []


def _warned_of(arrays: Arrays) -> list[Chart]:
    """What warnings are of, beside gains and gradients."""
    charts: list[Chart] = []
    for key, title, value, words in (
        ("gate_saturation", "Saturated gates by depth", "share", "beyond 0.98 of |tanh|"),
        (
            "doubly_stochastic_error",
            "Distance of the residual maps from doubly stochastic ones by depth",
            "error",
            "largest deviation of a row or column sum from 1",
        ),
    ):
        lines = _by_depth(arrays, {key: words}, _names(arrays))
        if lines:
            charts.append(Lines(key.replace("_", "-"), title, value, DEPTH, lines))
    return charts


def _ablation(arrays: Arrays) -> list[Chart]:
    charts: list[Chart] = []
    lines = _by_depth(arrays, {"ablation_sublayer": "without this sub-layer"}, _names(arrays))
    if lines:
        charts.append(Lines("ablation", "Loss when one sub-layer is left out", "nats more", DEPTH, lines))
    if "ablation_stream" in arrays:
        found = arrays["ablation_stream"]
        streams = tuple(f"stream {i + 1}" for i in range(len(found)))
        over = {"stream": np.arange(1.0, 1 + len(found))}
        line = Line("without this stream", "", over, found, 0, "marked", streams)
        title = "Loss when one stream is left out"
        charts.append(Lines("ablation-streams", title, "nats more", {"stream": "stream"}, (line,)))
    return charts


def _experts(arrays: Arrays) -> list[Chart]:
    charts = []
    for key, title, value in (
        ("expert_load", "Load of the experts", "share of tokens"),
        ("router_bias", "Biases of the routers", "bias"),
    ):
        if key in arrays:
            found = arrays[key]
            layers = arrays["moe_layers"] if "moe_layers" in arrays else range(1, 1 + len(found))
            rows = tuple(f"layer {layer}" for layer in layers)
            columns = tuple(str(i + 1) for i in range(found.shape[1]))
            charts.append(_heat(key.replace("_", "-"), title, value, found, rows, columns, "layer", "expert"))
    return charts


CHARTS = (
    _gains,
    _maps,
    _read_write,
    _norms,
    _stream_similarity,
    _layer_similarity,
    _connection_matrix,
    _gradients,
    _warned_of,
    _ablation,
    _experts,
)


def _numbered(names: tuple[str, ...]) -> str:
    """What the tiles' numbers mean."""
    return f"By depth: 1 is {names[0]}, {len(names)} is {names[-1]}."


def _names(arrays: Arrays) -> tuple[str, ...]:
    return tuple(str(name) for name in arrays["sublayers"])


def _by_depth(arrays: Arrays, curves: Mapping[str, str], names: tuple[str, ...]) -> tuple[Line, ...]:
    depth = np.arange(1.0, 1 + len(names))
    return tuple(
        Line(words, "", {"depth": depth}, arrays[key], number, "marked", names)
        for number, (key, words) in enumerate(curves.items())
        if key in arrays and arrays[key].shape == depth.shape
    )


def _heat(
    name: str,
    title: str,
    value: str,
    found: np.ndarray,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    down: str = "",
    across: str = "",
) -> Tiles:
    """One matrix."""
    if found.shape != (len(rows), len(columns)):
        raise ValueError(f"{name}: {found.shape}")
    return Tiles(
        name, title, value, {"": found}, rows, columns, across, down, diverging=bool((found < 0).any())
    )
