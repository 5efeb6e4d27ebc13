"""Second decoder, written from fedsgd/docs/reference/wire-format*.md alone, to check that the pages are complete.

It is simple and slow, and uses only numpy and the standard library. Functions have the names of the page's forms. Bytes that the
pages do not allow raise ValueError.
"""

from __future__ import annotations

import fnmatch
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Table = dict[str, Any]
Vector = npt.NDArray[np.float32]

TASK, MODEL, UPDATE, REFERENCE, RESYNC, BUFFERS = 1, 2, 3, 4, 5, 6
INDEX, VALUE, SCALE, FACTOR, MANIFEST, CONTROL, BUFFER = 1, 2, 3, 4, 5, 6, 7
ALL_CLIENTS = 2**32 - 1
CHANGES = 40
CODECS = {
    "dense": 1, "top-k": 2, "rand-k": 3, "threshold": 4, "sign": 5, "terngrad": 6, "qsgd": 7, "natural": 8, "integer": 9,
    "eden": 10, "drive": 11, "count-sketch": 12, "per-layer": 13, "scheduled": 14,
    "dgc": 20, "stc": 21, "power-sgd": 22, "ef21": 23, "cafe": 24, "fetch-sgd": 25, "scaffold": 26, "demo": 27,
}  # fmt: skip
CHUNKED = 15
CENTROIDS = {
    1: [0.7978845608028654],
    2: [0.45278003463649225, 1.5104176084990968],
    3: [0.24509417894422184, 0.7560052812058778, 1.343909278505001, 2.151945704536989],
    4: [0.12839502985114726, 0.38804829949029185, 0.6567591185324658, 0.9423404564869639,
        1.2562311973471783, 1.6180463860218859, 2.069017226531389, 2.7325895709951724],
}  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Raise ValueError unless the condition is True."""
    if not condition:
        raise ValueError(message)


class Reader:
    """Bytes that are read in order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, n: int) -> bytes:
        require(n <= len(self.data) - self.offset, "truncated")
        self.offset += n
        return self.data[self.offset - n : self.offset]

    def end(self) -> None:
        require(self.offset == len(self.data), "unread bytes")

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def varint(self) -> int:
        value = 0
        for i in range(5):
            byte = self.number(1)
            value |= (byte & 127) << 7 * i
            if byte < 128:
                require(byte > 0 or i == 0, "varint longer than needed")
                return value
        raise ValueError("varint of more than five bytes")

    def fields(self, widths: Sequence[int]) -> list[int]:
        """Read bit fields, padded to a whole byte."""
        total = sum(widths)
        bits = "".join(f"{byte:08b}"[::-1] for byte in self.take((total + 7) // 8))
        require("1" not in bits[total:], "padding")
        values, start = [], 0
        for width in widths:
            values.append(int("0" + bits[start : start + width][::-1], 2))
            start += width
        return values

    def unary(self, k: int) -> list[int]:
        bits = np.unpackbits(np.frombuffer(self.data[self.offset :], np.uint8), bitorder="little")
        ones = np.flatnonzero(bits)[:k]
        require(len(ones) == k, "truncated unary numbers")
        if k == 0:
            return []
        size = ones[-1] // 8 + 1
        self.take(int(size))
        require(not bits[ones[-1] + 1 : 8 * size].any(), "padding")
        return (np.diff(ones, prepend=-1) - 1).tolist()

    def float32s(self, k: int) -> Vector:
        """Read finite numbers with sign bit 0, as every scale is."""
        values = np.frombuffer(self.take(4 * k), "<f4")
        require(bool(np.isfinite(values).all() and not np.signbit(values).any()), "scale")
        return values


class Sections:
    """Kind and data of each section. A codec takes its sections in order, and reads each to its end."""

    def __init__(self, pairs: Sequence[tuple[int, bytes]]) -> None:
        self.remaining, self.readers = [*pairs], list[Reader]()

    def take(self, kind: int) -> Reader:
        require(bool(self.remaining) and self.remaining[0][0] == kind, f"expected a section of kind {kind}")
        self.readers.append(Reader(self.remaining.pop(0)[1]))
        return self.readers[-1]

    def end(self) -> None:
        require(not self.remaining, "sections that the codec does not have")
        for reader in self.readers:
            reader.end()


# Basic forms


def symbols(data: Reader, n: int) -> npt.NDArray[np.uint8]:
    """Read n symbols; in modes 1 and 2, to the end of the data."""
    mode = data.number(1)
    require(mode < 3, "mode of symbols")
    if mode == 0:
        return np.frombuffer(data.take(n), np.uint8)
    low, high = data.number(1), data.number(1)
    require(low <= high, "table")
    frequencies = [data.varint() for _ in range(low, high)]
    total = 4096 if mode == 1 else 32768
    frequencies.append(total - sum(frequencies))
    require(frequencies[0] >= 1 and frequencies[-1] >= 1, "frequencies")
    sums = np.cumsum([0, *frequencies]).tolist()
    symbol_at = np.repeat(np.arange(len(frequencies)), frequencies).tolist()
    states = [data.number(4) for _ in range(4)]
    require(all(2**15 <= x < 2**31 for x in states), "states")
    out = np.empty(n, np.uint8)
    for i in range(n):
        x = states[i % 4]
        s = symbol_at[x % total]
        out[i] = low + s
        x = frequencies[s] * (x // total) + x % total - sums[s]
        if x < 2**15:
            x = 65536 * x + data.number(2)
        states[i % 4] = x
    require(states == [2**15] * 4, "states at the end")
    data.end()
    return out


def digits(data: Reader, n: int, base: int) -> npt.NDArray[np.int64]:
    d = max(i for i in range(9) if base**i <= 256)
    packed = symbols(data, -(-n // d)).astype(np.int64)
    require(bool((packed < base**d).all()), "digit")
    unpacked = np.stack([packed // base**i % base for i in range(d)], axis=1).ravel()
    require(not unpacked[n:].any(), "digits after the last one")
    return unpacked[:n]


def words(data: Reader, k: int, size: int, entropy: bool) -> npt.NDArray[np.unsignedinteger]:
    mode = data.number(1) if entropy else 0
    require(mode < 2, "mode of words")
    if mode == 0:
        return np.frombuffer(data.take(k * size), f"<u{size}")
    upper = symbols(part := Reader(data.take(data.varint())), k)
    part.end()
    lower = np.frombuffer(data.take(k * (size - 1)), np.uint8).reshape(k, size - 1)
    rotated = np.concatenate([lower, upper[:, None]], axis=1).reshape(-1).view(f"<u{size}")
    return rotated >> 1 | rotated << (8 * size - 1)


# Values of k coordinates


def floats(data: Reader, values: str, k: int, entropy: bool, exponent: int) -> Vector:
    """Read values in one of the three formats that consist of words."""
    if values == "float32":
        out = words(data, k, 4, entropy).view("<f4")
    elif values == "bfloat16":
        out = (words(data, k, 2, entropy).astype(np.uint32) << 16).view(np.float32)
    else:
        require(-163 <= exponent <= 113, "exponent")
        out = (words(data, k, 2, entropy).view("<f2").astype(np.float64) * 2.0**exponent).astype(np.float32)
    require(bool(np.isfinite(out).all()), "not finite")
    return out


def signs(data: Reader, k: int) -> Vector:
    return 1 - 2 * np.array(data.fields([1] * k), np.float32)


def numbers(sections: Sections, values: str, k: int, entropy: bool) -> Vector:
    if values in ("int8", "int4"):
        return levels(sections, k, 127 if values == "int8" else 7, k)
    data = sections.take(VALUE)
    if values == "natural":
        minus = signs(data, k)
        exponents = symbols(data, k)
        require(bool((exponents < 255).all()), "exponent 255")
        return minus * np.where(exponents > 0, 2.0 ** (exponents.astype(int) - 127), 0).astype(np.float32)
    if values == "2bit":
        return grouped(data, sections.take(SCALE), values, [k])
    if values == "ternary":
        scale = one_scale(sections)
        require((scale > 0) == (k > 0), "ternary scale")
        return signs(data, k) * scale
    exponent = 0
    if values == "float16":
        exponent = int.from_bytes(sections.take(SCALE).take(2), "little", signed=True)
    return floats(data, values, k, entropy, exponent)


def grouped(data: Reader, scale: Reader, values: str, counts: list[int]) -> Vector:
    """Read the values of groups of coordinates, each with a scale or four bins."""
    counts = [count for count in counts if count]
    bins, base = {"2bit": (4, 4), "ternary": (1, 2), "int8": (1, 255), "int4": (1, 15)}[values]
    digit = digits(data, sum(counts), base)
    out, start = [], 0
    for count, scales in zip(counts, scale.float32s(bins * len(counts)).reshape(-1, bins), strict=True):
        group, start = digit[start : start + count], start + count
        if values == "2bit":
            require([b in group for b in range(4)] == (scales > 0).tolist(), "bins")
            out.append(scales[group] * np.where(group < 2, -1, 1).astype(np.float32))
        elif values == "ternary":
            require(scales[0] > 0, "scale of a group")
            out.append(scales[0] * (1 - 2 * group).astype(np.float32))
        else:
            out.append(((group - base // 2) * (float(scales[0]) / (base // 2))).astype(np.float32))
    return np.concatenate([np.zeros(0, np.float32), *out])


def one_scale(sections: Sections) -> np.float32:
    (scale,) = sections.take(SCALE).float32s(1)
    return scale


def levels(sections: Sections, n: int, max_level: int, bucket: int) -> Vector:
    data, scale = sections.take(VALUE), sections.take(SCALE)
    level = digits(data, n, 2 * max_level + 1) - max_level
    scales = scale.float32s(-(-n // bucket) if n else 0)
    return (level * (scales.astype(np.float64) / max_level).repeat(bucket)[:n]).astype(np.float32)


# Positions


def positions(reader: Reader, size: int) -> npt.NDArray[np.int64]:
    require(len(reader.data) <= 1 + (size + 7) // 8, "longer than a bitmap")
    tag = reader.number(1)
    require(tag < 5, "tag")
    if tag == 1:
        out = np.flatnonzero(reader.fields([1] * size))
    else:
        k = reader.varint()
        require(k <= size, "more positions than coordinates")
        if tag == 2:
            width = max(1, ((size - 1).bit_length() + 7) // 8)
            out = np.array([reader.number(width) for _ in range(k)], np.int64)
        else:
            out = np.cumsum(np.array((classes if tag == 4 else rice)(reader, k), np.int64) + 1) - 1
        require(bool((np.diff(out, prepend=-1) > 0).all() and (out < size).all()), "positions")
        if tag == 3:
            out = np.setdiff1d(np.arange(size), out)
    return out


def rice(data: Reader, k: int) -> list[int]:
    widths = data.fields([5] * -(-k // 128))
    lower = data.fields([widths[i // 128] for i in range(k)])
    return [(high << widths[i // 128]) + lower[i] for i, high in enumerate(data.unary(k))]


def classes(data: Reader, k: int) -> list[int]:
    reader = Reader(data.take(data.varint()))
    lengths = [int(length) for length in symbols(reader, k)]
    reader.end()
    require(all(length <= 31 for length in lengths), "bit length")
    lower = data.fields([max(0, length - 1) for length in lengths])
    return [low + (1 << length >> 1) for low, length in zip(lower, lengths, strict=True)]


def chunk_positions(data: Reader, chunks: list[tuple[int, int]], limits: list[int]) -> npt.NDArray[np.int64]:
    """Read the positions of each chunk (start, length), at most as many as its limit."""
    tag = data.number(1)
    require(tag < 2, "tag")
    counts = limits
    if tag == 1:
        reader = Reader(data.take(data.varint()))
        missing = rice(reader, len(chunks))
        reader.end()
        counts = [limit - m for limit, m in zip(limits, missing, strict=True)]
        require(any(missing) and min(counts) >= 0, "counts")
    decisions = RangeDecoder(data)
    out = []
    for (start, length), k in zip(chunks, counts, strict=True):
        for i in range(length):
            if decisions.decide(k, length - i):
                out.append(start + i)
                k -= 1
    decisions.end()
    return np.array(out, np.int64)


class RangeDecoder:
    """Decisions of probability k / n, from the bytes that remain."""

    def __init__(self, data: Reader) -> None:
        self.code = data.take(len(data.data) - data.offset)
        require(len(self.code) > 0, "no code")
        self.offset, self.value, self.span = 0, 0, 2**32
        for _ in range(4):
            self.shift()

    def shift(self) -> None:
        require(self.offset < len(self.code) + 3, "truncated code")
        self.value = self.value * 256 + (self.code[self.offset] if self.offset < len(self.code) else 0)
        self.offset += 1

    def decide(self, k: int, n: int) -> bool:
        if k in (0, n):
            return k == n
        upper = self.span // n * min(k, n - k)
        is_upper = self.value >= self.span - upper
        if is_upper:
            self.value -= self.span - upper
        self.span = upper if is_upper else self.span - upper
        while self.span < 2**24:
            self.shift()
            self.span *= 256
        return is_upper == (2 * k <= n)

    def end(self) -> None:
        require(self.offset == len(self.code) + 3 and self.value < 2**24, "end of the code")


# Shared randomness


def key_of(seed: int, purpose: str, *path: int) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, [seed, purpose, *path])).encode()).digest()[:8], "little")


def word(key: int, i: int) -> int:
    z = ((i + 1) * 0x9E3779B97F4A7C15 + key) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


# Compressors


class FrameContext(NamedTuple):
    """Context of a frame, or of one group in it, that sender and receiver derive independently.

    Attributes:
        seed: seed of the run.
        round: round of the frame.
        client: client of the frame.
        shapes: shape of each tensor by name.
        default: value of the coordinates for which the sections have no position; adding −0 changes no number.
    """

    seed: int
    round: int
    client: int
    shapes: dict[str, tuple[int, ...]]
    default: float = 0.0

    @property
    def size(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def key(self, purpose: str) -> int:
        return key_of(self.seed, purpose, self.round, self.client)


def share(density: float, size: float) -> int:
    return max(1, round(density * size))


def vector(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    """Decode the sections with a compressor's settings."""
    name, size = table["name"], ctx.size
    match name:
        case "dense":
            return numbers(sections, table["values"], size, table["entropy"])
        case "top-k" if table.get("chunk") is not None:
            return chunked(table, sections, ctx)
        case "top-k" | "threshold" | "stc" | "dgc":
            max_k = size
            if name == "dgc":
                density = round_density(table["warm_up"], table["warm_up_rounds"], ctx.round, table["density"])
                sizes = [(prod(shape), len(shape)) for shape in ctx.shapes.values()] if table["per_layer"] else [(size, 2)]
                max_k = sum(share(density, n) if dimensions > 1 else n for n, dimensions in sizes if n)
            elif name != "threshold":
                max_k = share(table["density"], size)
            index, values = sparse(sections, "ternary" if name == "stc" else table["values"], size, max_k)
            return scatter(index, values, ctx)
        case "rand-k":
            k = share(table["density"], size)
            return scatter(sample(k, size, ctx.key("rand-k")), numbers(sections, table["values"], k, True), ctx)
        case "sign":
            return signs(sections.take(VALUE), size) * one_scale(sections)
        case "terngrad":
            return levels(sections, size, 1, size)
        case "qsgd":
            return levels(sections, size, table["levels"], table["bucket"])
        case "natural":
            return numbers(sections, "natural", size, False)
        case "integer":
            return levels(sections, size, 127 if table["bits"] == 8 else 7, table["bucket"])
        case "eden" | "drive":
            return rotated(sections, table.get("bits", 1), size, ctx.key(name))
        case "count-sketch":
            return sketch(table, sections, size, ctx.key(name))
        case "fetch-sgd":
            return sketch(table, sections, size, key_of(ctx.seed, name))
        case "power-sgd":
            return low_rank(table, sections, ctx)
        case "scheduled":
            op = table["op"]
            density = round_density(table["densities"], table["rounds"], ctx.round, op["density"])
            return vector({**op, "density": density}, sections, ctx)
        case "demo":
            return cosine(table, sections, ctx)
        case "ef21" | "cafe":
            return vector(table["op"], sections, ctx)
        case "per-layer":
            return per_layer(table, sections, ctx)
    raise ValueError(f"no codec for {name}")


def round_density(densities: Sequence[float], rounds: int, number: int, final: float) -> float:
    stage = (number - 1) // rounds if rounds else len(densities)
    return densities[stage] if stage < len(densities) else final


def scatter(index: npt.NDArray[np.int64], values: Vector, ctx: FrameContext) -> Vector:
    out = np.full(ctx.size, ctx.default, np.float32)
    out[index] = values
    return out


def sparse(sections: Sections, values: str, size: int, max_k: int) -> tuple[npt.NDArray[np.int64], Vector]:
    index = positions(sections.take(INDEX), size)
    require(len(index) <= max_k, "too many coordinates")
    return index, numbers(sections, values, len(index), True)


def chunked(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    starts = range(0, ctx.size, table["chunk"])
    chunks = [(start, min(table["chunk"], ctx.size - start)) for start in starts]
    index = chunk_positions(sections.take(INDEX), chunks, [share(table["density"], n) for _, n in chunks])
    if table.get("scales") != "chunk":
        return scatter(index, numbers(sections, table["values"], len(index), True), ctx)
    counts = np.bincount(index // table["chunk"], minlength=len(chunks)).tolist()
    return scatter(index, grouped(sections.take(VALUE), sections.take(SCALE), table["values"], counts), ctx)


def cosine(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    starts = range(0, ctx.size, table["block"])
    blocks = [(start, min(table["block"], ctx.size - start)) for start in starts]
    index = chunk_positions(sections.take(INDEX), blocks, [min(table["k"], n) for _, n in blocks])
    coefficients = scatter(index, numbers(sections, table["values"], len(index), True), ctx).astype(np.float64)
    out = np.zeros(ctx.size)
    for start, n in blocks:
        i = np.arange(n)
        for j in range(n):
            basis = np.cos(np.pi * ((2 * i + 1) * j % (4 * n)) / (2 * n)) * np.sqrt((2 if j else 1) / n)
            out[start : start + n] += coefficients[start + j] * (np.round(basis * 2**40) / 2**40)
    return out.astype(np.float32)


def sample(k: int, size: int, key: int) -> npt.NDArray[np.int64]:
    positions: set[int] = set()
    for j in range(size - k, size):
        t = (j + 1) * word(key, j) >> 64
        positions.add(j if t in positions else t)
    return np.array(sorted(positions))


def rotated(sections: Sections, bits: int, size: int, key: int) -> Vector:
    blocks = [4096] * (size // 4096)
    remainder = size % 4096
    while remainder > 0:
        blocks.append(max(64, 1 << remainder.bit_length() - 1))
        remainder -= blocks[-1]
    data, scale = sections.take(VALUE), sections.take(SCALE)
    level = digits(data, sum(blocks), 2**bits)
    scales = scale.float32s(len(blocks))
    centroids = np.array([-c for c in reversed(CENTROIDS[bits])] + CENTROIDS[bits])
    y = (centroids[level] * np.repeat(scales.astype(np.float64), blocks)).astype(np.float32)
    for start, d in zip(np.cumsum([0, *blocks]), blocks, strict=False):
        block, distance = y[start : start + d], d // 2
        while distance:
            a, b = block.reshape(-1, 2, distance).swapaxes(0, 1).copy()
            block[:] = np.stack([a + b, a - b], axis=1).reshape(-1)
            distance //= 2
        block *= np.float32(1 / np.sqrt(d))
    minus = [word(key, i // 64) >> i % 64 & 1 for i in range(size)]
    return np.where(minus, -y[:size], y[:size])


def sketch(table: Table, sections: Sections, size: int, key: int) -> Vector:
    rows = table["rows"]
    columns = max(1, round(table["density"] * size / rows))
    cells = numbers(sections, table["values"], rows * columns, True).astype(np.float64)
    estimates = np.empty((rows, size))
    for r in range(rows):
        for i in range(size):
            w = word(key, i + r * 2**32)
            cell = cells[r * columns + (columns * (w >> 32) >> 32)]
            estimates[r, i] = -cell if w & 1 else cell
    return np.sort(estimates, axis=0, kind="stable")[rows // 2].astype(np.float32)


def low_rank(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    rank, values = table["rank"], table["values"]
    sides = {name: (shape[0], prod(shape[1:])) for name, shape in ctx.shapes.items() if len(shape) > 1}
    sides = {name: (n, m) for name, (n, m) in sides.items() if rank * (n + m) < n * m}
    factor, value = sections.take(FACTOR), sections.take(VALUE)
    factors = floats(factor, values, rank * sum(n + m for n, m in sides.values()), False, 0)
    vectors = floats(value, values, ctx.size - sum(n * m for n, m in sides.values()), False, 0)
    out = []
    for name, shape in ctx.shapes.items():
        if name in sides:
            n, m = sides[name]
            p, q, factors = np.split(factors, [n * rank, (n + m) * rank])
            require(float(abs(p).max()) * float(abs(q).max()) * rank <= float(np.finfo(np.float32).max), "factors too large")
            p, q = p.reshape(n, rank).astype(np.float64), q.reshape(m, rank).astype(np.float64)
            matrix = np.zeros((n, m))
            for r in range(rank):
                matrix += p[:, r, None] * q[:, r]
            out.append(matrix.astype(np.float32).ravel())
        else:
            tensor, vectors = np.split(vectors, [prod(shape)])
            out.append(tensor)
    return np.concatenate(out)


def list_groups(table: Table, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[Table, list[str]]]:
    groups: dict[object, tuple[Table, list[str]]] = {}
    for name, shape in shapes.items():
        if prod(shape) == 0:
            continue
        group: object = "rest"
        op = table["op"]
        if table.get("biases") and len(shape) <= 1:
            group, op = "biases", table["biases"]
        for i, rule in reversed([*enumerate(table["rules"])]):
            if fnmatch.fnmatchcase(name, rule["pattern"]):
                group, op = i, rule["op"]
        groups.setdefault(name if table["separate"] else group, (op, []))[1].append(name)
    yield from groups.values()


def per_layer(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    manifest = sections.take(MANIFEST)
    kinds = [kind for kind, _ in sections.remaining]
    require(kinds == sorted({*kinds} - {MANIFEST}), "sections after a MANIFEST")
    readers = {kind: sections.take(kind) for kind in kinds}
    tensors: dict[str, Vector] = {}
    for number, (op, names) in enumerate(list_groups(table, ctx.shapes)):
        pairs: list[tuple[int, bytes]] = []
        count = manifest.number(1)
        require(count <= 8, "sections of a group")
        for _ in range(count):
            kind, length = manifest.number(1), manifest.varint()
            require(kind in readers, "missing section")
            pairs.append((kind, readers[kind].take(length)))
        shapes = {name: ctx.shapes[name] for name in names}
        x = decode_sections(op, Sections(pairs), ctx._replace(seed=key_of(ctx.seed, "group", number), shapes=shapes))
        ends = np.cumsum([prod(shape) for shape in shapes.values()])[:-1]
        tensors |= dict(zip(names, np.split(x, ends), strict=True))
    return np.concatenate([tensors[name] for name in ctx.shapes if name in tensors])


def decode_sections(table: Table, sections: Sections, ctx: FrameContext) -> Vector:
    """Decode exactly the sections of the codec to a finite vector."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = vector(table, sections, ctx)
    sections.end()
    require(bool(np.isfinite(out).all()), "not finite")
    return out


# Frames


class Header(NamedTuple):
    """Header fields of a frame."""

    kind: int
    codec: int
    round: int
    base: int
    acknowledged: int
    client: int
    examples: int


def read_frame(frame: bytes) -> tuple[Header, Sections]:
    require(len(frame) >= 30 and zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little"), "check")
    data = Reader(frame[:-4])
    require(data.take(2) == b"fS" and data.number(1) == 1, "magic, version")
    kind, codec, count = data.number(1), data.number(1), data.number(1)
    header = Header(kind, codec, *[data.number(4) for _ in range(5)])
    require(TASK <= kind <= BUFFERS and header.round >= 1, "kind, round")
    codecs = {
        MODEL: {c for c in CODECS.values() if c < 20} | {CHUNKED, CHANGES},
        UPDATE: {*CODECS.values(), CHUNKED},
        REFERENCE: {24, 26},
    }
    require(codec in codecs.get(kind, {0}), "codec")
    bases = {UPDATE: [header.round], REFERENCE: [0], BUFFERS: [0]}
    require(header.base in bases.get(kind, range(codec == CHANGES, header.round)), "base")
    require(header.acknowledged in {TASK: range(header.round), RESYNC: range(2**32)}.get(kind, [0]), "acknowledged")
    require(kind == UPDATE or header.examples == 0, "examples")
    require((header.client == ALL_CLIENTS) == (kind in (MODEL, REFERENCE, BUFFERS)), "client")
    require(count in {TASK: [0], RESYNC: [0], BUFFERS: [1]}.get(kind, range(256)), "sections")
    sections: list[tuple[int, bytes]] = []
    for _ in range(count):
        section_kind = data.number(1)
        require(INDEX <= section_kind <= BUFFER, "section kind")
        sections.append((section_kind, data.take(data.varint())))
    data.end()
    return header, Sections(sections)


class Update(NamedTuple):
    """Vectors of an UPDATE.

    Attributes:
        update: [P] float32.
        control: [P] float32, change of the client's control variate; None if the compressor has none.
        statistics: [S] float32, the client's entries of buffers; None if S is 0.
    """

    update: Vector
    control: Vector | None
    statistics: Vector | None


def innermost(settings: Table) -> Table:
    """Return the settings of the compressor that determines the codec."""
    while settings["name"] in ("plain", "error-feedback", "ageing"):
        settings = settings["scheme" if settings["name"] == "ageing" else "op"]
    return settings


def codec_of(settings: Table) -> int:
    settings = innermost(settings)
    return CHUNKED if settings["name"] == "top-k" and settings.get("chunk") is not None else CODECS[settings["name"]]


def plain_words(data: Reader, values: str, k: int) -> Vector:
    require(len(data.data) == k * (2 if values == "bfloat16" else 4), "length")
    return floats(data, values, k, False, 0)


def decode_update(frame: bytes, settings: Table, seed: int, shapes: dict[str, tuple[int, ...]], statistics: int = 0) -> Update:
    header, sections = read_frame(frame)
    settings, control, buffers = innermost(settings), None, None
    require(header.kind == UPDATE and header.codec == codec_of(settings), "another kind or codec")
    ctx = FrameContext(seed, header.round, header.client, shapes)
    if statistics:
        require(bool(sections.remaining) and sections.remaining[-1][0] == BUFFER, "no statistics")
        buffers = plain_words(Reader(sections.remaining.pop()[1]), "float32", statistics)
    if settings["name"] == "scaffold":
        control, settings = plain_words(sections.take(CONTROL), settings["values"], ctx.size), settings["op"]
    return Update(decode_sections(settings, sections, ctx), control, buffers)


def decode_reference(frame: bytes, settings: Table, seed: int, shapes: dict[str, tuple[int, ...]]) -> tuple[Header, Vector]:
    header, sections = read_frame(frame)
    require(header.kind == REFERENCE and header.codec == codec_of(settings), "another kind or codec")
    ctx = FrameContext(seed, header.round, header.client, shapes)
    return header, decode_sections({"name": "threshold", "values": "float32"}, sections, ctx)
